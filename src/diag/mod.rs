//! What the library says: log lines, the last error of a thread, counts of products; and the environment variables.
//!
//! Each file uses only those before it: `delivery`, `border`, `counters`, `report`, `env`, `log`.

pub mod border;
pub mod counters;
mod delivery;
pub mod env;
pub mod error;
pub mod log;
mod report;

pub use error::{Error, Status};

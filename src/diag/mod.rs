//! What the library says: log lines, the last error of a thread, counts of products; and the environment it obeys.

pub mod border;
pub mod counters;
pub mod env;
pub mod error;
pub mod log;

pub use error::{Error, Status};

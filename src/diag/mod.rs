//! What the library says: log lines, the last error of a thread, and the environment it obeys.

pub mod env;
pub mod error;
pub mod log;

pub use error::{Error, Status};

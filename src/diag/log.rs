//! Log lines, prefix `ggml-amx:`, as far as `GGML_AMX_LOG` lets them through. `delivery.rs` says where they go.

pub use super::delivery::{Hold, Level, Sink, deliver, hold, last_words, set_sink};
use super::{delivery, env};

/// Whether `GGML_AMX_LOG` lets lines of this level through.
pub fn enabled(level: Level) -> bool {
    level as i32 >= env::env().log as i32
}

/// Logs one line (no trailing newline needed) if `GGML_AMX_LOG` lets it through.
pub fn line(level: Level, text: &str) {
    if enabled(level) {
        delivery::line(level, text);
    }
}

/// Logs at [`Level::Info`].
#[macro_export]
macro_rules! info { ($($t:tt)*) => { $crate::diag::log::line($crate::diag::log::Level::Info, &format!($($t)*)) } }
/// Logs at [`Level::Warn`].
#[macro_export]
macro_rules! warn { ($($t:tt)*) => { $crate::diag::log::line($crate::diag::log::Level::Warn, &format!($($t)*)) } }
/// Logs at [`Level::Error`].
#[macro_export]
macro_rules! error { ($($t:tt)*) => { $crate::diag::log::line($crate::diag::log::Level::Error, &format!($($t)*)) } }
/// Logs at [`Level::Debug`].
#[macro_export]
macro_rules! debug { ($($t:tt)*) => { $crate::diag::log::line($crate::diag::log::Level::Debug, &format!($($t)*)) } }

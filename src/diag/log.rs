//! Log lines, prefix `ggml-amx:`. They go through the host's log callback once a host is known
//! (so that hosts can silence or collect them) and to standard error before that.

use std::ffi::CString;
use std::sync::OnceLock;

use super::env;

/// Severity; the numbers are ggml's `enum ggml_log_level`.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Details for people who debug the library.
    Debug = 1,
    /// What an operator wants to know once.
    Info = 2,
    /// Something is not as it should be, the library goes on.
    Warn = 3,
    /// A request failed.
    Error = 4,
}

/// A host's `ggml_log_internal(level, format, ...)`.
pub type Sink = unsafe extern "C" fn(level: i32, format: *const libc::c_char, ...);

static SINK: OnceLock<Sink> = OnceLock::new();

/// Sends all later lines to the host's log.
///
/// # Safety
/// `sink` must be ggml's `ggml_log_internal` and stay callable for the life of the process.
pub unsafe fn set_sink(sink: Sink) {
    let _ = SINK.set(sink);
}

/// Whether `GGML_AMX_LOG` lets lines of this level through.
pub fn enabled(level: Level) -> bool {
    level as i32 >= env::env().log as i32
}

/// Logs one line (no trailing newline needed) if `GGML_AMX_LOG` lets it through.
pub fn line(level: Level, text: &str) {
    if enabled(level) {
        early(level, text);
    }
}

/// Logs without asking the environment: for messages about the environment itself.
pub(super) fn early(level: Level, text: &str) {
    let full = format!("ggml-amx: {text}\n");
    match SINK.get() {
        Some(sink) => {
            let full = CString::new(full.replace('\0', "")).unwrap_or_default();
            // SAFETY: set_sink's contract; "%s" takes exactly one C string.
            unsafe { sink(level as i32, c"%s".as_ptr(), full.as_ptr()) }
        }
        None => eprint!("{full}"),
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

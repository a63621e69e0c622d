//! One error type for the whole crate, and the text that `ggml_amx_last_error` returns.

use std::cell::RefCell;
use std::ffi::{CStr, CString};

/// Classes of failure; the numbers are those of the header's `enum ggml_amx_status`.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// A required pointer was NULL.
    NullPointer = 1,
    /// `struct_size` is not the size this library was built with.
    BadStructSize = 2,
    /// This library does not pack the weight type.
    UnknownType = 3,
    /// A dimension is negative, not a multiple of the block, or overflows.
    BadShape = 4,
    /// A stride or range leaves its buffer.
    OutOfBounds = 5,
    /// A buffer is smaller than the operation needs.
    BufferTooSmall = 6,
    /// This CPU (or the environment) does not allow what was asked for.
    NotAvailable = 7,
    /// A bug in this library; the message says more.
    Internal = 8,
}

/// A failed request: its code and a sentence that names what was wrong.
#[derive(Clone, Debug)]
pub struct Error {
    /// The class of failure, as C callers see it.
    pub status: Status,
    /// One line without a trailing newline.
    pub message: String,
}

impl Error {
    /// An error of class `status` with the sentence `message`.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

thread_local! {
    static LAST: RefCell<CString> = RefCell::new(CString::default());
}

/// Remembers `message` as the last error of this thread (NUL bytes are dropped).
pub fn set_last(message: &str) {
    let text = CString::new(message.replace('\0', "")).unwrap_or_default();
    // A thread that is ending has no thread-local data any more: its error is lost.
    let _ = LAST.try_with(|last| *last.borrow_mut() = text);
}

/// Forgets the last error of this thread.
pub fn clear_last() {
    let _ = LAST.try_with(|last| *last.borrow_mut() = CString::default());
}

/// The last error of this thread, empty if none; valid until the next call on the same thread.
pub fn last() -> *const libc::c_char {
    const NONE: &CStr = c"";
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(NONE.as_ptr())
}

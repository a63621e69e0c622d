//! How log lines get out. They go through the host's log callback once a host is known (so that hosts can silence or
//! collect them), and to standard error before that. Nothing here asks the environment: `log.rs` does.
//!
//! A callback is foreign code that may call this library or the host. So it must never run inside an initialiser or
//! while a lock is held: whoever is in one or holds one has a [`Hold`], and lines are delivered when that ends.

use std::cell::RefCell;
use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::process::{Mutex, Once};

/// Severity; the numbers are ggml's `enum ggml_log_level`.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Details for people who debug the library.
    Debug = 1,
    /// What an operator wants to know once.
    Info = 2,
    /// Something is not as it should be, but the library goes on.
    Warn = 3,
    /// A request failed.
    Error = 4,
}

/// A host's `ggml_log_internal(level, format, ...)`.
pub type Sink = unsafe extern "C" fn(level: i32, format: *const libc::c_char, ...);

static SINK: Once<Sink> = Once::new();

/// Sends all later lines to the host's log.
///
/// # Safety
/// `sink` must be ggml's `ggml_log_internal` and stay callable for the life of the process.
pub unsafe fn set_sink(sink: Sink) {
    let _ = SINK.set(sink);
}

type Line = (Level, String);

/// The lines that a thread holds back, and how many [`Hold`]s it has.
#[derive(Default)]
struct HeldBack {
    holds: usize,
    lines: Vec<Line>,
}

thread_local! {
    static HELD_BACK: RefCell<HeldBack> = RefCell::default();
}

/// Lines of calls that came from inside an initialiser of the host's. The next call delivers them.
static LATER: Mutex<Vec<Line>> = Mutex::new(Vec::new());
/// Whether there are any.
static ANY_LATER: AtomicBool = AtomicBool::new(false);

/// Holds back this thread's lines; they are delivered when the last hold of the thread is dropped. Take it before the
/// lock, so that it is dropped after the lock.
#[must_use]
pub struct Hold(PhantomData<*const ()>);

/// Begins a [`Hold`].
pub fn hold() -> Hold {
    // A thread that is ending has no thread-local data any more: it holds nothing back.
    let _ = HELD_BACK.try_with(|held| held.borrow_mut().holds += 1);
    Hold(PhantomData)
}

impl Hold {
    /// Leaves the lines to the next call of this library ([`deliver`]), for the host is inside an initialiser of its
    /// own.
    pub fn leave_for_later(self) {
        let lines = HELD_BACK.try_with(|held| std::mem::take(&mut held.borrow_mut().lines)).unwrap_or_default();
        if !lines.is_empty() {
            LATER.lock().extend(lines);
            ANY_LATER.store(true, Ordering::Release);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let lines = HELD_BACK.try_with(|held| {
            let mut held = held.borrow_mut();
            held.holds -= 1;
            if held.holds == 0 { std::mem::take(&mut held.lines) } else { Vec::new() }
        });
        lines.unwrap_or_default().into_iter().for_each(|(level, text)| send(level, &text));
    }
}

/// Delivers what was left for later. To be called where the host calls in, outside of initialisers and locks.
pub fn deliver() {
    if ANY_LATER.load(Ordering::Relaxed) && ANY_LATER.swap(false, Ordering::Acquire) {
        let lines = std::mem::take(&mut *LATER.lock());
        lines.into_iter().for_each(|(level, text)| send(level, &text));
    }
}

/// Delivers one line (no trailing newline needed), or holds it back.
pub(super) fn line(level: Level, text: &str) {
    let is_held = HELD_BACK.try_with(|held| {
        let mut held = held.borrow_mut();
        let holds = held.holds > 0 && !cfg!(mutant = "log-at-once");
        if holds {
            held.lines.push((level, text.to_string()));
        }
        holds
    });
    if !is_held.unwrap_or(false) {
        deliver();
        send(level, text);
    }
}

/// Says why the process ends, after all lines that were held back.
pub fn last_words(text: &str) {
    deliver();
    let lines = HELD_BACK.try_with(|held| std::mem::take(&mut held.borrow_mut().lines)).unwrap_or_default();
    lines.into_iter().for_each(|(level, text)| send(level, &text));
    send(Level::Error, text);
}

fn send(level: Level, text: &str) {
    let full = format!("ggml-amx: {text}\n");
    match SINK.get() {
        Some(sink) => {
            let full = CString::new(full.replace('\0', "")).unwrap_or_default();
            // SAFETY: `set_sink` was given a function of this type; "%s" takes exactly one C string.
            unsafe { sink(level as i32, c"%s".as_ptr(), full.as_ptr()) }
        }
        None => write_error(&full),
    }
}

/// Writes to standard error, past the lock of the standard library: in a forked child it may be locked for ever.
pub(super) fn write_error(text: &str) {
    // SAFETY: the descriptor is not closed here: the file is never dropped.
    let mut file = unsafe { ManuallyDrop::new(File::from_raw_fd(libc::STDERR_FILENO)) };
    // If standard error is closed, the line is lost.
    let _ = file.write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    thread_local! {
        static READ: RefCell<Vec<String>> = RefCell::default();
    }

    /// A callback that collects lines; at the first one it logs another.
    unsafe extern "C" fn read(_: i32, _format: *const libc::c_char, text: *const libc::c_char) {
        // SAFETY: a C string, as the format says.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy().trim_end().to_string();
        // A thread that is ending has no thread-local data any more.
        let first = READ.try_with(|lines| {
            lines.borrow_mut().push(text);
            lines.borrow().len() == 1
        });
        if first == Ok(true) {
            let _hold = hold();
            line(Level::Info, "of the reader");
        }
    }

    #[test]
    fn lines_wait_for_the_last_hold_or_for_the_next_call() {
        type Read = unsafe extern "C" fn(i32, *const libc::c_char, *const libc::c_char);
        // SAFETY: on x86-64 the one argument behind the format is where a third argument is.
        unsafe { set_sink(std::mem::transmute::<Read, Sink>(read)) };
        let lines =
            || READ.with(|lines| lines.borrow().iter().map(|l| l.replace("ggml-amx: ", "")).collect::<Vec<_>>());
        let outer = hold();
        line(Level::Info, "a");
        drop(hold());
        line(Level::Info, "b");
        assert!(lines().is_empty());
        drop(outer);
        assert_eq!(lines(), ["a", "of the reader", "b"]);

        let of_initialiser = hold();
        line(Level::Info, "c");
        of_initialiser.leave_for_later();
        assert_eq!(lines().len(), 3);
        line(Level::Info, "d");
        deliver();
        assert_eq!(lines()[3..], ["c", "d"]);

        let lost = hold();
        line(Level::Info, "e");
        last_words("f");
        assert_eq!(lines()[5..], ["e", "f"]);
        drop(lost);
        assert_eq!(lines().len(), 7);
    }
}

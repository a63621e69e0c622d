//! The border where C calls this library: panics end there, for unwinding into C is undefined. A panic is a bug; it is
//! logged as an error. Then the caller gets what it gets when the library declines. Where that would leave threads
//! waiting, or lose bytes, the process ends instead.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::delivery::{self, Level};

/// Runs a block inside function `$name` of the border. After a panic the caller gets `$otherwise`, or the process ends.
macro_rules! ffi_boundary {
    ($name:expr, or the process ends, $body:block) => {
        $crate::diag::border::or_end($name, || $body)
    };
    ($name:expr, else $otherwise:expr, $body:block) => {
        $crate::diag::border::or_else($name, || $otherwise, || $body)
    };
}
pub(crate) use ffi_boundary;

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Says why the process ends, and ends it.
fn end(why: &str) -> ! {
    delivery::last_words(why);
    #[cfg(test)]
    trip::say(why);
    std::process::abort()
}

/// What `run` returns; if it panics, a line that names the function and the panic's message.
pub fn caught<T>(name: &str, run: impl FnOnce() -> T) -> Result<T, String> {
    let run = || {
        #[cfg(test)]
        trip::step_on(name);
        run()
    };
    catch_unwind(AssertUnwindSafe(run))
        .map_err(|panic| format!("a bug in ggml-amx: a panic in {name}: {}", message(&*panic)))
}

/// See [`ffi_boundary`].
#[inline]
pub fn or_else<T>(name: &str, otherwise: impl FnOnce() -> T, run: impl FnOnce() -> T) -> T {
    caught(name, run).unwrap_or_else(|why| {
        delivery::line(Level::Error, &why);
        otherwise()
    })
}

/// See [`ffi_boundary`].
#[inline]
pub fn or_end<T>(name: &str, run: impl FnOnce() -> T) -> T {
    caught(name, run).unwrap_or_else(|why| end(&why))
}

/// The border of a function that calls the host, whose C++ exceptions must pass through it: a panic ends the process.
/// To be held while the function runs.
pub struct Passing {
    name: &'static str,
    was_panicking: bool,
}

impl Passing {
    /// The border of function `name`.
    pub fn new(name: &'static str) -> Self {
        let border = Self { name, was_panicking: std::thread::panicking() };
        #[cfg(test)]
        trip::step_on(name);
        border
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.was_panicking {
            end(&format!("a bug in ggml-amx: a panic in {}, see standard error", self.name));
        }
    }
}

/// For tests: panics inside functions of the border, on purpose.
#[cfg(test)]
pub mod trip {
    use std::cell::Cell;

    use crate::process::generation;

    thread_local! {
        static WHERE: Cell<&'static str> = const { Cell::new("") };
    }

    /// Writes to standard error, even if log lines go elsewhere.
    pub(super) fn say(text: &str) {
        // SAFETY: as many bytes as the text has.
        unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
    }

    pub(super) fn step_on(name: &str) {
        if WHERE.get() == name {
            WHERE.set("");
            panic!("on purpose");
        }
    }

    /// `call` calls function `name`, which panics; returns whether the result is what a caller gets then.
    #[track_caller]
    pub fn goes_on(name: &'static str, call: impl FnOnce() -> bool) {
        WHERE.set(name);
        assert!(call(), "{name}: not the result of a declined call");
        assert_eq!(WHERE.get(), "", "{name} has no border");
    }

    /// Makes panics in forked children print nothing: the lock of standard error may have been held by another thread
    /// of the parent, and then stays locked.
    fn silence_children() {
        static DONE: std::sync::Once = std::sync::Once::new();
        DONE.call_once(|| {
            let (parent, hook) = (generation(), std::panic::take_hook());
            std::panic::set_hook(Box::new(move |what| {
                if generation() == parent {
                    hook(what);
                }
            }));
        });
    }

    /// `call` calls function `name`, which panics: the process must end, and say why.
    #[track_caller]
    pub fn ends<T>(name: &'static str, call: impl FnOnce() -> T) {
        silence_children();
        let mut ends = [0; 2];
        let mut said = vec![0u8; 1 << 16];
        // SAFETY: file descriptors of this function; the child does nothing but the call, and does not return.
        let (status, length) = unsafe {
            assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
            let child = libc::fork();
            assert!(child >= 0);
            if child == 0 {
                libc::dup2(ends[1], 2);
                WHERE.set(name);
                call();
                libc::_exit(0);
            }
            libc::close(ends[1]);
            let mut length = 0;
            loop {
                let read = libc::read(ends[0], said[length..].as_mut_ptr().cast(), said.len() - length);
                if read <= 0 {
                    break;
                }
                length += read as usize;
            }
            libc::close(ends[0]);
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
            (status, length)
        };
        let said = String::from_utf8_lossy(&said[..length]).into_owned();
        let aborted = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGABRT;
        assert!(aborted, "{name}: status {status:#x} instead of an abort; {said}");
        assert!(said.contains(&format!("a bug in ggml-amx: a panic in {name}")), "{name}: {said}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    /// Functions that C calls and that need no border, and why.
    const NONE: [(&str, &str); 18] = [
        ("before_fork", "only atomics"),
        ("after_fork", "only atomics"),
        ("in_child", "only atomics"),
        ("handler", "part of the emulator, for tests"),
        ("first", "a callback of Rust's, reads two words"),
        ("add", "a callback of Rust's, pushes to a list"),
        ("nothing", "returns 0"),
        ("ggml_amx_version", "returns a constant"),
        ("get_alignment", "returns a constant"),
        ("get_max_size", "returns a constant"),
        ("is_host", "returns a constant"),
        ("buffer_name", "returns a constant"),
        ("reset", "does nothing"),
        ("personality", "catches exceptions"),
        ("cleanup", "catches exceptions"),
        ("run", "a callback of Rust's; panics and exceptions pass"),
        ("run_started", "hands panics to the thread that waits"),
        ("$name", "jumps"),
    ];

    fn files(dir: &Path) -> Vec<PathBuf> {
        let all = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        all.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
    }

    #[test]
    fn every_function_that_c_calls_has_a_border() {
        let mut seen = 0;
        for file in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
            // Functions in tests need none.
            let of_tests = ["tests", "testing", "stand_in"];
            let name = |part: std::path::Component<'_>| part.as_os_str().to_string_lossy().into_owned();
            if file.components().map(name).any(|name| of_tests.contains(&name.trim_end_matches(".rs"))) {
                continue;
            }
            let text = fs::read_to_string(&file).unwrap();
            let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            for (at, _) in text.match_indices(" fn ") {
                let before = &text[..at];
                if !(before.ends_with("extern \"C\"") || before.ends_with("extern \"C-unwind\"")) {
                    continue;
                }
                let rest = &text[at + 4..];
                let name = rest.split(['(', '<']).next().unwrap();
                let body = rest.find(['{', ';']).unwrap_or(0);
                // A declaration; a naked function that jumps to the one inside it; or a function that begins with its
                // border.
                let begins = rest[body..].chars().take(400).collect::<String>();
                let has = ["ffi_boundary!", "Passing::new", "guarded(", "naked_asm!", "fn inner("];
                let is_known = NONE.iter().any(|(known, _)| *known == name);
                seen += usize::from(begins.starts_with('{'));
                assert!(
                    begins.starts_with(';') || is_known || has.iter().any(|has| begins.contains(has)),
                    "{}: {name} has no border",
                    file.display()
                );
            }
        }
        assert!(seen > 50, "{seen} functions");
    }
}

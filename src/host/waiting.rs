//! Threads that wait for one another while a host is looked at or tried. The trial may be waiting for the very thread
//! that waits for it, so nobody waits longer than [`PATIENCE`].

use std::time::{Duration, Instant};

use crate::process::generation;

/// How long a thread waits for another one.
const PATIENCE: Duration = Duration::from_secs(5);

/// A thread of a process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ThreadId {
    process: u32,
    thread: usize,
}

impl ThreadId {
    /// This thread. In a forked child it is another one than the thread that forked.
    pub fn current() -> Self {
        // SAFETY: no preconditions.
        Self { process: generation(), thread: unsafe { libc::pthread_self() as usize } }
    }

    /// Whether this process has it: a forked child has none of its parent's threads, though it has their memory.
    pub fn is_here(self) -> bool {
        self.process == generation()
    }
}

/// When a thread stops waiting.
pub struct Deadline(Instant);

impl Deadline {
    /// [`PATIENCE`] from now on.
    pub fn new() -> Self {
        Self(Instant::now() + PATIENCE)
    }

    /// The time until then, 0 once it has passed.
    pub fn left(&self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

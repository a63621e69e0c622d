//! Where threads wait for each other. A waiting thread looks for about as long as others are late when each has a core
//! of its own; then it sleeps, so that its core does something else.

use super::sync::{self, AtomicU32, Ordering};

/// Two cache lines, which processors fetch together: what stands in front and behind is not disturbed.
#[repr(align(128))]
struct Lines<T>(T);

/// Lowest bit of a signal's word: somebody sleeps until it changes. The others are its value.
const ASLEEP: u32 = 1;

/// A number of 31 bits that threads wait for.
pub struct Signal(Lines<AtomicU32>);

impl Signal {
    /// With the value 0.
    pub fn new() -> Self {
        Self(Lines(AtomicU32::new(0)))
    }

    /// Its value. What was done before it was set is seen.
    pub fn value(&self) -> u32 {
        self.0.0.load(Ordering::Acquire) >> 1
    }

    /// Sets it, and wakes who sleeps. Not for several threads at once.
    pub fn set(&self, value: u32) {
        if self.0.0.swap(value << 1, Ordering::AcqRel) & ASLEEP != 0 {
            sync::wake_all(&self.0.0);
        }
    }

    /// Waits until its value `is` the one. `crowded` says that there are more threads than cores. The signal must outlive
    /// the calls of those that wait and of who sets it.
    pub fn wait_until(&self, crowded: bool, is: impl Fn(u32) -> bool) {
        if sync::look(crowded, || is(self.value())) {
            return;
        }
        loop {
            let word = self.0.0.load(Ordering::Acquire);
            if is(word >> 1) {
                return;
            }
            let asleep = word | ASLEEP;
            if word == asleep || self.0.0.compare_exchange(word, asleep, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                sync::sleep(&self.0.0, asleep);
            }
        }
    }
}

impl Default for Signal {
    fn default() -> Self {
        Self::new()
    }
}

/// Any number of meetings, one after the other, each of as many threads as all of them say. Sense-reversing: the sense is
/// the count of meetings, so that it can be used again at once.
pub struct Rendezvous {
    /// Threads that have come to this meeting.
    come: Lines<AtomicU32>,
    /// Meetings that are over.
    over: Signal,
}

impl Rendezvous {
    /// Nobody has come yet.
    pub fn new() -> Self {
        Self { come: Lines(AtomicU32::new(0)), over: Signal::new() }
    }

    /// Waits until `count` threads have come to this meeting. What they did before is seen afterwards. `crowded` and
    /// lifetimes as for [`Signal::wait_until`].
    pub fn wait(&self, count: usize, crowded: bool) {
        // The meeting cannot be over before this thread comes.
        let before = self.over.value();
        if self.come.0.fetch_add(1, Ordering::AcqRel) as usize + 1 == count {
            self.come.0.store(0, Ordering::Relaxed);
            self.over.set(before.wrapping_add(1));
        } else {
            self.over.wait_until(crowded, |over| over != before);
        }
    }
}

impl Default for Rendezvous {
    fn default() -> Self {
        Self::new()
    }
}

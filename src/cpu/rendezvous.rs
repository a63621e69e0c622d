//! Where threads wait for each other. A waiting thread spins for about as long as others are late when each has a core
//! of its own; then it sleeps, so that its core can do something else.

use super::sync::{self, AtomicU32, Ordering};

/// Alone on two cache lines, which processors fetch as a pair: its neighbours in memory are not slowed down.
#[repr(align(128))]
struct Lines<T>(T);

/// Lowest bit of a signal's word: a thread sleeps until the word changes. The other bits are the value.
const ASLEEP: u32 = 1;

/// A number of 31 bits that threads can wait for.
pub struct Signal(Lines<AtomicU32>);

impl Signal {
    /// With the value 0.
    pub fn new() -> Self {
        Self(Lines(AtomicU32::new(0)))
    }

    /// Its value. The caller sees what the setting thread did before.
    pub fn value(&self) -> u32 {
        self.0.0.load(Ordering::Acquire) >> 1
    }

    /// Sets it and wakes the threads that sleep. Only one thread may call this at a time.
    pub fn set(&self, value: u32) {
        if self.0.0.swap(value << 1, Ordering::AcqRel) & ASLEEP != 0 {
            sync::wake_all(&self.0.0);
        }
    }

    /// Waits until `is` is true of its value. `crowded`: there are more threads than cores. The signal must outlive the
    /// calls of all threads that wait for it or set it.
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

/// A barrier for any number of meetings, one after the other; the threads of a meeting all say how many they are.
/// Sense-reversing: the sense is the number of meetings, so that the next one can begin at once.
pub struct Rendezvous {
    /// Threads that have arrived at this meeting.
    arrived: Lines<AtomicU32>,
    /// Meetings that are over.
    over: Signal,
}

impl Rendezvous {
    /// No thread has arrived.
    pub fn new() -> Self {
        Self { arrived: Lines(AtomicU32::new(0)), over: Signal::new() }
    }

    /// Waits until `count` threads have arrived at this meeting. Each then sees what the others did before. `crowded`
    /// and lifetimes as for [`Signal::wait_until`].
    pub fn wait(&self, count: usize, crowded: bool) {
        // The meeting cannot be over before this thread arrives.
        let before = self.over.value();
        if self.arrived.0.fetch_add(1, Ordering::AcqRel) as usize + 1 == count {
            self.arrived.0.store(0, Ordering::Relaxed);
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

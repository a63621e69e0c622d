//! What [`super::rendezvous`] and other things that threads share are made of: atomics, locks, sleeping on a word of
//! memory, and spinning before that. A module of its own, so that a test can put models in its place.
//!
//! What threads of the host share in `host/ik` is locked by the locks of this module, not by those of
//! [`crate::process`]: under ThreadSanitizer they are pthread's, whose order it sees.

#[cfg(race)]
mod pthread;

use std::cell::Cell;

#[cfg(not(race))]
pub use crate::process::{Condvar, Mutex, MutexGuard, RwLock};
pub use crate::process::{sleep, wake_all};
#[cfg(race)]
pub use pthread::{Condvar, Mutex, MutexGuard, RwLock};
pub use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Most ticks of the time stamp counter (2 to 4 GHz) that a thread spins: several times the distance between the
/// threads of one operation when each has a core, and about what it costs to sleep and to be woken.
const LONGEST: u64 = 1 << 17;
/// The same for a thread that had to sleep after its last waits.
const SHORTEST: u64 = 1 << 11;
/// Every so many waits a thread spins the longest time once, whatever it learned.
const TRY_AGAIN: u32 = 32;

thread_local! {
    /// Ticks that this thread spins next time, and how many times it has waited.
    static PATIENCE: Cell<(u64, u32)> = const { Cell::new((LONGEST, 0)) };
}

/// Spins until `there` is true; returns false if it is better to sleep. A thread learns from its last waits how long to
/// spin. `crowded`: there are more threads than cores, so that others may need this one's core to get ahead.
pub fn look(crowded: bool, there: impl Fn() -> bool) -> bool {
    if there() {
        return true;
    }
    let (usual, turn) = PATIENCE.get();
    let limit = if crowded {
        SHORTEST
    } else if turn % TRY_AGAIN == 0 {
        LONGEST
    } else {
        usual
    };
    let start = ticks();
    let seen = loop {
        std::hint::spin_loop();
        if there() {
            break true;
        }
        if ticks().wrapping_sub(start) >= limit {
            break false;
        }
    };
    if !crowded {
        let next = if seen { limit.max(usual) * 2 } else { usual / 2 };
        PATIENCE.set((next.clamp(SHORTEST, LONGEST), turn.wrapping_add(1)));
    }
    seen
}

fn ticks() -> u64 {
    // SAFETY: every x86-64 CPU has the counter, and user code may read it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

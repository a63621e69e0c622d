//! What [`super::rendezvous`] and other things that threads share are made of: atomics, locks, a way to sleep on a word of
//! memory, and how long to look before sleeping. Apart, so that a test can put models of them in their place.

#[cfg(race)]
mod pthread;

use std::cell::Cell;

#[cfg(not(race))]
pub use crate::process::{Condvar, Mutex, MutexGuard, RwLock};
pub use crate::process::{sleep, wake_all};
#[cfg(race)]
pub use pthread::{Condvar, Mutex, MutexGuard, RwLock};
pub use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Ticks of the time stamp counter (2 to 4 GHz) that a thread looks at most: some times what the threads of one
/// operation lie apart when each has a core, and about what it costs to sleep and to be woken.
const LONGEST: u64 = 1 << 17;
/// The same for a thread that had to sleep the last times.
const SHORTEST: u64 = 1 << 11;
/// So many times a thread looks no longer than that; then it tries the longest once.
const TRY_AGAIN: u32 = 32;

thread_local! {
    /// Ticks this thread looks next time, and how many times it waited.
    static PATIENCE: Cell<(u64, u32)> = const { Cell::new((LONGEST, 0)) };
}

/// Looks `there` until it is true, or until it is better to sleep: then false. How long that is, a thread learns from
/// how it went before. `crowded` says that there are more threads than cores: others need this one's to get ahead.
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
    // SAFETY: every x86-64 has it, and user code may read it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

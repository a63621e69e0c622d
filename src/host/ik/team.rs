//! Where the threads of one operation of ik_llama.cpp meet. Its kernels are called with a thread's number and the
//! count, nothing else: no barrier, no work buffer. All threads of an operation agree on where its result lies, and
//! nobody else writes there meanwhile; so that address is the name of a team.
//!
//! Teams and their scratch stay for the next operation. Several contexts may compute at once.

use std::cell::{Cell, UnsafeCell};
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use crate::cpu::memory::Region;

/// Teams at work at the same time; more wait for one that is done.
const TEAMS: usize = 64;
/// Rounds of looking before a waiting thread lets others run: there may be more threads than cores.
const SPINS: usize = 1 << 14;

/// One team.
struct Team {
    /// Address of the result; 0: free.
    name: AtomicUsize,
    /// Threads that are done.
    left: AtomicUsize,
    /// Threads at the barrier, and how often all were there.
    waiting: AtomicUsize,
    rounds: AtomicUsize,
    /// Work buffer, aligned to a cache line.
    work: AtomicPtr<u8>,
    /// What it lies in; touched under the lock, while the team is free.
    region: UnsafeCell<Option<Region>>,
}

// SAFETY: everything is atomic but the region, which the lock protects.
unsafe impl Sync for Team {}

impl Team {
    const fn free() -> Self {
        Self {
            name: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            rounds: AtomicUsize::new(0),
            work: AtomicPtr::new(std::ptr::null_mut()),
            region: UnsafeCell::new(None),
        }
    }
}

static ALL: [Team; TEAMS] = [const { Team::free() }; TEAMS];
/// Held to look for a team or to make one.
static LOCK: Mutex<()> = Mutex::new(());

thread_local! {
    /// The team this thread was in last: most likely the next operation's too.
    static LAST: Cell<usize> = const { Cell::new(0) };
}

/// A thread's place in a team, until it is dropped.
pub struct Member {
    team: &'static Team,
    count: usize,
}

/// Enters the team of the operation whose result lies at `name` (not 0), `count` threads in all, which want `bytes` of
/// work buffer. All of them must come, with the same numbers. `Err` if there is no memory: all get it.
pub fn join(name: usize, count: usize, bytes: usize) -> Result<Member, std::io::Error> {
    let last = LAST.get();
    // Without the lock if somebody made it already where it was before.
    if ALL[last].name.load(Ordering::Acquire) == name {
        return Ok(Member { team: &ALL[last], count });
    }
    loop {
        {
            let _guard = LOCK.lock().unwrap_or_else(|e| e.into_inner());
            let named = |wanted: usize| ALL.iter().position(|t| t.name.load(Ordering::Acquire) == wanted);
            let found = named(name);
            let free = || if ALL[last].name.load(Ordering::Acquire) == 0 { Some(last) } else { named(0) };
            if let Some(index) = found.or_else(free) {
                let team = &ALL[index];
                if found.is_none() {
                    // SAFETY: the team is free and we hold the lock.
                    unsafe { reserve(team, bytes)? };
                    team.name.store(name, Ordering::Release);
                }
                LAST.set(index);
                return Ok(Member { team, count });
            }
        }
        std::thread::yield_now();
    }
}

/// Makes sure that a free team has as much work buffer.
///
/// # Safety
/// The lock must be held, the team be free.
unsafe fn reserve(team: &Team, bytes: usize) -> Result<(), std::io::Error> {
    // SAFETY: promised by the caller.
    let region = unsafe { &mut *team.region.get() };
    if region.as_ref().is_none_or(|r| r.len() < bytes) {
        // The old one first: both may not fit.
        *region = None;
        let made = Region::new(bytes.saturating_add(bytes / 4))?;
        team.work.store(made.base().as_ptr(), Ordering::Relaxed);
        *region = Some(made);
    }
    Ok(())
}

impl Member {
    /// The work buffer, shared by the team.
    pub fn work(&self) -> *mut u8 {
        self.team.work.load(Ordering::Relaxed)
    }

    /// Waits for all threads of the team.
    pub fn wait(&self) {
        let team = self.team;
        let round = team.rounds.load(Ordering::Acquire);
        if team.waiting.fetch_add(1, Ordering::AcqRel) + 1 == self.count {
            team.waiting.store(0, Ordering::Relaxed);
            team.rounds.store(round.wrapping_add(1), Ordering::Release);
            return;
        }
        let mut spins = 0;
        while team.rounds.load(Ordering::Acquire) == round {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if self.team.left.fetch_add(1, Ordering::AcqRel) + 1 == self.count {
            self.team.left.store(0, Ordering::Relaxed);
            self.team.name.store(0, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    /// Given several contexts with changing thread counts, when each runs many operations one after the other, with a
    /// barrier of its own between them as hosts have, then every thread of a team sees what the others wrote.
    #[test]
    fn teams_of_several_contexts_do_not_mix() {
        std::thread::scope(|scope| {
            for (context, count) in [(1usize, 1usize), (2, 3), (3, 2), (4, 4)] {
                let host = Box::leak(Box::new(Barrier::new(count)));
                for thread in 0..count {
                    let host = &*host;
                    scope.spawn(move || {
                        for op in 0..300usize {
                            let name = context * 0x1000 + op % 3 * 64;
                            let member = join(name, count, 4096 + op * 64).unwrap();
                            let words = member.work().cast::<usize>();
                            for round in 0..3 {
                                // SAFETY: every thread writes its own word.
                                unsafe { words.add(thread).write_volatile(name + op + round) };
                                member.wait();
                                for other in 0..count {
                                    // SAFETY: all have written, nobody writes before the next barrier.
                                    let seen = unsafe { words.add(other).read_volatile() };
                                    assert_eq!(seen, name + op + round);
                                }
                                member.wait();
                            }
                            drop(member);
                            host.wait();
                        }
                    });
                }
            }
        });
        assert!(ALL.iter().all(|t| t.name.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn a_work_buffer_that_cannot_be_had_is_an_error() {
        assert!(join(0x77, 1, 1 << 60).is_err());
        // The team is as good as before.
        assert!(!join(0x77, 1, 4096).unwrap().work().is_null());
    }
}

//! Threads for one product of the stand-alone API, where no host lends any. They are started for the call and joined at
//! its end, so a forked child needs nothing from its parent. A thread that cannot be started is done without: the
//! others learn how many they are only when all have been started.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, available_parallelism, scope};

use crate::diag::{Error, Status};
use crate::matmul::{MatMul, Settings, Thread};

/// Nobody has more cores.
const MAX_THREADS: usize = 1024;
/// Multiplications for which a thread more is worth its start: that takes about 15 microseconds, in which a core reads
/// 150 KB of weights.
const MULS_PER_THREAD: usize = 1 << 18;
/// Columns of weights that are not cut between threads.
const COLUMNS: usize = 32;

/// What the threads of a product agree on: how many they are, and where they wait.
struct Team {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// How many threads there are; 0 as long as they are being started.
    count: usize,
    /// How many of them wait.
    waiting: usize,
    /// How often all of them have met.
    round: usize,
    /// One of them has panicked: nobody waits for it any more.
    broken: bool,
}

/// What a thread panics with that would wait for one that has.
struct Broken;

impl Team {
    fn new() -> Self {
        Self { state: Mutex::default(), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panicked left it whole: nothing in here panics halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while<'a>(
        &self,
        state: MutexGuard<'a, State>,
        what: impl FnMut(&mut State) -> bool,
    ) -> MutexGuard<'a, State> {
        self.changed.wait_while(state, what).unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the threads how many they are: now they may begin.
    fn begin(&self, count: usize) {
        self.state().count = count;
        self.changed.notify_all();
    }

    /// Waits for that number.
    fn count(&self) -> usize {
        self.wait_while(self.state(), |s| s.count == 0).count
    }

    /// Waits for all threads. Panics if one of them has.
    fn meet(&self) {
        let mut state = self.state();
        state.waiting += 1;
        if state.waiting == state.count {
            (state.waiting, state.round) = (0, state.round.wrapping_add(1));
            self.changed.notify_all();
        } else {
            let round = state.round;
            state = self.wait_while(state, |s| s.round == round && !s.broken);
        }
        if state.broken {
            drop(state);
            resume_unwind(Box::new(Broken));
        }
    }

    /// Runs one thread's part; a panic in it lets the others go.
    fn guard(&self, part: impl FnOnce()) -> std::thread::Result<()> {
        catch_unwind(AssertUnwindSafe(part)).inspect_err(|_| {
            self.state().broken = true;
            self.changed.notify_all();
        })
    }
}

/// How many threads a product is worth: no more than there are pieces, or work for.
fn useful(product: &MatMul) -> usize {
    let ([k, n, ..], m) = (product.weights.ne, product.input.ne[1]);
    let pieces = n.div_ceil(COLUMNS).saturating_mul(m.div_ceil(COLUMNS));
    let muls = k.saturating_mul(n).saturating_mul(m);
    pieces.min(muls / MULS_PER_THREAD).max(1)
}

/// Memory that all threads write to, each its own part.
struct Work(*mut u8);

// SAFETY: see `run`.
unsafe impl Sync for Work {}

impl Work {
    fn get(&self) -> *mut u8 {
        self.0
    }
}

/// A product whose pointers are the C caller's.
struct Shared<'a>(&'a MatMul);

// SAFETY: see `run`.
unsafe impl Sync for Shared<'_> {}

impl Shared<'_> {
    fn get(&self) -> &MatMul {
        self.0
    }
}

/// Computes `product` on at most `wanted` threads, or as many as there are cores for 0.
///
/// # Safety
/// The product must have passed its check, its pointers must be valid and the instruction set usable.
pub unsafe fn run(product: &MatMul, settings: Settings, wanted: usize) -> Result<(), Error> {
    let cores = || available_parallelism().map_or(1, usize::from);
    let wanted = if wanted == 0 { cores() } else { wanted };
    let mut count = wanted.min(MAX_THREADS).min(useful(product));
    // Fewer threads need less memory. What fewer than `count` threads need lies in what `count` need.
    let mut work = loop {
        let size = product
            .work_size(count)
            .ok_or_else(|| Error::new(Status::BadShape, "the work buffer does not fit the address space"))?;
        let mut work = Vec::<u8>::new();
        match work.try_reserve_exact(size) {
            Ok(()) => break work,
            Err(_) if count > 1 => count /= 2,
            Err(e) => {
                let why = format!("no memory for {size} bytes of work buffer: {e}");
                return Err(Error::new(Status::Internal, why));
            }
        }
    };
    let (team, work, product) = (Team::new(), Work(work.as_mut_ptr()), Shared(product));
    let part = |index: usize, count: usize| {
        let thread = Thread { index, count, barrier: &|| team.meet() };
        // SAFETY: promised by the caller; the work buffer has the size for so many threads, and the operation gives
        // every thread its own part of it and of the result.
        team.guard(|| unsafe { product.get().run(settings, &thread, work.get()) })
    };
    scope(|scope| {
        let mut started = Vec::with_capacity(count);
        while started.len() + 1 < count {
            let index = started.len() + 1;
            let (team, part) = (&team, &part);
            match Builder::new().spawn_scoped(scope, move || part(index, team.count())) {
                Ok(thread) => started.push(thread),
                Err(_) => break,
            }
        }
        let count = started.len() + 1;
        team.begin(count);
        let mine = part(0, count);
        let theirs = started.into_iter().map(|thread| thread.join().and_then(|result| result));
        let first = theirs.chain([mine]).filter_map(Result::err).min_by_key(|why| why.is::<Broken>());
        first.map_or(Ok(()), |why| resume_unwind(why))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_panic_in_one_thread_then_the_others_do_not_wait_for_it() {
        let team = Team::new();
        team.begin(3);
        let ended = scope(|scope| {
            let others: Vec<_> = (0..2).map(|_| scope.spawn(|| team.guard(|| team.meet()))).collect();
            let first = team.guard(|| resume_unwind(Box::new("first")));
            let broken = others.into_iter().map(|t| t.join().unwrap().unwrap_err().is::<Broken>());
            (first.unwrap_err().is::<Broken>(), broken.collect::<Vec<_>>())
        });
        assert_eq!(ended, (false, vec![true, true]));
    }

    #[test]
    fn given_many_rounds_then_nobody_runs_ahead() {
        let (team, rounds) = (Team::new(), std::sync::atomic::AtomicUsize::new(0));
        team.begin(5);
        scope(|scope| {
            for _ in 0..5 {
                scope.spawn(|| {
                    for round in 0..500 {
                        let before = rounds.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        assert!((5 * round..5 * round + 5).contains(&before), "{before} in round {round}");
                        team.meet();
                    }
                });
            }
        });
    }
}

//! Threads for one product of the stand-alone API, where no host lends any. They are started for the call and joined at
//! its end, so a forked child needs nothing from its parent. A thread that cannot be started is done without: the
//! others learn how many they are only when all have been started.

use std::any::Any;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;

use libc::{c_void, pthread_t};

use crate::diag::{Error, Status};
use crate::matmul::{MatMul, Settings, Thread};

/// Nobody has more cores.
const MAX_THREADS: usize = 1024;
/// Multiplications for which a thread more is worth its start and join: that takes about 20 microseconds, in which a
/// core reads 200 KB of weights.
const MULS_PER_THREAD: usize = 1 << 18;
/// Columns of weights that are not cut between threads.
const COLUMNS: usize = 32;

/// Bytes of a thread's stack: as much as Rust gives its own.
const STACK: usize = 2 << 20;

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
    /// What the first of them has panicked with: nobody waits for it any more.
    panic: Option<Box<dyn Any + Send>>,
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
            state = self.wait_while(state, |s| s.round == round && s.panic.is_none());
        }
        if state.panic.is_some() {
            drop(state);
            resume_unwind(Box::new(Broken));
        }
    }

    /// Runs one thread's part; a panic in it lets the others go.
    fn guard(&self, part: impl FnOnce()) {
        if let Err(why) = catch_unwind(AssertUnwindSafe(part)) {
            self.state().panic.get_or_insert(why);
            self.changed.notify_all();
        }
    }
}

/// What a thread is started with.
struct Start<'a> {
    team: &'a Team,
    index: usize,
    /// Does the part of a thread of so many.
    part: &'a (dyn Fn(usize, usize) + Sync),
}

extern "C" fn run_started(start: *mut c_void) -> *mut c_void {
    // SAFETY: `start` lets what it points to live until the thread was joined.
    let start = unsafe { &*start.cast::<Start<'_>>() };
    start.team.guard(|| (start.part)(start.index, start.team.count()));
    std::ptr::null_mut()
}

/// Starts a thread, if one can be had. One of libc's: a thread of Rust's own takes memory on its way, and ends the
/// process if there is none left.
///
/// It must be joined before anything is dropped that it was started with: [`together`] does.
fn start(start: &Start<'_>) -> Option<pthread_t> {
    let (mut attributes, mut thread) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: attributes are made before they are used, and the caller lets `start` live.
    unsafe {
        if libc::pthread_attr_init(attributes.as_mut_ptr()) != 0 {
            return None;
        }
        // Refused, it is the system's own size.
        libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), STACK);
        let context = std::ptr::from_ref(start).cast_mut().cast();
        let failed = libc::pthread_create(thread.as_mut_ptr(), attributes.as_ptr(), run_started, context);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        (failed == 0).then(|| thread.assume_init())
    }
}

/// Lets as many of `count` threads as can be had, this one among them, do their parts, and waits for them. `start` is
/// [`start`], or refuses.
fn together(
    count: usize,
    start: impl Fn(&Start<'_>) -> Option<pthread_t>,
    part: &(dyn Fn(&Team, usize, usize) + Sync),
) {
    let team = Team::new();
    let part = |index: usize, count: usize| part(&team, index, count);
    let starts: Vec<Start<'_>> = (1..count).map(|index| Start { team: &team, index, part: &part }).collect();
    let threads: Vec<pthread_t> = starts.iter().map_while(start).collect();
    let count = if cfg!(mutant = "barrier-of-all") { count } else { threads.len() + 1 };
    team.begin(count);
    team.guard(|| part(0, count));
    for thread in threads {
        // SAFETY: started above, joined once.
        unsafe { libc::pthread_join(thread, std::ptr::null_mut()) };
    }
    let panic = team.state().panic.take();
    if let Some(why) = panic {
        resume_unwind(why);
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
    let (work, product) = (Work(work.as_mut_ptr()), Shared(product));
    together(count, start, &|team, index, count| {
        let thread = Thread { index, count, barrier: &|| team.meet() };
        // SAFETY: promised by the caller; the work buffer has the size for so many threads, and the operation gives
        // every thread its own part of it and of the result.
        unsafe { product.get().run(settings, &thread, work.get()) }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn given_a_panic_in_one_thread_then_the_others_do_not_wait_for_it() {
        for bad in 0..3 {
            let reached = AtomicUsize::new(0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                together(3, start, &|team, index, _| {
                    if index == bad {
                        resume_unwind(Box::new(bad));
                    }
                    team.meet();
                    reached.fetch_add(1, Ordering::Relaxed);
                });
            }));
            assert_eq!((result.unwrap_err().downcast_ref(), reached.into_inner()), (Some(&bad), 0));
        }
    }

    #[test]
    fn given_threads_that_cannot_be_started_then_the_others_do_not_wait_for_them() {
        let (done, waits) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for can_be_had in 0..4 {
                let (left, counts) = (AtomicUsize::new(can_be_had), Mutex::new(Vec::new()));
                let take = |left: usize| left.checked_sub(1);
                let start = |s: &Start<'_>| {
                    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok().and_then(|_| start(s))
                };
                together(20, start, &|team, _, count| {
                    team.meet();
                    counts.lock().unwrap().push(count);
                });
                done.send((can_be_had, counts.into_inner().unwrap())).unwrap();
            }
        });
        for _ in 0..4 {
            let (can_be_had, counts) = waits.recv_timeout(Duration::from_secs(20)).expect("it hangs");
            assert_eq!(counts, vec![can_be_had + 1; can_be_had + 1]);
        }
    }

    #[test]
    fn given_many_rounds_then_nobody_runs_ahead() {
        let rounds = AtomicUsize::new(0);
        together(5, start, &|team, _, count| {
            for round in 0..500 {
                let before = rounds.fetch_add(1, Ordering::SeqCst);
                assert!((count * round..count * (round + 1)).contains(&before), "{before} in round {round}");
                team.meet();
            }
        });
        assert_eq!(rounds.into_inner(), 5 * 500);
    }
}

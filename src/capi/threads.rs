//! Threads for one product of the stand-alone API, which has no host to lend any. They are started for the call and
//! joined at its end, so a forked child needs none of its parent's. If one cannot be started, the others do its part:
//! they begin when it is known how many they are.

use std::any::Any;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;

use libc::{c_void, pthread_t};

use crate::diag::{Error, Status};
use crate::matmul::{MatMul, Settings, Thread};

/// More threads than any machine has cores.
const MAX_THREADS: usize = 1024;
/// Multiplications for which a thread more is worth its start and join: that takes about 20 microseconds, in which a
/// core reads 200 KB of weights.
const MULS_PER_THREAD: usize = 1 << 18;
/// Columns and rows of the result that are not split over threads.
const UNIT: usize = 32;

/// Bytes of a thread's stack: as much as Rust gives its own.
const STACK: usize = 2 << 20;

/// What the threads of a product share: how many they are, and where they wait for each other.
struct Workers {
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default)]
struct Progress {
    /// How many threads there are; 0 while they are being started.
    count: usize,
    /// How many of them wait at the barrier.
    waiting: usize,
    /// How often all of them have met at the barrier.
    round: usize,
    /// What the first one that panicked has panicked with. From then on nobody waits.
    panic: Option<Box<dyn Any + Send>>,
}

/// The panic of a thread that would have waited for one that has panicked.
struct OtherPanicked;

impl Workers {
    fn new() -> Self {
        Self { progress: Mutex::default(), changed: Condvar::new() }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        // It is whole even if a thread has panicked: nothing that changes it panics halfway.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while<'a>(
        &self,
        progress: MutexGuard<'a, Progress>,
        what: impl FnMut(&mut Progress) -> bool,
    ) -> MutexGuard<'a, Progress> {
        self.changed.wait_while(progress, what).unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the threads how many they are, and lets them begin.
    fn begin(&self, count: usize) {
        self.progress().count = count;
        self.changed.notify_all();
    }

    /// How many threads there are. Waits for [`Workers::begin`].
    fn count(&self) -> usize {
        self.wait_while(self.progress(), |p| p.count == 0).count
    }

    /// The barrier: waits for all threads. Panics if one of them has.
    fn meet(&self) {
        let mut progress = self.progress();
        progress.waiting += 1;
        if progress.waiting == progress.count {
            (progress.waiting, progress.round) = (0, progress.round.wrapping_add(1));
            self.changed.notify_all();
        } else {
            let round = progress.round;
            progress = self.wait_while(progress, |p| p.round == round && p.panic.is_none());
        }
        if progress.panic.is_some() {
            drop(progress);
            resume_unwind(Box::new(OtherPanicked));
        }
    }

    /// Runs one thread's part. A panic in it is kept, and lets the others go on.
    fn guard(&self, part: impl FnOnce()) {
        if let Err(why) = catch_unwind(AssertUnwindSafe(part)) {
            self.progress().panic.get_or_insert(why);
            self.changed.notify_all();
        }
    }
}

/// What a thread is started with.
struct Start<'a> {
    workers: &'a Workers,
    index: usize,
    /// Does a thread's part; gets its index and the number of threads.
    part: &'a (dyn Fn(usize, usize) + Sync),
}

extern "C" fn run_started(start: *mut c_void) -> *mut c_void {
    // SAFETY: the `Start` of this thread, which lives until the thread is joined (see `start`).
    let start = unsafe { &*start.cast::<Start<'_>>() };
    start.workers.guard(|| (start.part)(start.index, start.workers.count()));
    std::ptr::null_mut()
}

/// Starts a thread; `None` if that is not possible. It is a plain thread of libc's, because Rust's take memory as they
/// start, and end the process if there is none left.
///
/// The thread must be joined before `start` and what it refers to are dropped: [`run_on`] does that.
fn start(start: &Start<'_>) -> Option<pthread_t> {
    let (mut attributes, mut thread) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: the attributes are initialised before they are used, and `start` outlives the thread.
    unsafe {
        if libc::pthread_attr_init(attributes.as_mut_ptr()) != 0 {
            return None;
        }
        // If this is refused, the stack has the system's own size.
        libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), STACK);
        let context = std::ptr::from_ref(start).cast_mut().cast();
        let failed = libc::pthread_create(thread.as_mut_ptr(), attributes.as_ptr(), run_started, context);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        (failed == 0).then(|| thread.assume_init())
    }
}

/// Runs `part` on up to `count` threads, of which this one is the first, and waits for all of them. There are fewer if
/// some cannot be started by `start`, which is [`start`] but in tests. Panics if a part has.
fn run_on(
    count: usize,
    start: impl Fn(&Start<'_>) -> Option<pthread_t>,
    part: &(dyn Fn(&Workers, usize, usize) + Sync),
) {
    let workers = Workers::new();
    let part = |index: usize, count: usize| part(&workers, index, count);
    let starts: Vec<Start<'_>> = (1..count).map(|index| Start { workers: &workers, index, part: &part }).collect();
    let threads: Vec<pthread_t> = starts.iter().map_while(start).collect();
    let count = if cfg!(mutant = "barrier-of-all") { count } else { threads.len() + 1 };
    workers.begin(count);
    workers.guard(|| part(0, count));
    for thread in threads {
        // SAFETY: started above, joined once.
        unsafe { libc::pthread_join(thread, std::ptr::null_mut()) };
    }
    let panic = workers.progress().panic.take();
    if let Some(why) = panic {
        resume_unwind(why);
    }
}

/// How many threads are worth their start for a product.
fn useful(product: &MatMul) -> usize {
    let ([k, n, ..], m) = (product.weights.ne, product.input.ne[1]);
    let units = n.div_ceil(UNIT).saturating_mul(m.div_ceil(UNIT));
    let muls = k.saturating_mul(n).saturating_mul(m);
    units.min(muls / MULS_PER_THREAD).max(1)
}

/// The work buffer, which all threads write to.
struct WorkBuffer(*mut u8);

// SAFETY: the product gives every thread its own part of it.
unsafe impl Sync for WorkBuffer {}

impl WorkBuffer {
    fn get(&self) -> *mut u8 {
        self.0
    }
}

/// A product whose pointers are those of the C caller.
struct Shared<'a>(&'a MatMul);

// SAFETY: operands are only read, and the product gives every thread its own part of the result.
unsafe impl Sync for Shared<'_> {}

impl Shared<'_> {
    fn get(&self) -> &MatMul {
        self.0
    }
}

/// Computes `product` on at most `wanted` threads; 0 means one per core.
///
/// # Safety
/// The product must have passed its check, its pointers must be valid and the instruction set usable.
pub unsafe fn run(product: &MatMul, settings: Settings, wanted: usize) -> Result<(), Error> {
    let cores = || available_parallelism().map_or(1, usize::from);
    let wanted = if wanted == 0 { cores() } else { wanted };
    let mut count = wanted.min(MAX_THREADS).min(useful(product));
    // Fewer threads need less memory. If some cannot be started later, the others have enough.
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
    let (work, product) = (WorkBuffer(work.as_mut_ptr()), Shared(product));
    run_on(count, start, &|workers, index, count| {
        let thread = Thread { index, count, barrier: &|| workers.meet() };
        // SAFETY: the product was checked and its pointers are valid, as `run` demands. The work buffer has enough
        // bytes for so many threads.
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
                run_on(3, start, &|workers, index, _| {
                    if index == bad {
                        resume_unwind(Box::new(bad));
                    }
                    workers.meet();
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
                run_on(20, start, &|workers, _, count| {
                    workers.meet();
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
        run_on(5, start, &|workers, _, count| {
            for round in 0..500 {
                let before = rounds.fetch_add(1, Ordering::SeqCst);
                assert!((count * round..count * (round + 1)).contains(&before), "{before} in round {round}");
                workers.meet();
            }
        });
        assert_eq!(rounds.into_inner(), 5 * 500);
    }
}

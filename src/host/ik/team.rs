//! The threads of a graph's run, for the operations that are computed here: where they meet, and their work buffer. The
//! host's kernels are called with a thread's number and the count, nothing else.
//!
//! More threads than can run at once would only wait for each other: the last ones sleep until the others have done the
//! operation, or go on at once to the host's barrier, where that lets them sleep.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use super::openmp;
use crate::cpu::memory::Region;
use crate::cpu::rendezvous::{Rendezvous, Signal};
use crate::warn;

/// Bytes of a work buffer that stay in memory between runs. What is above is given to the kernel, which takes it when
/// somebody needs it.
const KEPT: usize = 32 << 20;
/// Runs one after the other that need less than a quarter of the work buffer, until it is made smaller.
const SMALL_RUNS: u32 = 16;

/// The threads of one run after the other.
pub struct Team {
    /// Where those meet that take part in an operation.
    inside: Rendezvous,
    /// The last operation of which the host did not say which threads come, its number above how many have come.
    come: AtomicU64,
    /// Those that are done with an operation.
    finished: AtomicUsize,
    /// Number of the operation that is done: what the other threads wait for.
    done: Signal,
    /// Threads of the host that there shall be.
    planned: AtomicUsize,
    /// How many can run at once.
    most: AtomicUsize,
    /// Whether the others may go on to the host's barrier.
    may_go_on: AtomicBool,
    /// Start of the work buffer.
    work: AtomicPtr<u8>,
    /// What one thread says to the others of an operation, between two meetings.
    said: AtomicBool,
    memory: UnsafeCell<Memory>,
}

/// The work buffer. Changed by who begins or ends a run, and during one by a thread that all others wait for.
struct Memory {
    region: Option<Region>,
    /// Most bytes that were needed since the last run began.
    needed: usize,
    small_runs: u32,
}

// SAFETY: everything else is atomic, and who changes the memory is said at `Memory`.
unsafe impl Sync for Team {}
// SAFETY: the memory belongs to no thread.
unsafe impl Send for Team {}

impl Team {
    /// Without a work buffer.
    pub fn new() -> Self {
        Self {
            inside: Rendezvous::new(),
            come: AtomicU64::new(0),
            finished: AtomicUsize::new(0),
            done: Signal::new(),
            planned: AtomicUsize::new(1),
            most: AtomicUsize::new(1),
            may_go_on: AtomicBool::new(false),
            work: AtomicPtr::new(std::ptr::null_mut()),
            said: AtomicBool::new(false),
            memory: UnsafeCell::new(Memory { region: None, needed: 0, small_runs: 0 }),
        }
    }

    /// Before a run of `threads` threads, of which up to `most` will take part in an operation; `may_go_on` says that the others need not
    /// wait for them if the host's barrier is OpenMP's.
    ///
    /// # Safety
    /// There must be no run, and nobody else that prepares one.
    pub unsafe fn prepare(&self, threads: usize, most: usize, may_go_on: bool) {
        self.planned.store(threads, Ordering::Relaxed);
        self.most.store(most, Ordering::Relaxed);
        self.may_go_on.store(may_go_on, Ordering::Relaxed);
        self.done.set(0);
        self.come.store(0, Ordering::Relaxed);
    }

    /// Makes sure that there is a work buffer of `bytes`; false if there is no memory for it.
    ///
    /// # Safety
    /// As for [`Team::prepare`], or all threads of the run must be waiting for this one.
    unsafe fn reserve(&self, bytes: usize) -> bool {
        // SAFETY: promised by the caller.
        let memory = unsafe { &mut *self.memory.get() };
        memory.needed = memory.needed.max(bytes);
        if memory.region.as_ref().is_some_and(|region| region.len() >= bytes) {
            return true;
        }
        // The old one first: both may not fit.
        memory.region = None;
        self.work.store(std::ptr::null_mut(), Ordering::Relaxed);
        let made = match Region::new(bytes.saturating_add(bytes / 4)).or_else(|_| Region::new(bytes)) {
            Ok(made) => made,
            Err(why) => {
                static SAID: AtomicBool = AtomicBool::new(false);
                if !SAID.swap(true, Ordering::Relaxed) {
                    warn!("no work buffer of {bytes} bytes ({why}): what needs one is left to the host");
                }
                return false;
            }
        };
        self.work.store(made.base().as_ptr(), Ordering::Relaxed);
        memory.region = Some(made);
        true
    }

    /// Makes sure that there is a work buffer for all of `wants`, pairs of bytes and a number: or, if there is no memory for
    /// it, for all but some, whose numbers `leave_out` is called with.
    ///
    /// # Safety
    /// As for [`Team::prepare`].
    pub unsafe fn reserve_for(&self, mut wants: Vec<(usize, usize)>, mut leave_out: impl FnMut(usize)) {
        // SAFETY: promised by the caller.
        unsafe { self.shrink() };
        wants.sort_unstable();
        while let Some((bytes, _)) = wants.last().copied() {
            // SAFETY: promised by the caller.
            if unsafe { self.reserve(bytes) } {
                return;
            }
            // Memory for nearly as much will not be there either.
            while let Some((_, index)) = wants.pop_if(|(wanted, _)| *wanted > bytes / 2) {
                leave_out(index);
            }
        }
    }

    /// Lets go of a work buffer that has been too large for a while.
    ///
    /// # Safety
    /// As for [`Team::prepare`].
    unsafe fn shrink(&self) {
        // SAFETY: promised by the caller.
        let memory = unsafe { &mut *self.memory.get() };
        let have = memory.region.as_ref().map_or(0, Region::len);
        memory.small_runs = if memory.needed < have / 4 { memory.small_runs + 1 } else { 0 };
        memory.needed = 0;
        if memory.small_runs >= SMALL_RUNS && have > KEPT {
            // SAFETY: promised by the caller.
            unsafe { self.release() };
        }
    }

    /// After a run: lets go of memory that may not be needed soon.
    ///
    /// # Safety
    /// As for [`Team::prepare`].
    pub unsafe fn rest(&self) {
        // SAFETY: promised by the caller.
        if let Some(region) = unsafe { &mut (*self.memory.get()).region } {
            region.let_go_from(KEPT);
        }
    }

    /// Lets go of all memory.
    ///
    /// # Safety
    /// As for [`Team::prepare`].
    pub unsafe fn release(&self) {
        self.work.store(std::ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: promised by the caller.
        unsafe { (*self.memory.get()).region = None };
    }

    /// How many threads of the host there are: OpenMP may give it fewer than it planned.
    pub fn threads(&self) -> usize {
        openmp::threads().unwrap_or_else(|| self.planned.load(Ordering::Relaxed))
    }

    /// How many of the `count` threads of the host take part in an operation.
    fn size(&self, count: usize) -> usize {
        count.min(self.most.load(Ordering::Relaxed))
    }

    /// A thread of the host comes to an operation: runs `part` if it takes part in it, with its place in the team; else waits
    /// until the others are done.
    pub fn operation(&self, place: Place, part: impl FnOnce(Member<'_>)) {
        let Place { index, count, number, follows } = place;
        let size = self.size(count);
        let index = index.unwrap_or_else(|| {
            let of_this = u64::from(number) << 32;
            // Nobody comes to an operation before the host is done with the one before.
            let have = |come: u64| if come >> 32 == u64::from(number) { come & 0xffff_ffff } else { 0 };
            let next = |come: u64| Some(of_this + have(come) + 1);
            let (Ok(before) | Err(before)) = self.come.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
            have(before) as usize
        });
        if index >= size {
            if self.may_go_on.load(Ordering::Relaxed) && openmp::is_inside() {
                return;
            }
            return self.done.wait_until(true, |done| done >= number || cfg!(mutant = "surplus"));
        }
        let member = Member { team: self, index, count: size, crowded: false };
        if follows {
            // Others may still read the work buffer.
            member.wait();
        }
        part(member);
        if size < count && self.finished.fetch_add(1, Ordering::AcqRel) + 1 == size {
            self.finished.store(0, Ordering::Relaxed);
            self.done.set(number);
        }
    }

    /// The same with all threads, for an operation whose work buffer is not known before it is called for.
    pub fn all(&self, index: usize, count: usize) -> Member<'_> {
        Member { team: self, index, count, crowded: count > self.size(count) }
    }
}

/// A thread of the host at an operation.
#[derive(Clone, Copy)]
pub struct Place {
    /// Number of the thread, if the host says so.
    pub index: Option<usize>,
    /// How many come.
    pub count: usize,
    /// Number of the operation, above that of those before, from 1 on.
    pub number: u32,
    /// Whether the host may not have waited for all threads since the operation before.
    pub follows: bool,
}

/// A thread's place in a team, for one operation.
#[derive(Clone, Copy)]
pub struct Member<'a> {
    team: &'a Team,
    /// Its number.
    pub index: usize,
    /// How many there are.
    pub count: usize,
    crowded: bool,
}

impl Member<'_> {
    /// Waits for all of them.
    pub fn wait(&self) {
        if self.count > 1 {
            self.team.inside.wait(self.count, self.crowded);
        }
    }

    /// The work buffer, shared by all.
    pub fn work(&self) -> *mut u8 {
        self.team.work.load(Ordering::Relaxed)
    }

    /// Makes sure that there is a work buffer of `bytes`, when all have come; all get the same answer.
    pub fn reserve(&self, bytes: usize) -> bool {
        self.wait();
        if self.index == 0 {
            // SAFETY: the others wait below.
            let done = unsafe { self.team.reserve(bytes) };
            self.team.said.store(done, Ordering::Relaxed);
        }
        self.wait();
        self.team.said.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::join;
    use super::*;

    /// Given a team of a host's threads, when they run many operations one after the other, without a barrier of the host
    /// in between, then every thread that takes part sees what the others wrote, and the others come after them.
    fn operations(threads: usize, most: usize, count: usize) {
        let team = Team::new();
        // SAFETY: nothing runs.
        unsafe {
            team.prepare(threads, most, true);
            team.reserve_for(vec![(threads * 128, 0)], |_| panic!("there is memory"));
        }
        let done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let thread = |index| {
                let (team, done) = (&team, &done);
                scope.spawn(move || {
                    for number in 1..=count {
                        let mut took_part = false;
                        let place = Place { index: Some(index), count: threads, number: number as u32, follows: true };
                        team.operation(place, |member| {
                            let word = |of: usize| member.work().wrapping_add(of * 128).cast::<usize>();
                            // SAFETY: every thread writes its own word.
                            unsafe { *word(index) = number };
                            member.wait();
                            // SAFETY: all have written, nobody writes before the next meeting.
                            (0..member.count).for_each(|of| assert_eq!(unsafe { *word(of) }, number));
                            done.fetch_add(1, Ordering::Relaxed);
                            took_part = true;
                        });
                        assert_eq!(took_part, index < most);
                        assert!(took_part || done.load(Ordering::Relaxed) >= number * most.min(threads));
                    }
                })
            };
            join((0..threads).map(thread).collect());
        });
        assert_eq!(done.into_inner(), count * most.min(threads));
    }

    #[test]
    fn threads_of_an_operation_see_what_the_others_did() {
        for (threads, most) in [(1, 1), (2, 2), (5, 5), (5, 2), (16, 1)] {
            operations(threads, most, 200);
        }
    }

    #[test]
    fn many_more_threads_than_cores_neither_hang_nor_take_long() {
        let start = std::time::Instant::now();
        operations(64, 64, 100);
        operations(64, 2, 1000);
        assert!(start.elapsed() < std::time::Duration::from_secs(60), "{:?}", start.elapsed());
    }

    #[test]
    fn what_there_is_no_memory_for_is_left_out() {
        let (team, mut left_out) = (Team::new(), Vec::new());
        // SAFETY: nothing runs.
        unsafe { team.reserve_for(vec![(1 << 59, 0), (4096, 1), (usize::MAX, 2), (8192, 3)], |i| left_out.push(i)) };
        left_out.sort_unstable();
        assert_eq!(left_out, [0, 2]);
        assert!(!team.work.load(Ordering::Relaxed).is_null());
        // All threads are told.
        std::thread::scope(|scope| {
            let thread = |index| {
                let team = &team;
                scope.spawn(move || {
                    assert!(!team.all(index, 3).reserve(1 << 60));
                    assert!(team.all(index, 3).reserve(1 << 16));
                })
            };
            join((0..3).map(thread).collect());
        });
    }

    #[test]
    fn a_work_buffer_that_is_too_large_for_long_is_let_go() {
        let team = Team::new();
        let len = || {
            // SAFETY: nothing runs.
            unsafe { (*team.memory.get()).region.as_ref().map_or(0, Region::len) }
        };
        // SAFETY: nothing runs.
        let run = |bytes| unsafe {
            team.reserve_for(vec![(bytes, 0)], |_| panic!("there is memory"));
            team.rest();
        };
        run(256 << 20);
        assert!(len() >= 256 << 20);
        run(1 << 20);
        run(256 << 20);
        (0..SMALL_RUNS).for_each(|_| run(1 << 20));
        assert!(len() >= 256 << 20, "that was too early");
        run(1 << 20);
        assert!((1 << 20..4 << 20).contains(&len()), "{}", len());
    }
}

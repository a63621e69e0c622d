//! The team of a run: the threads of the host that compute a graph, where they meet, and their work buffer. All that a
//! kernel of the host is told is a thread's number and how many threads there are.
//!
//! More threads than can run at once would only wait for each other. So the last ones take no part in an operation.
//! They sleep until it is done; or they go on to the host's barrier at once, if that lets them sleep.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use super::openmp;
use crate::cpu::memory::Region;
use crate::cpu::rendezvous::{Rendezvous, Signal};
use crate::warn;

/// Bytes of a work buffer that stay in memory between runs. Linux may take the rest when somebody needs it.
const KEPT_BYTES: usize = 32 << 20;
/// After so many runs in a row that need less than a quarter of the work buffer, it is made smaller.
const SMALL_RUNS: u32 = 16;

/// The threads of one run after another.
///
/// IDLE TEAM, which some functions demand: there is no run, and no other thread calls one of these functions. Whoever
/// begins or ends a run sees to that.
pub struct Team {
    /// Where the threads of an operation meet.
    members: Rendezvous,
    /// Where the host does not say which threads come to an operation: the number of the last such operation in the
    /// upper 32 bits, how many threads have come to it in the lower.
    arrived: AtomicU64,
    /// How many members are done with the current operation.
    finished: AtomicUsize,
    /// Number of the last operation that is done: what the threads wait for that take no part.
    done: Signal,
    /// How many threads the host has planned for this run.
    planned: AtomicUsize,
    /// Most threads that take part in an operation: as many as can run at once.
    most: AtomicUsize,
    /// Whether threads that take no part may go on to the host's barrier.
    may_go_on: AtomicBool,
    /// First byte of the work buffer; null if there is none.
    work: AtomicPtr<u8>,
    /// Whether the last [`Member::reserve`] was successful.
    reserved: AtomicBool,
    buffer: UnsafeCell<WorkBuffer>,
}

/// The memory of a team. Only changed while the team is idle, or by a member that all others wait for.
struct WorkBuffer {
    region: Option<Region>,
    /// Most bytes that were needed since the last run began.
    needed: usize,
    /// How many runs in a row have needed less than a quarter of it.
    small_runs: u32,
}

// SAFETY: everything is atomic but the work buffer, which one thread at a time changes while no other reads it.
unsafe impl Sync for Team {}
// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for Team {}

impl Team {
    /// Without a work buffer.
    pub fn new() -> Self {
        Self {
            members: Rendezvous::new(),
            arrived: AtomicU64::new(0),
            finished: AtomicUsize::new(0),
            done: Signal::new(),
            planned: AtomicUsize::new(1),
            most: AtomicUsize::new(1),
            may_go_on: AtomicBool::new(false),
            work: AtomicPtr::new(std::ptr::null_mut()),
            reserved: AtomicBool::new(false),
            buffer: UnsafeCell::new(WorkBuffer { region: None, needed: 0, small_runs: 0 }),
        }
    }

    /// Begins a run of `threads` threads, of which up to `most` take part in an operation. `may_go_on`: the others need
    /// not wait for them if the host's barrier is OpenMP's.
    ///
    /// # Safety
    /// IDLE TEAM.
    pub unsafe fn prepare(&self, threads: usize, most: usize, may_go_on: bool) {
        self.planned.store(threads, Ordering::Relaxed);
        self.most.store(most, Ordering::Relaxed);
        self.may_go_on.store(may_go_on, Ordering::Relaxed);
        self.done.set(0);
        self.arrived.store(0, Ordering::Relaxed);
    }

    /// Makes sure that the work buffer has `bytes`; false if there is no memory for that.
    ///
    /// # Safety
    /// IDLE TEAM, or all other members must be waiting for this thread.
    unsafe fn reserve(&self, bytes: usize) -> bool {
        // SAFETY: IDLE TEAM, or the other members wait: nobody else looks at the buffer.
        let buffer = unsafe { &mut *self.buffer.get() };
        buffer.needed = buffer.needed.max(bytes);
        if buffer.region.as_ref().is_some_and(|region| region.len() >= bytes) {
            return true;
        }
        // Free the old one first: there may be no memory for both.
        buffer.region = None;
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
        buffer.region = Some(made);
        true
    }

    /// Makes sure that the work buffer is large enough for all of `wants`: pairs of bytes and an operation's number.
    /// Operations for which there is no memory are left out: `leave_out` is called with their numbers.
    ///
    /// # Safety
    /// IDLE TEAM.
    pub unsafe fn reserve_for(&self, mut wants: Vec<(usize, usize)>, mut leave_out: impl FnMut(usize)) {
        // SAFETY: IDLE TEAM.
        unsafe { self.shrink() };
        wants.sort_unstable();
        while let Some((bytes, _)) = wants.last().copied() {
            // SAFETY: IDLE TEAM.
            if unsafe { self.reserve(bytes) } {
                return;
            }
            // There will be no memory for nearly as much either.
            while let Some((_, index)) = wants.pop_if(|(wanted, _)| *wanted > bytes / 2) {
                leave_out(index);
            }
        }
    }

    /// Frees a work buffer that has been too large for [`SMALL_RUNS`] runs.
    ///
    /// # Safety
    /// IDLE TEAM.
    unsafe fn shrink(&self) {
        // SAFETY: IDLE TEAM.
        let buffer = unsafe { &mut *self.buffer.get() };
        let have = buffer.region.as_ref().map_or(0, Region::len);
        buffer.small_runs = if buffer.needed < have / 4 { buffer.small_runs + 1 } else { 0 };
        buffer.needed = 0;
        if buffer.small_runs >= SMALL_RUNS && have > KEPT_BYTES {
            // SAFETY: IDLE TEAM.
            unsafe { self.release() };
        }
    }

    /// After a run: lets Linux take memory that may not be needed soon.
    ///
    /// # Safety
    /// IDLE TEAM.
    pub unsafe fn rest(&self) {
        // SAFETY: IDLE TEAM.
        if let Some(region) = unsafe { &mut (*self.buffer.get()).region } {
            region.let_go_from(KEPT_BYTES);
        }
    }

    /// Frees the work buffer.
    ///
    /// # Safety
    /// IDLE TEAM.
    pub unsafe fn release(&self) {
        self.work.store(std::ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: IDLE TEAM.
        unsafe { (*self.buffer.get()).region = None };
    }

    /// How many threads the host has for this run: OpenMP may give it fewer than it planned.
    pub fn threads(&self) -> usize {
        openmp::threads().unwrap_or_else(|| self.planned.load(Ordering::Relaxed))
    }

    /// How many of the host's `count` threads take part in an operation.
    fn size(&self, count: usize) -> usize {
        count.min(self.most.load(Ordering::Relaxed))
    }

    /// A thread of the host comes to an operation. It runs `part` if it takes part, else waits until the others are
    /// done.
    pub fn operation(&self, arrival: Arrival, part: impl FnOnce(Member<'_>)) {
        let Arrival { index, count, number, follows } = arrival;
        let size = self.size(count);
        let index = index.unwrap_or_else(|| self.next_index(number));
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

    /// How many threads have come to operation `number` before this one.
    fn next_index(&self, number: u32) -> usize {
        let of_this = u64::from(number) << 32;
        // Nobody comes to an operation before the host is done with the one before, so an older number counts as 0.
        let have = |arrived: u64| if arrived >> 32 == u64::from(number) { arrived & 0xffff_ffff } else { 0 };
        let next = |arrived: u64| Some(of_this + have(arrived) + 1);
        let (Ok(before) | Err(before)) = self.arrived.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        have(before) as usize
    }

    /// Thread `index` of `count` as a member, for an operation in which all of the host's threads take part.
    pub fn all(&self, index: usize, count: usize) -> Member<'_> {
        Member { team: self, index, count, crowded: count > self.size(count) }
    }
}

/// How a thread of the host comes to an operation.
#[derive(Clone, Copy)]
pub struct Arrival {
    /// Number of the thread, if the host says so.
    pub index: Option<usize>,
    /// How many threads come.
    pub count: usize,
    /// Number of the operation in its run: from 1 on, and higher than those before it.
    pub number: u32,
    /// Whether the host may not have waited for all threads since the operation before.
    pub follows: bool,
}

/// A thread that takes part in an operation.
#[derive(Clone, Copy)]
pub struct Member<'a> {
    team: &'a Team,
    /// Its number, below `count`.
    pub index: usize,
    /// How many take part.
    pub count: usize,
    /// Whether they are more than can run at once.
    crowded: bool,
}

impl Member<'_> {
    /// Waits for all members.
    pub fn wait(&self) {
        if self.count > 1 {
            self.team.members.wait(self.count, self.crowded);
        }
    }

    /// The work buffer, shared by all members.
    pub fn work(&self) -> *mut u8 {
        self.team.work.load(Ordering::Relaxed)
    }

    /// Makes sure that the work buffer has `bytes`. All members must call this, and get the same answer.
    pub fn reserve(&self, bytes: usize) -> bool {
        self.wait();
        if self.index == 0 {
            // SAFETY: the other members wait below.
            let done = unsafe { self.team.reserve(bytes) };
            self.team.reserved.store(done, Ordering::Relaxed);
        }
        self.wait();
        self.team.reserved.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::join;
    use super::*;

    /// Given a team of a host's threads, when they run many operations one after another without a barrier of the host
    /// in between, then every member sees what the other members wrote, and threads that take no part return after
    /// them.
    fn operations(threads: usize, most: usize, count: usize) {
        let team = Team::new();
        // SAFETY: IDLE TEAM.
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
                        let arrival =
                            Arrival { index: Some(index), count: threads, number: number as u32, follows: true };
                        team.operation(arrival, |member| {
                            let word = |of: usize| member.work().wrapping_add(of * 128).cast::<usize>();
                            // SAFETY: every thread writes a word of its own.
                            unsafe { *word(index) = number };
                            member.wait();
                            // SAFETY: all have written, and nobody writes again before the next meeting.
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
        // SAFETY: IDLE TEAM.
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
            // SAFETY: IDLE TEAM.
            unsafe { (*team.buffer.get()).region.as_ref().map_or(0, Region::len) }
        };
        // SAFETY: IDLE TEAM.
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

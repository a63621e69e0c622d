//! The runs of graphs that are under way, each with its nodes and its team. The host's kernels get addresses and
//! numbers. What is needed besides (the activations before the host quantised them, all choices of experts at once) is
//! in the nodes of the graph. So a run begins with a list of them, in which calls are looked up
//! ([`calls`](super::calls)).
//!
//! A run has a number that is never used again. Its nodes are computed in their order, so every thread searches from
//! where it found the last one: its [`Cursor`].

use std::cell::{Cell, UnsafeCell};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use super::node::{HostKernel, Node};
use super::team::Team;
use crate::cpu::cores;
use crate::cpu::sync::{Condvar, Mutex, MutexGuard, RwLock};
use crate::matmul::Op;
use crate::process::generation;

/// Most tokens for which the host's barrier is OpenMP's, if it is built with OpenMP. For more tokens it spins.
const OPENMP_TOKENS: usize = 32;
/// Every so many runs, work buffers of slots without a run are freed.
const FREE_EVERY: u64 = 256;

/// Holds one run after another. Never freed: cursors of threads point to it.
pub struct RunSlot {
    /// Number of its run; 0: none.
    run: AtomicU64,
    /// The thread that began the run, see [`this_thread`].
    owner: AtomicUsize,
    /// See [`RunSlot::has_fine_weights`].
    fine_weights: AtomicBool,
    /// Only changed while there is no run, with [`SLOTS`] locked for writing. Threads of the run read it without a
    /// lock, others with [`SLOTS`] locked for reading.
    nodes: UnsafeCell<Vec<Node>>,
    /// The team of its run. IDLE TEAM holds while there is no run and [`STATE`] is locked.
    pub team: Team,
}

// SAFETY: everything is atomic but the nodes, which change only while nobody reads them.
unsafe impl Sync for RunSlot {}
// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for RunSlot {}

impl RunSlot {
    /// Whether some weights of the run have more digits than BF16, or it has no products of ours: then attention is
    /// exact.
    pub fn has_fine_weights(&self) -> bool {
        self.fine_weights.load(Ordering::Relaxed)
    }

    /// Number of its run, if there is one.
    pub fn run(&self) -> Option<u64> {
        Some(self.run.load(Ordering::Acquire)).filter(|run| *run != 0)
    }

    /// The nodes of its run.
    ///
    /// # Safety
    /// The run must not end while they are used: this thread is one of its threads; or [`SLOTS`] is locked for reading.
    pub unsafe fn nodes(&self) -> &'static [Node] {
        // SAFETY: slots are never freed, and nodes do not change before the run ends.
        unsafe { &*self.nodes.get() }
    }
}

/// All slots: as many as there ever were runs at once.
pub static SLOTS: RwLock<Vec<&'static RunSlot>> = RwLock::new(Vec::new());
/// How many of them have a run: all that a call looks at where nothing is ours.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
/// Locked while a run begins or ends.
static STATE: Mutex<State> = Mutex::new(State { process: 0, last: 0, waiting: 0, spare: Vec::new() });
/// A copy of [`State::process`] that is read without a lock.
static PROCESS: AtomicU32 = AtomicU32::new(0);
/// Notified when a run ends, and when a thread stops waiting for that.
static CHANGED: Condvar = Condvar::new();

struct State {
    /// Number of the process that the runs belong to.
    process: u32,
    /// Number of the last run.
    last: u64,
    /// How many threads wait until there is no run. No run begins meanwhile.
    waiting: usize,
    /// Empty lists of nodes, to be used again.
    spare: Vec<Vec<Node>>,
}

impl Default for State {
    /// What a forked child gets if another thread was changing the state during the fork. Its runs have higher numbers
    /// than its parent's.
    fn default() -> Self {
        Self { process: 0, last: u64::from(generation()) << 40, waiting: 0, spare: Vec::new() }
    }
}

/// The state, locked.
fn state() -> MutexGuard<'static, State> {
    let mut state = STATE.lock();
    if state.process != generation() {
        state.leave_parents_runs();
    }
    state
}

/// An address that only this thread has; a forked child keeps it.
fn this_thread() -> usize {
    CURSOR.with(|cursor| std::ptr::from_ref(cursor) as usize)
}

/// Where a thread is in its run.
#[derive(Clone, Copy)]
pub struct Cursor {
    /// Where its run is or was; `None` if it has not been in any.
    pub slot: Option<&'static RunSlot>,
    /// Number of that run.
    pub run: u64,
    /// Index of the node to look at next.
    pub node: usize,
    /// Set if the node before that one is a product of experts that is computed, for which the host may still call.
    pub computed: Option<ComputedExperts>,
    /// Threads of the run, as the host's calls say; 0: not known yet.
    pub threads: usize,
}

/// A product of experts that is computed.
#[derive(Clone, Copy)]
pub struct ComputedExperts {
    /// The expert and the share that this thread called for last. The host calls for higher and higher ones.
    pub last: (usize, usize),
    /// The highest expert that was chosen.
    pub highest: usize,
}

impl Cursor {
    const NONE: Self = Self { slot: None, run: 0, node: 0, computed: None, threads: 0 };

    /// This thread's.
    pub fn get() -> Self {
        CURSOR.get()
    }

    /// Makes it this thread's.
    pub fn set(self) {
        CURSOR.set(self);
    }

    /// The slot of this thread's run; `None` if it is in none, or that is over.
    pub fn current(&self) -> Option<&'static RunSlot> {
        self.slot.filter(|slot| slot.run() == Some(self.run))
    }

    /// How many threads run `run` has, as far as the host's calls have said; 0: not known yet.
    pub fn threads_of(&self, run: u64) -> usize {
        if run == self.run { self.threads } else { 0 }
    }
}

thread_local! {
    static CURSOR: Cell<Cursor> = const { Cell::new(Cursor::NONE) };
}

/// A run that is under way, until it is dropped, by the thread that began it.
pub struct RunGuard {
    slot: &'static RunSlot,
    /// Where this thread was before: a graph may be computed inside another one.
    outer: Cursor,
}

/// Handed to who begins a run: meanwhile no other run begins or ends.
pub struct Beginning<'a> {
    /// `None` only for a moment, inside a method.
    state: Option<MutexGuard<'a, State>>,
}

impl Beginning<'_> {
    /// Waits until there is no run, so that what runs read may be changed. False if this thread is inside a run, for
    /// which it would wait for ever.
    pub fn wait_until_alone(&mut self) -> bool {
        if Cursor::get().current().is_some() {
            return false;
        }
        let mut state = self.state.take().expect("there is always one");
        state.waiting += 1;
        let mut state =
            CHANGED.wait_while(state, |_| RUNNING.load(Ordering::Acquire) > 0 && !cfg!(mutant = "not-alone"));
        state.waiting -= 1;
        CHANGED.notify_all();
        self.state = Some(state);
        true
    }
}

/// Begins a run of up to `threads` threads with the nodes that `fill` lists, in their order. `None` if none of them is
/// computed here or has packed weights.
pub fn begin(threads: usize, fill: impl FnOnce(&mut Beginning<'_>, &mut Vec<Node>)) -> Option<RunGuard> {
    let outer = Cursor::get();
    let state = state();
    let mut state = if outer.current().is_some() {
        // Whoever waits also waits for the outer run, which needs this one.
        state
    } else {
        CHANGED.wait_while(state, |state| state.waiting > 0)
    };
    let mut nodes = state.spare.pop().unwrap_or_default();
    let mut beginning = Beginning { state: Some(state) };
    fill(&mut beginning, &mut nodes);
    let mut state = beginning.state.expect("there is always one");
    let slot = state.free_slot();
    // SAFETY: IDLE TEAM: the slot has no run, and the state is locked.
    unsafe { prepare(&slot.team, threads, &mut nodes) };
    let ops = || nodes.iter().filter_map(|node| node.op.as_ref());
    let fine_weights = ops().any(Op::has_fine_weights) || ops().next().is_none();
    if !nodes.iter().any(Node::is_ours) {
        nodes.clear();
        state.spare.push(nodes);
        return None;
    }
    let run = state.last;
    {
        let _slots = SLOTS.write();
        // SAFETY: the slot has no run, and `SLOTS` is locked for writing.
        let mut old = std::mem::replace(unsafe { &mut *slot.nodes.get() }, nodes);
        old.clear();
        state.spare.push(old);
        slot.fine_weights.store(fine_weights, Ordering::Relaxed);
        slot.owner.store(this_thread(), Ordering::Relaxed);
        slot.run.store(run, Ordering::Release);
    }
    RUNNING.fetch_add(1, Ordering::AcqRel);
    cores::note_thread();
    Cursor { slot: Some(slot), run, ..Cursor::NONE }.set();
    Some(RunGuard { slot, outer })
}

/// Prepares the team of a run. Products for which there is no memory are left to the host.
///
/// # Safety
/// IDLE TEAM.
unsafe fn prepare(team: &Team, threads: usize, nodes: &mut [Node]) {
    // More threads than can run at once would wait for each other.
    let most = cores::of(threads);
    let few = nodes.iter().all(|node| node.kernel != HostKernel::MulMat || node.rows <= OPENMP_TOKENS);
    let bytes = |node: &Node| node.op.as_ref().map(|op| op.work_size(most).unwrap_or(usize::MAX));
    let wants = nodes.iter().enumerate().filter_map(|(i, node)| Some((bytes(node)?, i))).collect();
    // SAFETY: IDLE TEAM.
    unsafe {
        team.prepare(threads, most, few);
        team.reserve_for(wants, |i| nodes[i].op = None);
    }
}

impl State {
    /// In a new process: of the parent's runs only those of this thread go on. The others had threads that do not exist
    /// here, and those may have left their slots half changed, so that these are not used any more.
    fn leave_parents_runs(&mut self) {
        (self.process, self.waiting) = (generation(), 0);
        let mut slots = SLOTS.write();
        slots.retain(|slot| {
            let stays = slot.run.load(Ordering::Relaxed) != 0 && slot.owner.load(Ordering::Relaxed) == this_thread();
            if !stays {
                slot.run.store(0, Ordering::Release);
            }
            stays
        });
        RUNNING.store(slots.len(), Ordering::Release);
        PROCESS.store(self.process, Ordering::Release);
    }

    /// A slot without a run, for one with the next number. Frees work buffers of other slots now and then.
    fn free_slot(&mut self) -> &'static RunSlot {
        self.last += 1;
        let slots = SLOTS.read();
        let mut free = slots.iter().filter(|slot| slot.run.load(Ordering::Relaxed) == 0).copied();
        let found = free.next();
        if self.last.is_multiple_of(FREE_EVERY) {
            // SAFETY: IDLE TEAM: the slots have no runs, and the state is locked.
            free.for_each(|slot| unsafe { slot.team.release() });
        }
        drop(slots);
        found.unwrap_or_else(|| {
            let made: &'static RunSlot = Box::leak(Box::new(RunSlot {
                run: AtomicU64::new(0),
                owner: AtomicUsize::new(0),
                fine_weights: AtomicBool::new(false),
                nodes: UnsafeCell::new(Vec::new()),
                team: Team::new(),
            }));
            SLOTS.write().push(made);
            made
        })
    }
}

/// Whether there is no run.
pub fn none() -> bool {
    if RUNNING.load(Ordering::Acquire) == 0 {
        return true;
    }
    if PROCESS.load(Ordering::Acquire) != generation() {
        drop(state());
    }
    RUNNING.load(Ordering::Acquire) == 0
}

impl Drop for RunGuard {
    fn drop(&mut self) {
        let _state = state();
        // SAFETY: IDLE TEAM: the host's threads are done with the run, and the state is locked.
        unsafe { self.slot.team.rest() };
        self.slot.run.store(0, Ordering::Release);
        let _ = RUNNING.fetch_update(Ordering::AcqRel, Ordering::Acquire, |running| running.checked_sub(1));
        CHANGED.notify_all();
        self.outer.set();
    }
}

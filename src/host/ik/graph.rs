//! The graphs that are being computed. The kernels of ik_llama.cpp get addresses and numbers; what we need besides (the
//! activations as they were before the host quantised them, all choices of experts at once) is in the graph's
//! nodes. As a graph begins, those that are computed here are written down; the kernels find them by where weights
//! and results lie.
//!
//! A run of a graph has a number that is never used again. Nodes run in their order, so every thread looks from where it
//! found the last one.

use std::cell::{Cell, UnsafeCell};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use libc::c_int;

use super::sync::{Condvar, Mutex, MutexGuard, RwLock};
use super::team::{Place, Team};
use crate::cpu::cores;
use crate::dispatch::Demand;
use crate::matmul::Op;
use crate::process::generation;

/// Most tokens for which the host's barrier is OpenMP's, if it is built with that; for more it spins.
const OPENMP_TOKENS: usize = 32;
/// Runs after which the work buffer of one that did not come again is let go.
const FORGOTTEN_AFTER: u64 = 256;

/// The function of the host that a node is computed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// `iqk_mul_mat_4d`.
    MulMat,
    /// `iqk_mul_mat_moe`, once for every expert.
    Experts,
    /// `iqk_moe_fused_up_gate`, once, or for every expert.
    Gated,
    /// `iqk_flash_attn_noalibi`.
    Attention,
}

/// A node that may be computed here.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// The product that is computed here; `None` if the host does it, and for attention. Products of the host are written
    /// down too, so that a later one of the same weights to the same address is not taken for them.
    pub op: Option<Op>,
    /// Whether its weights are packed: they must stay so while it is computed, whoever does that.
    pub is_packed: bool,
    /// Whose calls it is looked for in.
    pub kernel: Kernel,
    /// Rows of activations, or choices per token.
    pub rows: usize,
    /// Address of the result.
    pub result: usize,
    /// Address of the weights of the first expert, where the host thinks they are.
    pub weights: usize,
    /// Bytes from one expert's weights to the next, and how many there are; 1 if it has none.
    pub stride: usize,
    /// See [`Node::stride`].
    pub experts: usize,
    /// What it is wanted for.
    pub demand: Demand,
    /// Its name, for messages: that of the result's tensor.
    pub name: [u8; 64],
}

// SAFETY: addresses in it are the host's, for all threads of the run.
unsafe impl Send for Node {}

impl Node {
    /// The expert whose weights the host thinks at `address`; 0 if there are none.
    pub fn expert(&self, address: usize) -> Option<usize> {
        let offset = address.checked_sub(self.weights)?;
        let expert = if offset == 0 { 0 } else { offset.checked_div(self.stride)? };
        (expert * self.stride == offset && expert < self.experts).then_some(expert)
    }
}

/// One graph after the other. Never freed: threads remember where they were.
pub struct Graph {
    /// Number of this run; 0: none.
    run: AtomicU64,
    /// The thread that began it, see [`this_thread`].
    owner: AtomicUsize,
    /// Whether weights have more digits than BF16, or none of ours are quantised.
    fine: AtomicBool,
    /// Written while there is no run, with [`ALL`] locked for writing; read by the run's threads, and by others with it
    /// locked for reading.
    nodes: UnsafeCell<Vec<Node>>,
    /// Its threads.
    pub team: Team,
}

// SAFETY: nodes change only as said there.
unsafe impl Sync for Graph {}
// SAFETY: as above.
unsafe impl Send for Graph {}

impl Graph {
    /// Whether weights have more digits than BF16, or none of ours are quantised.
    pub fn is_fine(&self) -> bool {
        self.fine.load(Ordering::Relaxed)
    }
}

/// As many as ever ran at once.
static ALL: RwLock<Vec<&'static Graph>> = RwLock::new(Vec::new());
/// How many of them run: what those without a product for us look at.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
/// Locked while runs begin and end.
static STATE: Mutex<State> = Mutex::new(State { process: 0, last: 0, waiting: 0, spare: Vec::new() });
/// [`State::process`], for who has not locked it.
static PROCESS: AtomicU32 = AtomicU32::new(0);
/// Told when a run ends, and when nobody waits for that any more.
static CHANGED: Condvar = Condvar::new();

struct State {
    /// Number of the process that all this is of.
    process: u32,
    /// Number of the last run.
    last: u64,
    /// Those that wait until nothing runs; nothing begins meanwhile.
    waiting: usize,
    /// Lists to be filled, emptied.
    spare: Vec<Vec<Node>>,
}

impl Default for State {
    /// In a process that was forked while another thread changed it. Numbers of runs are above those of its parent.
    fn default() -> Self {
        Self { process: 0, last: u64::from(generation()) << 40, waiting: 0, spare: Vec::new() }
    }
}

/// The state, locked.
fn state() -> MutexGuard<'static, State> {
    let mut state = STATE.lock();
    if state.process != generation() {
        state.leave_parents();
    }
    state
}

/// An address that is this thread's alone, and stays it in a forked child.
fn this_thread() -> usize {
    CURSOR.with(|cursor| std::ptr::from_ref(cursor) as usize)
}

/// Where a thread is.
#[derive(Clone, Copy)]
struct Cursor {
    graph: Option<&'static Graph>,
    run: u64,
    /// Node to look at next.
    node: usize,
    /// The node before is computed, but the host may still call for more of its experts.
    computed: Option<Computed>,
    /// Threads of the run, as the host's calls say; 0: not known yet.
    threads: usize,
}

/// A node with experts that is computed.
#[derive(Clone, Copy)]
struct Computed {
    /// The expert and the share that this thread called for last. The host calls for higher and higher ones.
    last: (usize, usize),
    /// The highest expert that was chosen.
    until: usize,
}

impl Cursor {
    const NONE: Self = Self { graph: None, run: 0, node: 0, computed: None, threads: 0 };

    /// The graph, if the run is not over: then it is the one that this thread is in.
    fn current(&self) -> Option<&'static Graph> {
        self.graph.filter(|graph| graph.run.load(Ordering::Acquire) == self.run)
    }
}

thread_local! {
    static CURSOR: Cell<Cursor> = const { Cell::new(Cursor::NONE) };
}

/// A graph that is being computed, until it is dropped, by the thread that began it.
pub struct Run {
    graph: &'static Graph,
    /// Where this thread was before: a graph may be computed inside another one.
    outer: Cursor,
}

/// What may be done while no other run begins or ends.
pub struct Beginning<'a> {
    state: Option<MutexGuard<'a, State>>,
}

impl Beginning<'_> {
    /// Waits until nothing runs, so that what runs read may be changed. False if this thread is inside a run, which would
    /// wait for itself.
    pub fn wait_until_alone(&mut self) -> bool {
        if CURSOR.get().current().is_some() {
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

/// Announces a graph that up to `threads` threads compute, with the nodes that `fill` writes down, in their order. `None`
/// if none of them is ours, or has packed weights.
pub fn begin(threads: usize, fill: impl FnOnce(&mut Beginning<'_>, &mut Vec<Node>)) -> Option<Run> {
    let outer = CURSOR.get();
    let state = state();
    let mut state = if outer.current().is_some() {
        // Who waits, waits for the outer run too.
        state
    } else {
        CHANGED.wait_while(state, |state| state.waiting > 0)
    };
    let mut nodes = state.spare.pop().unwrap_or_default();
    let mut beginning = Beginning { state: Some(state) };
    fill(&mut beginning, &mut nodes);
    let mut state = beginning.state.expect("there is always one");
    let graph = state.free();
    // SAFETY: the graph does not run, and the state is locked.
    unsafe { prepare(&graph.team, threads, &mut nodes) };
    let ops = || nodes.iter().filter_map(|node| node.op.as_ref());
    let fine = ops().any(Op::has_fine_weights) || ops().next().is_none();
    let is_ours = |node: &Node| node.op.is_some() || node.is_packed || node.kernel == Kernel::Attention;
    if !nodes.iter().any(is_ours) {
        nodes.clear();
        state.spare.push(nodes);
        return None;
    }
    let run = state.last;
    {
        let _all = ALL.write();
        // SAFETY: the graph does not run, and nobody looks.
        let mut old = std::mem::replace(unsafe { &mut *graph.nodes.get() }, nodes);
        old.clear();
        state.spare.push(old);
        graph.fine.store(fine, Ordering::Relaxed);
        graph.owner.store(this_thread(), Ordering::Relaxed);
        graph.run.store(run, Ordering::Release);
    }
    RUNNING.fetch_add(1, Ordering::AcqRel);
    cores::note_thread();
    CURSOR.set(Cursor { graph: Some(graph), run, ..Cursor::NONE });
    Some(Run { graph, outer })
}

/// Gets the team of a run ready; products without memory are left to the host.
///
/// # Safety
/// As for [`Team::prepare`].
unsafe fn prepare(team: &Team, threads: usize, nodes: &mut [Node]) {
    // More threads than can run at once would wait for each other.
    let most = cores::of(threads);
    let few = nodes.iter().all(|node| node.kernel != Kernel::MulMat || node.rows <= OPENMP_TOKENS);
    // SAFETY: promised by the caller.
    unsafe { team.prepare(threads, most, few) };
    let bytes = |node: &Node| node.op.as_ref().map(|op| op.work_size(most).unwrap_or(usize::MAX));
    let wants = nodes.iter().enumerate().filter_map(|(i, node)| Some((bytes(node)?, i))).collect();
    // SAFETY: promised by the caller.
    unsafe { team.reserve_for(wants, |i| nodes[i].op = None) };
}

impl State {
    /// As a process begins: of its parent's runs only those of this thread go on. The others had threads that are not here,
    /// and graphs that those may have left half done; they are not used any more.
    fn leave_parents(&mut self) {
        (self.process, self.waiting) = (generation(), 0);
        let mut all = ALL.write();
        all.retain(|graph| {
            let stays = graph.run.load(Ordering::Relaxed) != 0 && graph.owner.load(Ordering::Relaxed) == this_thread();
            if !stays {
                graph.run.store(0, Ordering::Release);
            }
            stays
        });
        RUNNING.store(all.len(), Ordering::Release);
        PROCESS.store(self.process, Ordering::Release);
    }

    /// A graph that does not run. The work buffers of those that have not run for long are let go.
    fn free(&mut self) -> &'static Graph {
        self.last += 1;
        let is_free = |graph: &&&'static Graph| graph.run.load(Ordering::Relaxed) == 0;
        let all = ALL.read();
        let mut free = all.iter().filter(is_free).copied();
        let found = free.next();
        if self.last.is_multiple_of(FORGOTTEN_AFTER) {
            // SAFETY: the graphs do not run, and the state is locked.
            free.for_each(|graph| unsafe { graph.team.release() });
        }
        drop(all);
        found.unwrap_or_else(|| {
            let made: &'static Graph = Box::leak(Box::new(Graph {
                run: AtomicU64::new(0),
                owner: AtomicUsize::new(0),
                fine: AtomicBool::new(false),
                nodes: UnsafeCell::new(Vec::new()),
                team: Team::new(),
            }));
            ALL.write().push(made);
            made
        })
    }
}

/// Whether no graph that runs has a node for us.
fn is_idle() -> bool {
    if RUNNING.load(Ordering::Acquire) == 0 {
        return true;
    }
    if PROCESS.load(Ordering::Acquire) != generation() {
        drop(state());
    }
    RUNNING.load(Ordering::Acquire) == 0
}

impl Drop for Run {
    fn drop(&mut self) {
        let _state = state();
        // SAFETY: the host's threads are done with the run, and the state is locked.
        unsafe { self.graph.team.rest() };
        self.graph.run.store(0, Ordering::Release);
        let _ = RUNNING.fetch_update(Ordering::AcqRel, Ordering::Acquire, |running| running.checked_sub(1));
        CHANGED.notify_all();
        CURSOR.set(self.outer);
    }
}

/// What a kernel was called for.
pub enum Call {
    /// This product of ours, which this thread has to take part in.
    Compute { team: &'static Team, place: Place, node: &'static Node, op: &'static Op },
    /// Another expert of a product that is done, or another share of it.
    Done,
    /// Nothing of ours.
    Foreign,
}

/// Where the next node that is `wanted` is: in the run of this thread, or in the first one that has one, if it has not come
/// to any node yet.
fn find(wanted: impl Fn(&Node) -> bool) -> Option<(&'static Graph, u64, usize, &'static Node)> {
    let search = |graph: &'static Graph, from: usize| {
        // SAFETY: the run is this thread's, or the list is locked: see there.
        let nodes: &'static [Node] = unsafe { &*graph.nodes.get() };
        nodes.iter().enumerate().skip(from).find(|(_, n)| wanted(n))
    };
    let at = CURSOR.get();
    if let Some(graph) = at.current() {
        return search(graph, at.node).map(|(i, n)| (graph, at.run, i, n));
    }
    let all = ALL.read();
    let found = all.iter().find_map(|graph| {
        let run = graph.run.load(Ordering::Acquire);
        let (i, node) = if run == 0 { None } else { search(graph, 0) }?;
        Some((*graph, run, i, node))
    });
    drop(all);
    if found.is_some() {
        cores::note_thread();
    }
    found
}

/// What `kernel` is called for that shall multiply share `ith` of `nth` of the weights at `weights` into `result`: the next
/// node that `fits`.
///
/// Of a product with experts the host calls for every expert that was chosen. Either every thread calls for its own share of
/// each; or shares are handed out one after the other (`GGML_EXPERT_CHUNKING`), and there may be fewer of an expert than
/// threads. A thread that has called does not come back before the product is done, so as many threads come as there are
/// shares, or all.
pub fn call(
    kernel: Kernel,
    result: usize,
    weights: usize,
    (ith, nth): (c_int, c_int),
    fits: impl Fn(&Node) -> bool,
) -> Call {
    let (Ok(share), Ok(shares), false) = (usize::try_from(ith), usize::try_from(nth), is_idle()) else {
        return Call::Foreign;
    };
    if share >= shares {
        return Call::Foreign;
    }
    let wanted = |n: &Node| n.kernel == kernel && n.result == result && n.expert(weights).is_some() && fits(n);
    let at = CURSOR.get();
    if let (Some(computed), Some(graph)) = (at.computed, at.current()) {
        // SAFETY: the run is this thread's.
        let node: &Node = unsafe { &(&*graph.nodes.get())[at.node - 1] };
        let now = (node.expert(weights).unwrap_or(0), share);
        if wanted(node) && now > computed.last && now.0 <= computed.until {
            CURSOR.set(Cursor { computed: Some(Computed { last: now, ..computed }), ..at });
            return Call::Done;
        }
    }
    let Some((graph, run, index, node)) = find(wanted) else { return Call::Foreign };
    let of_run = if run == at.run { at.threads } else { 0 };
    // All threads have a share of a product without experts.
    let threads = if kernel == Kernel::MulMat { shares } else { of_run };
    let to = Cursor { graph: Some(graph), run, node: index + 1, computed: None, threads };
    let Some(op) = &node.op else {
        // It may be called for again: with other activations, for other experts.
        CURSOR.set(Cursor { node: index, ..to });
        return Call::Foreign;
    };
    let expert = node.expert(weights).unwrap_or(0);
    let (index, count, until) = match op {
        Op::Dense(_) => (Some(share), shares, None),
        Op::Experts(p) => {
            // SAFETY: the choices are there once the host calls.
            let (active, until) = unsafe { p.choices.active(p.weights.ne[2]) };
            let threads = if threads > 0 { threads } else { graph.team.threads() };
            let come = if cfg!(mutant = "chunks") { shares } else { threads.min(shares * active.max(1)) };
            (None, come, Some(until))
        }
    };
    let place = Place { index, count, number: to.node as u32, follows: false };
    CURSOR.set(Cursor { computed: until.map(|until| Computed { last: (expert, share), until }), ..to });
    Call::Compute { team: &graph.team, place, node, op }
}

/// The graph in which attention is computed whose result lies at `result`, by thread `ith` of `nth`. `None` if these numbers are
/// not those of the run's threads: then they are something else in this host's version.
pub fn attention(result: usize, (ith, nth): (c_int, c_int)) -> Option<&'static Graph> {
    if is_idle() || !(0..nth).contains(&ith) {
        return None;
    }
    let (graph, run, index, _) = find(|n| n.kernel == Kernel::Attention && n.result == result)?;
    let at = CURSOR.get();
    let threads = if run == at.run { at.threads } else { 0 };
    if nth as usize != if threads > 0 { threads } else { graph.team.threads() } {
        return None;
    }
    CURSOR.set(Cursor { graph: Some(graph), run, node: index + 1, computed: None, threads });
    Some(graph)
}

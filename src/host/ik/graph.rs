//! The graphs that are being computed. The kernels of ik_llama.cpp get addresses and numbers; what we need besides (the
//! activations as they were before the host quantised them, all choices of experts at once) is in the graph's
//! nodes. As a graph begins, those that are computed here are written down; the kernels find them by where weights
//! and results lie.
//!
//! Nodes run in their order, so every thread looks from where it found the last one.

use std::cell::{Cell, UnsafeCell};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::matmul::Op;

/// Graphs computed at the same time; the products of more are left to the host.
const GRAPHS: usize = 32;

/// A product of a graph.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// What is computed here; `None` if the host does it. Those are written down too, so that a later product of the same
    /// weights to the same address is not taken for them.
    pub op: Option<Op>,
    /// Whether it has a gate.
    pub fused: bool,
    /// Whether experts are chosen.
    pub with_ids: bool,
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
    /// Its name, for messages: that of the result's tensor.
    pub name: [u8; 64],
}

impl Node {
    /// The expert whose weights the host thinks at `address`; 0 if there are none.
    pub fn expert(&self, address: usize) -> Option<usize> {
        let offset = address.checked_sub(self.weights)?;
        let expert = if offset == 0 { 0 } else { offset.checked_div(self.stride)? };
        (expert * self.stride == offset && expert < self.experts).then_some(expert)
    }
}

/// One graph.
struct Graph {
    /// Number of this run, never used twice; 0: none.
    run: AtomicU64,
    /// Whether weights have more digits than BF16.
    fine: AtomicBool,
    /// Written under the lock while there is no run, read by the run's threads.
    nodes: UnsafeCell<Vec<Node>>,
}

// SAFETY: nodes change only between runs, under the lock; threads look at them only during a run of theirs.
unsafe impl Sync for Graph {}

impl Graph {
    const fn none() -> Self {
        Self { run: AtomicU64::new(0), fine: AtomicBool::new(false), nodes: UnsafeCell::new(Vec::new()) }
    }
}

static ALL: [Graph; GRAPHS] = [const { Graph::none() }; GRAPHS];
/// How many of them run.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
/// The number of the last run; held to begin and end runs, and to look through all of them.
static LOCK: Mutex<u64> = Mutex::new(0);

/// Where a thread is.
#[derive(Clone, Copy)]
struct Cursor {
    graph: usize,
    run: u64,
    /// Node to look at next.
    node: usize,
    /// The node is computed, but the host still calls for more of its experts, up to this one.
    until: Option<usize>,
}

impl Cursor {
    /// Whether the run is not over: then it is the one that this thread is in.
    fn is_current(&self) -> bool {
        self.run != 0 && ALL[self.graph].run.load(Ordering::Acquire) == self.run
    }
}

thread_local! {
    static CURSOR: Cell<Cursor> = const { Cell::new(Cursor { graph: 0, run: 0, node: 0, until: None }) };
}

/// A graph that is being computed, until it is dropped.
pub struct Run(usize);

/// Announces a graph with these products, in their order. `None` if none of them is ours, or there are too many graphs.
pub fn begin(products: impl Iterator<Item = Node>) -> Option<Run> {
    let mut last = LOCK.lock().unwrap_or_else(|e| e.into_inner());
    let index = ALL.iter().position(|g| g.run.load(Ordering::Relaxed) == 0)?;
    // SAFETY: no run, and we hold the lock.
    let nodes = unsafe { &mut *ALL[index].nodes.get() };
    nodes.clear();
    nodes.extend(products);
    nodes.iter().find(|node| node.op.is_some())?;
    let fine = nodes.iter().any(|node| node.op.is_some_and(|op| op.has_fine_weights()));
    ALL[index].fine.store(fine, Ordering::Relaxed);
    *last += 1;
    ALL[index].run.store(*last, Ordering::Release);
    RUNNING.fetch_add(1, Ordering::AcqRel);
    Some(Run(index))
}

/// Whether no graph that runs has a product for us.
pub fn is_idle() -> bool {
    RUNNING.load(Ordering::Acquire) == 0
}

impl Drop for Run {
    fn drop(&mut self) {
        let _guard = LOCK.lock().unwrap_or_else(|e| e.into_inner());
        ALL[self.0].run.store(0, Ordering::Release);
        RUNNING.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Whether weights of the graph that this thread computes have more digits than BF16; `None` if it did not come to a
/// product of ours in it.
pub fn is_fine() -> Option<bool> {
    let at = CURSOR.get();
    at.is_current().then(|| ALL[at.graph].fine.load(Ordering::Relaxed))
}

/// What a kernel was called for.
pub enum Call {
    /// This product of ours, which this thread has to take part in.
    Compute(&'static Node, &'static Op),
    /// Another expert of a product that is done.
    Done,
    /// Nothing of ours.
    Foreign,
}

/// What the kernel is called for that shall multiply with the weights at `weights` into `result`: the next node that
/// `fits`.
pub fn call(result: usize, weights: usize, fits: impl Fn(&Node) -> bool) -> Call {
    if is_idle() {
        return Call::Foreign;
    }
    let matching = |n: &Node| n.result == result && n.expert(weights).is_some() && fits(n);
    let search = |graph: usize, from: usize| {
        // SAFETY: see the callers: the graph runs.
        let nodes: &'static [Node] = unsafe { &*ALL[graph].nodes.get() };
        nodes.iter().enumerate().skip(from).find(|(_, n)| matching(n))
    };
    let at = CURSOR.get();
    let same = at.is_current();
    let found = if same {
        search(at.graph, at.node).map(|(i, n)| (at.graph, at.run, i, n))
    } else {
        let _guard = LOCK.lock().unwrap_or_else(|e| e.into_inner());
        (0..GRAPHS).find_map(|graph| {
            let run = ALL[graph].run.load(Ordering::Acquire);
            let (i, node) = if run == 0 { None } else { search(graph, 0) }?;
            Some((graph, run, i, node))
        })
    };
    let Some((graph, run, index, node)) = found else { return Call::Foreign };
    let Some(op) = &node.op else {
        // It may be called for again: with other activations, for other experts.
        CURSOR.set(Cursor { graph, run, node: index, until: None });
        return Call::Foreign;
    };
    let expert = node.expert(weights).unwrap_or(0);
    let continued = same && index == at.node && at.until.is_some();
    // The host calls for chosen experts in ascending order, all threads for all of them.
    let until = if continued { at.until } else { last_expert(op) };
    let over = until.is_none_or(|last| expert >= last);
    CURSOR.set(Cursor { graph, run, node: index + usize::from(over), until: until.filter(|_| !over) });
    if continued { Call::Done } else { Call::Compute(node, op) }
}

/// The last expert that the host will call for.
fn last_expert(op: &Op) -> Option<usize> {
    let Op::Experts(p) = op else { return None };
    // SAFETY: the ids are there once the host calls.
    unsafe { p.choices.ends(p.weights.ne[2]) }.map(|(_, high)| high)
}

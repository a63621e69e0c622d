//! From a call of a kernel to the node that it computes: the next one in the thread's run whose weights and result lie
//! at the addresses of the call.

use libc::c_int;

use super::node::{HostKernel, Node};
use super::runs::{self, ComputedExperts, Cursor, RunSlot, SLOTS};
use super::team::{Arrival, Team};
use crate::cpu::cores;
use crate::matmul::Op;

/// The share of a product's rows that a kernel is called for: its number, and how many shares there are. For products
/// without experts, a thread's number and the number of all threads.
pub type Share = (c_int, c_int);

/// What a kernel is called for.
pub enum Lookup {
    /// A product of ours, in which this thread has to take part.
    Compute { team: &'static Team, arrival: Arrival, node: &'static Node, op: &'static Op },
    /// Another expert, or another share, of a product of ours that is done.
    Done,
    /// Nothing of ours.
    NotOurs,
}

/// A node of a run.
struct FoundNode {
    slot: &'static RunSlot,
    /// Number of the run.
    run: u64,
    /// Index of the node.
    index: usize,
    node: &'static Node,
}

impl FoundNode {
    /// The cursor of a thread that goes on behind this node; `threads`: of the run, 0 if not known.
    fn behind(&self, threads: usize) -> Cursor {
        Cursor { slot: Some(self.slot), run: self.run, node: self.index + 1, computed: None, threads }
    }
}

/// The next node that is `wanted`: in the run of this thread; or, if the thread has not come to any node yet, in the
/// first run that has such a node.
fn find(wanted: impl Fn(&Node) -> bool) -> Option<FoundNode> {
    let search = |slot: &'static RunSlot, run: u64, from: usize| {
        // SAFETY: this thread is one of the run's, or `SLOTS` is locked below. The node that is found is computed by
        // this call, so the run does not end before it returns.
        let nodes = unsafe { slot.nodes() };
        let (index, node) = nodes.iter().enumerate().skip(from).find(|(_, node)| wanted(node))?;
        Some(FoundNode { slot, run, index, node })
    };
    let cursor = Cursor::get();
    if let Some(slot) = cursor.current() {
        return search(slot, cursor.run, cursor.node);
    }
    let slots = SLOTS.read();
    let found = slots.iter().find_map(|slot| search(slot, slot.run()?, 0));
    drop(slots);
    if found.is_some() {
        cores::note_thread();
    }
    found
}

/// What `kernel` is called for that shall multiply a share of the weights at `weights` into `result`: the next node
/// that `fits`.
///
/// Of a product with experts the host calls for every expert that was chosen. Either every thread calls for its own
/// share of each; or shares are handed out one after another (`GGML_EXPERT_CHUNKING`), and an expert may have fewer
/// than there are threads. A thread that has called does not return before the product is done. So as many threads come
/// as there are shares of all experts, or all threads.
pub fn look_up(
    kernel: HostKernel,
    result: usize,
    weights: usize,
    (ith, nth): Share,
    fits: impl Fn(&Node) -> bool,
) -> Lookup {
    let (Ok(share), Ok(shares), false) = (usize::try_from(ith), usize::try_from(nth), runs::none()) else {
        return Lookup::NotOurs;
    };
    if share >= shares {
        return Lookup::NotOurs;
    }
    let wanted =
        |node: &Node| node.kernel == kernel && node.result == result && node.expert(weights).is_some() && fits(node);
    let cursor = Cursor::get();
    if let (Some(computed), Some(slot)) = (cursor.computed, cursor.current()) {
        // SAFETY: this thread is one of the run's.
        let node = unsafe { &slot.nodes()[cursor.node - 1] };
        let now = (node.expert(weights).unwrap_or(0), share);
        if wanted(node) && now > computed.last && now.0 <= computed.highest {
            Cursor { computed: Some(ComputedExperts { last: now, ..computed }), ..cursor }.set();
            return Lookup::Done;
        }
    }
    let Some(found) = find(wanted) else { return Lookup::NotOurs };
    let FoundNode { slot, run, index, node } = found;
    // All threads have a share of a product without experts.
    let threads = if kernel == HostKernel::MulMat { shares } else { cursor.threads_of(run) };
    let behind = found.behind(threads);
    let Some(op) = &node.op else {
        // The host may call for it again: with other activations, for other experts.
        Cursor { node: index, ..behind }.set();
        return Lookup::NotOurs;
    };
    let (index, count, computed) = match op {
        Op::Dense(_) => (Some(share), shares, None),
        Op::Experts(p) => {
            // SAFETY: the host calls after it has computed the choices.
            let (active, highest) = unsafe { p.choices.active(p.weights.ne[2]) };
            let threads = if threads > 0 { threads } else { slot.team.threads() };
            let come = if cfg!(mutant = "chunks") { shares } else { threads.min(shares * active.max(1)) };
            (None, come, Some(ComputedExperts { last: (node.expert(weights).unwrap_or(0), share), highest }))
        }
    };
    let arrival = Arrival { index, count, number: behind.node as u32, follows: false };
    Cursor { computed, ..behind }.set();
    Lookup::Compute { team: &slot.team, arrival, node, op }
}

/// The run that computes attention with its result at `result`, called by thread `ith` of `nth`. `None` if these
/// numbers are not those of the run's threads: then a later version of the host means something else by these
/// arguments.
pub fn look_up_attention(result: usize, (ith, nth): (c_int, c_int)) -> Option<&'static RunSlot> {
    if runs::none() || !(0..nth).contains(&ith) {
        return None;
    }
    let found = find(|node| node.kernel == HostKernel::Attention && node.result == result)?;
    let threads = Cursor::get().threads_of(found.run);
    if nth as usize != if threads > 0 { threads } else { found.slot.team.threads() } {
        return None;
    }
    found.behind(threads).set();
    Some(found.slot)
}

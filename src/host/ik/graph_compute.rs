//! What is called in front of `ggml_graph_compute`: a run begins, with the nodes that are ours. If anything is packed,
//! all nodes are looked at first: one that would read packed bytes without being a product gets them unpacked.

use libc::{c_int, c_void};

use super::abi::IkPlan;
use super::host::IkHost;
use super::node::{HostKernel, Node};
use super::runs::{self, Beginning};
use super::{buffer_type, handshake, packed, product};
use crate::buffer::held;
use crate::cpu;
use crate::diag::log;
use crate::host::{RawTensor, Tensor};

/// In front of `ggml_graph_compute`, which `real` is.
///
/// # Safety
/// `graph` must be a graph of the host's, `plan` its plan.
pub unsafe fn graph_compute(graph: *mut c_void, plan: *const IkPlan, real: impl Fn() -> c_int) -> c_int {
    let Some(host) = IkHost::get() else { return real() };
    // SAFETY: the plan is one of the host's, or null.
    let threads = unsafe { plan.as_ref() }.map_or(1, |plan| plan.n_threads);
    let _computing = handshake::computes(graph, threads);
    if !handshake::is_running() && !handshake::is_understood(host, buffer_type::lazy_buffer) {
        return real();
    }
    // SAFETY: the host says where the graph has its nodes, and how many there are.
    let nodes: &[*mut RawTensor] = unsafe {
        let count = usize::try_from((host.symbols.ggml_graph_n_nodes)(graph)).unwrap_or(0);
        let nodes = (host.ik.ggml_graph_nodes)(graph);
        if nodes.is_null() { &[] } else { std::slice::from_raw_parts(nodes, count) }
    };
    // SAFETY: LIVE TENSOR: nodes of a graph.
    let nodes = || nodes.iter().filter_map(|node| unsafe { host.tensor(*node) });
    packed::report();
    held::lock_as_the_host_does();
    // Lines of the log wait until other runs may begin: the host's callback may compute something.
    let hold = log::hold();
    let run = runs::begin(usize::try_from(threads).unwrap_or(1).max(1), |beginning, list| {
        if packed::any() {
            nodes().for_each(|node| unpack_for(host, node, beginning));
        }
        list.extend(nodes().filter_map(|node| noted(host, node)));
    });
    drop(hold);
    let status = real();
    drop(run);
    status
}

/// What is noted of a node, if it may be computed here.
fn noted(host: &'static IkHost, node: Tensor) -> Option<Node> {
    let attention = Node {
        op: None,
        is_packed: false,
        kernel: HostKernel::Attention,
        rows: usize::try_from(node.ne()[1]).ok()?,
        result: node.data() as usize,
        weights: 0,
        stride: 0,
        experts: 1,
        demand: product::demand(host, node),
        name: node.name_bytes(),
    };
    if node.op() == host.ik_ops.flash_attn_ext && cpu::isa() == cpu::Isa::Amx {
        // More sources than Q, K, V, mask and sinks make it another kind of attention (with an indexer, in later
        // versions).
        return node.sources_from(5).next().is_none().then_some(attention);
    }
    if !product::is_product(host, node) {
        return None;
    }
    let op = product::product(host, node).unwrap_or_else(|why| {
        crate::debug!("left to the host, unpacked: {why}");
        None
    });
    let weights = node.source(0)?;
    let (fused, with_ids) = (product::is_fused(host, node), product::has_ids(host, node));
    // Calls have the address of `up`, which is the second half of a merged tensor.
    let skip = if fused && node.source(1).is_none() { weights.nb()[2] / 2 } else { 0 };
    Some(Node {
        op: op.filter(|op| !op.lacks_data()),
        is_packed: [0, 1].into_iter().filter_map(|i| node.source(i)).any(packed::is_packed),
        kernel: match (fused, with_ids) {
            (true, _) => HostKernel::Gated,
            (false, true) => HostKernel::Experts,
            (false, false) => HostKernel::MulMat,
        },
        weights: weights.data() as usize + skip,
        stride: weights.nb()[2],
        experts: if with_ids { usize::try_from(weights.ne()[2]).ok()? } else { 1 },
        ..attention
    })
}

/// Unpacks what `node` would read as plain bytes: all its packed sources but the weights of a product.
fn unpack_for(host: &'static IkHost, node: Tensor, beginning: &mut Beginning<'_>) {
    if host.ops.no_data.contains(&node.op()) {
        return;
    }
    let weights = usize::from(product::is_product(host, node)) + usize::from(product::is_fused(host, node));
    for source in node.sources_from(weights).filter(|t| packed::is_packed(*t)) {
        let reader = format!("{} ({})", host.op_name(node.op()), node.name());
        if !beginning.wait_until_alone() {
            host.abort(&format!("{} is packed, and {reader} inside another graph would read it", source.name()));
        }
        // SAFETY: there is no run, and none begins before this one.
        unsafe { packed::give_back(source, &reader) };
    }
}

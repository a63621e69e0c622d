//! What llama.cpp asks about its nodes: who computes one, how large a work buffer it needs, and the computing itself.

use super::abi::GgmlComputeParams;
use super::llama::Host;
use super::op;
use super::operands;
use super::tensor::Tensor;
use crate::buffer::held;
use crate::cpu;
use crate::matmul::{Op, Settings, Thread};

/// Whether `node` is computed here: a product on packed weights, or one on plain weights where the tile unit is faster.
/// Any other node that would read packed bytes ends the process, because the host would take them for plain ones.
pub fn is_computed_here(host: &'static Host, node: Tensor) -> bool {
    held::lock_as_the_host_does();
    let Some(packed) = op::misread(host, node) else {
        return op::has_plain_weights(host, node) && op::product(host, node).is_ok();
    };
    if op::is_product(host, node) && node.source(0).is_some_and(|weights| weights.is(&packed)) {
        return true;
    }
    host.abort(&format!(
        "{} would read {} as plain bytes, but it is packed for AMX; keep this tensor in a CPU buffer",
        host.op_name(node.op()),
        packed.name()
    ));
}

/// Bytes of work buffer that `node` needs on `n_threads` threads; `None` if it is not computed here.
pub fn work_size(host: &'static Host, n_threads: i32, node: Tensor) -> Option<usize> {
    held::lock_as_the_host_does();
    op::product(host, node).ok()?.work_size(usize::try_from(n_threads).ok()?.max(1))
}

/// Computes this thread's part of `node`. False if it is not computed here; then nothing was written. A node on packed
/// weights that cannot be computed ends the process, because nobody else can read them.
///
/// # Safety
/// Parameters and node must be the host's, with data, and every thread of the operation must call this.
pub unsafe fn compute_forward(host: &'static Host, params: &GgmlComputeParams, node: Tensor) -> bool {
    let Some(weights) = node.source(0).filter(|_| op::is_product(host, node)) else { return false };
    let fail = |why: &str| -> ! {
        host.abort(&format!("{} {} with weights {}: {why}", host.op_name(node.op()), node.name(), weights.name()))
    };
    let product = match op::product(host, node) {
        Ok(product) => product,
        Err(why) if op::packed_shape(host, weights).is_some() => fail(&why),
        Err(_) => return false,
    };
    if product.is_empty() {
        return true;
    }
    let (index, count) = operands::check_params(&product, params).unwrap_or_else(|why| fail(&why));
    // The scheduler decides where activations lie after it has asked whether the node can be computed, so this is
    // checked here.
    if [1, 2].into_iter().filter_map(|i| node.source(i)).any(|t| !op::is_readable(host, t)) {
        fail("the activations are not in host memory");
    }
    // Only thread 0 looks at the ids: the others wait for it to sort the rows by them.
    if let (Op::Experts(p), 0) = (&product, index)
        // SAFETY: the ids have data, of the shape that was checked.
        && let Some((token, slot, id)) = unsafe { p.choices.find_bad(p.weights.ne[2]) }
    {
        fail(&format!("id {id} (number {slot} of token {token}) is none of {} experts", p.weights.ne[2]));
    }
    // SAFETY: the pool is the host's, and every one of its threads computes this node.
    let barrier = || unsafe { host.barrier(params.threadpool) };
    let (settings, thread) =
        (Settings { isa: cpu::isa(), demand: op::demand(node) }, Thread { index, count, barrier: &barrier });
    // SAFETY: shapes, addresses, ids and the work buffer were checked; the instruction set is one that can be used.
    unsafe { product.run(settings, &thread, params.wdata.cast()) };
    true
}

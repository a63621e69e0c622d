//! The way in by function: a fork of ik_llama.cpp with a list of buffer types chooses one for every tensor, and asks
//! about every node who computes it. So its own kernels are never called for packed weights, and nothing has to stand
//! in front of them. That it does ask is proved first ([`handshake`]).

use std::cell::Cell;
use std::collections::BTreeMap;

use super::host::IkHost;
use super::{buffer_type, handshake, packed, product};
use crate::buffer::held;
use crate::cpu::sync::RwLock;
use crate::cpu::{self, cores, rendezvous::Rendezvous};
use crate::diag::env::env;
use crate::host::abi::GgmlComputeParams;
use crate::host::{RawBufferType, RawTensor, Tensor, operands};
use crate::matmul::{Op, Settings, Thread};
use crate::process::generation;

/// The buffer type `AMX`; `None` if the library steps aside.
pub fn buffer_type() -> Option<*mut RawBufferType> {
    IkHost::get().map(|_| buffer_type::buffer_type())
}

/// The host and one of its nodes; `None` for null, and if the library steps aside.
///
/// # Safety
/// `op` must be null or a live node.
pub unsafe fn node(op: *const RawTensor) -> Option<(&'static IkHost, Tensor)> {
    let host = IkHost::get()?;
    // SAFETY: LIVE TENSOR: null, or a live node.
    Some((host, unsafe { host.tensor(op) }?))
}

/// Whether `op` can be computed, here or by the host. One of its sources lies in our buffers, or would if it was
/// allocated.
pub fn supports(host: &'static IkHost, op: Tensor) -> bool {
    if host.ops.no_data.contains(&op.op()) {
        return true;
    }
    if product::is_product(host, op) && matches!(product::product(host, op), Ok(Some(_))) {
        return op.sources_from(0).all(|w| !buffer_type::is_probe(host, w) || buffer_type::has_memory(host, w, op));
    }
    // The host can read what our buffers store as it is, but nothing that is packed. A tensor that a loader only asks
    // about is accepted for products alone.
    op.sources_from(0)
        .all(|t| !buffer_type::is_ours(host, t) || !packed::is_packed(t) && !buffer_type::is_probe(host, t))
}

/// Bytes of work buffer that `op` needs with `threads` threads; `None` if the host computes it.
pub fn work_size(host: &'static IkHost, threads: i32, op: Tensor) -> Option<usize> {
    held::lock_as_the_host_does();
    ours(host, op)?.work_size(usize::try_from(threads).ok()?.max(1))
}

/// `op` as a product that is computed here; `None` if the host computes it. Ends the process if neither can: a node
/// that is no such product would read packed bytes.
fn ours(host: &'static IkHost, op: Tensor) -> Option<Op> {
    let fail = |why: &str| -> ! { host.abort(&format!("{} {}: {why}", host.op_name(op.op()), op.name())) };
    let is_packed = |t: &Tensor| buffer_type::is_ours(host, *t) && packed::is_packed(*t);
    if host.ops.no_data.contains(&op.op()) {
        return None;
    }
    if !product::is_product(host, op) {
        if let Some(t) = op.sources_from(0).find(is_packed) {
            fail(&format!(
                "would read {} as plain bytes, but it is packed; keep this tensor in a CPU buffer",
                t.name()
            ));
        }
        return None;
    }
    match product::product(host, op) {
        Ok(product) => product,
        Err(why) if op.sources_from(0).any(|t| is_packed(&t)) => fail(&why),
        Err(_) => None,
    }
}

/// Computes this thread's part of `op`; false if the host computes it, and nothing was written. Ends the process if
/// neither can, and for parameters that cannot be right.
///
/// # Safety
/// Parameters and node must be the host's, with data; every thread of the operation must call this.
pub unsafe fn compute_forward(host: &'static IkHost, params: &GgmlComputeParams, op: Tensor) -> bool {
    handshake::note_node(op, params);
    let Some(product) = ours(host, op) else { return false };
    if product.is_empty() {
        return true;
    }
    let fail = |why: &str| -> ! { host.abort(&format!("{} {}: {why}", host.op_name(op.op()), op.name())) };
    let (index, count) = operands::check_params(&product, params).unwrap_or_else(|why| fail(&why));
    let (rendezvous, crowded) = (rendezvous(params.threadpool as usize), count > cores::of(count));
    let barrier = || {
        if count > 1 {
            rendezvous.wait(count, crowded);
        }
    };
    let settings = Settings { isa: cpu::isa(), demand: product::demand(host, op) };
    // SAFETY: `product` has checked the shapes, the data is there, and the work buffer is large enough.
    unsafe { product.run(settings, &Thread { index, count, barrier: &barrier }, params.wdata.cast()) };
    if env().check_nan {
        barrier();
        // SAFETY: all threads have written their results.
        if index == 0 && unsafe { product.has_nan() } {
            fail("NaN or infinity");
        }
    }
    true
}

/// Where the threads of a run meet. `run` is an address that the host passes to all of them, and to no other run at the
/// same time. The host has a barrier between any two operations, so one rendezvous serves all operations of a run.
/// Rendezvous are never freed, but they stay few: later runs have the addresses of earlier ones.
///
/// A forked child has rendezvous of its own: threads that it does not have may have come to those of its parent.
fn rendezvous(run: usize) -> &'static Rendezvous {
    /// The number of the process, and the run.
    type RunKey = (u32, usize);
    static ALL: RwLock<BTreeMap<RunKey, &'static Rendezvous>> = RwLock::new(BTreeMap::new());
    thread_local! {
        static LAST: Cell<Option<(RunKey, &'static Rendezvous)>> = const { Cell::new(None) };
    }
    let key = (generation(), run);
    if let Some((_, rendezvous)) = LAST.get().filter(|(last, _)| *last == key) {
        return rendezvous;
    }
    cores::note_thread();
    let known = ALL.read().get(&key).copied();
    let rendezvous = known.unwrap_or_else(|| ALL.write().entry(key).or_insert_with(|| Box::leak(Box::default())));
    LAST.set(Some((key, rendezvous)));
    rendezvous
}

//! ik_llama.cpp that asks by function: a fork with a list of buffer types, which chooses one for every tensor and asks for
//! every node who computes it. Its own kernels are never called for packed weights then, so nothing need stand in front of
//! them; that it does ask is proved first ([`handshake`]).

use crate::process::generation;
use std::cell::Cell;
use std::collections::BTreeMap;

use super::handshake;
use super::sync::RwLock;
use super::{IkHost, RawBufferType, Tensor, place, product};
use crate::buffer::held;
use crate::cpu::{self, cores, rendezvous::Rendezvous};
use crate::host::abi::GgmlComputeParams;
use crate::host::operands;
use crate::matmul::{Op, Settings, Thread};

/// The buffer type `AMX`; `None` if the library steps aside.
pub fn buffer_type() -> Option<*mut RawBufferType> {
    IkHost::get().map(|_| place::buffer_type())
}

/// The host and one of its nodes; `None` for null, and if the library steps aside.
///
/// # Safety
/// `op` must be null or a live node.
pub unsafe fn node(op: *const super::RawTensor) -> Option<(&'static IkHost, Tensor)> {
    let host = IkHost::get()?;
    // SAFETY: promised by the caller.
    Some((host, unsafe { host.tensor(op) }?))
}

/// Whether `op`, one of whose sources lies in our buffers (or would: then its buffer has no size), can be computed, here or
/// by the host.
pub fn supports(host: &'static IkHost, op: Tensor) -> bool {
    if host.ops.no_data.contains(&op.op()) {
        return true;
    }
    if product::is_product(host, op) && matches!(product::product(host, op), Ok(Some(_))) {
        return op.sources_from(0).all(|w| !place::is_probe(host, w) || place::has_memory(host, w, op));
    }
    // The host reads what is stored as it is; what is packed, or would be for a product only, it must not.
    op.sources_from(0).all(|t| !place::is_ours(host, t) || place::packed(t).is_none() && !place::is_probe(host, t))
}

/// Bytes of work buffer that `op` needs on `threads` threads; `None` if the host computes it.
pub fn work_size(host: &'static IkHost, threads: i32, op: Tensor) -> Option<usize> {
    held::lock_as_the_host_does();
    ours(host, op)?.work_size(usize::try_from(threads).ok()?.max(1))
}

/// `op` as a product that is computed here. Ends the process for a node that nobody could compute: it reads packed bytes.
fn ours(host: &'static IkHost, op: Tensor) -> Option<Op> {
    let fail = |why: &str| -> ! { host.abort(&format!("{} {}: {why}", host.op_name(op.op()), op.name())) };
    let is_packed = |t: &Tensor| place::is_ours(host, *t) && place::packed(*t).is_some();
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

/// Computes this thread's part of `op`; false if the host computes it, with nothing written. A node that nobody could
/// compute ends the process.
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
    let (meeting, crowded) = (meeting(params.threadpool as usize), count > cores::of(count));
    let barrier = || {
        if count > 1 {
            meeting.wait(count, crowded);
        }
    };
    let settings = Settings { isa: cpu::isa(), demand: product::demand(host, op) };
    // SAFETY: shapes were checked, the work buffer is large enough.
    unsafe { product.run(settings, &Thread { index, count, barrier: &barrier }, params.wdata.cast()) };
    if crate::diag::env::env().check_nan {
        barrier();
        // SAFETY: the results are there.
        if index == 0 && unsafe { product.has_nan() } {
            fail("NaN or infinity");
        }
    }
    true
}

/// Where the threads of a run meet: `run` is what they have in common, an address that the host passes to all of them. The
/// host has a barrier between any two operations, so a place is used by one operation at a time. Places are few and stay:
/// runs begin where other runs began before.
///
/// A forked child has places of its own: threads that it does not have may have come to those of its parent.
fn meeting(run: usize) -> &'static Rendezvous {
    /// The number of the process, and the run.
    type Run = (u32, usize);
    static ALL: RwLock<BTreeMap<Run, &'static Rendezvous>> = RwLock::new(BTreeMap::new());
    thread_local! {
        static LAST: Cell<Option<(Run, &'static Rendezvous)>> = const { Cell::new(None) };
    }
    let run = (generation(), run);
    if let Some((_, place)) = LAST.get().filter(|(last, _)| *last == run) {
        return place;
    }
    cores::note_thread();
    let known = ALL.read().get(&run).copied();
    let place = known.unwrap_or_else(|| ALL.write().entry(run).or_insert_with(|| Box::leak(Box::default())));
    LAST.set(Some((run, place)));
    place
}

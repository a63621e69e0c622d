//! What is called in front of the host's kernels that multiply. Products that are ours are computed here. All others
//! are handed on as they came; but if their weights are packed, the host's kernel gets them unpacked, some rows at a
//! time.

use libc::{c_int, c_long, c_void};

use super::calls::{self, Lookup, Share};
use super::host::IkHost;
use super::node::{HostKernel, Node};
use super::team::{Arrival, Member};
use super::unpack::{HostWeights, RowRange, in_row_ranges};
use crate::cpu;
use crate::diag::env::env;
use crate::host::abi::TYPE_F32;
use crate::matmul::{Op, Settings, Thread};

/// The arguments of `iqk_mul_mat_4d`, in its order.
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs)] // the host's names
pub struct Mul4d {
    pub nx: c_long,
    pub ny: c_long,
    pub ne00: c_long,
    pub ne02: c_long,
    pub ne03: c_long,
    pub ne12: c_long,
    pub ne13: c_long,
    pub nb02: c_long,
    pub nb03: c_long,
    pub nb12: c_long,
    pub nb13: c_long,
    pub nb2: c_long,
    pub nb3: c_long,
    pub type_a: c_int,
    pub a: *const c_void,
    pub stride_a: c_long,
    pub type_b: c_int,
    pub b: *const c_void,
    pub stride_b: c_long,
    pub c: *mut f32,
    pub stride_c: c_long,
    pub ith: c_int,
    pub nth: c_int,
}

/// Computes the product that a kernel was called for: `Some(true)` when that is done, `None` if the host shall do it.
/// `follows` as for [`Arrival`].
///
/// # Safety
/// As for the host's kernels: every thread of the run calls, with addresses that are good until all have returned.
unsafe fn compute(
    kernel: HostKernel,
    result: *mut f32,
    weights: *const c_void,
    share: Share,
    follows: bool,
    fits: impl Fn(&Node) -> bool,
) -> Option<bool> {
    match calls::look_up(kernel, result as usize, weights as usize, share, fits) {
        Lookup::NotOurs => None,
        Lookup::Done => Some(true),
        Lookup::Compute { team, arrival, node, op } => {
            if !op.is_empty() {
                // SAFETY: all threads of the run call, so all members of the team come.
                team.operation(Arrival { follows, ..arrival }, |member| unsafe { multiply(node, op, member) });
            }
            Some(true)
        }
    }
}

/// A member's part of a product.
///
/// # Safety
/// All members of the team must come, and the product's data must be there.
unsafe fn multiply(node: &Node, op: &Op, member: Member<'_>) {
    let host = IkHost::get().expect("only a host begins runs");
    let name = || String::from_utf8_lossy(&node.name).trim_end_matches('\0').to_string();
    let settings = Settings { isa: cpu::isa(), demand: node.demand };
    // SAFETY: shapes were checked when the run began, and the work buffer was made large enough for this product.
    let run = |thread: &Thread<'_>, work| unsafe { op.run(settings, thread, work) };
    // SAFETY: it is called when all results are written.
    compute_part(host, member, name, run, || unsafe { op.has_nan() });
}

/// Runs a member's part of an operation. With `GGML_AMX_CHECK=nan` the results are then looked through.
pub(super) fn compute_part(
    host: &'static IkHost,
    member: Member<'_>,
    name: impl Fn() -> String,
    run: impl FnOnce(&Thread<'_>, *mut u8),
    has_nan: impl FnOnce() -> bool,
) {
    let barrier = || member.wait();
    run(&Thread { index: member.index, count: member.count, barrier: &barrier }, member.work());
    if env().check_nan {
        member.wait();
        if member.index == 0 && has_nan() {
            host.abort(&format!("NaN or infinity in {}", name()));
        }
    }
}

/// In front of `iqk_mul_mat_4d`: what it returns, or `None` if the host shall do it. `real` is the host's function.
///
/// # Safety
/// As for the host's function; all its threads must call.
pub unsafe fn mul_mat_4d(args: Mul4d, real: impl Fn(Mul4d) -> bool) -> Option<bool> {
    // The host computes consecutive products of the same activations without a barrier in between. Those that follow
    // get the activations that were quantised for the first.
    let follows = args.type_b != TYPE_F32;
    let (kernel, fits) = (HostKernel::MulMat, |n: &Node| n.rows == args.ny as usize);
    // SAFETY: these are arguments of the host's function, and all its threads call.
    if let Some(done) = unsafe { compute(kernel, args.c, args.a, (args.ith, args.nth), follows, fits) } {
        return Some(done);
    }
    let mut weights = HostWeights::new(args.a, args.stride_a);
    if !weights.are_packed() {
        return None;
    }
    // One matrix at a time, with all batches that share it.
    let (share2, share3) = (args.ne12 / args.ne02, args.ne13 / args.ne03);
    let matrices = (args.ne02 * args.ne03) as usize;
    let done = in_row_ranges(args.nx as usize, args.stride_a, matrices, (args.ith, args.nth), |range, (ith, nth)| {
        let (i2, i3) = (range.matrix as c_long % args.ne02, range.matrix as c_long / args.ne02);
        let skip = i2 * args.nb02 + i3 * args.nb03;
        real(Mul4d {
            nx: range.rows as c_long,
            ne02: 1,
            ne03: 1,
            ne12: share2,
            ne13: share3,
            a: weights.rows(skip as usize, range),
            b: args.b.wrapping_byte_offset((i2 * share2 * args.nb12 + i3 * share3 * args.nb13) as isize),
            c: args
                .c
                .wrapping_offset((i2 * share2 * args.nb2 + i3 * share3 * args.nb3) as isize)
                .wrapping_add(range.first),
            ith,
            nth,
            ..args
        })
    });
    Some(done)
}

/// In front of `iqk_mul_mat_moe`, as [`mul_mat_4d`], for the weights of one expert: `nx` rows of `stride` bytes at `a`.
/// `real` is the host's function, for some of the rows.
///
/// # Safety
/// As for the host's function; all its threads must call.
pub unsafe fn mul_mat_moe(
    a: *const c_void,
    (nx, stride): (c_long, c_long),
    c: *mut f32,
    share: Share,
    real: impl Fn(*const c_void, RowRange, Share) -> bool,
) -> Option<bool> {
    // SAFETY: these are arguments of the host's function, and all its threads call.
    if let Some(done) = unsafe { compute(HostKernel::Experts, c, a, share, false, |_| true) } {
        return Some(done);
    }
    let mut weights = HostWeights::new(a, stride);
    weights.are_packed().then(|| {
        in_row_ranges(nx as usize, stride, 1, share, |range, share| real(weights.rows(0, range), range, share))
    })
}

/// In front of `iqk_moe_fused_up_gate`, as [`mul_mat_moe`], for the two matrices of one expert, or of a product without
/// experts.
///
/// # Safety
/// As for the host's function; all its threads must call.
pub unsafe fn fused_up_gate(
    [up, gate]: [*const c_void; 2],
    (nx, stride): (c_long, c_long),
    c: *mut f32,
    share: Share,
    real: impl Fn([*const c_void; 2], RowRange, Share) -> bool,
) -> Option<bool> {
    // SAFETY: these are arguments of the host's function, and all its threads call.
    if let Some(done) = unsafe { compute(HostKernel::Gated, c, up, share, false, |_| true) } {
        return Some(done);
    }
    let mut weights = [up, gate].map(|address| HostWeights::new(address, stride));
    weights.iter().any(HostWeights::are_packed).then(|| {
        in_row_ranges(nx as usize, stride, 1, share, |range, share| {
            real(weights.each_mut().map(|w| w.rows(0, range)), range, share)
        })
    })
}

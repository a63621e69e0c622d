//! What is called in front of the host's flash attention. Where it is ours, all threads of the run compute it together
//! in the run's work buffer; else the host does, and nothing was written.

use libc::{c_int, c_long, c_void};

use super::calls;
use super::host::IkHost;
use super::kernels::compute_part;
use crate::attention::{Attention, Element, Heads, Mask};
use crate::cpu::{self, Amx, Isa};
use crate::debug;
use crate::diag::env::env;
use crate::dispatch;
use crate::matmul::{Output, Thread};

/// ggml's numbers of types (`enum ggml_type`).
const F32: c_int = 0;
const F16: c_int = 1;
const BF16: c_int = 30;

/// Q, K or V as the host describes them.
#[derive(Clone, Copy)]
pub struct RawHeads {
    /// The first row.
    pub data: *const c_void,
    /// Channels per row, rows per head, heads, sequences.
    pub ne: [c_int; 4],
    /// Bytes from one row, head and sequence to the next.
    pub nb: [c_long; 3],
}

/// The arguments of `iqk_flash_attn_noalibi` that matter here.
#[allow(missing_docs)] // the host's names
pub struct FlashAttn {
    /// ggml's types of Q, mask, K and V.
    pub types: [c_int; 4],
    pub max_bias: f32,
    pub scale: f32,
    pub softcap: f32,
    pub q: RawHeads,
    pub k: RawHeads,
    pub v: RawHeads,
    pub mask: *const c_void,
    pub stride_m: c_int,
    pub sinks: *const c_void,
    pub result: *mut f32,
    pub nb1: c_long,
    /// Dimensions 1 and 2 of the result.
    pub heads: c_int,
    pub tokens: c_int,
    pub ith: c_int,
    pub nth: c_int,
}

/// Computes what `iqk_flash_attn_noalibi` was called for; `false` if the host shall do it. Every thread gets the same
/// answer.
///
/// # Safety
/// As for the host's function; all its threads must call.
pub unsafe fn flash_attn(args: &FlashAttn) -> bool {
    if cpu::isa() < Isa::Amx {
        return false;
    }
    let (Some(host), Some(proof)) = (IkHost::get(), Amx::new()) else { return false };
    let (index, count) = (args.ith as usize, args.nth as usize);
    let op = match attention(host, args).and_then(|op| if env().exact { Ok(op) } else { if_faster(op, count) }) {
        Ok(op) => op,
        Err(why) => {
            if args.ith == 0 {
                debug!("flash attention left to the host: {why}");
            }
            return false;
        }
    };
    // Without a run, the threads have no team.
    let Some(run) = calls::look_up_attention(args.result as usize, (args.ith, args.nth)) else { return false };
    let member = run.team.all(index, count);
    if !op.work_size(count).is_some_and(|bytes| member.reserve(bytes)) {
        return false;
    }
    // Rounding to BF16 costs less than quantised weights have cost already; where weights are finer, it would cost
    // more.
    let exact = env().exact || run.has_fine_weights();
    if index == 0 {
        let ([channels, tokens, heads, _], keys) = (op.q.ne, op.k.ne[1]);
        debug!(
            "flash attention of {tokens} tokens, {heads} heads of {channels}, {keys} keys{}",
            if exact { ", exact" } else { "" }
        );
    }
    // SAFETY: `attention` has checked the shapes, and the work buffer is as large as `work_size` says.
    let compute = |thread: &Thread<'_>, work| unsafe { op.run(proof, exact, thread, work) };
    // SAFETY: it is called when all results are written.
    let has_nan = || unsafe { op.has_nan() };
    compute_part(host, member, || "flash attention".to_string(), compute, has_nan);
    true
}

/// The operation that a call describes, or why it is not one of ours.
fn attention(host: &IkHost, args: &FlashAttn) -> Result<Attention, String> {
    let [type_q, type_mask, type_k, type_v] = args.types;
    if type_q != F32 || type_mask != F16 {
        return Err(format!("queries of type {type_q}, mask of type {type_mask}"));
    }
    if args.max_bias > 0.0 {
        return Err("ALiBi".to_string());
    }
    let size = |number: i64| usize::try_from(number).map_err(|_| format!("a size of {number}"));
    let heads = |rows: &RawHeads, ty: c_int| {
        let (mut ne, mut nb) = ([0; 4], [0; 3]);
        for (to, from) in ne.iter_mut().zip(rows.ne) {
            *to = size(from.into())?;
        }
        for (to, from) in nb.iter_mut().zip(rows.nb) {
            *to = size(from)?;
        }
        Ok::<_, String>(Heads { data: rows.data.cast(), element: element(host, ty)?, ne, nb })
    };
    let row = size(args.nb1)?;
    let (count, tokens) = (size(args.heads.into())?, size(args.tokens.into())?);
    let op = Attention {
        q: heads(&args.q, type_q)?,
        k: heads(&args.k, type_k)?,
        v: heads(&args.v, type_v)?,
        mask: (!args.mask.is_null()).then_some(Mask { data: args.mask.cast(), stride: size(args.stride_m.into())? }),
        sinks: args.sinks.cast(),
        scale: args.scale,
        softcap: args.softcap,
        output: Output { data: args.result.cast(), nb: [row, row * count, row * count * tokens] },
    };
    op.check()?;
    Ok(op)
}

/// The operation, if it is faster on the tile unit, or why it is not. Not asked where results shall be exact: there the
/// bits of a row must not depend on how many tokens and threads there are.
fn if_faster(op: Attention, threads: usize) -> Result<Attention, String> {
    let ([_, tokens, ..], queries, tiles) = (op.q.ne, op.queries(), op.query_blocks());
    if !dispatch::attention_is_ours(tokens, queries, tiles, threads) {
        return Err(format!("{queries} queries per head of the cache, {tiles} tiles for {threads} threads"));
    }
    Ok(op)
}

/// How elements of ggml's type `ty` are read.
fn element(host: &IkHost, ty: c_int) -> Result<Element, String> {
    match ty {
        F32 => Ok(Element::F32),
        F16 => Ok(Element::F16),
        BF16 => Ok(Element::Bf16),
        _ => {
            let decoded = host.cached.iter().find(|cached| cached.number == ty);
            decoded.map(|ty| Element::Decoded(ty.to_float)).ok_or_else(|| format!("a cache of type {ty}"))
        }
    }
}

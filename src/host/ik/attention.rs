//! What happens in the function that stands in front of the host's flash attention.

use libc::{c_int, c_long, c_void};

use super::{IkHost, graph, seam};
use crate::attention::{Attention, Element, Heads, Mask};
use crate::cpu::{self, Amx, Isa};
use crate::debug;
use crate::diag::env::env;
use crate::dispatch;
use crate::matmul::{Output, Thread};

/// ggml's numbers of types.
const F32: c_int = 0;
const F16: c_int = 1;
const BF16: c_int = 30;

/// Q, K or V as the host describes them.
#[derive(Clone, Copy)]
pub struct Rows {
    /// The first row.
    pub data: *const c_void,
    /// Channels, rows, heads, sequences.
    pub ne: [c_int; 4],
    /// Bytes per row, head and sequence.
    pub nb: [c_long; 3],
}

/// The arguments of `iqk_flash_attn_noalibi` that matter here.
#[allow(missing_docs)] // the host's names
pub struct FlashAttn {
    /// Of Q, mask, K and V.
    pub types: [c_int; 4],
    pub max_bias: f32,
    pub scale: f32,
    pub softcap: f32,
    pub q: Rows,
    pub k: Rows,
    pub v: Rows,
    pub mask: *const c_void,
    pub stride_m: c_int,
    pub sinks: *const c_void,
    pub result: *mut f32,
    pub nb1: c_long,
    /// The result's dimensions 1 and 2.
    pub heads: c_int,
    pub tokens: c_int,
    pub ith: c_int,
    pub nth: c_int,
}

/// Computes what `iqk_flash_attn_noalibi` was called for; `false` if the host shall do it. Every thread gets the same
/// answer.
///
/// # Safety
/// As for the host's function; all its threads must come.
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
    // Without a run there is nowhere to meet.
    let Some(graph) = graph::attention(args.result as usize, (args.ith, args.nth)) else { return false };
    let member = graph.team.all(index, count);
    if !op.work_size(count).is_some_and(|bytes| member.reserve(bytes)) {
        return false;
    }
    // What quantised weights leave is coarser than what BF16 leaves; where there are none, nothing shall be lost.
    let exact = env().exact || graph.is_fine();
    if index == 0 {
        let ([channels, tokens, heads, _], keys) = (op.q.ne, op.k.ne[1]);
        debug!(
            "flash attention of {tokens} tokens, {heads} heads of {channels}, {keys} keys{}",
            if exact { ", exact" } else { "" }
        );
    }
    // SAFETY: shapes were checked; the work buffer is as large as asked for.
    let run = |thread: &Thread<'_>, work| unsafe { op.run(proof, exact, thread, work) };
    // SAFETY: the results are there.
    let has_nan = || unsafe { op.has_nan() };
    seam::together(host, member, || "flash attention".to_string(), run, has_nan);
    true
}

/// The operation, or why it is not one of ours.
fn attention(host: &IkHost, args: &FlashAttn) -> Result<Attention, String> {
    let [type_q, type_mask, type_k, type_v] = args.types;
    if type_q != F32 || type_mask != F16 {
        return Err(format!("queries of type {type_q}, mask of type {type_mask}"));
    }
    if args.max_bias > 0.0 {
        return Err("ALiBi".to_string());
    }
    let size = |number: i64| usize::try_from(number).map_err(|_| format!("a size of {number}"));
    let heads = |rows: &Rows, ty: c_int| {
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

/// The operation, if it is faster on the tile unit, or why it is not. Where results shall be exact nobody asks: the bits of
/// a row must not depend on how many tokens and threads there are.
fn if_faster(op: Attention, threads: usize) -> Result<Attention, String> {
    let ([_, tokens, ..], queries, tiles) = (op.q.ne, op.queries(), op.query_blocks());
    if !dispatch::attention_is_ours(tokens, queries, tiles, threads) {
        return Err(format!("{queries} queries per head of the cache, {tiles} tiles for {threads} threads"));
    }
    Ok(op)
}

/// How numbers of ggml's type `ty` are read.
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

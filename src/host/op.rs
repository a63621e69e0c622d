//! Nodes of llama.cpp's graphs: which tensors are packed, which nodes are products that are computed here, and such a
//! node as a [`MatMul`] or [`ExpertMul`].
//!
//! One rule decides everywhere: a tensor is *packed* if it lies in a buffer of our type, has one of our weight types
//! and ggml's contiguous layout. Every product that [`supports`] accepts while a model loads is computed at run time.

use super::llama::Host;
use super::objects::RawBuffer;
use super::operands::{self, usizes};
use super::tensor::Tensor;
use super::{budget, registry};
use crate::cpu::{self, Isa};
use crate::dispatch;
use crate::dispatch::Demand;
use crate::format::ACT_BLOCK;
use crate::matmul::{Choices, ExpertMul, Input, MatMul, Op, Stored, Weights, demand_of_user};
use crate::panel::plain::PlainType;
use crate::panel::weights::Shape;

/// Whether a tensor's buffer is one of ours, as the loader's empty ones are too.
fn is_ours(host: &'static Host, buffer: *mut RawBuffer) -> bool {
    // SAFETY: LIVE BUFFER: the buffer of a live tensor, or null.
    unsafe { host.buffer(buffer) }.is_some_and(|b| registry::is_ours(b.buft()))
}

/// The shape of the packed tensor that `tensor` is, or is a view of; `None` if it is not packed.
pub fn packed_shape(host: &'static Host, tensor: Tensor) -> Option<Shape> {
    let root = tensor.root();
    if !is_ours(host, root.holder()) && !is_ours(host, tensor.holder()) {
        return None;
    }
    shape_if_packable(host, root)
}

/// The shape of `tensor` if it would be packed in one of our buffers: it has one of our weight types and is contiguous.
pub fn shape_if_packable(host: &Host, tensor: Tensor) -> Option<Shape> {
    let (ty, ne) = (host.weight_type(tensor.ty())?, tensor.ne());
    let shape = Shape::new(ty, ne[0], ne[1], ne[2].checked_mul(ne[3])?).ok()?;
    let bytes = ty.info().bytes;
    let contiguous =
        [bytes, shape.row_bytes, shape.slice_plain, shape.slice_plain.checked_mul(usize::try_from(ne[2]).ok()?)?];
    (tensor.nb() == contiguous).then_some(shape)
}

/// Whether the host's own code can read `tensor`: it has no buffer yet, lies in host memory, or is stored plain in one
/// of our buffers.
pub fn is_readable(host: &'static Host, tensor: Tensor) -> bool {
    let holder = tensor.holder();
    // SAFETY: LIVE BUFFER: the buffer of a live tensor, or null.
    let Some(buffer) = (unsafe { host.buffer(holder) }) else { return true };
    if is_ours(host, holder) {
        return packed_shape(host, tensor).is_none();
    }
    // SAFETY: the type of a live buffer is alive.
    unsafe { host.is_host(buffer.buft()) }
}

/// Whether `tensor` is one of a loader that only asks where tensors may lie: its buffer is empty.
fn is_probe(host: &'static Host, tensor: Tensor) -> bool {
    // SAFETY: LIVE BUFFER: the buffer of a live tensor, or null.
    unsafe { host.buffer(tensor.holder()) }.is_some_and(|b| b.size() == 0)
}

/// The type of `tensor` if it is stored plain in one of our buffers and the tile unit can multiply it.
fn plain_type(host: &'static Host, tensor: Tensor) -> Option<&'static PlainType> {
    let ours = cpu::isa() == Isa::Amx && is_ours(host, tensor.holder()) && packed_shape(host, tensor).is_none();
    let ty = host.plain_type(tensor.ty()).filter(|_| ours)?;
    // Rows of whole k-steps.
    (usize::try_from(tensor.ne()[0]).is_ok_and(|k| k.is_multiple_of(ACT_BLOCK))).then_some(ty)
}

/// Whether `op` is a MUL_MAT or MUL_MAT_ID, on whatever weights.
pub fn is_product(host: &'static Host, op: Tensor) -> bool {
    op.op() == host.ops.mul_mat || op.op() == host.ops.mul_mat_id
}

/// Whether `op` is a product on plain weights that the tile unit can multiply.
pub fn has_plain_weights(host: &'static Host, op: Tensor) -> bool {
    is_product(host, op) && op.source(0).is_some_and(|w| plain_type(host, w).is_some())
}

/// `op` as a product that is computed here, or why it is not one. Its tensors may have no data yet.
pub fn product(host: &'static Host, op: Tensor) -> Result<Op, String> {
    let ids = if op.op() == host.ops.mul_mat_id {
        Some(op.source(2).ok_or("MUL_MAT_ID without its ids")?)
    } else if op.op() == host.ops.mul_mat {
        None
    } else {
        return Err("neither MUL_MAT nor MUL_MAT_ID".to_string());
    };
    let (Some(w), Some(x)) = (op.source(0), op.source(1)) else {
        return Err("a product without its two sources".to_string());
    };
    let weights = weights(host, w)?;
    let input = activations(host, x)?;
    let output = operands::result(op)?;
    let few = |rows: usize, matrices: usize| {
        let stored = weights.stored.info();
        match dispatch::is_ours(stored.storage, cpu::isa(), dispatch::mean_rows(rows, matrices)) {
            true => Ok(()),
            false => {
                Err(format!("{rows} rows of activations are too few for {} weights that are stored plain", stored.name))
            }
        }
    };
    let product = match ids {
        None => {
            few(input.ne[1], 1)?;
            Op::Dense(MatMul { weights, gate: None, input, output })
        }
        Some(ids) => {
            let choices = choices(host, ids)?;
            few(choices.used.saturating_mul(choices.tokens), weights.ne[2])?;
            Op::Experts(ExpertMul { weights, gate: None, input, choices, output })
        }
    };
    operands::check(&product, op)?;
    if !weights.is_inside() {
        return Err(format!("the view {} leaves its tensor", w.name()));
    }
    Ok(product)
}

/// The precision that the user or the graph demands. ggml writes into the parameters of MUL_MAT and MUL_MAT_ID how sums
/// are made (`ggml_prec_set_acc`) and how activations may be rounded (`ggml_prec_set_src`). Sums are always made in f32
/// here; a graph that asks for that wants a good result, and gets BF16.
pub fn demand(op: Tensor) -> Demand {
    /// Numbers of `enum ggml_prec`. Those after F16 allow 8 bits.
    const F32: i32 = 10;
    const BF16: i32 = 15;
    const F16: i32 = 20;
    /// The parameters that hold them.
    const SUMS: usize = 0;
    const ACTIVATIONS: usize = 3;
    let of_graph = match (op.param(SUMS), op.param(ACTIVATIONS)) {
        (_, F32 | F16) => Demand::F32,
        (_, BF16) | (F32, _) => Demand::Bf16,
        _ => Demand::Auto,
    };
    demand_of_user().max(of_graph)
}

/// src0 of a product.
fn weights(host: &'static Host, w: Tensor) -> Result<Weights, String> {
    let plain = || plain_type(host, w).map(Stored::Plain);
    let stored = packed_shape(host, w).map(Stored::Packed).or_else(plain);
    let stored = stored.ok_or_else(|| format!("{} is not in an AMX buffer, or not of a type for it", w.name()))?;
    let info = stored.info();
    if w.ty() != info.number || w.nb()[0] != info.bytes {
        return Err(format!("the view {} does not consist of whole blocks", w.name()));
    }
    // A view of a packed tensor is addressed from its root, because packing moves bytes. Others have an address of
    // their own.
    let in_root = stored.is_packed() && w.view_src().is_some();
    Ok(Weights {
        stored,
        base: if in_root { w.root().data().cast() } else { w.data().cast() },
        offset: if in_root { w.view_offs() } else { 0 },
        ne: usizes(w.ne()).ok_or("a dimension of the weights is negative")?,
        nb: [w.nb()[1], w.nb()[2], w.nb()[3]],
    })
}

/// src1.
fn activations(host: &'static Host, x: Tensor) -> Result<Input, String> {
    if packed_shape(host, x).is_some() {
        return Err(format!("the activations {} are packed weights", x.name()));
    }
    operands::activations(x)
}

/// src2 of MUL_MAT_ID.
fn choices(host: &'static Host, ids: Tensor) -> Result<Choices, String> {
    if packed_shape(host, ids).is_some() {
        return Err(format!("the ids {} are packed weights", ids.name()));
    }
    operands::choices(ids, false)
}

/// Whether there is memory for the weights `w` of `op`, about which a loader asks. Weights are in empty buffers too
/// while a graph is only measured. There the activations are the result of another node; those weights were accepted
/// before.
fn has_memory(host: &'static Host, op: Tensor, w: Tensor) -> bool {
    if op.source(1).is_some_and(|x| x.op() != host.ops.no_data[0]) {
        return true;
    }
    // SAFETY: LIVE TENSOR.
    let plain = unsafe { host.nbytes(w.address()) };
    let bytes = shape_if_packable(host, w.root()).map_or(plain, |shape| shape.packed_size());
    let weights = budget::Question { name: w.name(), ty: w.ty(), ne: w.ne() };
    budget::accept(weights, op.op(), bytes)
}

/// Whether the CPU device can run `op`, one of whose sources lies in our buffers.
///
/// - Products on packed weights, and with many rows on plain ones: yes, if there is memory.
/// - Other nodes that read no packed tensor: yes, the host's own code computes them. But not if a loader asks, so that
///   it keeps such tensors in its own buffers.
/// - All other nodes: no. The host would read packed bytes as plain ones.
pub fn supports(host: &'static Host, op: Tensor) -> bool {
    let fits = || op.source(0).is_none_or(|w| !is_probe(host, w) || has_memory(host, op, w));
    if host.ops.no_data.contains(&op.op()) || product(host, op).is_ok() {
        return fits();
    }
    // Few rows on plain weights: the host's own code computes them. That holds too while a graph is only measured; then
    // the weights' buffer is empty, as it is for a loader that asks.
    if has_plain_weights(host, op) {
        let readable = [1, 2].into_iter().filter_map(|i| op.source(i)).all(|t| is_readable(host, t));
        return readable && fits();
    }
    op.sources_from(0).all(|t| !is_ours(host, t.holder()) || is_readable(host, t) && !is_probe(host, t))
}

/// The packed tensor that the host's own code would read or write as plain bytes if it computed `op`: a source, or the
/// node itself if that is a view.
pub fn misread(host: &'static Host, op: Tensor) -> Option<Tensor> {
    if host.ops.no_data.contains(&op.op()) {
        return None;
    }
    op.sources_from(0).chain([op]).find(|t| packed_shape(host, *t).is_some())
}

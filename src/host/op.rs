//! Reading graph nodes: which tensors are ours, which operations we accept, and the operation as
//! [`MatMul`] wants it.
//!
//! One rule decides everywhere: a tensor is *packed* if it lies in our buffer type, has one of our
//! types and ggml's contiguous layout. What [`supports`] accepts when the loader asks is computed
//! at run time; nothing else is ever packed differently.

use super::Host;
use super::abi::{GgmlBuffer, GgmlTensor, TYPE_F32};
use super::buffer_type;
use crate::format::WeightType;
use crate::matmul::{Input, MatMul, Output, Weights};
use crate::panel::weights::Shape;

/// Whether `buffer` is one of ours (a zero-size dummy of the loader counts).
fn is_ours(buffer: *mut GgmlBuffer) -> bool {
    // SAFETY: a non-null buffer of a live tensor is alive.
    unsafe { buffer.as_ref() }.is_some_and(|b| buffer_type::is_ours(b.buft))
}

/// The shape of `tensor` if it is (a view of) a tensor whose bytes are packed in our buffers.
pub fn packed_shape(tensor: &GgmlTensor) -> Option<Shape> {
    let root = tensor.root();
    if !is_ours(root.holder()) && !is_ours(tensor.holder()) {
        return None;
    }
    shape_if_packable(root)
}

/// The shape of `tensor` if our buffers pack tensors like it: one of the types, contiguous.
pub fn shape_if_packable(tensor: &GgmlTensor) -> Option<Shape> {
    let ty = WeightType::from_ggml(tensor.ty)?;
    let slices = tensor.ne[2].checked_mul(tensor.ne[3])?;
    let shape = Shape::new(ty, tensor.ne[0], tensor.ne[1], slices).ok()?;
    let bytes = ty.info().bytes;
    let contiguous = [
        bytes,
        shape.row_bytes,
        shape.slice_plain,
        shape.slice_plain.checked_mul(usize::try_from(tensor.ne[2]).ok()?)?,
    ];
    (tensor.nb == contiguous).then_some(shape)
}

/// Whether the host's own code can read `tensor`: it is nowhere yet, in a host buffer, or stored
/// plain in one of ours.
pub fn is_readable(tensor: &GgmlTensor) -> bool {
    let holder = tensor.holder();
    // SAFETY: a non-null buffer of a live tensor is alive, and so is its type.
    let Some(buffer) = (unsafe { holder.as_ref() }) else { return true };
    if is_ours(holder) {
        return packed_shape(tensor).is_none();
    }
    // SAFETY: as above; the interface's optional member takes its own type.
    unsafe { (*buffer.buft).interface.is_host.is_some_and(|f| f(buffer.buft)) }
}

/// Whether the loader is asking about a tensor that has no data yet.
fn is_probe(tensor: &GgmlTensor) -> bool {
    // SAFETY: as in `is_readable`.
    unsafe { tensor.holder().as_ref() }.is_some_and(|b| b.size == 0)
}

fn usizes<const N: usize>(v: [i64; N]) -> Option<[usize; N]> {
    let mut out = [0; N];
    for (o, v) in out.iter_mut().zip(v) {
        *o = usize::try_from(v).ok()?;
    }
    Some(out)
}

/// `op` as a product on packed weights, or why it is none. Data pointers may still be null.
pub fn mat_mul(host: &Host, op: &GgmlTensor) -> Result<MatMul, String> {
    if op.op != host.ops.mul_mat {
        return Err("not a MUL_MAT".to_string());
    }
    let (Some(w), Some(x)) = (op.source(0), op.source(1)) else {
        return Err("MUL_MAT without its two sources".to_string());
    };
    let shape = packed_shape(w).ok_or_else(|| format!("{} is not packed in an AMX buffer", w.name()))?;
    let negative = || "a dimension is negative".to_string();
    if x.ty != TYPE_F32 || op.ty != TYPE_F32 {
        return Err(format!("activations and result must be f32, they have types {} and {}", x.ty, op.ty));
    }
    if op.nb[0] != 4 {
        return Err("the result's rows are not contiguous".to_string());
    }
    if packed_shape(x).is_some() {
        return Err(format!("the activations {} are packed weights", x.name()));
    }
    if w.ty != shape.ty as i32 || w.nb[0] != shape.ty.info().bytes {
        return Err(format!("the view {} does not consist of whole blocks", w.name()));
    }
    let product = MatMul {
        weights: Weights {
            shape,
            base: w.root().data.cast(),
            offset: if w.view_src.is_null() { 0 } else { w.view_offs },
            ne: usizes(w.ne).ok_or_else(negative)?,
            nb: [w.nb[1], w.nb[2], w.nb[3]],
        },
        input: Input { data: x.data.cast(), ne: usizes(x.ne).ok_or_else(negative)?, nb: x.nb },
        output: Output { data: op.data.cast(), nb: [op.nb[1], op.nb[2], op.nb[3]] },
    };
    product.check()?;
    if usizes(op.ne) != Some([product.weights.ne[1], product.input.ne[1], product.input.ne[2], product.input.ne[3]]) {
        return Err(format!("the result has the shape {:?}", op.ne));
    }
    if !product.weights.is_inside() {
        return Err(format!("the view {} leaves its tensor", w.name()));
    }
    Ok(product)
}

/// Whether the CPU device can run `op`, one of whose sources lies in our buffers.
///
/// Products on packed weights: yes. Operations that only see plainly stored tensors: the host's own
/// code reads those, so yes too, but not while the loader probes: it shall keep such tensors in
/// its own buffers. Everything else would read packed bytes as plain ones: no.
pub fn supports(host: &Host, op: &GgmlTensor) -> bool {
    if host.ops.no_data.contains(&op.op) || mat_mul(host, op).is_ok() {
        return true;
    }
    op.src
        .iter()
        .enumerate()
        .filter_map(|(i, _)| op.source(i))
        .all(|t| !is_ours(t.holder()) || is_readable(t) && !is_probe(t))
}

/// The tensor of `op` (a source, or the node itself where it writes into a view) that the host's own
/// code would misread, if any.
pub fn misread<'a>(host: &Host, op: &'a GgmlTensor) -> Option<&'a GgmlTensor> {
    if host.ops.no_data.contains(&op.op) {
        return None;
    }
    let sources = (0..op.src.len()).filter_map(|i| op.source(i));
    sources.chain([op]).find(|t| packed_shape(t).is_some())
}

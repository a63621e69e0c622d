//! From nodes of a graph to products. A product of packed weights is always ours. One whose weights lie where the host
//! put them is ours if it has so many rows of activations that it is faster here.

use super::buffer_type;
use super::host::IkHost;
use super::packed::{self, PackedView};
use crate::cpu;
use crate::dispatch::{self, Demand};
use crate::format::{ACT_BLOCK, interleaved};
use crate::host::Tensor;
use crate::host::abi::USAGE_WEIGHTS;
use crate::host::operands::{self, usizes};
use crate::matmul::{Biases, ExpertMul, Gate, MatMul, Op, Stored, Weights, demand_of_user};
use crate::panel::weights::Shape;

/// Whether `node` is a product: one of the operations for which the host calls the kernels that ours stand in front of.
pub fn is_product(host: &'static IkHost, node: Tensor) -> bool {
    let (ops, ik) = (&host.ops, &host.ik_ops);
    [ops.mul_mat, ops.mul_mat_id, ik.fused_up_gate, ik.moe_fused_up_gate].contains(&node.op())
}

/// Whether `node` is a product with a gate.
pub fn is_fused(host: &'static IkHost, node: Tensor) -> bool {
    node.op() == host.ik_ops.fused_up_gate || node.op() == host.ik_ops.moe_fused_up_gate
}

/// Whether `node` is a product whose experts are chosen.
pub fn has_ids(host: &'static IkHost, node: Tensor) -> bool {
    node.op() == host.ops.mul_mat_id || node.op() == host.ik_ops.moe_fused_up_gate
}

/// `node`, a product, as it is computed here; `None` if it is left to the host, which can read its weights. `Err` says
/// why neither can compute it: some of its weights are packed.
pub fn product(host: &'static IkHost, node: Tensor) -> Result<Option<Op>, String> {
    let fused = is_fused(host, node);
    let with_ids = has_ids(host, node);
    let w = node.source(0).ok_or("a product without weights")?;
    let Some(first) = weights(host, w) else {
        let gate = node.source(1).filter(|w| fused && packed::is_packed(*w));
        return gate.map_or(Ok(None), |gate| Err(format!("{} is packed, {} cannot be read", gate.name(), w.name())));
    };
    let at = if fused { 2 } else { 1 };
    let x = node.source(at).ok_or("a product without activations")?;
    let gate_is_packed = fused && node.source(1).is_some_and(packed::is_packed);
    let packed = first.stored.is_packed() || gate_is_packed;
    let refuse = |why: String| if packed { Err(why) } else { Ok(None) };
    let named = |why: String| format!("{}: {why}", node.name());
    let (input, output) = match (operands::activations(x), operands::result(node)) {
        (Ok(input), Ok(output)) if first.ne[0].is_multiple_of(ACT_BLOCK) => (input, output),
        (Err(why), _) | (_, Err(why)) => return refuse(named(why)),
        _ => return refuse(named(format!("rows of {} weights are not whole blocks of {ACT_BLOCK}", first.ne[0]))),
    };
    let (weights, gate) = match fused {
        false => (first, None),
        true => match up_and_gate(host, node, first) {
            Ok((up, gate)) => (up, Some(gate)),
            Err(why) => return refuse(why),
        },
    };
    let (op, rows) = if with_ids {
        let ids = node.source(at + 1).ok_or("a product of experts without ids")?;
        // For some tokens the host computes fewer experts: numbers that name no expert are skipped. It has cleared
        // their results.
        let choices = match operands::choices(ids, true) {
            Ok(choices) => choices,
            Err(why) => return refuse(named(why)),
        };
        let rows = dispatch::mean_rows(choices.used.saturating_mul(choices.tokens), weights.ne[2]);
        (Op::Experts(ExpertMul { weights, gate, input, choices, output }), rows)
    } else {
        (Op::Dense(MatMul { weights, gate, input, output }), input.ne[1])
    };
    if !packed && !dispatch::is_ours(weights.stored.info().storage, cpu::isa(), rows) {
        return Ok(None);
    }
    match operands::check(&op, node) {
        Ok(()) => Ok(Some(op)),
        Err(why) => refuse(named(why)),
    }
}

/// The weights of a product, if they can be read here: packed; or in a buffer for weights, of a type that is packed,
/// interleaved or decoded, in whole rows.
fn weights(host: &'static IkHost, w: Tensor) -> Option<Weights> {
    let ne = usizes(w.ne())?;
    let nb = [w.nb()[1], w.nb()[2], w.nb()[3]];
    if let Some(PackedView { shape, base, offset }) = packed::view(w) {
        return Some(Weights { stored: Stored::Packed(shape), base, offset, ne, nb });
    }
    if buffer_type::is_probe(host, w) {
        let shape = buffer_type::packable(host, w)?;
        return Some(Weights { stored: Stored::Packed(shape), base: std::ptr::null(), offset: 0, ne, nb });
    }
    let root = w.root();
    // SAFETY: LIVE BUFFER: that of a live tensor.
    let holder = unsafe { host.buffer(root.holder()) };
    let plain = root.op() == host.ops.no_data[0]
        && holder.is_some_and(|b| b.usage() == Some(USAGE_WEIGHTS))
        && w.ty() == root.ty()
        // SAFETY: the number is a tensor's, so the host has such a type.
        && w.nb()[0] == unsafe { (host.symbols.ggml_type_size)(w.ty()) };
    let in_place = |ty, interleave| {
        let shape = Shape::new(ty, w.ne()[0], w.ne()[1], w.ne()[2].checked_mul(w.ne()[3])?).ok()?;
        Some(Stored::InPlace { shape, interleave })
    };
    let stored = match (host.weight_type(w.ty()), host.interleaved_type(w.ty()), host.decoded_type(w.ty())) {
        (Some(ty), ..) => in_place(ty, 1)?,
        (_, Some(ty), _) => in_place(ty, interleaved::interleave(ty))?,
        (.., Some(ty)) if ne[0].is_multiple_of(ty.block) => Stored::Decoded(ty),
        _ => return None,
    };
    let interleave = stored.info().interleave;
    let whole = interleave == 1
        || ne[1].is_multiple_of(interleave)
            && (w.data() as usize).wrapping_sub(root.data() as usize).is_multiple_of(interleave * nb[0]);
    (plain && whole).then_some(Weights { stored, base: w.data().cast(), offset: 0, ne, nb })
}

/// The precision that the user or the graph demands. MUL_MAT has a parameter for it (`ggml_mul_mat_set_prec`): 0 is the
/// default, the only other value asks for sums in f32.
pub fn demand(host: &'static IkHost, node: Tensor) -> Demand {
    let of_graph = if node.op() == host.ops.mul_mat && node.param(0) != 0 { Demand::Bf16 } else { Demand::Auto };
    demand_of_user().max(of_graph)
}

/// Both matrices of a product with a gate: two tensors, or the halves of one (the gate's first).
fn up_and_gate(host: &'static IkHost, node: Tensor, first: Weights) -> Result<(Weights, Gate), String> {
    let name = || node.name();
    let number = node.param(0);
    let op = host.ik_ops.glu_ops.iter().find(|(n, _)| *n == number);
    let (_, op) = op.ok_or_else(|| format!("{}: unknown activation function {number}", name()))?;
    let second = node.source(1);
    let (up, gate) = match second {
        Some(w) => {
            let gate = weights(host, w).ok_or_else(|| format!("{}: {} cannot be read", name(), w.name()))?;
            (first, gate)
        }
        None => {
            let half = Weights { ne: [first.ne[0], first.ne[1] / 2, first.ne[2], first.ne[3]], ..first };
            if !half.ne[1].is_multiple_of(half.stored.info().interleave) {
                return Err(format!("{}: rows of up and gate lie interleaved", name()));
            }
            let skip = first.nb[1] / 2;
            let up = match half.stored.is_packed() {
                true => Weights { offset: half.offset + skip, ..half },
                false => Weights { base: half.base.wrapping_add(skip), ..half },
            };
            (up, half)
        }
    };
    let bias = |i: usize| node.source(i).filter(|_| node.op() == host.ik_ops.moe_fused_up_gate);
    let biases = match (bias(4), bias(5)) {
        (None, _) => Biases::NONE,
        (Some(both), None) if second.is_none() => {
            let data = both.data().cast::<u8>().cast_const();
            Biases { gate: data, up: data.wrapping_add(both.nb()[1] / 2), nb: [both.nb()[1]; 2] }
        }
        (Some(up), gate) => Biases {
            up: up.data().cast(),
            gate: gate.map_or(std::ptr::null(), |g| g.data().cast_const().cast()),
            nb: [up.nb()[1], gate.map_or(0, |g| g.nb()[1])],
        },
    };
    let limit = f32::from_bits(node.param(1) as u32);
    Ok((up, Gate { weights: gate, op: *op, limit, biases }))
}

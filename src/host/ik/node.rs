//! A node of a graph, as it is noted when a run begins: what there is to know about it when the host's kernels are
//! called, which get only addresses and numbers.

use crate::dispatch::Demand;
use crate::matmul::Op;

/// The function of the host that computes a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKernel {
    /// `iqk_mul_mat_4d`.
    MulMat,
    /// `iqk_mul_mat_moe`, once for every expert.
    Experts,
    /// `iqk_moe_fused_up_gate`, once, or for every expert.
    Gated,
    /// `iqk_flash_attn_noalibi`.
    Attention,
}

/// A node that may be computed here.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// The product, if it is computed here. `None` for attention, and for products that the host computes: those are
    /// noted too, so that a later product of the same weights to the same address is not taken for them.
    pub op: Option<Op>,
    /// Whether its weights are packed: they must stay so while it is computed, here or by the host.
    pub is_packed: bool,
    /// Whose calls compute it.
    pub kernel: HostKernel,
    /// Rows of activations; for experts, choices per token.
    pub rows: usize,
    /// Address of the result.
    pub result: usize,
    /// Address of the weights, of the first expert's if there are experts. The host computes with plain strides from
    /// there.
    pub weights: usize,
    /// Bytes from one expert's weights to the next.
    pub stride: usize,
    /// How many experts there are; 1 for a product without.
    pub experts: usize,
    /// The precision that is demanded.
    pub demand: Demand,
    /// The name of the result's tensor, for messages.
    pub name: [u8; 64],
}

// SAFETY: the addresses in it are good for all threads of the run.
unsafe impl Send for Node {}

impl Node {
    /// Whether it has something to do with this library: then its graph is a run.
    pub fn is_ours(&self) -> bool {
        self.op.is_some() || self.is_packed || self.kernel == HostKernel::Attention
    }

    /// The expert whose weights begin at `address`, 0 in a product without experts; `None` if no weights of this node
    /// do.
    pub fn expert(&self, address: usize) -> Option<usize> {
        let offset = address.checked_sub(self.weights)?;
        let expert = if offset == 0 { 0 } else { offset.checked_div(self.stride)? };
        (expert * self.stride == offset && expert < self.experts).then_some(expert)
    }
}

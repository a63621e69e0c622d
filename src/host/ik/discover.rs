//! Finds out what only ik_llama.cpp has, on trial tensors and objects, as [`crate::host::discover`] does for both
//! flavours.

use std::cell::Cell;

use libc::c_void;

use super::abi::RawBackend;
use super::symbols::IkSymbols;
use crate::diag::border::ffi_boundary;
use crate::format::WeightType;
use crate::host::abi::{TYPE_F32, TYPE_I32};
use crate::host::discover::{ensure, made};
use crate::host::layout::TensorLayout;
use crate::host::objects::{MOST_MEMBERS, RawBufferType};
use crate::host::peek;
use crate::host::symbols::Symbols;
use crate::host::tensor::RawTensor;
use crate::kernel::glu::GluOp;

/// `GGML_TYPE_F16`.
const TYPE_F16: i32 = 1;
/// `GGML_UNARY_OP_SWIGLU_OAI`, which no function of the host makes a unary node of.
const SWIGLU_OAI: i32 = 14;

/// Numbers of the operations that llama.cpp does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IkOps {
    /// `GGML_OP_FUSED_UP_GATE`.
    pub fused_up_gate: i32,
    /// `GGML_OP_MOE_FUSED_UP_GATE`.
    pub moe_fused_up_gate: i32,
    /// `GGML_OP_FLASH_ATTN_EXT`.
    pub flash_attn_ext: i32,
    /// Numbers of the unary operations that may be fused into a product (`enum ggml_unary_op`).
    pub(super) glu_ops: [(i32, GluOp); 4],
}

/// A tensor made for trial, with the layout that the host's tensors were found to have.
struct TrialTensor<'a>(*mut RawTensor, &'a TensorLayout);

impl TrialTensor<'_> {
    fn read<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: a live tensor of this layout.
        unsafe { self.0.byte_add(offset).cast::<T>().read_unaligned() }
    }

    fn op(&self) -> i32 {
        self.read(self.1.op)
    }

    fn param(&self, i: usize) -> i32 {
        self.read(self.1.op_params + 4 * i)
    }

    fn has_sources<const N: usize>(&self, sources: [*mut RawTensor; N]) -> bool {
        self.read::<[*mut RawTensor; N]>(self.1.src) == sources
    }
}

/// The numbers of the operations, once their nodes, a graph and its plan were seen to look as they are known.
///
/// # Safety
/// `context` must be a live context of the host, `layout` the layout of its tensors.
pub unsafe fn ops(
    common: &Symbols,
    symbols: &IkSymbols,
    layout: &TensorLayout,
    context: *mut c_void,
) -> Result<IkOps, String> {
    // SAFETY: documented uses of ggml's API, on live tensors of this context.
    unsafe {
        let new = |ty, ne: [i64; 4]| {
            let tensor = (common.ggml_new_tensor_4d)(context, ty, ne[0], ne[1], ne[2], ne[3]);
            made("ggml_new_tensor_4d", tensor)
        };
        let trial = |tensor| made("a function that makes a node", tensor).map(|tensor| TrialTensor(tensor, layout));
        let none = std::ptr::null_mut();
        let weight = new(WeightType::Q4_0 as i32, [64, 37, 3, 1])?;
        let (up, gate) = (new(WeightType::Q4_0 as i32, [64, 37, 1, 1])?, new(WeightType::Q4_0 as i32, [64, 37, 1, 1])?);
        let x = new(TYPE_F32, [64, 11, 1, 1])?;
        let product = made("ggml_mul_mat", (common.ggml_mul_mat)(context, up, x))?;
        let (choices, rows) = (new(TYPE_I32, [2, 11, 1, 1])?, new(TYPE_F32, [64, 2, 11, 1])?);
        let fused = trial((symbols.ggml_fused_up_gate)(context, up, gate, x, SWIGLU_OAI))?;
        let moe_fused = trial((symbols.ggml_moe_up_gate)(context, weight, weight, rows, choices, SWIGLU_OAI))?;
        ensure(fused.has_sources([up, gate, x]) && [0, 1].map(|i| fused.param(i)) == [SWIGLU_OAI, 0], || {
            "FUSED_UP_GATE".into()
        })?;
        ensure(moe_fused.has_sources([weight, weight, rows, choices]) && moe_fused.param(0) == SWIGLU_OAI, || {
            "MOE_FUSED_UP_GATE".into()
        })?;

        let (keys, values) = (new(TYPE_F16, [64, 32, 2, 1])?, new(TYPE_F16, [32, 32, 2, 1])?);
        let queries = new(TYPE_F32, [64, 3, 2, 1])?;
        let attention = trial((symbols.ggml_flash_attn_ext)(context, queries, keys, values, none, 1.0, 0.0, 0.0))?;
        ensure(attention.has_sources([queries, keys, values, none, none]), || "FLASH_ATTN_EXT".into())?;

        let graph = made("ggml_new_graph_custom", (common.ggml_new_graph_custom)(context, 16, false))?;
        (common.ggml_build_forward_expand)(graph, product);
        let nodes = (symbols.ggml_graph_nodes)(graph);
        ensure(
            (common.ggml_graph_n_nodes)(graph) == 1 && peek::word(nodes as usize) == Some(product as usize),
            || "ggml_cgraph".into(),
        )?;
        let threads = [3, 5].map(|threads| (symbols.ggml_graph_plan)(graph, threads).n_threads);
        ensure(threads == [3, 5], || format!("ggml_cplan.n_threads is {threads:?}"))?;

        let op_name = |op: i32| peek::name((common.ggml_op_name)(op));
        let ops = [(&fused, "FUSED_UP_GATE"), (&moe_fused, "MOE_FUSED_UP_GATE"), (&attention, "FLASH_ATTN_EXT")];
        for (node, name) in ops {
            let number = node.op();
            ensure((1..1024).contains(&number) && op_name(number) == name, || format!("operation {name}"))?;
        }
        let unary = |f: unsafe extern "C-unwind" fn(*mut c_void, *mut RawTensor) -> *mut RawTensor| {
            Ok::<i32, String>(trial(f(context, x))?.param(0))
        };
        ensure(peek::name((symbols.ggml_unary_op_name)(SWIGLU_OAI)) == "SWIGLU_OAI", || "SWIGLU_OAI".into())?;
        Ok(IkOps {
            fused_up_gate: fused.op(),
            moe_fused_up_gate: moe_fused.op(),
            flash_attn_ext: attention.op(),
            glu_ops: [
                (unary(symbols.ggml_silu)?, GluOp::Silu),
                (unary(symbols.ggml_gelu)?, GluOp::Gelu),
                (unary(symbols.ggml_relu)?, GluOp::Relu),
                (SWIGLU_OAI, GluOp::SwigluOai),
            ],
        })
    }
}

thread_local! {
    /// Which member of the trial backend the host called last, and its two arguments.
    static CALLED: Cell<Option<(usize, [usize; 2])>> = const { Cell::new(None) };
}

extern "C" fn stub<const MEMBER: usize>(a: usize, b: usize) -> bool {
    ffi_boundary!("a stub", else false, {
        CALLED.set(Some((MEMBER, [a, b])));
        false
    })
}

/// Index of the pointer-sized member of `struct ggml_backend` that has its `supports_buft`.
pub fn supports_buft(symbols: &IkSymbols) -> Result<usize, String> {
    macro_rules! stubs {
        ($($member:literal)*) => { [$(stub::<$member> as *const c_void),*] };
    }
    // Every member of this backend is a stub that knows its index.
    let mut words: [_; MOST_MEMBERS] =
        stubs!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31);
    let backend = words.as_mut_ptr().cast::<RawBackend>();
    let mut buft = [0usize; MOST_MEMBERS];
    let buft = buft.as_mut_ptr().cast::<RawBufferType>();
    // SAFETY: the host reads members of the backend, all of which are there, and the functions that it calls are stubs.
    unsafe { (symbols.ggml_backend_supports_buft)(backend, buft) };
    match CALLED.take() {
        Some((member, args)) if args == [backend as usize, buft as usize] => Ok(member),
        found => Err(crate::host::discover::unknown(format!("ggml_backend.supports_buft: {found:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_end_at_the_border() {
        use crate::diag::border::trip::goes_on;

        goes_on("a stub", || !stub::<3>(0, 0));
    }
}

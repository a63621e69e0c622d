//! ik_llama.cpp: a fork of llama.cpp without extra buffer types, but with a seam of its own. All its matrix products on
//! the CPU go through a few exported C functions that live in a translation unit apart from their callers, so that a
//! linker (`--wrap`) or a preloaded library can put ours in front of them.
//!
//! - [`seam`]: what happens in those functions
//! - [`attention`]: the same for its flash attention
//! - [`graph`]: from the addresses they get to the nodes of the graph
//! - [`product`]: from nodes to products
//! - [`types`]: types that only this host knows
//! - [`team`]: the threads of a graph's run: where they meet, and their work buffer
//! - [`openmp`]: whether the host's threads are OpenMP's
//! - [`place`]: packed weights, in a buffer type of their own or put there tensor by tensor as a model is loaded
//! - [`table`]: where they are
//! - [`surface`]: the other way: forks that ask by function who computes a node
//! - [`handshake`]: the proof that the host multiplies through us, before anything is packed

#[allow(missing_docs)] // fields are documented where ggml declares them
pub mod abi;
pub mod attention;
mod found;
mod graph;
pub mod handshake;
mod openmp;
pub mod place;
mod product;
pub mod seam;
pub mod surface;
mod table;
mod team;
#[cfg(test)]
mod tests;
mod types;

use crate::process::Once;
use std::cell::Cell;
use std::ops::Deref;

use libc::{c_char, c_void};

use super::discover;
use super::foreign::caught;
use super::hbm::use_hbm;
use super::symbols::host_symbols;
use super::{Buffer, Core, Flavour, RawBuffer, RawBufferType, RawTensor, Symbols, Tensor};
use crate::cpu::{self, sync};
use crate::diag::env::{Mode, env};
use crate::diag::log;
use crate::format::WeightType;
use crate::info;
use crate::kernel::glu::GluOp;
use crate::panel::decoded::DecodedType;
use abi::{IkPlan, RawBackend};

host_symbols! {
    /// The functions that only ik_llama.cpp's ggml has, or that are called here only.
    IkSymbols in ggml_amx_ik_symbols;
    ggml_fused_up_gate:
        unsafe extern "C-unwind" fn(*mut c_void, *mut RawTensor, *mut RawTensor, *mut RawTensor, i32) -> *mut RawTensor;
    ggml_moe_up_gate: unsafe extern "C-unwind" fn(
        *mut c_void, *mut RawTensor, *mut RawTensor, *mut RawTensor, *mut RawTensor, i32) -> *mut RawTensor;
    ggml_silu: unsafe extern "C-unwind" fn(*mut c_void, *mut RawTensor) -> *mut RawTensor;
    ggml_gelu: unsafe extern "C-unwind" fn(*mut c_void, *mut RawTensor) -> *mut RawTensor;
    ggml_relu: unsafe extern "C-unwind" fn(*mut c_void, *mut RawTensor) -> *mut RawTensor;
    ggml_flash_attn_ext: unsafe extern "C-unwind" fn(
        *mut c_void, *mut RawTensor, *mut RawTensor, *mut RawTensor, *mut RawTensor, f32, f32, f32) -> *mut RawTensor;
    ggml_get_first_tensor: unsafe extern "C-unwind" fn(*mut c_void) -> *mut RawTensor;
    ggml_get_next_tensor: unsafe extern "C-unwind" fn(*mut c_void, *mut RawTensor) -> *mut RawTensor;
    ggml_graph_plan: unsafe extern "C-unwind" fn(*const c_void, i32) -> IkPlan;
    ggml_graph_nodes: unsafe extern "C-unwind" fn(*mut c_void) -> *mut *mut RawTensor;
    ggml_internal_get_type_traits: unsafe extern "C-unwind" fn(i32) -> types::TypeTraits;
    ggml_unary_op_name: unsafe extern "C-unwind" fn(i32) -> *const c_char;
    ggml_backend_cpu_buffer_type: unsafe extern "C-unwind" fn() -> *mut RawBufferType;
    ggml_backend_supports_buft: unsafe extern "C-unwind" fn(*mut RawBackend, *mut RawBufferType) -> bool;
    ggml_backend_register: unsafe extern "C-unwind" fn(
        *const c_char, unsafe extern "C-unwind" fn(*const c_char, *mut c_void) -> *mut RawBackend, *mut RawBufferType,
        *mut c_void);
}

/// Numbers of the operations that llama.cpp has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IkOps {
    /// `GGML_OP_FUSED_UP_GATE`.
    pub fused_up_gate: i32,
    /// `GGML_OP_MOE_FUSED_UP_GATE`.
    pub moe_fused_up_gate: i32,
    /// `GGML_OP_FLASH_ATTN_EXT`.
    pub flash_attn_ext: i32,
    /// Numbers of the unary operations that are fused.
    glu_ops: [(i32, GluOp); 4],
}

thread_local! {
    /// Whether this thread is about to find the host.
    static FINDING: Cell<bool> = const { Cell::new(false) };
}

/// Until it is dropped, [`FINDING`].
struct Finding;

impl Finding {
    fn begin() -> Self {
        FINDING.set(true);
        Self
    }
}

impl Drop for Finding {
    fn drop(&mut self) {
        FINDING.set(false);
    }
}

/// An ik_llama.cpp whose layout was found out.
pub struct IkHost {
    core: Core,
    ik: IkSymbols,
    /// Word of a backend that has its `supports_buft`.
    supports_buft: usize,
    /// Operation numbers that only it has.
    pub ik_ops: IkOps,
    /// Types that are interleaved forms of packed ones.
    interleaved: Vec<(i32, WeightType)>,
    /// Types that are decoded by the host.
    decoded: Vec<&'static DecodedType>,
    /// Types of a KV cache that are decoded by the host.
    cached: Vec<&'static DecodedType>,
}

// SAFETY: function pointers, and facts about types that never change.
unsafe impl Send for IkHost {}
// SAFETY: as above.
unsafe impl Sync for IkHost {}

impl Deref for IkHost {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl IkHost {
    /// The host of this process, looked for and proved once, or why it is not served.
    fn get() -> Option<&'static Self> {
        static HOST: Once<Option<IkHost>> = Once::new();
        if let Some(host) = HOST.get() {
            return host.as_ref();
        }
        // Some of the host's functions that are tried out come by here.
        if FINDING.get() {
            return None;
        }
        let _finding = Finding::begin();
        let _until_it_is_there = log::hold();
        HOST.get_or_init(|| match caught(Self::find) {
            Ok(host) => {
                let mode = match (env().mode, cpu::isa()) {
                    (Mode::Packed, _) => "packed",
                    (_, cpu::Isa::Amx) => "in place",
                    _ => "in place (left to the host without AMX, but for those in a buffer of the type AMX)",
                };
                info!(
                    "version {}, in ik_llama.cpp, weights {mode}, kernels: {}",
                    env!("CARGO_PKG_VERSION"),
                    cpu::isa().name()
                );
                Some(host)
            }
            Err(reason) => {
                info!("not used: {reason}");
                None
            }
        })
        .as_ref()
    }

    fn find() -> Result<Self, String> {
        if env().mode == Mode::Off {
            return Err("GGML_AMX_MODE=off".to_string());
        }
        let (symbols, ik) = (Symbols::find(Flavour::Ik)?, IkSymbols::find(Flavour::Ik)?);
        if let Some(reason) = cpu::refusal() {
            return Err(reason);
        }
        let (core, (ik_ops, supports_buft)) = discover::discover(&symbols, Flavour::Ik, |layout, context| {
            let (buffer, missing) = (&layout.buffer, |what: &str| discover::unknown(format!("{what} is missing")));
            buffer.usage.ok_or_else(|| missing("ggml_backend_buffer.usage"))?;
            buffer.get_name.ok_or_else(|| missing("the name of a buffer"))?;
            // SAFETY: the context is alive.
            let ops = unsafe { found::ops(&symbols, &ik, &layout.tensor, context)? };
            Ok((ops, found::supports_buft(&ik)?))
        })?;
        use_hbm(Flavour::Ik);
        let decoded = types::decoded(&symbols, &ik);
        let (interleaved, cached) = (types::interleaved(&decoded), types::cached(&symbols, &ik));
        Ok(Self { core, ik, supports_buft, ik_ops, interleaved, decoded, cached })
    }

    /// The type that the one with ggml's number `number` is the interleaved form of, if it is one that is read here.
    fn interleaved_type(&self, number: i32) -> Option<WeightType> {
        self.interleaved.iter().find(|(n, _)| *n == number).map(|(_, ty)| *ty)
    }

    /// The type with ggml's number `number` that the host decodes, if it is one.
    fn decoded_type(&self, number: i32) -> Option<&'static DecodedType> {
        self.decoded.iter().find(|ty| ty.number == number).copied()
    }
}

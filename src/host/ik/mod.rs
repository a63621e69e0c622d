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
//! - [`handshake`]: the proof that the host multiplies through us, before anything is packed

#[allow(missing_docs)] // fields are documented where ggml declares them
pub mod abi;
pub mod attention;
mod graph;
mod handshake;
mod openmp;
pub mod place;
mod product;
pub mod seam;
mod selfcheck;
mod table;
mod team;
#[cfg(test)]
mod tests;
mod types;

use std::ffi::{CStr, CString};
use std::sync::OnceLock;

use libc::{c_char, c_void};

use super::HostTypes;
use super::symbols::host_symbols;
use crate::cpu::{self, sync};
use crate::diag::env::{Mode, env};
use crate::diag::log;
use crate::format::WeightType;
use crate::info;
use crate::kernel::activation::Activation;
use crate::panel::decoded::DecodedType;
use abi::{IkBackend, IkBuffer, IkBufferInterface, IkBufferType, IkPlan, IkTensor};

host_symbols! {
    /// The functions of ik_llama.cpp's ggml that are called here, all present.
    IkSymbols in ggml_amx_ik_symbols;
    ggml_init: unsafe extern "C" fn(super::abi::GgmlInitParams) -> *mut c_void;
    ggml_free: unsafe extern "C" fn(*mut c_void);
    ggml_tensor_overhead: unsafe extern "C" fn() -> usize;
    ggml_new_tensor_4d: unsafe extern "C" fn(*mut c_void, i32, i64, i64, i64, i64) -> *mut IkTensor;
    ggml_set_name: unsafe extern "C" fn(*mut IkTensor, *const c_char) -> *mut IkTensor;
    ggml_get_name: unsafe extern "C" fn(*const IkTensor) -> *const c_char;
    ggml_mul_mat: unsafe extern "C" fn(*mut c_void, *mut IkTensor, *mut IkTensor) -> *mut IkTensor;
    ggml_mul_mat_id:
        unsafe extern "C" fn(*mut c_void, *mut IkTensor, *mut IkTensor, *mut IkTensor) -> *mut IkTensor;
    ggml_fused_up_gate:
        unsafe extern "C" fn(*mut c_void, *mut IkTensor, *mut IkTensor, *mut IkTensor, i32) -> *mut IkTensor;
    ggml_moe_up_gate: unsafe extern "C" fn(
        *mut c_void, *mut IkTensor, *mut IkTensor, *mut IkTensor, *mut IkTensor, i32) -> *mut IkTensor;
    ggml_silu: unsafe extern "C" fn(*mut c_void, *mut IkTensor) -> *mut IkTensor;
    ggml_gelu: unsafe extern "C" fn(*mut c_void, *mut IkTensor) -> *mut IkTensor;
    ggml_relu: unsafe extern "C" fn(*mut c_void, *mut IkTensor) -> *mut IkTensor;
    ggml_view_1d: unsafe extern "C" fn(*mut c_void, *mut IkTensor, i64, usize) -> *mut IkTensor;
    ggml_reshape_1d: unsafe extern "C" fn(*mut c_void, *mut IkTensor, i64) -> *mut IkTensor;
    ggml_permute: unsafe extern "C" fn(*mut c_void, *mut IkTensor, i32, i32, i32, i32) -> *mut IkTensor;
    ggml_transpose: unsafe extern "C" fn(*mut c_void, *mut IkTensor) -> *mut IkTensor;
    ggml_scale: unsafe extern "C" fn(*mut c_void, *mut IkTensor, f32) -> *mut IkTensor;
    ggml_flash_attn_ext: unsafe extern "C" fn(
        *mut c_void, *mut IkTensor, *mut IkTensor, *mut IkTensor, *mut IkTensor, f32, f32, f32) -> *mut IkTensor;
    ggml_get_first_tensor: unsafe extern "C" fn(*mut c_void) -> *mut IkTensor;
    ggml_get_next_tensor: unsafe extern "C" fn(*mut c_void, *mut IkTensor) -> *mut IkTensor;
    ggml_new_graph_custom: unsafe extern "C" fn(*mut c_void, usize, bool) -> *mut c_void;
    ggml_build_forward_expand: unsafe extern "C" fn(*mut c_void, *mut IkTensor);
    ggml_graph_plan: unsafe extern "C" fn(*const c_void, i32) -> IkPlan;
    ggml_graph_nodes: unsafe extern "C" fn(*mut c_void) -> *mut *mut IkTensor;
    ggml_graph_n_nodes: unsafe extern "C" fn(*mut c_void) -> i32;
    ggml_nbytes: unsafe extern "C" fn(*const IkTensor) -> usize;
    ggml_type_name: unsafe extern "C" fn(i32) -> *const c_char;
    ggml_type_size: unsafe extern "C" fn(i32) -> usize;
    ggml_blck_size: unsafe extern "C" fn(i32) -> i64;
    ggml_internal_get_type_traits: unsafe extern "C" fn(i32) -> types::TypeTraits;
    ggml_op_name: unsafe extern "C" fn(i32) -> *const c_char;
    ggml_unary_op_name: unsafe extern "C" fn(i32) -> *const c_char;
    ggml_abort: unsafe extern "C" fn(*const c_char, i32, *const c_char, ...);
    ggml_backend_buffer_init:
        unsafe extern "C" fn(*mut IkBufferType, IkBufferInterface, *mut c_void, usize) -> *mut IkBuffer;
    ggml_backend_buffer_free: unsafe extern "C" fn(*mut IkBuffer);
    ggml_backend_buffer_get_base: unsafe extern "C" fn(*mut IkBuffer) -> *mut c_void;
    ggml_backend_buffer_clear: unsafe extern "C" fn(*mut IkBuffer, u8);
    ggml_backend_buffer_name: unsafe extern "C" fn(*mut IkBuffer) -> *const c_char;
    ggml_backend_buffer_is_host: unsafe extern "C" fn(*mut IkBuffer) -> bool;
    ggml_backend_tensor_set: unsafe extern "C" fn(*mut IkTensor, *const c_void, usize, usize);
    ggml_backend_tensor_get: unsafe extern "C" fn(*const IkTensor, *mut c_void, usize, usize);
    ggml_backend_buft_name: unsafe extern "C" fn(*mut IkBufferType) -> *const c_char;
    ggml_backend_cpu_buffer_type: unsafe extern "C" fn() -> *mut IkBufferType;
    ggml_backend_register: unsafe extern "C" fn(
        *const c_char, unsafe extern "C" fn(*const c_char, *mut c_void) -> *mut IkBackend, *mut IkBufferType, *mut c_void);
}

/// Operation numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IkOps {
    /// `GGML_OP_MUL_MAT`.
    pub mul_mat: i32,
    /// `GGML_OP_MUL_MAT_ID`.
    pub mul_mat_id: i32,
    /// `GGML_OP_FUSED_UP_GATE`.
    pub fused_up_gate: i32,
    /// `GGML_OP_MOE_FUSED_UP_GATE`.
    pub moe_fused_up_gate: i32,
    /// `GGML_OP_FLASH_ATTN_EXT`.
    pub flash_attn_ext: i32,
    /// `NONE`, `RESHAPE`, `VIEW`, `PERMUTE`, `TRANSPOSE`.
    pub no_data: [i32; 5],
    /// Numbers of the unary operations that are fused.
    activations: [(i32, Activation); 4],
}

/// An ik_llama.cpp whose layout was proved to be the one of [`abi`].
pub struct IkHost {
    symbols: IkSymbols,
    /// Its operation numbers.
    pub ops: IkOps,
    types: HostTypes,
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

impl IkHost {
    /// The host of this process, looked for and proved once, or why it is not served.
    fn get() -> Option<&'static Self> {
        static HOST: OnceLock<Option<IkHost>> = OnceLock::new();
        if let Some(host) = HOST.get() {
            return host.as_ref();
        }
        let _until_it_is_there = log::hold();
        HOST.get_or_init(|| match Self::find() {
            Ok(host) => {
                let mode = if env().mode == Mode::Packed { "packed" } else { "in place" };
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
        let symbols = IkSymbols::find()?;
        if let Some(reason) = cpu::refusal() {
            return Err(reason);
        }
        let (ops, types) = selfcheck::prove(&symbols)?;
        let decoded = types::decoded(&symbols);
        let (interleaved, cached) = (types::interleaved(&decoded), types::cached(&symbols));
        Ok(Self { symbols, ops, types, interleaved, decoded, cached })
    }

    /// The packed type with ggml's number `number`, if this host has it.
    fn weight_type(&self, number: i32) -> Option<WeightType> {
        WeightType::from_ggml(number).filter(|ty| self.types.has(*ty))
    }

    /// The type that the one with ggml's number `number` is the interleaved form of, if it is one that is read here.
    fn interleaved_type(&self, number: i32) -> Option<WeightType> {
        self.interleaved.iter().find(|(n, _)| *n == number).map(|(_, ty)| *ty)
    }

    /// The type with ggml's number `number` that the host decodes, if it is one.
    fn decoded_type(&self, number: i32) -> Option<&'static DecodedType> {
        self.decoded.iter().find(|ty| ty.number == number).copied()
    }

    /// Says `message` and ends the process the way ggml does.
    fn abort(&self, message: &str) -> ! {
        log::last_words(message);
        let message = CString::new(format!("ggml-amx: {message}").replace('\0', "")).unwrap_or_default();
        // SAFETY: ggml_abort(file, line, format, ...) with one C string; it does not return.
        unsafe { (self.symbols.ggml_abort)(c"ggml-amx".as_ptr(), 0, c"%s".as_ptr(), message.as_ptr()) };
        std::process::abort()
    }

    /// The host's name of an operation number that came from a real node.
    fn op_name(&self, op: i32) -> String {
        // SAFETY: the number came from the host, so it is in its table of static strings.
        unsafe { CStr::from_ptr((self.symbols.ggml_op_name)(op)).to_string_lossy().into_owned() }
    }
}

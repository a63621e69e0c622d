//! The functions of ggml that only ik_llama.cpp has, or that are called only for it.

use libc::{c_char, c_void};

use super::abi::{IkPlan, RawBackend, TypeTraits};
use crate::host::symbols::host_symbols;
use crate::host::{RawBufferType, RawTensor};

host_symbols! {
    /// The functions of ggml that only ik_llama.cpp has, or that are called only for it.
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
    ggml_internal_get_type_traits: unsafe extern "C-unwind" fn(i32) -> TypeTraits;
    ggml_unary_op_name: unsafe extern "C-unwind" fn(i32) -> *const c_char;
    ggml_backend_cpu_buffer_type: unsafe extern "C-unwind" fn() -> *mut RawBufferType;
    ggml_backend_supports_buft: unsafe extern "C-unwind" fn(*mut RawBackend, *mut RawBufferType) -> bool;
    ggml_backend_register: unsafe extern "C-unwind" fn(
        *const c_char, unsafe extern "C-unwind" fn(*const c_char, *mut c_void) -> *mut RawBackend, *mut RawBufferType,
        *mut c_void);
}

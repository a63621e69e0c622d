//! Structs of ik_llama.cpp that llama.cpp does not have, or has with other members.

use libc::{c_char, c_void};

use crate::panel::decoded::ToFloat;

/// `struct ggml_cplan` (ggml.h), with space behind it for members that later versions add.
#[repr(C)]
pub struct IkPlan {
    pub work_size: usize,
    pub work_data: *mut u8,
    pub n_threads: i32,
    pub more: [usize; 16],
}

/// `ggml_type_traits_t` (ggml.h), which the host returns by value, with space behind it for members that later versions
/// add.
#[repr(C)]
pub struct TypeTraits {
    pub name: *const c_char,
    pub block: i64,
    pub interleaved: i64,
    pub bytes: usize,
    pub is_quantized: bool,
    pub to_float: Option<ToFloat>,
    pub from_float: [*const c_void; 3],
    pub vec_dot: *const c_void,
    pub vec_dot_type: i32,
    pub rows_and_columns: [i64; 2],
    pub gemv_and_gemm: [*const c_void; 2],
    pub row_meta_size: i64,
    pub more: [usize; 16],
}

/// `struct ggml_backend`, of any version.
#[repr(C)]
pub struct RawBackend([u8; 0]);

//! Numbers and small structs of ggml's that are the same in every version of both flavours. Only structs of ggml's have
//! names that begin with `Ggml`. Structs that change from version to version are found out ([`super::discover`]).

use libc::c_void;

/// `GGML_TYPE_F32`.
pub const TYPE_F32: i32 = 0;
/// `GGML_TYPE_I32`.
pub const TYPE_I32: i32 = 26;

/// `GGML_STATUS_ALLOC_FAILED`.
pub const STATUS_ALLOC_FAILED: i32 = -2;
/// `GGML_STATUS_SUCCESS`.
pub const STATUS_SUCCESS: i32 = 0;

/// `GGML_BACKEND_BUFFER_USAGE_WEIGHTS`.
pub const USAGE_WEIGHTS: i32 = 1;

/// `struct ggml_compute_params` (ggml-cpu-impl.h), without `use_ref`, which not every version has.
#[repr(C)]
pub struct GgmlComputeParams {
    pub ith: i32,
    pub nth: i32,
    pub wsize: usize,
    pub wdata: *mut c_void,
    pub threadpool: *mut c_void,
}

/// `struct ggml_init_params` (ggml.h).
#[repr(C)]
pub struct GgmlInitParams {
    pub mem_size: usize,
    pub mem_buffer: *mut c_void,
    pub no_alloc: bool,
}

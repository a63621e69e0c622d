//! Numbers and small structs of ggml's that are the same in every version and both flavours. `Ggml*` are theirs; ours
//! never start so. Structs that change from version to version are found out ([`super::discover`]).

use libc::c_void;

/// `enum ggml_type` number of F32; the first entry of ggml's type table in every version.
pub const TYPE_F32: i32 = 0;
pub const TYPE_I32: i32 = 26;

/// `enum ggml_status`: memory could not be had.
pub const STATUS_ALLOC_FAILED: i32 = -2;
/// `enum ggml_status`: success.
pub const STATUS_SUCCESS: i32 = 0;

/// `enum ggml_backend_buffer_usage`: weights.
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

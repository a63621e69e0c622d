//! Structs of ik_llama.cpp that llama.cpp has not, or has in another way.

/// `struct ggml_cplan` (ggml.h), with room behind it for more members.
#[repr(C)]
pub struct IkPlan {
    pub work_size: usize,
    pub work_data: *mut u8,
    pub n_threads: i32,
    pub more: [usize; 16],
}

/// `struct ggml_backend`, of whatever version.
#[repr(C)]
pub struct RawBackend([u8; 0]);

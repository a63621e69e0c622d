//! The structs of the header, and nothing that needs the rest of the crate: the build script includes this file too,
//! and lets a C compiler compare sizes and offsets with those of `include/ggml-amx.h`.

use core::ffi::c_void;

/// Arguments of `ggml_amx_mul_mat`: `dst[i][j] = sum over l of src1[i][l] * W[j][l]`,
/// i < m, j < n, l < k.
#[repr(C)]
pub struct MulMatArgs {
    /// `sizeof(struct ggml_amx_mul_mat_args)`, by which the library knows the version that a program was built with.
    pub struct_size: usize,
    /// Weight type, ggml's number (`enum ggml_amx_type`).
    pub r#type: i32,
    /// The largest number of threads to use; 0 means one per core. Small products use fewer.
    pub n_threads: i32,
    /// The highest instruction set to use (`enum ggml_amx_isa`).
    pub isa: i32,
    /// Must be 0.
    pub reserved: i32,
    /// Weights per row, a multiple of the type's block.
    pub k: i64,
    /// Rows of W, which are columns of the result.
    pub n: i64,
    /// Rows of src1 and of the result.
    pub m: i64,
    /// W as `ggml_amx_pack` wrote it.
    pub packed: *const c_void,
    /// Bytes at `packed`, at least `ggml_amx_packed_size(type, k, n)`.
    pub packed_size: usize,
    /// m rows of k floats.
    pub src1: *const f32,
    /// Bytes from one row of src1 to the next, at least 4 * k and a multiple of 4.
    pub src1_stride: usize,
    /// m rows of n floats.
    pub dst: *mut f32,
    /// Bytes from one row of dst to the next, at least 4 * n and a multiple of 4.
    pub dst_stride: usize,
}

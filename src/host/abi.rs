//! ggml's structs as llama.cpp has them (ggml 0.10 and later; checked at run time against the host by
//! the self-check, and in c_tests against its headers). `Ggml*` are theirs; ours never start so.

use libc::{c_char, c_void};

/// `enum ggml_type` number of F32; the first entry of ggml's type table in every version.
pub const TYPE_F32: i32 = 0;
pub const TYPE_I32: i32 = 26;

/// `enum ggml_status`: memory could not be had.
pub const STATUS_ALLOC_FAILED: i32 = -2;
/// `enum ggml_status`: success.
pub const STATUS_SUCCESS: i32 = 0;

/// `struct ggml_tensor` (ggml.h).
#[repr(C)]
pub struct GgmlTensor {
    pub ty: i32,
    pub buffer: *mut GgmlBuffer,
    pub ne: [i64; 4],
    pub nb: [usize; 4],
    pub op: i32,
    pub op_params: [i32; 16],
    pub flags: i32,
    pub src: [*mut GgmlTensor; 10],
    pub view_src: *mut GgmlTensor,
    pub view_offs: usize,
    pub data: *mut c_void,
    pub name: [c_char; 64],
    pub extra: *mut c_void,
    pub padding: [u8; 8],
}

impl GgmlTensor {
    /// The tensor that owns the memory: `view_src` is never a view itself in ggml.
    pub fn root(&self) -> &GgmlTensor {
        // SAFETY: a non-null view_src points to a live tensor for as long as the view lives.
        unsafe { self.view_src.as_ref() }.unwrap_or(self)
    }

    /// The buffer that holds the data; views not yet initialised have only their root's.
    pub fn holder(&self) -> *mut GgmlBuffer {
        if self.buffer.is_null() { self.root().buffer } else { self.buffer }
    }

    /// Source `i`, if there is one.
    pub fn source(&self, i: usize) -> Option<&GgmlTensor> {
        // SAFETY: a non-null source points to a live tensor for as long as the node lives.
        unsafe { self.src[i].as_ref() }
    }

    /// The name, for messages.
    pub fn name(&self) -> String {
        self.name.iter().take_while(|c| **c != 0).map(|c| *c as u8 as char).collect()
    }
}

/// `struct ggml_backend_buffer_type_i` (ggml-backend-impl.h).
#[repr(C)]
pub struct GgmlBufferTypeInterface {
    pub get_name: unsafe extern "C" fn(*mut GgmlBufferType) -> *const c_char,
    pub alloc_buffer: unsafe extern "C" fn(*mut GgmlBufferType, usize) -> *mut GgmlBuffer,
    pub get_alignment: unsafe extern "C" fn(*mut GgmlBufferType) -> usize,
    pub get_max_size: Option<unsafe extern "C" fn(*mut GgmlBufferType) -> usize>,
    pub get_alloc_size: Option<unsafe extern "C" fn(*mut GgmlBufferType, *const GgmlTensor) -> usize>,
    pub is_host: Option<unsafe extern "C" fn(*mut GgmlBufferType) -> bool>,
}

/// `struct ggml_backend_buffer_type`.
#[repr(C)]
pub struct GgmlBufferType {
    pub interface: GgmlBufferTypeInterface,
    pub device: *mut c_void,
    pub context: *mut c_void,
}

/// `struct ggml_backend_buffer_i`: eleven members since ggml 0.10.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct GgmlBufferInterface {
    pub free_buffer: unsafe extern "C" fn(*mut GgmlBuffer),
    pub get_base: unsafe extern "C" fn(*mut GgmlBuffer) -> *mut c_void,
    pub init_tensor: unsafe extern "C" fn(*mut GgmlBuffer, *mut GgmlTensor) -> i32,
    pub memset_tensor: unsafe extern "C" fn(*mut GgmlBuffer, *mut GgmlTensor, u8, usize, usize),
    pub set_tensor: unsafe extern "C" fn(*mut GgmlBuffer, *mut GgmlTensor, *const c_void, usize, usize),
    pub get_tensor: unsafe extern "C" fn(*mut GgmlBuffer, *const GgmlTensor, *mut c_void, usize, usize),
    pub set_tensor_2d:
        unsafe extern "C" fn(*mut GgmlBuffer, *mut GgmlTensor, *const c_void, usize, usize, usize, usize, usize),
    pub get_tensor_2d:
        unsafe extern "C" fn(*mut GgmlBuffer, *const GgmlTensor, *mut c_void, usize, usize, usize, usize, usize),
    pub cpy_tensor: unsafe extern "C" fn(*mut GgmlBuffer, *const GgmlTensor, *mut GgmlTensor) -> bool,
    pub clear: unsafe extern "C" fn(*mut GgmlBuffer, u8),
    pub reset: Option<unsafe extern "C" fn(*mut GgmlBuffer)>,
}

/// `struct ggml_backend_buffer`.
#[repr(C)]
pub struct GgmlBuffer {
    pub interface: GgmlBufferInterface,
    pub buft: *mut GgmlBufferType,
    pub context: *mut c_void,
    pub size: usize,
    pub usage: i32,
}

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

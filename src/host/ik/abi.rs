//! ggml's structs as ik_llama.cpp has them (checked at run time by the self-check).

use libc::{c_char, c_void};

/// `enum ggml_backend_buffer_usage`: weights.
pub const USAGE_WEIGHTS: i32 = 1;

/// `struct ggml_tensor` (ggml.h): other offsets than llama.cpp's, the same size.
#[repr(C)]
pub struct IkTensor {
    pub ty: i32,
    pub backend: i32,
    pub buffer: *mut IkBuffer,
    pub ne: [i64; 4],
    pub nb: [usize; 4],
    pub op: i32,
    pub op_params: [i32; 16],
    pub flags: i32,
    pub grad: *mut IkTensor,
    pub src: [*mut IkTensor; 10],
    pub view_src: *mut IkTensor,
    pub view_offs: usize,
    pub data: *mut c_void,
    pub name: [c_char; 64],
    pub extra: *mut c_void,
}

impl IkTensor {
    /// The tensor that owns the memory.
    pub fn root(&self) -> &IkTensor {
        // SAFETY: a non-null view_src points to a live tensor for as long as the view lives.
        unsafe { self.view_src.as_ref() }.unwrap_or(self)
    }

    /// The buffer that holds the data.
    pub fn holder(&self) -> Option<&IkBuffer> {
        let buffer = if self.buffer.is_null() { self.root().buffer } else { self.buffer };
        // SAFETY: a non-null buffer of a live tensor is alive.
        unsafe { buffer.as_ref() }
    }

    /// Source `i`, if there is one.
    pub fn source(&self, i: usize) -> Option<&IkTensor> {
        // SAFETY: a non-null source points to a live tensor for as long as the node lives.
        unsafe { self.src[i].as_ref() }
    }

    /// The name, for messages.
    pub fn name(&self) -> String {
        self.name.iter().take_while(|c| **c != 0).map(|c| *c as u8 as char).collect()
    }
}

/// `struct ggml_backend_buffer_type` (ggml-backend-impl.h): no device.
#[repr(C)]
pub struct IkBufferType {
    pub get_name: unsafe extern "C" fn(*mut IkBufferType) -> *const c_char,
    pub alloc_buffer: unsafe extern "C" fn(*mut IkBufferType, usize) -> *mut IkBuffer,
    pub get_alignment: unsafe extern "C" fn(*mut IkBufferType) -> usize,
    pub get_max_size: Option<unsafe extern "C" fn(*mut IkBufferType) -> usize>,
    pub get_alloc_size: Option<unsafe extern "C" fn(*mut IkBufferType, *const IkTensor) -> usize>,
    pub is_host: Option<unsafe extern "C" fn(*mut IkBufferType) -> bool>,
    pub context: *mut c_void,
}

/// `struct ggml_backend_buffer_i`: ten members, one of them the name.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct IkBufferInterface {
    pub get_name: unsafe extern "C" fn(*mut IkBuffer) -> *const c_char,
    pub free_buffer: Option<unsafe extern "C" fn(*mut IkBuffer)>,
    pub get_base: unsafe extern "C" fn(*mut IkBuffer) -> *mut c_void,
    pub init_tensor: Option<unsafe extern "C" fn(*mut IkBuffer, *mut IkTensor)>,
    pub memset_tensor: unsafe extern "C" fn(*mut IkBuffer, *mut IkTensor, u8, usize, usize),
    pub set_tensor: unsafe extern "C" fn(*mut IkBuffer, *mut IkTensor, *const c_void, usize, usize),
    pub get_tensor: unsafe extern "C" fn(*mut IkBuffer, *const IkTensor, *mut c_void, usize, usize),
    pub cpy_tensor: Option<unsafe extern "C" fn(*mut IkBuffer, *const IkTensor, *mut IkTensor) -> bool>,
    pub clear: unsafe extern "C" fn(*mut IkBuffer, u8),
    pub reset: Option<unsafe extern "C" fn(*mut IkBuffer)>,
}

/// `struct ggml_backend_buffer`.
#[repr(C)]
pub struct IkBuffer {
    pub interface: IkBufferInterface,
    pub buft: *mut IkBufferType,
    pub context: *mut c_void,
    pub size: usize,
    pub usage: i32,
}

/// `struct ggml_cplan` (ggml.h), with room behind it for more members.
#[repr(C)]
pub struct IkPlan {
    pub work_size: usize,
    pub work_data: *mut u8,
    pub n_threads: i32,
    pub more: [usize; 16],
}

/// `struct ggml_backend`, as far as it is changed here: its interface has twenty members.
#[repr(C)]
pub struct IkBackend {
    pub guid: *mut c_void,
    pub before: [*mut c_void; 12],
    pub supports_op: unsafe extern "C" fn(*mut IkBackend, *const IkTensor) -> bool,
    pub supports_buft: unsafe extern "C" fn(*mut IkBackend, *mut IkBufferType) -> bool,
    pub after: [*mut c_void; 6],
    pub context: *mut c_void,
}

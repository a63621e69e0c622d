//! ggml's functions. Hosts come in many shapes, so there are three ways to find them ([`find`]):
//!
//! - `dlsym` in the scope of the object that called us, if that is known: there may be two hosts, and a host may be
//!   loaded in a scope of its own;
//! - a table of *weak* references that the linker fills: for static programs, whose functions `dlsym` cannot see, and
//!   for shared hosts that were loaded before us;
//! - `dlsym` in the global scope, for hosts that were loaded after us.
//!
//! The references are weak so that a process without ggml can load this library too.

use std::ffi::CStr;

use libc::{c_char, c_void};

use super::abi::GgmlInitParams;
use super::loader::{OpenObject, Scope, files};
use super::objects::{BufferInterface, RawBuffer, RawBufferType};
use super::tensor::RawTensor;

/// Declares the functions of a host once: a field of the struct `$symbols`, an entry of the weak table `$table`, and
/// the lookup. Those behind a question mark may be missing.
macro_rules! host_symbols {
    ($(#[$doc:meta])* $symbols:ident in $table:ident; $($name:ident: $ty:ty;)* $(? $maybe:ident: $maybe_ty:ty;)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        #[allow(missing_docs, non_snake_case)] // ggml's own names; see its headers
        pub struct $symbols {
            $(pub $name: $ty,)*
            $(pub $maybe: Option<$maybe_ty>,)*
        }

        $crate::host::symbols::weak_table!($table; $(stringify!($name),)* $(stringify!($maybe),)*);

        impl $symbols {
            /// All functions of the served host of this flavour, or an error that names one that is missing.
            pub fn find(flavour: $crate::host::Flavour) -> Result<Self, String> {
                let scope = flavour.scope();
                let names = [$(concat!(stringify!($name), "\0"),)* $(concat!(stringify!($maybe), "\0"),)*];
                let mut index = 0;
                let mut next = || {
                    let name = std::ffi::CStr::from_bytes_with_nul(names[index].as_bytes()).expect("ends with NUL");
                    let linked = $table(index);
                    index += 1;
                    let missing = || format!("no usable ggml in this process: {} is missing", name.to_string_lossy());
                    $crate::host::symbols::find(scope, linked, name).ok_or_else(missing)
                };
                Ok(Self {
                    // SAFETY: ggml's function of this name has this type in every version.
                    $($name: unsafe { std::mem::transmute::<*const libc::c_void, $ty>(next()?) },)*
                    // SAFETY: where ggml has a function of this name, it has this type.
                    $($maybe: next().ok().map(|f| unsafe { std::mem::transmute::<*const libc::c_void, $maybe_ty>(f) }),)*
                })
            }
        }
    };
}
pub(super) use host_symbols;

/// Declares a table of weak references, which the linker fills, and the function `$table` that reads entry `index` of
/// it: an address, or 0 where the linker found no such function.
macro_rules! weak_table {
    ($table:ident; $($name:expr,)*) => {
        std::arch::global_asm!(
            concat!(".section .data.rel.ro.", stringify!($table), ",\"aw\",@progbits"),
            ".balign 8",
            concat!(".hidden ", stringify!($table)),
            concat!(".globl ", stringify!($table)),
            concat!(stringify!($table), ":"),
            $(concat!(".weak ", $name), concat!(".quad ", $name),)*
            ".previous",
        );

        fn $table(index: usize) -> usize {
            unsafe extern "C" {
                static $table: [usize; [$($name),*].len()];
            }
            // SAFETY: the table above, a word per name, which nobody writes once the library is loaded. Volatile,
            // because the compiler must not assume that the address of a function is never null.
            unsafe { (&raw const $table[index]).read_volatile() }
        }
    };
}
pub(crate) use weak_table;

host_symbols! {
    /// The functions that both flavours have.
    Symbols in ggml_amx_host_symbols;
    ggml_init: unsafe extern "C-unwind" fn(GgmlInitParams) -> *mut c_void;
    ggml_free: unsafe extern "C-unwind" fn(*mut c_void);
    ggml_tensor_overhead: unsafe extern "C-unwind" fn() -> usize;
    ggml_new_tensor_4d: unsafe extern "C-unwind" fn(*mut c_void, i32, i64, i64, i64, i64) -> *mut RawTensor;
    ggml_set_name: unsafe extern "C-unwind" fn(*mut RawTensor, *const c_char) -> *mut RawTensor;
    ggml_get_name: unsafe extern "C-unwind" fn(*const RawTensor) -> *const c_char;
    ggml_mul_mat: unsafe extern "C-unwind" fn(*mut c_void, *mut RawTensor, *mut RawTensor) -> *mut RawTensor;
    ggml_mul_mat_id:
        unsafe extern "C-unwind" fn(*mut c_void, *mut RawTensor, *mut RawTensor, *mut RawTensor) -> *mut RawTensor;
    ggml_view_1d: unsafe extern "C-unwind" fn(*mut c_void, *mut RawTensor, i64, usize) -> *mut RawTensor;
    ggml_reshape_1d: unsafe extern "C-unwind" fn(*mut c_void, *mut RawTensor, i64) -> *mut RawTensor;
    ggml_permute: unsafe extern "C-unwind" fn(*mut c_void, *mut RawTensor, i32, i32, i32, i32) -> *mut RawTensor;
    ggml_transpose: unsafe extern "C-unwind" fn(*mut c_void, *mut RawTensor) -> *mut RawTensor;
    ggml_scale: unsafe extern "C-unwind" fn(*mut c_void, *mut RawTensor, f32) -> *mut RawTensor;
    ggml_new_graph_custom: unsafe extern "C-unwind" fn(*mut c_void, usize, bool) -> *mut c_void;
    ggml_build_forward_expand: unsafe extern "C-unwind" fn(*mut c_void, *mut RawTensor);
    ggml_graph_n_nodes: unsafe extern "C-unwind" fn(*mut c_void) -> i32;
    ggml_nbytes: unsafe extern "C-unwind" fn(*const RawTensor) -> usize;
    ggml_type_name: unsafe extern "C-unwind" fn(i32) -> *const c_char;
    ggml_type_size: unsafe extern "C-unwind" fn(i32) -> usize;
    ggml_blck_size: unsafe extern "C-unwind" fn(i32) -> i64;
    ggml_op_name: unsafe extern "C-unwind" fn(i32) -> *const c_char;
    ggml_abort: unsafe extern "C" fn(*const c_char, i32, *const c_char, ...);
    ggml_backend_buffer_init:
        unsafe extern "C-unwind" fn(*mut RawBufferType, BufferInterface, *mut c_void, usize) -> *mut RawBuffer;
    ggml_backend_buffer_free: unsafe extern "C-unwind" fn(*mut RawBuffer);
    ggml_backend_buffer_get_base: unsafe extern "C-unwind" fn(*mut RawBuffer) -> *mut c_void;
    ggml_backend_buffer_clear: unsafe extern "C-unwind" fn(*mut RawBuffer, u8);
    ggml_backend_tensor_alloc: unsafe extern "C-unwind" fn(*mut RawBuffer, *mut RawTensor, *mut c_void) -> i32;
    ggml_backend_tensor_set: unsafe extern "C-unwind" fn(*mut RawTensor, *const c_void, usize, usize);
    ggml_backend_tensor_get: unsafe extern "C-unwind" fn(*const RawTensor, *mut c_void, usize, usize);
    ggml_backend_buft_name: unsafe extern "C-unwind" fn(*mut RawBufferType) -> *const c_char;
    ggml_backend_buft_alloc_buffer: unsafe extern "C-unwind" fn(*mut RawBufferType, usize) -> *mut RawBuffer;
    ggml_backend_buft_get_alignment: unsafe extern "C-unwind" fn(*mut RawBufferType) -> usize;
    ggml_backend_buft_get_alloc_size: unsafe extern "C-unwind" fn(*mut RawBufferType, *const RawTensor) -> usize;
    ggml_backend_buft_is_host: unsafe extern "C-unwind" fn(*mut RawBufferType) -> bool;
    ? ggml_backend_buft_get_max_size: unsafe extern "C-unwind" fn(*mut RawBufferType) -> usize;
    ? ggml_backend_buft_get_device: unsafe extern "C-unwind" fn(*mut RawBufferType) -> *mut c_void;
    ? ggml_backend_buffer_name: unsafe extern "C-unwind" fn(*mut RawBuffer) -> *const c_char;
    ? ggml_backend_buffer_reset: unsafe extern "C-unwind" fn(*mut RawBuffer);
    ? ggml_backend_buffer_set_usage: unsafe extern "C-unwind" fn(*mut RawBuffer, i32);
    ? ggml_backend_buffer_copy_tensor: unsafe extern "C-unwind" fn(*const RawTensor, *mut RawTensor) -> bool;
    ? ggml_backend_tensor_memset: unsafe extern "C-unwind" fn(*mut RawTensor, u8, usize, usize);
    ? ggml_backend_tensor_set_2d:
        unsafe extern "C-unwind" fn(*mut RawTensor, *const c_void, usize, usize, usize, usize, usize);
    ? ggml_backend_tensor_get_2d:
        unsafe extern "C-unwind" fn(*const RawTensor, *mut c_void, usize, usize, usize, usize, usize);
}

/// The address of a host's function: where the scope finds it, and in the global scope first what the linker found
/// (`linked`, or 0). If neither has it, a part of the host may that was loaded apart from the rest, as backends can be.
pub(super) fn find(scope: Scope, linked: usize, name: &CStr) -> Option<*const c_void> {
    if scope == Scope::GLOBAL && linked != 0 {
        return Some(linked as *const c_void);
    }
    scope.find(name).or_else(|| find_in_parts(scope, name))
}

/// The function in an object that finds the same `ggml_init` as the scope does.
fn find_in_parts(scope: Scope, name: &CStr) -> Option<*const c_void> {
    let core = scope.find(c"ggml_init")?;
    files().iter().find_map(|file| {
        let object = OpenObject::loaded(file)?;
        let address = object.find(name)?;
        (object.find(c"ggml_init") == Some(core)).then(|| {
            object.keep();
            address
        })
    })
}

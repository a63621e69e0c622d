//! Finding ggml's functions. Three ways, because hosts come in many shapes:
//!
//! - `dlsym` where the object that called us finds them, if that is another one than ours: there may be two hosts, and a
//!   host may be in a scope of its own;
//! - a table of *weak* references that the linker fills: static executables (whose functions no
//!   run-time lookup can see) and shared hosts that were there when we were loaded;
//! - `dlsym` anywhere, for hosts loaded later than us.
//!
//! Weak, so that a process without ggml (a C test, a child process of a preloaded host) starts.

use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{c_char, c_int, c_void};

use super::Flavour;
use super::abi::GgmlInitParams;
use super::objects::{Interface, RawBuffer, RawBufferType};
use super::tensor::RawTensor;
use crate::cpu::memory::HostAllocator;
use crate::format::{Dequantise, WeightType};

/// Declares the functions of a host once: struct field, entry in a weak table of this name, lookup. Those behind a question
/// mark may be missing.
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
            /// All functions of a host of this flavour, or the name of one that is missing.
            pub fn find(flavour: $crate::host::Flavour) -> Result<Self, String> {
                let scope = $crate::host::symbols::scope(flavour);
                let names = [$(concat!(stringify!($name), "\0"),)* $(concat!(stringify!($maybe), "\0"),)*];
                let mut index = 0;
                let mut next = || {
                    let name = std::ffi::CStr::from_bytes_with_nul(names[index].as_bytes()).expect("ends with NUL");
                    // SAFETY: the table has a word per name. Volatile, because the compiler must not assume
                    // that the address of a function is never null.
                    let linked = unsafe { (&raw const $table).cast::<usize>().add(index).read_volatile() };
                    index += 1;
                    let missing = || format!("no usable ggml in this process: {} is missing", name.to_string_lossy());
                    $crate::host::symbols::find(scope, linked, name).ok_or_else(missing)
                };
                Ok(Self {
                    // SAFETY: the address is that of ggml's function of this name, which has this type
                    // in every version; here and below.
                    $($name: unsafe { std::mem::transmute::<*const libc::c_void, $ty>(next()?) },)*
                    // SAFETY: as above.
                    $($maybe: next().ok().map(|f| unsafe { std::mem::transmute::<*const libc::c_void, $maybe_ty>(f) }),)*
                })
            }
        }
    };
}
pub(super) use host_symbols;

/// A table of weak references, filled by the linker; zero where the process has no such function.
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

        unsafe extern "C" {
            static $table: [usize; 1];
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
        unsafe extern "C-unwind" fn(*mut RawBufferType, Interface, *mut c_void, usize) -> *mut RawBuffer;
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

/// Handles whose scopes have the hosts, one for each flavour; null where it is not known.
static SCOPES: [AtomicPtr<c_void>; 2] = [const { AtomicPtr::new(std::ptr::null_mut()) }; 2];

/// Says in which scope the host of this flavour is that is served.
pub(crate) fn set_scope(flavour: Flavour, handle: *mut c_void) {
    SCOPES[flavour as usize].store(handle, Ordering::Release);
}

/// See [`set_scope`].
pub(crate) fn scope(flavour: Flavour) -> *mut c_void {
    SCOPES[flavour as usize].load(Ordering::Acquire)
}

/// A function where a scope has it; without a scope what the linker found, or what the process has by now. Else where a
/// part of that host has it that was loaded apart from the rest, as its backends may be.
pub(super) fn find(scope: *mut c_void, linked: usize, name: &CStr) -> Option<*const c_void> {
    // SAFETY: a C string, and a handle that is never closed.
    let found = |scope| unsafe { libc::dlsym(scope, name.as_ptr()).cast_const() };
    let address = match (scope.is_null(), linked) {
        (false, _) => found(scope),
        (true, 0) => found(libc::RTLD_DEFAULT),
        (true, linked) => linked as *const c_void,
    };
    if !address.is_null() {
        return Some(address);
    }
    apart(scope, name)
}

/// The function in an object that finds the same `ggml_init` as the scope (null: the global one) does.
fn apart(scope: *mut c_void, name: &CStr) -> Option<*const c_void> {
    // SAFETY: a C string, and a handle that is open.
    let of = |handle, name: &CStr| unsafe { libc::dlsym(handle, name.as_ptr()).cast_const() };
    let core = of(if scope.is_null() { libc::RTLD_DEFAULT } else { scope }, c"ggml_init");
    if core.is_null() {
        return None;
    }
    let of_host = |file: &CString| {
        let handle = handle_of(file);
        let address = if handle.is_null() { std::ptr::null() } else { of(handle, name) };
        let found = !address.is_null() && of(handle, c"ggml_init") == core;
        if !found && !handle.is_null() {
            // SAFETY: opened above, used no more.
            unsafe { libc::dlclose(handle) };
        }
        found.then_some(address)
    };
    files().iter().find_map(of_host)
}

/// A handle of an object that is loaded, or null. Until it is closed the object stays.
pub(crate) fn handle_of(file: &CStr) -> *mut c_void {
    if file.is_empty() {
        return std::ptr::null_mut();
    }
    // SAFETY: a C string; nothing is loaded by this.
    unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY) }
}

/// The files of all objects that are loaded.
pub(crate) fn files() -> Vec<CString> {
    unsafe extern "C" fn add(info: *mut libc::dl_phdr_info, _: usize, files: *mut c_void) -> c_int {
        // SAFETY: what the loader and the caller below pass.
        unsafe {
            if !(*info).dlpi_name.is_null() {
                (*files.cast::<Vec<CString>>()).push(CStr::from_ptr((*info).dlpi_name).to_owned());
            }
        }
        0
    }
    let mut files: Vec<CString> = Vec::new();
    // SAFETY: the list outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(add), (&raw mut files).cast()) };
    files
}

/// Declares functions that a host may lack.
macro_rules! optional_symbols {
    ($($name:literal,)*) => {
        weak_table!(ggml_amx_optional_symbols; $($name,)*);

        const OPTIONAL: &[&str] = &[$($name),*];
    };
}

optional_symbols! {
    "dequantize_row_iq2_xxs",
    "dequantize_row_iq2_xs",
    "dequantize_row_iq2_s",
    "dequantize_row_iq3_xxs",
    "dequantize_row_iq3_s",
    "dequantize_row_iq1_s",
    "dequantize_row_iq1_m",
}

weak_table!(
    ggml_amx_hbm_symbols;
    "hbw_posix_memalign",
    "hbw_free",
    "_Z32ggml_backend_cpu_hbm_buffer_typev",
    "ggml_backend_cpu_hbm_buffer_type",
);

/// What a host that was built for it (`GGML_CPU_HBM`) takes high-bandwidth memory by.
pub(super) fn hbm(flavour: Flavour) -> Option<HostAllocator> {
    let scope = scope(flavour);
    let function = |index: usize, name| {
        // SAFETY: the table has a word per name; volatile as above.
        let linked = unsafe { (&raw const ggml_amx_hbm_symbols).cast::<usize>().add(index).read_volatile() };
        find(scope, linked, name)
    };
    // Only then; any library of the process may use libmemkind.
    let of_host = function(2, c"_Z32ggml_backend_cpu_hbm_buffer_typev");
    of_host.or_else(|| function(3, c"ggml_backend_cpu_hbm_buffer_type"))?;
    let (allocate, free) = (function(0, c"hbw_posix_memalign")?, function(1, c"hbw_free")?);
    type Allocate = unsafe extern "C" fn(*mut *mut c_void, usize, usize) -> c_int;
    type Free = unsafe extern "C" fn(*mut c_void);
    // SAFETY: libmemkind's functions of these names have these types.
    unsafe {
        let allocate = std::mem::transmute::<*const c_void, Allocate>(allocate);
        Some(HostAllocator { allocate, free: std::mem::transmute::<*const c_void, Free>(free) })
    }
}

/// The last number that every ggml since 2024 has in its table of types.
pub(super) const LAST_OLD_TYPE: i32 = 30;

/// Declares types that came later, by number and decoder.
macro_rules! later_types {
    ($($number:literal $decoder:literal,)*) => {
        weak_table!(ggml_amx_later_types; $(concat!("dequantize_row_", $decoder),)*);

        const LATER: &[(i32, &str)] = &[$(($number, concat!("dequantize_row_", $decoder, "\0"))),*];
    };
}

later_types! {
    34 "tq1_0",
    35 "tq2_0",
    39 "mxfp4",
    40 "nvfp4",
    41 "q1_0",
    42 "q2_0",
    // ik_llama.cpp's; its numbers in between are in its table too.
    133 "q6_0",
    141 "iq6_k",
    152 "iq5_ks",
    158 "iq1_kt",
    340 "iq5_k_r4",
    352 "iq5_ks_r4",
    399 "q8_k_r8",
}

/// The highest number that is known to be in a host's table of types, whose end no function tells. ggml looks up
/// names and sizes of other numbers too, or ends the process, depending on version and build. A new type is
/// appended, and its decoder exported; so the table reaches to the last type whose decoder is there.
pub(super) fn last_type(flavour: Flavour) -> i32 {
    let scope = scope(flavour);
    let is_there = |(index, (_, decoder)): &(usize, &(i32, &str))| {
        let name = CStr::from_bytes_with_nul(decoder.as_bytes()).expect("ends with NUL");
        // SAFETY: the table has a word per name; volatile as above.
        let linked = unsafe { (&raw const ggml_amx_later_types).cast::<usize>().add(*index).read_volatile() };
        // In a scope of its own: others may have more types.
        // SAFETY: a C string, and a handle that is never closed.
        let in_scope = || unsafe { !libc::dlsym(scope, name.as_ptr()).is_null() };
        if scope.is_null() { find(scope, linked, name).is_some() } else { in_scope() }
    };
    let found = LATER.iter().enumerate().filter(is_there).map(|(_, (number, _))| *number);
    if cfg!(mutant = "types-without-end") { i32::MAX } else { found.max().unwrap_or(LAST_OLD_TYPE) }
}

/// ggml's decoder `name`, if this process has it.
fn dequantise(name: &'static CStr) -> Option<Dequantise> {
    let index = OPTIONAL.iter().position(|n| n.as_bytes() == name.to_bytes())?;
    // SAFETY: the table has a word per name; volatile as above.
    let linked = unsafe { (&raw const ggml_amx_optional_symbols).cast::<usize>().add(index).read_volatile() };
    // All versions of either flavour have the same.
    let scopes = [Flavour::Llama, Flavour::Ik].map(scope);
    let found = scopes.into_iter().find_map(|scope| find(scope, linked, name));
    // SAFETY: the address is that of ggml's function of this name; all of them have this type.
    found.map(|address| unsafe { std::mem::transmute::<*const c_void, Dequantise>(address) })
}

/// Makes sure that products with `ty` can be computed: reads its codebook off ggml's decoder, if it has one
/// and that was not done yet. False if there is no decoder, or it is not the one this library knows.
pub fn make_readable(ty: WeightType) -> bool {
    let Some(codebook) = ty.info().codebook.filter(|c| !(c.is_there)()) else { return true };
    // SAFETY: the decoder is ggml's of that name.
    dequantise(codebook.decoder).is_some_and(|decode| unsafe { (codebook.read)(decode) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_decoder_of_a_codebook_is_looked_for() {
        let wanted = WeightType::ALL.iter().filter_map(|ty| ty.info().codebook).map(|c| c.decoder.to_str().unwrap());
        let (mut wanted, mut listed) = (wanted.collect::<Vec<_>>(), OPTIONAL.to_vec());
        wanted.sort_unstable();
        listed.sort_unstable();
        assert_eq!(wanted, listed);
    }

    #[test]
    fn every_type_that_is_packed_can_be_asked_for() {
        let last = WeightType::ALL.iter().map(|ty| *ty as i32).filter(|n| *n < 100).max().unwrap();
        assert!(LATER.iter().any(|(number, _)| *number == last));
        let ik = WeightType::ALL.iter().map(|ty| *ty as i32).max().unwrap();
        assert!(LATER.iter().any(|(number, _)| *number >= ik));
        assert!(LATER.is_sorted());
    }

    #[test]
    fn without_later_decoders_only_old_types_are_asked_for() {
        assert_eq!(last_type(Flavour::Llama), LAST_OLD_TYPE);
    }
}

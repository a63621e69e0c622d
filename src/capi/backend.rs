//! The drop-in surface for ggml hosts. ggml's own types are opaque here and in the header. Which host a call is for is
//! told by the address that it returns to: the functions are naked, and hand it to their body as a fourth argument.

use crate::diag::border::ffi_boundary;
use crate::process::Once;

use super::server::{Server, server};
use super::twin::Twin;
use crate::diag::log;
use crate::host::abi::GgmlComputeParams;
use crate::host::ik::{IkHost, surface};
use crate::host::{Flavour, Host, Tensor, buffer_type, driver, op};

/// ggml's `struct ggml_backend_buffer_type` (ggml-backend-impl.h).
pub struct GgmlBackendBufferType(());

/// ggml's `struct ggml_backend_device` (ggml-backend-impl.h).
pub struct GgmlBackendDevice(());

/// ggml's `struct ggml_tensor` (ggml.h).
pub struct OpaqueTensor(());

/// ggml's `struct ggml_compute_params` (ggml-cpu-impl.h).
pub struct OpaqueComputeParams(());

/// Who serves the host that a caller belongs to: this library, with the host and one of its nodes, or a twin.
enum Served {
    Llama(&'static Host, Tensor),
    Ik(&'static IkHost, Tensor),
    Twin(&'static Twin),
}

/// Who serves the host that `caller` belongs to; `None` for NULL, and when the library stepped aside.
///
/// # Safety
/// NODE: `op` must be NULL or a live node of that host.
unsafe fn served(caller: usize, op: *const OpaqueTensor) -> Option<Served> {
    // SAFETY: NODE.
    unsafe {
        match server(caller) {
            Server::Nobody => None,
            Server::Twin(twin) => Some(Served::Twin(twin)),
            Server::Here(Flavour::Ik) => surface::node(op.cast()).map(|(host, op)| Served::Ik(host, op)),
            Server::Here(Flavour::Llama) if buffer_type::get().is_null() => None,
            Server::Here(Flavour::Llama) => {
                let host = Host::get().ok()?;
                Some(Served::Llama(host, host.tensor(op.cast())?))
            }
        }
    }
}

/// The buffer type for the host that `caller` belongs to; NULL when the library stepped aside.
fn buffer_type_for(caller: usize) -> *mut GgmlBackendBufferType {
    match server(caller) {
        Server::Nobody => std::ptr::null_mut(),
        Server::Twin(twin) => (twin.surface.buffer_type)().cast(),
        Server::Here(Flavour::Ik) => surface::buffer_type().unwrap_or(std::ptr::null_mut()).cast(),
        Server::Here(Flavour::Llama) => {
            log::deliver();
            buffer_type::get().cast()
        }
    }
}

/// The buffer type `AMX`. This library multiplies the weights in its buffers, if it packs their type.
///
/// The first call decides whether there is such a buffer type, and logs one line that says so.
///
/// Returns: the same pointer at every call from one host. NULL when the library steps aside: there is no ggml in the
/// process whose layout it can find out, no AMX (unless `GGML_AMX_ISA` asks for less), or `GGML_AMX_MODE=off`. If there
/// are several ggml hosts in the process, the one that the calling object is linked with is meant. Each has a buffer
/// type of its own.
///
/// Ownership: the library's, for as long as the process lives. Its buffers are freed by ggml's own functions.
///
/// Threads: any, at any time.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub extern "C" fn ggml_backend_amx_buffer_type() -> *mut GgmlBackendBufferType {
    extern "C" fn inner(_: usize, _: usize, _: usize, caller: usize) -> *mut GgmlBackendBufferType {
        ffi_boundary!("ggml_backend_amx_buffer_type", else std::ptr::null_mut(), {
            buffer_type_for(caller)
        })
    }
    std::arch::naked_asm!("mov rcx, [rsp]", "jmp {inner}", inner = sym inner)
}

/// `ggml_backend_amx_buffer_type()` as ggml-cpu.cpp calls it: a C++ function of the global namespace. It is called by
/// the initialiser of the host's list of buffer types, and the host's log callback may want to read that list. So log
/// lines wait for the host's next call, if there will be one.
///
/// cbindgen:ignore
#[unsafe(export_name = "_Z28ggml_backend_amx_buffer_typev")]
pub extern "C" fn cxx_ggml_backend_amx_buffer_type() -> *mut GgmlBackendBufferType {
    ffi_boundary!("ggml_backend_amx_buffer_type of C++", else std::ptr::null_mut(), {
        let hold = log::hold();
        let buft = buffer_type::get();
        if !buft.is_null() {
            hold.leave_for_later();
        }
        buft.cast()
    })
}

/// An array that lives as long as the process.
struct Array([*mut GgmlBackendBufferType; 2]);

// SAFETY: immutable pointers to objects that are never freed.
unsafe impl Send for Array {}
// SAFETY: nobody writes these pointers or what they point to.
unsafe impl Sync for Array {}

/// The extra buffer types of this library.
///
/// Returns: a NULL-terminated array, never NULL itself. It holds `ggml_backend_amx_buffer_type()`, or nothing but the
/// NULL when that is NULL.
///
/// Ownership: the library's, for as long as the process lives. Do not free or change it.
///
/// Threads: any, at any time.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub extern "C" fn ggml_backend_amx_get_extra_bufts() -> *mut *mut GgmlBackendBufferType {
    extern "C" fn inner(_: usize, _: usize, _: usize, caller: usize) -> *mut *mut GgmlBackendBufferType {
        ffi_boundary!("ggml_backend_amx_get_extra_bufts", or the process ends, {
            static ARRAYS: [Once<Array>; 3] = [const { Once::new() }; 3];
            // Before the array's initialiser runs, because this may log.
            let buft = buffer_type_for(caller);
            let number = match server(caller) {
                Server::Twin(twin) => return (twin.surface.get_extra_bufts)().cast(),
                Server::Here(flavour) if !buft.is_null() => flavour as usize,
                _ => 2,
            };
            ARRAYS[number].get_or_init(|| Array([buft, std::ptr::null_mut()])).0.as_ptr().cast_mut()
        })
    }
    std::arch::naked_asm!("mov rcx, [rsp]", "jmp {inner}", inner = sym inner)
}

/// Whether the CPU device can run `op`, one of whose sources lies in an AMX buffer. An operation that is accepted while
/// a model loads is computed later.
///
/// Parameters:
/// - `dev`: ignored; may be NULL.
/// - `op`: a node of the calling host's graph. A loader asks with the weights in an empty AMX buffer.
///
/// Returns: true for
/// - MUL_MAT and MUL_MAT_ID with packed weights (src0), src1 F32 with any strides, any batches that ggml broadcasts,
///   any ids, and a result in F32,
/// - the same with BF16 or F16 weights and many rows of src1,
/// - operations whose sources in AMX buffers are all stored plain,
/// - in ik_llama.cpp, FUSED_UP_GATE and MOE_FUSED_UP_GATE; one of the two matrices may be packed and the other plain.
///
/// In ik_llama.cpp a loader gets true only for matrices that graphs only multiply with, and only if this host was seen
/// to call `ggml_backend_amx_compute_forward` for every product. False for all other operations, for NULL, and when the
/// library stepped aside.
///
/// Ownership: nothing is kept.
///
/// Threads: any. The answer depends on nothing but the node.
///
/// # Safety
/// `op` is NULL or a valid node of the calling host's graph.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn ggml_backend_amx_supports_op(dev: *mut GgmlBackendDevice, op: *const OpaqueTensor) -> bool {
    unsafe extern "C" fn inner(_: usize, op: *const OpaqueTensor, _: usize, caller: usize) -> bool {
        ffi_boundary!("ggml_backend_amx_supports_op", else false, {
            // SAFETY: NODE, by `# Safety`.
            match unsafe { served(caller, op) } {
                Some(Served::Llama(host, op)) => op::supports(host, op),
                Some(Served::Ik(host, op)) => surface::supports(host, op),
                // SAFETY: the twin's function demands the same.
                Some(Served::Twin(twin)) => unsafe { (twin.surface.supports_op)(std::ptr::null_mut(), op.cast()) },
                None => false,
            }
        })
    }
    std::arch::naked_asm!("mov rcx, [rsp]", "jmp {inner}", inner = sym inner)
}

/// The size of the work buffer that the product `op` needs.
///
/// Parameters:
/// - `n_threads`: threads that will compute it.
/// - `op`: a node of the calling host's graph.
/// - `size`: where the number of bytes is written.
///
/// Returns: true, with the number of bytes in `size`. False, with `size` untouched, if this library does not compute
/// the operation, for NULL arguments, and when the library stepped aside.
///
/// Ownership: nothing is kept.
///
/// Threads: any.
///
/// # Safety
/// `op` is NULL or a valid node. `size` is NULL or writable.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn ggml_backend_amx_work_size(n_threads: i32, op: *const OpaqueTensor, size: *mut usize) -> bool {
    unsafe extern "C" fn inner(n_threads: i32, op: *const OpaqueTensor, size: *mut usize, caller: usize) -> bool {
        ffi_boundary!("ggml_backend_amx_work_size", or the process ends, {
            if size.is_null() {
                return false;
            }
            // SAFETY: NODE, by `# Safety`.
            let bytes = match unsafe { served(caller, op) } {
                Some(Served::Llama(host, op)) => driver::work_size(host, n_threads, op),
                Some(Served::Ik(host, op)) => surface::work_size(host, n_threads, op),
                // SAFETY: the twin's function demands the same.
                Some(Served::Twin(twin)) => return unsafe { (twin.surface.work_size)(n_threads, op.cast(), size) },
                None => None,
            };
            // SAFETY: not NULL, so it can be written (`# Safety`).
            bytes.inspect(|bytes| unsafe { *size = *bytes }).is_some()
        })
    }
    std::arch::naked_asm!("mov rcx, [rsp]", "jmp {inner}", inner = sym inner)
}

/// Computes this thread's part of `op`, if this library computes it.
///
/// Parameters:
/// - `params`: as the host gives them to its own kernels: `ith`, `nth`, a `wdata` of at least as many bytes as
///   `ggml_backend_amx_work_size` gives for `nth` threads, and the thread pool to wait in. In ik_llama.cpp the last is
///   `shared`: any pointer that the threads of a run have in common, and no other threads have.
/// - `op`: a node of the calling host's graph.
///
/// Returns: true when this thread's part is done. False, with nothing written, if this library does not compute the
/// operation, for NULL arguments, and when the library stepped aside. A product on packed weights that cannot be
/// computed (the work buffer is too small, an operand has no data, an id is not that of an expert) ends the process
/// through `ggml_abort` with a message, because no other code could read the weights.
///
/// Ownership: everything stays the host's.
///
/// Threads: every thread of the operation calls it, each with its own `ith`, and waits in it for the others.
///
/// # Safety
/// Both pointers are NULL or the host's, as it passes them to its own kernels.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn ggml_backend_amx_compute_forward(
    params: *mut OpaqueComputeParams,
    op: *mut OpaqueTensor,
) -> bool {
    unsafe extern "C" fn inner(
        params: *mut OpaqueComputeParams,
        op: *mut OpaqueTensor,
        _: usize,
        caller: usize,
    ) -> bool {
        ffi_boundary!("ggml_backend_amx_compute_forward", or the process ends, {
            // SAFETY: NODE and live parameters, or NULL, by `# Safety`, which the twin's function has too.
            unsafe {
                match (params.cast::<GgmlComputeParams>().as_ref(), served(caller, op)) {
                    (Some(params), Some(Served::Llama(host, op))) => driver::compute_forward(host, params, op),
                    (Some(params), Some(Served::Ik(host, op))) => surface::compute_forward(host, params, op),
                    (Some(_), Some(Served::Twin(twin))) => (twin.surface.compute_forward)(params.cast(), op.cast()),
                    _ => false,
                }
            }
        })
    }
    std::arch::naked_asm!("mov rcx, [rsp]", "jmp {inner}", inner = sym inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_end_at_the_border() {
        use std::ptr::{null, null_mut};

        use crate::diag::border::trip::{ends, goes_on};

        // SAFETY: all of them panic before they look at anything.
        unsafe {
            goes_on("ggml_backend_amx_buffer_type", || ggml_backend_amx_buffer_type().is_null());
            goes_on("ggml_backend_amx_buffer_type of C++", || cxx_ggml_backend_amx_buffer_type().is_null());
            ends("ggml_backend_amx_get_extra_bufts", || ggml_backend_amx_get_extra_bufts());
            goes_on("ggml_backend_amx_supports_op", || !ggml_backend_amx_supports_op(null_mut(), null()));
            ends("ggml_backend_amx_work_size", || ggml_backend_amx_work_size(1, null(), null_mut()));
            ends("ggml_backend_amx_compute_forward", || ggml_backend_amx_compute_forward(null_mut(), null_mut()));
        }
    }
}

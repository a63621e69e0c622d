//! The drop-in surface for ggml hosts. Types of ggml's own are opaque here and in the header.

use crate::diag::log;
use crate::host::abi::GgmlComputeParams;
use crate::host::{Host, Tensor, buffer_type, cxx, op};

/// ggml's `struct ggml_backend_buffer_type` (ggml-backend-impl.h).
pub struct GgmlBackendBufferType(());

/// ggml's `struct ggml_backend_device` (ggml-backend-impl.h).
pub struct GgmlBackendDevice(());

/// ggml's `struct ggml_tensor` (ggml.h).
pub struct OpaqueTensor(());

/// ggml's `struct ggml_compute_params` (ggml-cpu-impl.h).
pub struct OpaqueComputeParams(());

/// The host and one of its nodes; `None` for NULL, and when the library stepped aside.
///
/// # Safety
/// `op` must be NULL or a live node.
unsafe fn served(op: *const OpaqueTensor) -> Option<(&'static Host, Tensor)> {
    if buffer_type::get().is_null() {
        return None;
    }
    let host = Host::get().ok()?;
    // SAFETY: promised by the caller.
    Some((host, unsafe { host.tensor(op.cast()) }?))
}

/// The buffer type `AMX`: weights of the packed types in it are multiplied by this library.
///
/// The same pointer at every call. NULL when the library steps aside: no ggml in the process whose
/// layout it knows, no AMX (unless `GGML_AMX_ISA` asks for less), or `GGML_AMX_MODE=off`. The first
/// call decides, and logs one line that says which.
#[unsafe(no_mangle)]
pub extern "C" fn ggml_backend_amx_buffer_type() -> *mut GgmlBackendBufferType {
    log::deliver();
    buffer_type::get().cast()
}

/// `ggml_backend_amx_buffer_type()` as ggml-cpu.cpp calls it: a C++ function of the global namespace. That is inside
/// the initialiser of its list of buffer types, which the reader of a log line may want to look at: lines wait for the
/// host's next call, if there will be one.
///
/// cbindgen:ignore
#[unsafe(export_name = "_Z28ggml_backend_amx_buffer_typev")]
pub extern "C" fn cxx_ggml_backend_amx_buffer_type() -> *mut GgmlBackendBufferType {
    let hold = log::hold();
    let buft = buffer_type::get();
    if !buft.is_null() {
        hold.leave_for_later();
    }
    buft.cast()
}

/// An array that lives as long as the process.
struct Array([*mut GgmlBackendBufferType; 2]);

// SAFETY: immutable pointers to objects that are never freed.
unsafe impl Send for Array {}
// SAFETY: as above.
unsafe impl Sync for Array {}

/// The extra buffer types of this library: a NULL-terminated array, owned by the library. It holds
/// `ggml_backend_amx_buffer_type()`, or nothing but the NULL when that is NULL. Never NULL itself.
#[unsafe(no_mangle)]
pub extern "C" fn ggml_backend_amx_get_extra_bufts() -> *mut *mut GgmlBackendBufferType {
    static ARRAY: std::sync::OnceLock<Array> = std::sync::OnceLock::new();
    // Made before the array's initialiser runs: that logs.
    let buft = ggml_backend_amx_buffer_type();
    let array = ARRAY.get_or_init(|| Array([buft, std::ptr::null_mut()]));
    array.0.as_ptr().cast_mut()
}

/// Whether the CPU device can run `op`, one of whose sources lies in an AMX buffer.
///
/// True for MUL_MAT and MUL_MAT_ID with packed weights (src0), src1 F32 with any strides, any batches
/// that ggml broadcasts, any ids, result F32; for the same with many rows on BF16 and F16 weights; and for
/// operations whose sources in AMX buffers are all stored plain. Pure: what is accepted while a model loads is computed at run time.
/// False for NULL, and when the library stepped aside. `dev` is not looked at and may be NULL.
///
/// # Safety
/// `op` must be NULL or a valid node of the host's graph.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggml_backend_amx_supports_op(dev: *mut GgmlBackendDevice, op: *const OpaqueTensor) -> bool {
    let _ = dev;
    // SAFETY: passed on.
    unsafe { served(op) }.is_some_and(|(host, op)| op::supports(host, op))
}

/// Bytes of work buffer that MUL_MAT or MUL_MAT_ID `op` needs on `n_threads` threads, written to `size`.
///
/// False (and `size` untouched) if the operation is not computed here, for NULL arguments,
/// and when the library stepped aside.
///
/// # Safety
/// `op` must be NULL or a valid node; `size` NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggml_backend_amx_work_size(n_threads: i32, op: *const OpaqueTensor, size: *mut usize) -> bool {
    if size.is_null() {
        return false;
    }
    // SAFETY: passed on.
    let bytes = unsafe { served(op) }.and_then(|(host, op)| cxx::work_size(host, n_threads, op));
    // SAFETY: not null, so writable.
    bytes.inspect(|bytes| unsafe { *size = *bytes }).is_some()
}

/// Computes this thread's part of `op` if it is a product that is computed here; every thread of the
/// operation must call it with its own `ith`. `params` needs a `wdata` of at least
/// `ggml_backend_amx_work_size` bytes for `nth` threads, and the thread pool to wait in.
///
/// False, with nothing written, if the operation is not ours, for NULL arguments, and when the library
/// stepped aside. A product on packed weights that cannot be computed (a work buffer too small, an
/// operand without data, an id that is no expert) ends the process through `ggml_abort` with a message: no other code could
/// read the weights.
///
/// # Safety
/// Both pointers must be NULL or the host's, as it passes them to its own kernels.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggml_backend_amx_compute_forward(
    params: *mut OpaqueComputeParams,
    op: *mut OpaqueTensor,
) -> bool {
    // SAFETY: structs of the host's; NULL is None.
    unsafe {
        match (params.cast::<GgmlComputeParams>().as_ref(), served(op)) {
            (Some(params), Some((host, op))) => cxx::compute_forward(host, params, op),
            _ => false,
        }
    }
}

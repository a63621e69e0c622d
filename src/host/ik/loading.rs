//! Packing a model's tensors while they are loaded (`GGML_AMX_MODE=packed`): in front of the host's functions that give
//! tensors their memory. A tensor that is packed gets its memory in a companion buffer of ours instead. For a tensor of
//! a mapped file, its bytes are there already and are packed at once; other tensors are packed as the loader writes
//! them.

use std::sync::atomic::{AtomicBool, Ordering};

use libc::c_void;

use super::buffer_type::{IkBuffers, buffer_type, mark_as_weights, packable};
use super::companions;
use super::host::IkHost;
use crate::diag::env::{Mode, env};
use crate::host::abi::USAGE_WEIGHTS;
use crate::host::callbacks::{ALIGNMENT, Callbacks, FlavourBuffers, region};
use crate::host::{Buffer, RawBuffer, RawBufferType, RawTensor, budget};
use crate::info;

/// The host, if weights are packed as they are loaded.
fn packing_host() -> Option<&'static IkHost> {
    if env().mode == Mode::Packed { IkHost::get() } else { None }
}

/// In front of `ggml_backend_tensor_alloc`, which puts a tensor of a mapped file at its address.
///
/// # Safety
/// As for the host's function, which `real` is.
pub unsafe fn tensor_alloc(
    buffer: *mut RawBuffer,
    tensor: *mut RawTensor,
    address: *mut c_void,
    real: impl Fn(*mut RawBuffer, *mut RawTensor, *mut c_void) -> i32,
) -> i32 {
    // SAFETY: the arguments are those of the host's function.
    unsafe {
        let packed = packing_host().is_some_and(|host| pack_mapped(host, buffer, tensor, address, &real));
        if packed { 0 } else { real(buffer, tensor, address) }
    }
}

/// In front of `ggml_backend_alloc_ctx_tensors_from_buft`, which allocates all tensors of a context.
///
/// # Safety
/// As for the host's function, which `real` is; `alloc` must be its `ggml_backend_tensor_alloc`.
pub unsafe fn alloc_ctx_tensors(
    context: *mut c_void,
    buft: *mut RawBufferType,
    alloc: impl Fn(*mut RawBuffer, *mut RawTensor, *mut c_void) -> i32,
    real: impl Fn() -> *mut RawBuffer,
) -> *mut RawBuffer {
    // SAFETY: the host's function without arguments.
    let host = packing_host().filter(|host| buft == unsafe { (host.ik.ggml_backend_cpu_buffer_type)() });
    let Some(host) = host else { return real() };
    // SAFETY: `context` is a live context of the host, and the tensors are those in it.
    unsafe {
        let first = (host.ik.ggml_get_first_tensor)(context);
        let next = |t: &*mut RawTensor| Some((host.ik.ggml_get_next_tensor)(context, *t)).filter(|t| !t.is_null());
        let tensors: Vec<_> = std::iter::successors(Some(first).filter(|t| !t.is_null()), next).collect();
        pack_unmapped(host, &tensors, alloc, real)
    }
}

/// Bytes that a packed tensor takes of a buffer.
fn aligned(plain_size: usize) -> usize {
    plain_size.next_multiple_of(ALIGNMENT)
}

/// Packs a tensor whose bytes lie at `address`, in a file that `buffer` maps, into the companion of `buffer`. False if
/// that tensor is none to pack, or if there is no memory.
///
/// # Safety
/// As for the host's `ggml_backend_tensor_alloc`, which `real` is.
unsafe fn pack_mapped(
    host: &'static IkHost,
    buffer: *mut RawBuffer,
    tensor: *mut RawTensor,
    address: *mut c_void,
    real: impl Fn(*mut RawBuffer, *mut RawTensor, *mut c_void) -> i32,
) -> bool {
    // SAFETY: LIVE BUFFER and LIVE TENSOR: arguments of the host's function.
    let (b, t) = unsafe { (host.buffer(buffer), host.live(tensor)) };
    // SAFETY: the host's function without arguments.
    let of_cpu = |b: &Buffer| b.buft() == unsafe { (host.ik.ggml_backend_cpu_buffer_type)() };
    let wanted = b.is_some_and(|b| of_cpu(&b) && b.usage() == Some(USAGE_WEIGHTS)) && t.data().is_null();
    let Some(shape) = packable(host, t).filter(|_| wanted) else { return false };
    let bytes = aligned(shape.plain_size());
    if !budget::has_room(bytes) {
        static SAID: AtomicBool = AtomicBool::new(false);
        if !SAID.swap(true, Ordering::Relaxed) {
            info!("from {} on some weights stay where the host has them: {}", t.name(), budget::shown());
        }
        return false;
    }
    // SAFETY: `buffer` is a live buffer of the host. The bytes reserved are the tensor's alone, and `address` has its
    // data.
    unsafe {
        let Some((ours, at)) = companions::reserve(buffer, bytes) else { return false };
        real(ours, tensor, region::<IkBuffers>(ours).base().as_ptr().add(at).cast());
        Callbacks::<IkBuffers>::set_tensor(ours, tensor, address, 0, shape.plain_size());
        page_out(address, shape.plain_size());
    }
    true
}

/// Tells Linux that mapped pages are not needed any more. Their contents stay: in the file, or in swap.
///
/// # Safety
/// The range must be mapped.
unsafe fn page_out(address: *mut c_void, bytes: usize) {
    const PAGE: usize = 4096;
    let start = (address as usize).next_multiple_of(PAGE);
    let end = (address as usize + bytes) / PAGE * PAGE;
    if end > start {
        // SAFETY: whole pages of the mapped range. A hint: it changes no contents, so its result does not matter.
        unsafe { libc::madvise(start as *mut c_void, end - start, libc::MADV_PAGEOUT) };
    }
}

/// Allocates the tensors of a model that is not mapped: those that are packed in a buffer of ours, the others by
/// `real`, the host's function for all of them. Returns what the host's function would: the host's buffer, with ours as
/// its companion; or ours, if nothing is left to the host.
///
/// # Safety
/// `tensors` must be alive, and all that `real` allocates; `alloc` must be the host's `ggml_backend_tensor_alloc`.
unsafe fn pack_unmapped(
    host: &'static IkHost,
    tensors: &[*mut RawTensor],
    alloc: impl Fn(*mut RawBuffer, *mut RawTensor, *mut c_void) -> i32,
    real: impl Fn() -> *mut RawBuffer,
) -> *mut RawBuffer {
    // SAFETY: LIVE TENSOR: one of `tensors`.
    let tensor = |t: &*mut RawTensor| unsafe { host.live(*t) };
    let is_unallocated = |t: &*mut RawTensor| tensor(t).data().is_null() && tensor(t).view_src().is_none();
    let shape = |t: &*mut RawTensor| is_unallocated(t).then(|| packable(host, tensor(t))).flatten();
    let to_pack: Vec<(*mut RawTensor, usize)> =
        tensors.iter().filter_map(|t| Some((*t, aligned(shape(t)?.plain_size())))).collect();
    if to_pack.is_empty() {
        return real();
    }
    let size = to_pack.iter().map(|(_, bytes)| bytes).sum();
    let ours = IkBuffers::alloc(buffer_type(), size);
    if ours.is_null() {
        return real();
    }
    // SAFETY: `ours` has bytes for each of `to_pack`; nobody else has it before it is returned or tied.
    unsafe {
        mark_as_weights(ours);
        let mut at = 0;
        for (tensor, bytes) in &to_pack {
            alloc(ours, *tensor, region::<IkBuffers>(ours).base().as_ptr().add(at).cast());
            at += bytes;
        }
        let of_host = real();
        if !of_host.is_null() {
            companions::tie(of_host, ours, size);
            return of_host;
        }
        if !tensors.iter().any(|t| is_unallocated(t) && host.nbytes(*t) > 0) {
            return ours;
        }
        // The host has no memory for the rest. Without ours there may be enough for everything.
        for (t, _) in &to_pack {
            tensor(t).set_buffer(std::ptr::null_mut());
            tensor(t).set_data(std::ptr::null_mut());
        }
        (host.symbols.ggml_backend_buffer_free)(ours);
        real()
    }
}

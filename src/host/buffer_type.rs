//! The buffer type `AMX` and its buffers, as ggml's interfaces want them.

use std::ffi::c_char;
use std::ops::Range;
use std::sync::OnceLock;

use libc::c_void;

use super::abi::{STATUS_ALLOC_FAILED, STATUS_SUCCESS};
use super::objects::{BufferTypeFunctions, Interface, RawBuffer, RawBufferType};
use super::tensor::{RawTensor, Tensor};
use super::{Host, cxx, op, proof};
use crate::buffer::Place;
use crate::cpu::memory::Region;
use crate::diag::env::{Mode, env};
use crate::diag::log;
use crate::matmul::measured;
use crate::{cpu, error, info};

/// Alignment of tensors: a cache line.
const ALIGNMENT: usize = 64;

/// The one buffer type of the process, if it may serve.
struct Registered(*mut RawBufferType);

// SAFETY: the object is never changed after it was made, and never freed.
unsafe impl Send for Registered {}
// SAFETY: as above.
unsafe impl Sync for Registered {}

static BUFFER_TYPE: OnceLock<Option<Registered>> = OnceLock::new();

/// The buffer type, made at the first call; NULL (and one log line that says why) when the library
/// steps aside.
pub fn get() -> *mut RawBufferType {
    let made = BUFFER_TYPE.get().unwrap_or_else(|| {
        let _until_it_is_there = log::hold();
        BUFFER_TYPE.get_or_init(|| match make() {
            Ok(buft) => Some(Registered(buft)),
            Err(reason) => {
                info!("not used: {reason}");
                None
            }
        })
    });
    made.as_ref().map_or(std::ptr::null_mut(), |b| b.0)
}

/// Whether `buft` is ours. Never makes it: nothing is ours before it exists.
pub fn is_ours(buft: *mut RawBufferType) -> bool {
    BUFFER_TYPE.get().and_then(Option::as_ref).is_some_and(|b| b.0 == buft)
}

fn make() -> Result<*mut RawBufferType, String> {
    // The host first: its log then carries whatever follows.
    let host = Host::get()?;
    if env().mode == Mode::Off {
        return Err("GGML_AMX_MODE=off".to_string());
    }
    if let Some(reason) = cpu::refusal() {
        return Err(reason);
    }
    info!("version {}, kernels: {}", env!("CARGO_PKG_VERSION"), cpu::isa().name());
    let functions = BufferTypeFunctions {
        get_name: get_name as *const c_void,
        alloc_buffer: alloc_buffer as _,
        get_alignment: get_alignment as _,
        get_alloc_size: get_alloc_size as _,
        is_host: is_host as _,
    };
    Ok(functions.make(&host.layout.buffer_type, host.device, cxx::extra_buffer_type()))
}

/// The host behind a callback: callbacks exist only after it was found.
pub(super) fn host() -> &'static Host {
    log::deliver();
    Host::get().unwrap_or_else(|reason| panic!("a buffer without a host: {reason}"))
}

unsafe extern "C" fn get_name(_: *mut RawBufferType) -> *const c_char {
    log::deliver();
    c"AMX".as_ptr()
}

unsafe extern "C" fn get_alignment(_: *mut RawBufferType) -> usize {
    ALIGNMENT
}

/// Packed bytes are not what the host's code expects at `tensor->data`.
unsafe extern "C" fn is_host(_: *mut RawBufferType) -> bool {
    false
}

unsafe extern "C" fn get_alloc_size(_: *mut RawBufferType, tensor: *const RawTensor) -> usize {
    let host = host();
    // SAFETY: the host passes a live tensor.
    unsafe {
        let shape = host.tensor(tensor).and_then(|t| op::shape_if_packable(host, t));
        shape.map_or_else(|| host.nbytes(tensor), |shape| shape.packed_size())
    }
}

unsafe extern "C" fn alloc_buffer(buft: *mut RawBufferType, size: usize) -> *mut RawBuffer {
    // Nothing is packed before it is known how the host calls.
    if !proof::prove(host(), buft) {
        return std::ptr::null_mut();
    }
    match Region::new(size) {
        // SAFETY: the context is what the interface's functions expect.
        Ok(region) => unsafe {
            host().buffer_init(buft, interface(host()), Box::into_raw(Box::new(region)).cast(), size)
        },
        Err(reason) => {
            error!("cannot allocate a buffer of {size} bytes: {reason}");
            std::ptr::null_mut()
        }
    }
}

/// The functions of our buffers, where this version of the host has them.
fn interface(host: &Host) -> Interface {
    let (mut made, at) = (Interface::NONE, &host.layout.buffer);
    made.set(at.free_buffer, free_buffer as *const c_void);
    made.set(at.get_base, get_base as _);
    made.set(at.init_tensor, init_tensor as _);
    made.set(at.memset_tensor, memset_tensor as _);
    made.set(at.set_tensor, set_tensor as _);
    made.set(at.get_tensor, get_tensor as _);
    made.set(at.set_tensor_2d, set_tensor_2d as _);
    made.set(at.get_tensor_2d, get_tensor_2d as _);
    made.set(at.cpy_tensor, cpy_tensor as _);
    made.set(at.clear, clear as _);
    made
}

/// What `alloc_buffer` made.
///
/// # Safety
/// `buffer` must be one of ours.
unsafe fn context(buffer: *mut RawBuffer) -> *mut Region {
    // SAFETY: promised by the caller.
    unsafe { host().buffer(buffer) }.map_or(std::ptr::null_mut(), |b| b.context().cast())
}

/// # Safety
/// `buffer` must be one of ours.
unsafe fn region<'a>(buffer: *mut RawBuffer) -> &'a Region {
    // SAFETY: `alloc_buffer` put a region there, and it lives until `free_buffer`.
    unsafe { &*context(buffer) }
}

/// A tensor that the host gave.
///
/// # Safety
/// It must be a live tensor.
unsafe fn live(tensor: *const RawTensor) -> Tensor {
    // SAFETY: promised by the caller.
    unsafe { host().tensor(tensor) }.unwrap_or_else(|| host().abort("the host gives a tensor that is NULL"))
}

unsafe extern "C" fn free_buffer(buffer: *mut RawBuffer) {
    // SAFETY: made by `alloc_buffer`, freed once.
    let region = unsafe { Box::from_raw(context(buffer)) };
    measured::forget(&bytes_of(&region));
}

/// Addresses of a region's bytes.
fn bytes_of(region: &Region) -> Range<usize> {
    let base = region.base().as_ptr() as usize;
    base..base + region.len()
}

/// Forgets what was measured of a tensor whose bytes change, or of the one that it is a view of.
fn forget(tensor: Tensor) {
    let root = tensor.root();
    let base = root.data() as usize;
    // SAFETY: a live tensor of the host's.
    let size = unsafe { host().nbytes(root.address()) };
    measured::forget(&(base..base + size.max(1)));
}

unsafe extern "C" fn get_base(buffer: *mut RawBuffer) -> *mut c_void {
    // SAFETY: one of our buffers.
    unsafe { region(buffer).base().as_ptr().cast() }
}

/// Marks packed tensors and their views (`extra`), so that the host's other kernels keep off; refuses
/// a tensor that was given less room than its packed form needs.
unsafe extern "C" fn init_tensor(buffer: *mut RawBuffer, tensor: *mut RawTensor) -> i32 {
    // SAFETY: the host passes one of our buffers and a live tensor in it.
    let (region, t) = unsafe { (region(buffer), live(tensor)) };
    let root = t.root();
    let Some(shape) = op::shape_if_packable(host(), root) else { return STATUS_SUCCESS };
    let start = (root.data() as usize).wrapping_sub(region.base().as_ptr() as usize);
    if start.checked_add(shape.packed_size()).is_none_or(|end| end > region.len()) {
        error!(
            "tensor {}: its packed form needs {} bytes at offset {start} of a buffer of {}; allocate by get_alloc_size",
            t.name(),
            shape.packed_size(),
            region.len()
        );
        return STATUS_ALLOC_FAILED;
    }
    // SAFETY: the host has the tensor initialised.
    unsafe { t.set_extra(cxx::tensor_traits()) };
    STATUS_SUCCESS
}

/// Checks a range of a tensor against its size and finds its bytes. Ends the process, as ggml does,
/// if the range leaves the tensor or there is nothing to copy from or to.
///
/// # Safety
/// `tensor` must be a live tensor with data in one of our buffers.
unsafe fn place(what: &str, tensor: *const RawTensor, data: *const c_void, offset: usize, size: usize) -> Place {
    // SAFETY: promised by the caller.
    let (t, nbytes) = unsafe { (live(tensor), host().nbytes(tensor)) };
    if offset.checked_add(size).is_none_or(|end| end > nbytes) {
        host().abort(&format!("{what}: {size} bytes at offset {offset} leave tensor {} of {nbytes} bytes", t.name()));
    }
    if t.data().is_null() {
        host().abort(&format!("{what}: tensor {} has no data", t.name()));
    }
    if data.is_null() {
        host().abort(&format!("{what}: data for tensor {} is NULL", t.name()));
    }
    match op::packed_shape(host(), t) {
        Some(shape) => {
            let at = offset + if t.view_src().is_none() { 0 } else { t.view_offs() };
            if !shape.contains(at, size) {
                host().abort(&format!(
                    "{what}: the view {} leaves its tensor of {} bytes",
                    t.name(),
                    shape.plain_size()
                ));
            }
            Place::Packed(shape, t.root().data().cast(), at)
        }
        None => Place::Plain(t.data().cast::<u8>().wrapping_add(offset)),
    }
}

unsafe extern "C" fn memset_tensor(_: *mut RawBuffer, tensor: *mut RawTensor, value: u8, offset: usize, size: usize) {
    // SAFETY: the host passes a live tensor of ours; the range was checked.
    unsafe {
        place("memset_tensor", tensor, (&raw const value).cast(), offset, size).fill(size, value);
        forget(live(tensor));
    }
}

unsafe extern "C" fn set_tensor(
    _: *mut RawBuffer,
    tensor: *mut RawTensor,
    data: *const c_void,
    offset: usize,
    size: usize,
) {
    if size == 0 {
        return;
    }
    // SAFETY: as above; `data` holds `size` bytes.
    unsafe {
        place("set_tensor", tensor, data, offset, size).write(data.cast(), size);
        forget(live(tensor));
    }
}

unsafe extern "C" fn get_tensor(
    _: *mut RawBuffer,
    tensor: *const RawTensor,
    data: *mut c_void,
    offset: usize,
    size: usize,
) {
    if size == 0 {
        return;
    }
    // SAFETY: as above, with `data` written.
    unsafe { place("get_tensor", tensor, data, offset, size).read(data.cast(), size) }
}

unsafe extern "C" fn set_tensor_2d(
    buffer: *mut RawBuffer,
    tensor: *mut RawTensor,
    data: *const c_void,
    offset: usize,
    size: usize,
    copies: usize,
    stride_tensor: usize,
    stride_data: usize,
) {
    for i in 0..copies {
        // SAFETY: the host's ranges; each is checked against the tensor.
        unsafe { set_tensor(buffer, tensor, data.byte_add(i * stride_data), offset + i * stride_tensor, size) };
    }
}

unsafe extern "C" fn get_tensor_2d(
    buffer: *mut RawBuffer,
    tensor: *const RawTensor,
    data: *mut c_void,
    offset: usize,
    size: usize,
    copies: usize,
    stride_tensor: usize,
    stride_data: usize,
) {
    for i in 0..copies {
        // SAFETY: as in `set_tensor_2d`.
        unsafe { get_tensor(buffer, tensor, data.byte_add(i * stride_data), offset + i * stride_tensor, size) };
    }
}

/// Copies between two tensors of ours, and from host memory. Other sources are the host's business
/// (it reads them into memory of its own and calls `set_tensor`).
unsafe extern "C" fn cpy_tensor(_: *mut RawBuffer, src: *const RawTensor, dst: *mut RawTensor) -> bool {
    /// Bytes at a time through plain form.
    const STEP: usize = 1 << 20;
    // SAFETY: the host passes live tensors of equal layout, dst in one of our buffers.
    unsafe {
        let (source, size) = (live(src), host().nbytes(src));
        let from = source.holder();
        let Some(holder) = host().buffer(from).filter(|_| !source.data().is_null() && size == host().nbytes(dst))
        else {
            return false;
        };
        if !is_ours(holder.buft()) {
            let readable = host().is_host(holder.buft());
            if readable {
                set_tensor(from, dst, source.data(), 0, size);
            }
            return readable;
        }
        let mut plain = vec![0u8; size.min(STEP)];
        for at in (0..size).step_by(STEP) {
            let len = (size - at).min(STEP);
            get_tensor(from, src, plain.as_mut_ptr().cast(), at, len);
            set_tensor(from, dst, plain.as_ptr().cast(), at, len);
        }
        true
    }
}

unsafe extern "C" fn clear(buffer: *mut RawBuffer, value: u8) {
    // SAFETY: one of our buffers; equal bytes stay equal under any permutation.
    unsafe {
        let region = region(buffer);
        std::ptr::write_bytes(region.base().as_ptr(), value, region.len());
        measured::forget(&bytes_of(region));
    }
}

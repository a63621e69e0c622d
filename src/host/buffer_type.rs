//! The buffer type `AMX` and its buffers, as ggml's interfaces want them.

use std::ffi::c_char;
use std::ops::Range;
use std::sync::OnceLock;

use libc::c_void;

use super::abi::{
    GgmlBuffer, GgmlBufferInterface, GgmlBufferType, GgmlBufferTypeInterface, GgmlTensor, STATUS_ALLOC_FAILED,
    STATUS_SUCCESS,
};
use super::{Host, cxx, op};
use crate::buffer::Place;
use crate::cpu::memory::Region;
use crate::diag::env::{Mode, env};
use crate::diag::log;
use crate::matmul::measured;
use crate::{cpu, error, info};

/// Alignment of tensors: a cache line.
const ALIGNMENT: usize = 64;

/// The one buffer type of the process, if it may serve.
struct Registered(*mut GgmlBufferType);

// SAFETY: the object is never changed after it was made, and never freed.
unsafe impl Send for Registered {}
// SAFETY: as above.
unsafe impl Sync for Registered {}

static BUFFER_TYPE: OnceLock<Option<Registered>> = OnceLock::new();

/// The buffer type, made at the first call; NULL (and one log line that says why) when the library
/// steps aside.
pub fn get() -> *mut GgmlBufferType {
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
pub fn is_ours(buft: *mut GgmlBufferType) -> bool {
    BUFFER_TYPE.get().and_then(Option::as_ref).is_some_and(|b| b.0 == buft)
}

fn make() -> Result<*mut GgmlBufferType, String> {
    // The host first: its log then carries whatever follows.
    let host = Host::get()?;
    if env().mode == Mode::Off {
        return Err("GGML_AMX_MODE=off".to_string());
    }
    if let Some(reason) = cpu::refusal() {
        return Err(reason);
    }
    info!("version {}, kernels: {}", env!("CARGO_PKG_VERSION"), cpu::isa().name());
    // Lives as long as the process: hosts keep the pointer in static lists.
    Ok(Box::into_raw(Box::new(GgmlBufferType {
        interface: GgmlBufferTypeInterface {
            get_name,
            alloc_buffer,
            get_alignment,
            get_max_size: None,
            get_alloc_size: Some(get_alloc_size),
            is_host: Some(is_host),
        },
        device: host.device,
        context: cxx::extra_buffer_type(),
    })))
}

/// The host behind a callback: callbacks exist only after it was found.
pub(super) fn host() -> &'static Host {
    log::deliver();
    Host::get().unwrap_or_else(|reason| panic!("a buffer without a host: {reason}"))
}

unsafe extern "C" fn get_name(_: *mut GgmlBufferType) -> *const c_char {
    log::deliver();
    c"AMX".as_ptr()
}

unsafe extern "C" fn get_alignment(_: *mut GgmlBufferType) -> usize {
    ALIGNMENT
}

/// Packed bytes are not what the host's code expects at `tensor->data`.
unsafe extern "C" fn is_host(_: *mut GgmlBufferType) -> bool {
    false
}

unsafe extern "C" fn get_alloc_size(_: *mut GgmlBufferType, tensor: *const GgmlTensor) -> usize {
    // SAFETY: the host passes a live tensor.
    unsafe { op::shape_if_packable(&*tensor).map_or_else(|| host().nbytes(tensor), |shape| shape.packed_size()) }
}

unsafe extern "C" fn alloc_buffer(buft: *mut GgmlBufferType, size: usize) -> *mut GgmlBuffer {
    match Region::new(size) {
        // SAFETY: the context is what the interface's functions expect.
        Ok(region) => unsafe { host().buffer_init(buft, INTERFACE, Box::into_raw(Box::new(region)).cast(), size) },
        Err(reason) => {
            error!("cannot allocate a buffer of {size} bytes: {reason}");
            std::ptr::null_mut()
        }
    }
}

const INTERFACE: GgmlBufferInterface = GgmlBufferInterface {
    free_buffer,
    get_base,
    init_tensor,
    memset_tensor,
    set_tensor,
    get_tensor,
    set_tensor_2d,
    get_tensor_2d,
    cpy_tensor,
    clear,
    reset: None,
};

/// # Safety
/// `buffer` must be one of ours.
unsafe fn region<'a>(buffer: *mut GgmlBuffer) -> &'a Region {
    // SAFETY: `alloc_buffer` put a region there, and it lives until `free_buffer`.
    unsafe { &*(*buffer).context.cast::<Region>() }
}

unsafe extern "C" fn free_buffer(buffer: *mut GgmlBuffer) {
    // SAFETY: made by `alloc_buffer`, freed once.
    let region = unsafe { Box::from_raw((*buffer).context.cast::<Region>()) };
    measured::forget(&bytes_of(&region));
}

/// Addresses of a region's bytes.
fn bytes_of(region: &Region) -> Range<usize> {
    let base = region.base().as_ptr() as usize;
    base..base + region.len()
}

/// Forgets what was measured of a tensor whose bytes change, or of the one that it is a view of.
fn forget(tensor: &GgmlTensor) {
    let root = tensor.root();
    let base = root.data as usize;
    // SAFETY: a live tensor of the host's.
    let size = unsafe { host().nbytes(root) };
    measured::forget(&(base..base + size.max(1)));
}

unsafe extern "C" fn get_base(buffer: *mut GgmlBuffer) -> *mut c_void {
    // SAFETY: one of our buffers.
    unsafe { region(buffer).base().as_ptr().cast() }
}

/// Marks packed tensors and their views (`extra`), so that the host's other kernels keep off; refuses
/// a tensor that was given less room than its packed form needs.
unsafe extern "C" fn init_tensor(buffer: *mut GgmlBuffer, tensor: *mut GgmlTensor) -> i32 {
    // SAFETY: the host passes one of our buffers and a live tensor in it.
    let (region, t) = unsafe { (region(buffer), &mut *tensor) };
    let root = t.root();
    let Some(shape) = op::shape_if_packable(root) else { return STATUS_SUCCESS };
    let start = (root.data as usize).wrapping_sub(region.base().as_ptr() as usize);
    if start.checked_add(shape.packed_size()).is_none_or(|end| end > region.len()) {
        error!(
            "tensor {}: its packed form needs {} bytes at offset {start} of a buffer of {}; allocate by get_alloc_size",
            t.name(),
            shape.packed_size(),
            region.len()
        );
        return STATUS_ALLOC_FAILED;
    }
    t.extra = cxx::tensor_traits();
    STATUS_SUCCESS
}

/// Checks a range of a tensor against its size and finds its bytes. Ends the process, as ggml does,
/// if the range leaves the tensor or there is nothing to copy from or to.
///
/// # Safety
/// `tensor` must be a live tensor with data in one of our buffers.
unsafe fn place(what: &str, tensor: *const GgmlTensor, data: *const c_void, offset: usize, size: usize) -> Place {
    // SAFETY: promised by the caller.
    let (t, nbytes) = unsafe { (&*tensor, host().nbytes(tensor)) };
    if offset.checked_add(size).is_none_or(|end| end > nbytes) {
        host().abort(&format!("{what}: {size} bytes at offset {offset} leave tensor {} of {nbytes} bytes", t.name()));
    }
    if t.data.is_null() {
        host().abort(&format!("{what}: tensor {} has no data", t.name()));
    }
    if data.is_null() {
        host().abort(&format!("{what}: data for tensor {} is NULL", t.name()));
    }
    match op::packed_shape(t) {
        Some(shape) => {
            let at = offset + if t.view_src.is_null() { 0 } else { t.view_offs };
            if !shape.contains(at, size) {
                host().abort(&format!(
                    "{what}: the view {} leaves its tensor of {} bytes",
                    t.name(),
                    shape.plain_size()
                ));
            }
            Place::Packed(shape, t.root().data.cast(), at)
        }
        None => Place::Plain(t.data.cast::<u8>().wrapping_add(offset)),
    }
}

unsafe extern "C" fn memset_tensor(_: *mut GgmlBuffer, tensor: *mut GgmlTensor, value: u8, offset: usize, size: usize) {
    // SAFETY: the host passes a live tensor of ours; the range was checked.
    unsafe {
        place("memset_tensor", tensor, (&raw const value).cast(), offset, size).fill(size, value);
        forget(&*tensor);
    }
}

unsafe extern "C" fn set_tensor(
    _: *mut GgmlBuffer,
    tensor: *mut GgmlTensor,
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
        forget(&*tensor);
    }
}

unsafe extern "C" fn get_tensor(
    _: *mut GgmlBuffer,
    tensor: *const GgmlTensor,
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
    buffer: *mut GgmlBuffer,
    tensor: *mut GgmlTensor,
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
    buffer: *mut GgmlBuffer,
    tensor: *const GgmlTensor,
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
unsafe extern "C" fn cpy_tensor(_: *mut GgmlBuffer, src: *const GgmlTensor, dst: *mut GgmlTensor) -> bool {
    /// Bytes at a time through plain form.
    const STEP: usize = 1 << 20;
    // SAFETY: the host passes live tensors of equal layout, dst in one of our buffers.
    unsafe {
        let (from, size) = ((*src).holder(), host().nbytes(src));
        if from.is_null() || (*src).data.is_null() || size != host().nbytes(dst) {
            return false;
        }
        let buft = (*from).buft;
        if !is_ours(buft) {
            let readable = (*buft).interface.is_host.is_some_and(|f| f(buft));
            if readable {
                set_tensor(from, dst, (*src).data, 0, size);
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

unsafe extern "C" fn clear(buffer: *mut GgmlBuffer, value: u8) {
    // SAFETY: one of our buffers; equal bytes stay equal under any permutation.
    unsafe {
        let region = region(buffer);
        std::ptr::write_bytes(region.base().as_ptr(), value, region.len());
        measured::forget(&bytes_of(region));
    }
}

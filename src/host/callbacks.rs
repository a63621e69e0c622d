//! The callbacks of our buffer types and buffers. They are the same in both flavours, apart from what
//! [`FlavourBuffers`] says.
//!
//! CALLBACK, the invariant of all of them: the host passes a buffer or buffer type of ours, and live tensors that lie
//! in it.

use std::ffi::c_char;
use std::marker::PhantomData;
use std::ops::Range;

use libc::c_void;

use super::core::Core;
use super::objects::{BufferInterface, BufferTypeInterface, RawBuffer, RawBufferType};
use super::tensor::{RawTensor, Tensor};
use crate::buffer::Place;
use crate::buffer::held::{self, Held};
use crate::cpu::memory::Region;
use crate::diag::border::ffi_boundary;
use crate::diag::log;
use crate::matmul::known_errors;
use crate::panel::weights::Shape;

/// Alignment of tensors: a cache line.
pub const ALIGNMENT: usize = 64;

/// What differs between the flavours' buffers.
pub trait FlavourBuffers: 'static {
    /// The host that calls. It has our functions from us, so it was found before.
    fn core() -> &'static Core;

    /// The packed tensor that `tensor` is, or is a view of: its shape, its first byte, and the offset of `tensor` in
    /// its plain form. `None` if `tensor` is stored plain.
    fn packed(tensor: Tensor) -> Option<(Shape, *mut u8, usize)>;

    /// A buffer of this type whose context is a [`Held`]; null if there is no memory for it.
    fn alloc(buft: *mut RawBufferType, size: usize) -> *mut RawBuffer;

    /// Forgets what is known of a region, which is about to be freed.
    fn freed(region: &Region);
}

/// The callbacks of a flavour.
pub struct Callbacks<S>(PhantomData<S>);

/// The addresses of a region.
pub fn range_of(region: &Region) -> Range<usize> {
    let base = region.base().as_ptr() as usize;
    base..base + region.len()
}

/// What [`FlavourBuffers::alloc`] put into a buffer as its context.
///
/// # Safety
/// `buffer` must be one of ours.
unsafe fn context<S: FlavourBuffers>(buffer: *mut RawBuffer) -> *mut Held {
    // SAFETY: LIVE BUFFER: one of ours.
    unsafe { S::core().buffer(buffer) }.map_or(std::ptr::null_mut(), |b| b.context().cast())
}

/// The memory of a buffer.
///
/// # Safety
/// `buffer` must be one of ours.
pub unsafe fn region<'a, S: FlavourBuffers>(buffer: *mut RawBuffer) -> &'a Region {
    // SAFETY: `alloc` has put a `Held` there, which lives until `free_buffer`.
    unsafe { (*context::<S>(buffer)).region() }
}

/// Forgets what was measured of a tensor whose bytes have changed, or of the one that it is a view of.
fn forget<S: FlavourBuffers>(tensor: Tensor) {
    let root = tensor.root();
    let base = root.data() as usize;
    // SAFETY: LIVE TENSOR.
    let size = unsafe { S::core().nbytes(root.address()) };
    known_errors::forget(&(base..base + size.max(1)));
}

/// Where the bytes of a range of a tensor are. Ends the process, as ggml does, if the range leaves the tensor, or if
/// tensor or `data` are NULL. `what` is the callback's name.
///
/// # Safety
/// `t` must lie in one of our buffers.
unsafe fn place<S: FlavourBuffers>(what: &str, t: Tensor, data: *const c_void, offset: usize, size: usize) -> Place {
    // SAFETY: LIVE TENSOR.
    let (core, nbytes) = (S::core(), unsafe { S::core().nbytes(t.address()) });
    if offset.checked_add(size).is_none_or(|end| end > nbytes) {
        core.abort(&format!("{what}: {size} bytes at offset {offset} leave tensor {} of {nbytes} bytes", t.name()));
    }
    if t.data().is_null() {
        core.abort(&format!("{what}: tensor {} has no data", t.name()));
    }
    if data.is_null() {
        core.abort(&format!("{what}: data for tensor {} is NULL", t.name()));
    }
    match S::packed(t) {
        Some((shape, base, begin)) => {
            let at = begin + offset;
            if !shape.contains(at, size) {
                core.abort(&format!("{what}: the view {} leaves its tensor of {} bytes", t.name(), shape.plain_size()));
            }
            Place::Packed(shape, base, at)
        }
        None => Place::Plain(t.data().cast::<u8>().wrapping_add(offset)),
    }
}

impl<S: FlavourBuffers> Callbacks<S> {
    /// The callbacks of a buffer type. `get_alloc_size` is null where packed tensors are no larger than plain ones.
    pub fn of_type(get_alloc_size: *const c_void) -> BufferTypeInterface {
        BufferTypeInterface {
            get_name: Self::type_name as *const c_void,
            alloc_buffer: Self::alloc_buffer as _,
            get_alignment: Self::get_alignment as _,
            get_max_size: Self::get_max_size as _,
            get_alloc_size,
            is_host: Self::is_host as _,
        }
    }

    /// The callbacks of a buffer, as far as this version of the host knows them.
    pub fn of_buffer(init_tensor: *const c_void) -> BufferInterface {
        let (mut made, at) = (BufferInterface::NONE, &S::core().layout.buffer);
        made.set(at.get_name, Self::buffer_name as *const c_void);
        made.set(at.free_buffer, Self::free_buffer as _);
        made.set(at.get_base, Self::get_base as _);
        made.set(at.init_tensor, init_tensor);
        made.set(at.memset_tensor, Self::memset_tensor as _);
        made.set(at.set_tensor, Self::set_tensor as _);
        made.set(at.get_tensor, Self::get_tensor as _);
        made.set(at.set_tensor_2d, Self::set_tensor_2d as _);
        made.set(at.get_tensor_2d, Self::get_tensor_2d as _);
        made.set(at.clear, Self::clear as _);
        made.set(at.reset, Self::reset as _);
        made
    }

    unsafe extern "C" fn type_name(_: *mut RawBufferType) -> *const c_char {
        ffi_boundary!("get_name", else c"AMX".as_ptr(), {
            log::deliver();
            c"AMX".as_ptr()
        })
    }

    unsafe extern "C" fn buffer_name(_: *mut RawBuffer) -> *const c_char {
        c"AMX".as_ptr()
    }

    unsafe extern "C" fn alloc_buffer(buft: *mut RawBufferType, size: usize) -> *mut RawBuffer {
        ffi_boundary!("alloc_buffer", else std::ptr::null_mut(), {
            S::alloc(buft, size)
        })
    }

    unsafe extern "C" fn get_alignment(_: *mut RawBufferType) -> usize {
        ALIGNMENT
    }

    /// No limit, as if the function were NULL: not every host looks whether it is.
    unsafe extern "C" fn get_max_size(_: *mut RawBufferType) -> usize {
        usize::MAX
    }

    /// False: packed bytes are not what the host's code expects at `tensor->data`.
    unsafe extern "C" fn is_host(_: *mut RawBufferType) -> bool {
        false
    }

    unsafe extern "C" fn free_buffer(buffer: *mut RawBuffer) {
        ffi_boundary!("free_buffer", or the process ends, {
            // SAFETY: CALLBACK; `alloc` has made the box, and the host frees a buffer once.
            let held = unsafe { Box::from_raw(context::<S>(buffer)) };
            known_errors::forget(&range_of(held.region()));
            S::freed(held.region());
        })
    }

    unsafe extern "C" fn get_base(buffer: *mut RawBuffer) -> *mut c_void {
        ffi_boundary!("get_base", else std::ptr::null_mut(), {
            // SAFETY: CALLBACK.
            unsafe { region::<S>(buffer).base().as_ptr().cast() }
        })
    }

    unsafe extern "C" fn memset_tensor(
        _: *mut RawBuffer,
        tensor: *mut RawTensor,
        value: u8,
        offset: usize,
        size: usize,
    ) {
        ffi_boundary!("memset_tensor", or the process ends, {
            // SAFETY: CALLBACK; the range is checked.
            unsafe {
                let tensor = S::core().live(tensor);
                place::<S>("memset_tensor", tensor, (&raw const value).cast(), offset, size).fill(size, value);
                forget::<S>(tensor);
            }
        })
    }

    /// Writes a range of a tensor.
    ///
    /// # Safety
    /// CALLBACK; `data` must have `size` bytes.
    pub unsafe extern "C" fn set_tensor(
        _: *mut RawBuffer,
        tensor: *mut RawTensor,
        data: *const c_void,
        offset: usize,
        size: usize,
    ) {
        ffi_boundary!("set_tensor", or the process ends, {
            if size == 0 {
                return;
            }
            // SAFETY: CALLBACK; the range is checked, and `data` has as many bytes.
            unsafe {
                let tensor = S::core().live(tensor);
                held::note_written(tensor.root().data() as usize, size);
                place::<S>("set_tensor", tensor, data, offset, size).write(data.cast(), size);
                forget::<S>(tensor);
            }
        })
    }

    /// Reads a range of a tensor.
    ///
    /// # Safety
    /// CALLBACK; `data` must have `size` bytes that can be written.
    pub unsafe extern "C" fn get_tensor(
        _: *mut RawBuffer,
        tensor: *const RawTensor,
        data: *mut c_void,
        offset: usize,
        size: usize,
    ) {
        ffi_boundary!("get_tensor", or the process ends, {
            if size == 0 {
                return;
            }
            // SAFETY: CALLBACK; the range is checked, and `data` has as many bytes.
            unsafe { place::<S>("get_tensor", S::core().live(tensor), data, offset, size).read(data.cast(), size) }
        })
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
        ffi_boundary!("set_tensor_2d", or the process ends, {
            for i in 0..copies {
                let (data, offset) = (data.wrapping_byte_add(i * stride_data), offset + i * stride_tensor);
                // SAFETY: CALLBACK; `data` has all the host's ranges.
                unsafe { Self::set_tensor(buffer, tensor, data, offset, size) };
            }
        })
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
        ffi_boundary!("get_tensor_2d", or the process ends, {
            for i in 0..copies {
                let (data, offset) = (data.wrapping_byte_add(i * stride_data), offset + i * stride_tensor);
                // SAFETY: CALLBACK; `data` has all the host's ranges.
                unsafe { Self::get_tensor(buffer, tensor, data, offset, size) };
            }
        })
    }

    /// Does nothing, for nothing is kept of tensors. Not every host looks whether the function is NULL.
    unsafe extern "C" fn reset(_: *mut RawBuffer) {}

    unsafe extern "C" fn clear(buffer: *mut RawBuffer, value: u8) {
        ffi_boundary!("clear", or the process ends, {
            // SAFETY: CALLBACK. Packing is a permutation, so equal bytes are the same in packed form.
            unsafe {
                let region = region::<S>(buffer);
                std::ptr::write_bytes(region.base().as_ptr(), value, region.len());
                known_errors::forget(&range_of(region));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::{null, null_mut};

    use super::*;
    use crate::diag::border::trip::{ends, goes_on};

    /// A flavour without a host: all callbacks panic before they ask for it.
    struct Nowhere;

    impl FlavourBuffers for Nowhere {
        fn core() -> &'static Core {
            unreachable!()
        }

        fn packed(_: Tensor) -> Option<(Shape, *mut u8, usize)> {
            unreachable!()
        }

        fn alloc(_: *mut RawBufferType, _: usize) -> *mut RawBuffer {
            unreachable!()
        }

        fn freed(_: &Region) {}
    }

    type Ours = Callbacks<Nowhere>;

    #[test]
    fn panics_end_at_the_border() {
        // SAFETY: all of them panic before they look at anything.
        unsafe {
            goes_on("get_name", || !Ours::type_name(null_mut()).is_null());
            goes_on("alloc_buffer", || Ours::alloc_buffer(null_mut(), 1).is_null());
            goes_on("get_base", || Ours::get_base(null_mut()).is_null());
            ends("free_buffer", || Ours::free_buffer(null_mut()));
            ends("memset_tensor", || Ours::memset_tensor(null_mut(), null_mut(), 0, 0, 1));
            ends("set_tensor", || Ours::set_tensor(null_mut(), null_mut(), null(), 0, 1));
            ends("get_tensor", || Ours::get_tensor(null_mut(), null(), null_mut(), 0, 1));
            ends("set_tensor_2d", || Ours::set_tensor_2d(null_mut(), null_mut(), null(), 0, 1, 1, 1, 1));
            ends("get_tensor_2d", || Ours::get_tensor_2d(null_mut(), null(), null_mut(), 0, 1, 1, 1, 1));
            ends("clear", || Ours::clear(null_mut(), 0));
        }
    }
}

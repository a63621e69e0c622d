//! The buffer type `AMX` of ik_llama.cpp and its buffers, which are not host memory. Tensors get into them in two ways:
//! the host allocates them there (`-ot 'regex=AMX'`), or this library does while a model is loaded
//! ([`loading`](super::loading)). Either way a tensor is packed if it is [`packable`], else stored as it is.

use libc::c_void;

use super::host::IkHost;
use super::packed::{self, PACKED, PackedView};
use super::{handshake, roles};
use crate::buffer::held::Held;
use crate::cpu::memory::Region;
use crate::diag::border::ffi_boundary;
use crate::format::LANES;
use crate::host::abi::USAGE_WEIGHTS;
use crate::host::callbacks::{Callbacks, FlavourBuffers, range_of};
use crate::host::{Core, RawBuffer, RawBufferType, RawTensor, Tensor, budget};
use crate::panel::weights::Shape;
use crate::process::Once;
use crate::{debug, error};

/// The one buffer type.
struct Registered(*mut RawBufferType);

// SAFETY: the object is never changed after it was made, and never freed.
unsafe impl Send for Registered {}
// SAFETY: as for `Send`.
unsafe impl Sync for Registered {}

/// The buffer type `AMX`.
pub fn buffer_type() -> *mut RawBufferType {
    static TYPE: Once<Registered> = Once::new();
    TYPE.get_or_init(|| {
        let functions = Callbacks::<IkBuffers>::of_type(std::ptr::null());
        let none = std::ptr::null_mut();
        Registered(functions.make(&host().layout.buffer_type, none, none))
    })
    .0
}

/// The host behind a callback: callbacks exist only after it was found.
pub fn host() -> &'static IkHost {
    IkHost::get().expect("a buffer without a host")
}

/// ik_llama.cpp, as the callbacks of our buffers see it.
pub struct IkBuffers;

impl FlavourBuffers for IkBuffers {
    fn core() -> &'static Core {
        host()
    }

    fn packed(tensor: Tensor) -> Option<(Shape, *mut u8, usize)> {
        packed::view(tensor).map(|PackedView { shape, base, offset }| (shape, base.cast_mut(), offset))
    }

    fn alloc(_: *mut RawBufferType, size: usize) -> *mut RawBuffer {
        if size > 0 {
            budget::allocate(size);
        }
        buffer_with(size, Held::new(size))
    }

    fn freed(region: &Region) {
        PACKED.remove_region(range_of(region));
    }
}

/// A buffer of `size` bytes whose memory is taken only when it is written; null if there is none.
pub fn lazy_buffer(size: usize) -> *mut RawBuffer {
    buffer_with(size, Held::lazily(size))
}

/// A buffer of `size` bytes with this memory; null if there is none.
fn buffer_with(size: usize, held: std::io::Result<Held>) -> *mut RawBuffer {
    match held {
        // SAFETY: the buffer type lives for ever, and the interface's functions expect a boxed `Held` as context.
        Ok(held) => unsafe {
            PACKED.add_region(range_of(held.region()));
            let context = Box::into_raw(Box::new(held)).cast();
            let interface = Callbacks::<IkBuffers>::of_buffer(init_tensor as *const c_void);
            host().buffer_init(buffer_type(), interface, context, size)
        },
        Err(reason) => {
            error!("cannot allocate a buffer of {size} bytes: {reason}");
            std::ptr::null_mut()
        }
    }
}

/// Tells the host that a buffer holds weights.
///
/// # Safety
/// It must be a live buffer of ours.
pub unsafe fn mark_as_weights(buffer: *mut RawBuffer) {
    if let Some(set_usage) = host().symbols.ggml_backend_buffer_set_usage {
        // SAFETY: the buffer is alive, as this function's caller promises.
        unsafe { set_usage(buffer, USAGE_WEIGHTS) };
    }
}

/// Decides how a tensor is stored that the host allocates in a buffer of ours.
unsafe extern "C" fn init_tensor(_: *mut RawBuffer, tensor: *mut RawTensor) {
    ffi_boundary!("init_tensor", or the process ends, {
        // SAFETY: LIVE TENSOR: the host passes one that lies in a buffer of ours.
        let (t, bytes) = unsafe { (host().live(tensor), host().nbytes(tensor)) };
        if t.view_src().is_some() {
            return;
        }
        // A host may reuse memory of a buffer for another tensor.
        let base = t.data() as usize;
        packed::forget(base..base + bytes);
        match packable(host(), t) {
            Some(shape) => {
                PACKED.add(base, shape.plain_size(), shape);
                debug!("{}: packed", t.name());
            }
            None => debug!("{}: stored as it is", t.name()),
        }
    })
}

/// The packed shape of a tensor that is packed in our buffers: a whole, contiguous matrix of a packed type that graphs
/// only multiply with, and that packing does not make larger. `None` for all others, and if the handshake has failed.
pub fn packable(host: &'static IkHost, tensor: Tensor) -> Option<Shape> {
    let (ty, ne) = (host.weight_type(tensor.ty())?, tensor.ne());
    let shape = Shape::new(ty, ne[0], ne[1], ne[2].checked_mul(ne[3])?).ok()?;
    let contiguous = [ty.info().bytes, shape.row_bytes, shape.slice_plain];
    let fits = shape.n.is_multiple_of(LANES) && shape.plain_size() > 0 && tensor.nb()[..3] == contiguous;
    let wanted = fits && tensor.view_src().is_none() && roles::is_multiplied_only(&tensor.name());
    (wanted && handshake::is_done(host, lazy_buffer)).then_some(shape)
}

/// Whether `tensor` lies in a buffer of ours, or would if it was allocated.
pub fn is_ours(host: &'static IkHost, tensor: Tensor) -> bool {
    // SAFETY: LIVE BUFFER: that of a live tensor.
    unsafe { host.buffer(tensor.holder()) }.is_some_and(|b| b.buft() == buffer_type())
}

/// Whether a loader only asks about `tensor`: it has no data yet, and lies in a buffer of ours of no size.
pub fn is_probe(host: &'static IkHost, tensor: Tensor) -> bool {
    // SAFETY: LIVE BUFFER: that of a live tensor.
    is_ours(host, tensor) && unsafe { host.buffer(tensor.holder()) }.is_some_and(|b| b.size() == 0)
}

/// Whether there is memory for weights about which a loader asks with an operation.
pub fn has_memory(host: &'static IkHost, w: Tensor, op: Tensor) -> bool {
    // SAFETY: LIVE TENSOR.
    let bytes = unsafe { host.nbytes(w.address()) };
    budget::accept(budget::Question { name: w.name(), ty: w.ty(), ne: w.ne() }, op.op(), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_end_at_the_border() {
        use std::ptr::null_mut;

        use crate::diag::border::trip::ends;

        // SAFETY: it panics before it looks at its arguments.
        ends("init_tensor", || unsafe { init_tensor(null_mut(), null_mut()) });
    }
}

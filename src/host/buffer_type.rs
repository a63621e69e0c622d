//! The buffer type `AMX` for llama.cpp and its buffers, as ggml's interfaces want them.

use libc::c_void;

use super::abi::{STATUS_ALLOC_FAILED, STATUS_SUCCESS};
use super::callbacks::{Callbacks, FlavourBuffers, region};
use super::core::Core;
use super::llama::Host;
use super::objects::{BufferInterface, RawBuffer, RawBufferType};
use super::tensor::{RawTensor, Tensor};
use super::{budget, cxx, op, proof, registry};
use crate::buffer::held::Held;
use crate::cpu::memory::Region;
use crate::diag::border::ffi_boundary;
use crate::diag::env::{Mode, env};
use crate::panel::weights::Shape;
use crate::{cpu, error, info};

/// The buffer type, made at the first call. NULL, and one log line that says why, when the library steps aside.
pub fn get() -> *mut RawBufferType {
    registry::get_or_make(make)
}

fn make() -> Result<*mut RawBufferType, String> {
    // First, because from then on log lines go to the host.
    let host = Host::get()?;
    if registry::is_asked_while_made() {
        return Err("the host asks for the buffer type AMX in a function that it is made by".to_string());
    }
    if env().mode == Mode::Off {
        return Err("GGML_AMX_MODE=off".to_string());
    }
    if let Some(reason) = cpu::refusal() {
        return Err(reason);
    }
    info!("version {}, kernels: {}", env!("CARGO_PKG_VERSION"), cpu::isa().name());
    cxx::find_type_info();
    let functions = Callbacks::<Llama>::of_type(get_alloc_size as *const c_void);
    Ok(functions.make(&host.layout.buffer_type, host.device, cxx::extra_buffer_type()))
}

/// llama.cpp's flavour of our callbacks.
struct Llama;

impl FlavourBuffers for Llama {
    fn core() -> &'static Core {
        Host::that_calls()
    }

    fn packed(tensor: Tensor) -> Option<(Shape, *mut u8, usize)> {
        let shape = op::packed_shape(Host::that_calls(), tensor)?;
        let begin = if tensor.view_src().is_none() { 0 } else { tensor.view_offs() };
        Some((shape, tensor.root().data().cast(), begin))
    }

    fn alloc(buft: *mut RawBufferType, size: usize) -> *mut RawBuffer {
        // Nothing is packed before it is proved how the host calls.
        let host = Host::that_calls();
        if !proof::prove(host, buft, cxx::tensor_traits() as usize) {
            return std::ptr::null_mut();
        }
        if size > 0 {
            budget::allocate(size);
        }
        match Held::new(size) {
            // SAFETY: our buffer type lives for ever, and the callbacks expect a `Held` as their context.
            Ok(held) => unsafe { host.buffer_init(buft, interface(), Box::into_raw(Box::new(held)).cast(), size) },
            Err(reason) => {
                error!("cannot allocate a buffer of {size} bytes: {reason}");
                std::ptr::null_mut()
            }
        }
    }

    fn freed(_: &Region) {}
}

unsafe extern "C" fn get_alloc_size(_: *mut RawBufferType, tensor: *const RawTensor) -> usize {
    ffi_boundary!("get_alloc_size", or the process ends, {
        let host = Host::that_calls();
        // SAFETY: LIVE TENSOR: the host asks about one.
        unsafe {
            let shape = host.tensor(tensor).and_then(|t| op::shape_if_packable(host, t));
            shape.map_or_else(|| host.nbytes(tensor), |shape| shape.packed_size())
        }
    })
}

/// The functions of our buffers.
fn interface() -> BufferInterface {
    let mut made = Callbacks::<Llama>::of_buffer(init_tensor as *const c_void);
    made.set(Host::that_calls().layout.buffer.cpy_tensor, cpy_tensor as *const c_void);
    made
}

/// Marks packed tensors and their views by their `extra`, so that the host's other kernels leave them alone. Refuses a
/// tensor that was given fewer bytes than its packed form needs.
unsafe extern "C" fn init_tensor(buffer: *mut RawBuffer, tensor: *mut RawTensor) -> i32 {
    ffi_boundary!("init_tensor", else STATUS_ALLOC_FAILED, {
        let host = Host::that_calls();
        // SAFETY: the host passes one of our buffers, and LIVE TENSOR: one that lies in it.
        let (region, t) = unsafe { (region::<Llama>(buffer), host.live(tensor)) };
        let root = t.root();
        let Some(shape) = op::shape_if_packable(host, root) else { return STATUS_SUCCESS };
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
        // SAFETY: the host has this function initialise the tensor, and nothing uses it meanwhile.
        unsafe { t.set_extra(cxx::tensor_traits()) };
        STATUS_SUCCESS
    })
}

/// Copies from host memory or from another tensor of ours. False for other sources: the host reads those into memory of
/// its own and calls `set_tensor`.
unsafe extern "C" fn cpy_tensor(_: *mut RawBuffer, src: *const RawTensor, dst: *mut RawTensor) -> bool {
    ffi_boundary!("cpy_tensor", or the process ends, {
        /// Bytes that are unpacked and packed again at a time.
        const STEP: usize = 1 << 20;
        let host = Host::that_calls();
        // SAFETY: LIVE TENSOR and LIVE BUFFER: the host passes two tensors of equal layout that have buffers, dst one
        // of ours.
        unsafe {
            let (source, size) = (host.live(src), host.nbytes(src));
            let from = source.holder();
            let Some(holder) = host.buffer(from).filter(|_| !source.data().is_null() && size == host.nbytes(dst)) else {
                return false;
            };
            if !registry::is_ours(holder.buft()) {
                let readable = host.is_host(holder.buft());
                if readable {
                    Callbacks::<Llama>::set_tensor(from, dst, source.data(), 0, size);
                }
                return readable;
            }
            let mut plain = vec![0u8; size.min(STEP)];
            for at in (0..size).step_by(STEP) {
                let len = (size - at).min(STEP);
                Callbacks::<Llama>::get_tensor(from, src, plain.as_mut_ptr().cast(), at, len);
                Callbacks::<Llama>::set_tensor(from, dst, plain.as_ptr().cast(), at, len);
            }
            true
        }
    })
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
            ends("get_alloc_size", || get_alloc_size(null_mut(), null()));
            goes_on("init_tensor", || init_tensor(null_mut(), null_mut()) == STATUS_ALLOC_FAILED);
            ends("cpy_tensor", || cpy_tensor(null_mut(), null(), null_mut()));
        }
    }
}

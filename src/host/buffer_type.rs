//! The buffer type `AMX` and its buffers, as ggml's interfaces want them.

use std::time::Instant;

use libc::c_void;

use super::abi::{STATUS_ALLOC_FAILED, STATUS_SUCCESS};
use super::callbacks::{Callbacks, Side, region};
use super::objects::{Interface, RawBuffer, RawBufferType};
use super::tensor::{RawTensor, Tensor};
use super::{Core, Host, budget, cxx, op, proof};
use crate::buffer::held::Held;
use crate::cpu::memory::Region;
use crate::diag::border::ffi_boundary;
use crate::diag::env::{Mode, env};
use crate::diag::log;
use crate::panel::weights::Shape;
use crate::process::{Condvar, Mutex, Once};
use crate::{cpu, error, info};

/// The one buffer type of the process, if it may serve.
struct Registered(*mut RawBufferType);

// SAFETY: the object is never changed after it was made, and never freed.
unsafe impl Send for Registered {}
// SAFETY: as above.
unsafe impl Sync for Registered {}

static BUFFER_TYPE: Once<Option<Registered>> = Once::new();

/// Who makes it, and whether anybody asked who would wait for ever.
#[derive(Default)]
struct Maker {
    thread: Option<proof::ThreadId>,
    is_asked: bool,
}

static MAKER: Mutex<Maker> = Mutex::new(Maker { thread: None, is_asked: false });
/// It is made.
static MADE: Condvar = Condvar::new();

/// Until it is dropped, this thread makes the buffer type.
struct Making;

impl Making {
    /// `None` if it is made, or if that waits for this thread: functions of the host's are called for it, which may ask for
    /// it, here or in a thread that they wait for.
    fn begin() -> Option<Self> {
        let until = Instant::now() + proof::PATIENCE;
        let mut now = MAKER.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match now.thread {
                _ if BUFFER_TYPE.get().is_some() => return None,
                None => break,
                // One of a parent's, which this process does not have.
                Some((process, _)) if process != proof::this_thread().0 => break,
                Some(thread) if thread == proof::this_thread() || left.is_zero() => {
                    now.is_asked = true;
                    return None;
                }
                Some(_) => now = MADE.wait_timeout(now, left),
            }
        }
        now.thread = Some(proof::this_thread());
        Some(Self)
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        MAKER.lock().thread = None;
        MADE.notify_all();
    }
}

/// The buffer type, made at the first call; NULL (and one log line that says why) when the library
/// steps aside.
pub fn get() -> *mut RawBufferType {
    if BUFFER_TYPE.get().is_none()
        && let _until_it_is_there = log::hold()
        && let Some(_making) = Making::begin()
    {
        let made = make();
        let registered = made.as_ref().ok().map(|buft| Registered(*buft));
        let _ = BUFFER_TYPE.set(registered);
        if let Err(reason) = made {
            info!("not used: {reason}");
        }
    }
    BUFFER_TYPE.get().and_then(Option::as_ref).map_or(std::ptr::null_mut(), |b| b.0)
}

/// Whether `buft` is ours. Never makes it: nothing is ours before it exists.
pub fn is_ours(buft: *mut RawBufferType) -> bool {
    BUFFER_TYPE.get().and_then(Option::as_ref).is_some_and(|b| b.0 == buft)
}

fn make() -> Result<*mut RawBufferType, String> {
    // The host first: its log then carries whatever follows.
    let host = Host::get()?;
    if MAKER.lock().is_asked {
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

/// llama.cpp, as our buffers see it.
struct Llama;

impl Side for Llama {
    fn core() -> &'static Core {
        host()
    }

    fn packed(tensor: Tensor) -> Option<(Shape, *mut u8, usize)> {
        let shape = op::packed_shape(host(), tensor)?;
        let begin = if tensor.view_src().is_none() { 0 } else { tensor.view_offs() };
        Some((shape, tensor.root().data().cast(), begin))
    }

    fn alloc(buft: *mut RawBufferType, size: usize) -> *mut RawBuffer {
        // Nothing is packed before it is known how the host calls.
        if !proof::prove(host(), buft) {
            return std::ptr::null_mut();
        }
        if size > 0 {
            budget::allocate(size);
        }
        match Held::new(size) {
            // SAFETY: the context is what the interface's functions expect.
            Ok(held) => unsafe { host().buffer_init(buft, interface(), Box::into_raw(Box::new(held)).cast(), size) },
            Err(reason) => {
                error!("cannot allocate a buffer of {size} bytes: {reason}");
                std::ptr::null_mut()
            }
        }
    }

    fn freed(_: &Region) {}
}

/// The host behind a callback: callbacks exist only after it was found.
pub(super) fn host() -> &'static Host {
    log::deliver();
    Host::get().unwrap_or_else(|reason| panic!("a buffer without a host: {reason}"))
}

unsafe extern "C" fn get_alloc_size(_: *mut RawBufferType, tensor: *const RawTensor) -> usize {
    ffi_boundary!("get_alloc_size", or the process ends, {
        let host = host();
        // SAFETY: the host passes a live tensor.
        unsafe {
            let shape = host.tensor(tensor).and_then(|t| op::shape_if_packable(host, t));
            shape.map_or_else(|| host.nbytes(tensor), |shape| shape.packed_size())
        }
    })
}

/// The functions of our buffers.
fn interface() -> Interface {
    let mut made = Callbacks::<Llama>::of_buffer(init_tensor as *const c_void);
    made.set(host().layout.buffer.cpy_tensor, cpy_tensor as *const c_void);
    made
}

/// Marks packed tensors and their views (`extra`), so that the host's other kernels keep off; refuses
/// a tensor that was given less room than its packed form needs.
unsafe extern "C" fn init_tensor(buffer: *mut RawBuffer, tensor: *mut RawTensor) -> i32 {
    ffi_boundary!("init_tensor", else STATUS_ALLOC_FAILED, {
        // SAFETY: the host passes one of our buffers and a live tensor in it.
        let (region, t) = unsafe { (region::<Llama>(buffer), host().live(tensor)) };
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
    })
}

/// Copies between two tensors of ours, and from host memory. Other sources are the host's business
/// (it reads them into memory of its own and calls `set_tensor`).
unsafe extern "C" fn cpy_tensor(_: *mut RawBuffer, src: *const RawTensor, dst: *mut RawTensor) -> bool {
    ffi_boundary!("cpy_tensor", or the process ends, {
        /// Bytes at a time through plain form.
        const STEP: usize = 1 << 20;
        // SAFETY: the host passes live tensors of equal layout, dst in one of our buffers.
        unsafe {
            let (source, size) = (host().live(src), host().nbytes(src));
            let from = source.holder();
            let Some(holder) = host().buffer(from).filter(|_| !source.data().is_null() && size == host().nbytes(dst))
            else {
                return false;
            };
            if !is_ours(holder.buft()) {
                let readable = host().is_host(holder.buft());
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

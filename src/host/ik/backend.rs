//! The host's CPU backend is made to accept buffers of the type `AMX`, and the type gets a name that options can use.

use libc::{c_char, c_void};

use super::abi::RawBackend;
use super::buffer_type::buffer_type;
use super::handshake::ComputeSymbols;
use super::host::IkHost;
use crate::diag::border::{Passing, ffi_boundary};
use crate::host::{Flavour, RawBufferType};
use crate::process::Once;

/// Whether a backend can have buffers of a type.
type SupportsBuft = unsafe extern "C" fn(*mut RawBackend, *mut RawBufferType) -> bool;

/// The host's own function.
static SUPPORTS_BUFT: Once<SupportsBuft> = Once::new();

unsafe extern "C" fn supports_buft(backend: *mut RawBackend, buft: *mut RawBufferType) -> bool {
    ffi_boundary!("supports_buft", else false, {
        // SAFETY: the host's function gets the arguments that the host gave.
        buft == buffer_type() || SUPPORTS_BUFT.get().is_some_and(|f| unsafe { f(backend, buft) })
    })
}

/// Behind `ggml_backend_cpu_init`: lets the backend that it has made accept our buffers.
///
/// # Safety
/// `backend` must be a CPU backend that the host has just made, or null.
pub unsafe fn widen_cpu_backend(backend: *mut RawBackend) {
    let Some(host) = IkHost::get().filter(|_| !backend.is_null()) else { return };
    // SAFETY: the backend is new, so no other thread has it; the index of the member was found out by trial.
    unsafe {
        let member = backend.cast::<Option<SupportsBuft>>().add(host.supports_buft);
        if let Some(of_host) = member.replace(Some(supports_buft)) {
            let _ = SUPPORTS_BUFT.set(of_host);
        }
    }
}

/// In front of `ggml_backend_reg_get_count`, which `count` is: registers the buffer type `AMX`, so that options can
/// name it.
pub fn register(count: impl Fn() -> usize) -> usize {
    static DONE: Once<()> = Once::new();
    // The first call makes the host's own list, in which the CPU must be first.
    let before = count();
    if let Some(host) = IkHost::get() {
        DONE.get_or_init(|| {
            // SAFETY: the host's function; name and buffer type live for ever.
            unsafe {
                (host.ik.ggml_backend_register)(c"AMX".as_ptr(), cpu_backend, buffer_type(), std::ptr::null_mut())
            }
        });
        return count();
    }
    before
}

/// What the host calls to make the backend `AMX`. There is none, only a buffer type: it gets a CPU backend, which
/// computes with it.
unsafe extern "C-unwind" fn cpu_backend(_: *const c_char, _: *mut c_void) -> *mut RawBackend {
    let _border = Passing::new("the backend AMX");
    let Ok(computing) = ComputeSymbols::find(Flavour::Ik) else { return std::ptr::null_mut() };
    // If this call goes through `ggml_backend_cpu_init` of ours, the backend is widened twice: the second time changes
    // nothing.
    // SAFETY: the host's function without arguments, and a backend that it has just made.
    unsafe {
        let backend = (computing.ggml_backend_cpu_init)();
        widen_cpu_backend(backend);
        backend
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_end_at_the_border() {
        use std::ptr::{null, null_mut};

        use crate::diag::border::trip::{ends, goes_on};

        // SAFETY: both panic before they look at their arguments.
        unsafe {
            goes_on("supports_buft", || !supports_buft(null_mut(), null_mut()));
            ends("the backend AMX", || cpu_backend(null(), null_mut()));
        }
    }
}

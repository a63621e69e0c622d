//! Companion buffers: a buffer of ours beside one of the host's, for tensors that were meant for that one and are
//! packed. Both are freed together.

use libc::c_void;

use super::buffer_type::{host, lazy_buffer, mark_as_weights};
use crate::cpu::limits;
use crate::cpu::sync::Mutex;
use crate::diag::border::ffi_boundary;
use crate::diag::log;
use crate::host::{RawBuffer, budget};

/// What frees a buffer.
type FreeBuffer = unsafe extern "C" fn(*mut RawBuffer);

/// A buffer of the host's and the one of ours beside it.
struct Companion {
    /// Address of the host's buffer.
    of_host: usize,
    /// Address of ours; 0 if there was no memory for it.
    ours: usize,
    /// Bytes of ours that tensors have.
    used: usize,
    /// What freed the host's buffer before both were tied.
    free: Option<FreeBuffer>,
}

static COMPANIONS: Mutex<Vec<Companion>> = Mutex::new(Vec::new());

/// Stands in for the host buffer's own function: frees the companion and then the buffer.
unsafe extern "C" fn free_both(buffer: *mut RawBuffer) {
    ffi_boundary!("free_buffer", or the process ends, {
        let mut all = COMPANIONS.lock();
        let found = all.iter().position(|c| c.of_host == buffer as usize).map(|i| all.swap_remove(i));
        drop(all);
        if let Some(companion) = found {
            // SAFETY: the host frees a live buffer. Its companion lives as long, and is freed once: it is no longer
            // listed.
            unsafe {
                if companion.ours != 0 {
                    (host().symbols.ggml_backend_buffer_free)(companion.ours as *mut RawBuffer);
                }
                if let Some(free) = companion.free {
                    free(buffer);
                }
            }
        }
    })
}

/// Makes `ours`, of which `used` bytes are taken, the companion of a host's buffer: it is freed with that.
///
/// # Safety
/// `of_host` must be a live buffer without a companion. `ours` must be a live buffer that nobody else frees, or null.
pub unsafe fn tie(of_host: *mut RawBuffer, ours: *mut RawBuffer, used: usize) {
    // SAFETY: both buffers are alive, and nobody else frees `ours` (`# Safety`).
    unsafe { tie_in(&mut COMPANIONS.lock(), of_host, ours, used) };
}

/// The same with the list locked.
///
/// # Safety
/// As for [`tie`].
unsafe fn tie_in(all: &mut Vec<Companion>, of_host: *mut RawBuffer, ours: *mut RawBuffer, used: usize) {
    // SAFETY: the buffer is alive, and `free_both` calls what it had before.
    let free = unsafe { host().buffer(of_host).map(|buffer| buffer.replace_free(free_both as *const c_void)) };
    // SAFETY: what was there is the host's function of this type, or null.
    let free = unsafe { std::mem::transmute::<*const c_void, Option<FreeBuffer>>(free.unwrap_or(std::ptr::null())) };
    all.push(Companion { of_host: of_host as usize, ours: ours as usize, used, free });
}

/// Takes `bytes` of the companion of `of_host`, which is made if there is none yet. Returns the companion and the
/// offset in it; `None` if there is no memory.
///
/// # Safety
/// `of_host` must be a live buffer of the host.
pub unsafe fn reserve(of_host: *mut RawBuffer, bytes: usize) -> Option<(*mut RawBuffer, usize)> {
    let take = |all: &mut Vec<Companion>| {
        let companion = all.iter_mut().find(|c| c.of_host == of_host as usize)?;
        let (ours, at) = (companion.ours as *mut RawBuffer, companion.used);
        // SAFETY: null, or a companion, which lives as long as the host's buffer.
        let fits = unsafe { host().buffer(ours) }.is_some_and(|ours| at + bytes <= ours.size());
        companion.used += if fits { bytes } else { 0 };
        Some(fits.then_some((ours, at)))
    };
    // A buffer that cannot be allocated is logged.
    let _until_unlocked = log::hold();
    let mut all = COMPANIONS.lock();
    if let Some(found) = take(&mut all) {
        return found;
    }
    // SAFETY: the host's buffer is alive and has no companion; the new buffer is used for nothing else.
    unsafe {
        // As large as the file, with every tensor padded to the alignment. Only what is written takes memory.
        let size = host().buffer(of_host)?.size();
        let size = size + size / 16 + (1 << 20);
        let may_map = limits::addresses().is_none() || budget::has_room(size);
        let ours = if may_map { lazy_buffer(size) } else { std::ptr::null_mut() };
        if !ours.is_null() {
            mark_as_weights(ours);
        }
        tie_in(&mut all, of_host, ours, 0);
    }
    take(&mut all)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_end_at_the_border() {
        use crate::diag::border::trip::ends;

        // SAFETY: it panics before it looks at its argument.
        ends("free_buffer", || unsafe { free_both(std::ptr::null_mut()) });
    }
}

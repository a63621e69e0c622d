//! Memory for weights: anonymous mappings that ask for huge pages, aligned so that they get them; or memory of the
//! host's own allocator, where it has one for weights (high-bandwidth memory, by libmemkind).

use crate::process::Once;
use std::ptr::NonNull;

use libc::{c_int, c_void};
use memmap2::{Advice, MmapMut};

/// Size of a huge page on x86-64.
const HUGE: usize = 2 << 20;

/// An allocator of the host: functions like `hbw_posix_memalign` and `hbw_free`.
#[derive(Clone, Copy)]
pub struct HostAllocator {
    /// Writes the address of so many aligned bytes; returns 0, or the number of an error. Arguments: address,
    /// alignment, bytes.
    pub allocate: unsafe extern "C" fn(*mut *mut c_void, usize, usize) -> c_int,
    /// Frees what the other function gave.
    pub free: unsafe extern "C" fn(*mut c_void),
}

/// The allocator for weights, if they do not lie in mappings.
static HOST_ALLOCATOR: Once<HostAllocator> = Once::new();

/// From now on this allocator is asked for memory for weights.
pub fn set_host_allocator(functions: HostAllocator) {
    let _ = HOST_ALLOCATOR.set(functions);
}

/// What a region's memory is.
enum Backing {
    Mapped { map: MmapMut, offset: usize },
    HostAllocator { at: NonNull<u8>, free: unsafe extern "C" fn(*mut c_void) },
}

// SAFETY: the memory belongs to the region alone, and any thread may free it.
unsafe impl Send for Backing {}
// SAFETY: a shared reference gives no more than the address.
unsafe impl Sync for Backing {}

impl Drop for Backing {
    fn drop(&mut self) {
        if let Self::HostAllocator { at, free } = self {
            // SAFETY: the allocator gave this address, and it is freed once.
            unsafe { free(at.as_ptr().cast()) };
        }
    }
}

/// Zeroed memory that belongs to the region alone, aligned to 64 bytes, or to 2 MiB from that size on.
pub struct Region {
    backing: Backing,
    len: usize,
}

impl Region {
    /// Maps `len` bytes, or 1 if that is 0. Fails with the operating system's reason.
    pub fn new(len: usize) -> std::io::Result<Self> {
        let len = len.max(1);
        let slack = if len >= HUGE { HUGE } else { 0 };
        let total = len.checked_add(slack).filter(|t| *t <= isize::MAX as usize);
        let total = total.ok_or_else(|| std::io::Error::from_raw_os_error(libc::ENOMEM))?;
        let map = MmapMut::map_anon(total)?;
        if slack > 0 {
            // Kernels without transparent huge pages refuse; then there are none.
            let _ = map.advise(Advice::HugePage);
        }
        let offset = if slack > 0 { map.as_ptr().align_offset(HUGE) } else { 0 };
        Ok(Self { backing: Backing::Mapped { map, offset }, len })
    }

    /// The same for weights, by the host's allocator if it has one for them.
    pub fn of_weights(len: usize) -> std::io::Result<Self> {
        let Some(HostAllocator { allocate, free }) = HOST_ALLOCATOR.get().copied() else { return Self::new(len) };
        let (len, mut at) = (len.max(1), std::ptr::null_mut());
        let align = if len >= HUGE { HUGE } else { 64 };
        // SAFETY: the address is writable; the allocator is like `posix_memalign`.
        let error = unsafe { allocate(&mut at, align, len) };
        let at = NonNull::new(at.cast::<u8>()).filter(|_| error == 0);
        let at = at.ok_or_else(|| std::io::Error::from_raw_os_error(if error == 0 { libc::ENOMEM } else { error }))?;
        // SAFETY: `len` bytes were allocated.
        unsafe { at.write_bytes(0, len) };
        Ok(Self { backing: Backing::HostAllocator { at, free }, len })
    }

    /// First byte.
    pub fn base(&self) -> NonNull<u8> {
        match &self.backing {
            // SAFETY: offset + len lie inside the mapping by construction, and mappings are not at 0.
            Backing::Mapped { map, offset } => unsafe { NonNull::new_unchecked(map.as_ptr().add(*offset).cast_mut()) },
            Backing::HostAllocator { at, .. } => *at,
        }
    }

    /// Allows the kernel to drop the contents from byte `from` on when memory is short. Memory of the host's allocator
    /// stays.
    pub fn let_go_from(&mut self, from: usize) {
        const PAGE: usize = 4096;
        let from = from.next_multiple_of(PAGE).min(self.len);
        let bytes = (self.len - from) / PAGE * PAGE;
        if bytes > 0 && matches!(self.backing, Backing::Mapped { .. }) {
            // SAFETY: the pages are this region's, and their contents are no longer needed. If the kernel refuses, they
            // stay.
            unsafe { libc::madvise(self.base().as_ptr().add(from).cast(), bytes, libc::MADV_FREE) };
        }
    }

    /// Bytes from [`Region::base`] on.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Always false.
    pub fn is_empty(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_zeroed_and_aligned() {
        for len in [1, 64, 4097, 3 << 20] {
            let region = Region::new(len).unwrap();
            assert_eq!(region.base().as_ptr() as usize % 64, 0);
            assert_eq!(region.len(), len);
            // SAFETY: the region has `len` bytes, which belong to it alone.
            let bytes = unsafe { std::slice::from_raw_parts(region.base().as_ptr(), len) };
            assert!(bytes.iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn impossible_sizes_are_an_error_not_a_crash() {
        assert!(Region::new(1 << 60).is_err());
        assert!(Region::new(usize::MAX).is_err());
    }
}

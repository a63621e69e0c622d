//! Memory for weights: anonymous mappings that ask for huge pages, aligned so that they get them; or memory of a host that has
//! its own kind (high-bandwidth memory, by libmemkind).

use crate::process::Once;
use std::ptr::NonNull;

use libc::{c_int, c_void};
use memmap2::{Advice, MmapMut};

/// Size of a huge page on x86-64.
const HUGE: usize = 2 << 20;

/// Functions like `hbw_posix_memalign` and `hbw_free`.
#[derive(Clone, Copy)]
pub struct HostAllocator {
    /// Writes an aligned address; 0, or the number of an error.
    pub allocate: unsafe extern "C" fn(*mut *mut c_void, usize, usize) -> c_int,
    /// Frees it.
    pub free: unsafe extern "C" fn(*mut c_void),
}

/// Where weights lie, if not in mappings.
static HOST_ALLOCATOR: Once<HostAllocator> = Once::new();

/// From now on weights lie in memory by these functions.
pub fn set_host_allocator(functions: HostAllocator) {
    let _ = HOST_ALLOCATOR.set(functions);
}

/// Where a region is.
enum Backing {
    Mapped { map: MmapMut, offset: usize },
    HostAllocator { at: NonNull<u8>, free: unsafe extern "C" fn(*mut c_void) },
}

// SAFETY: memory that belongs to nobody else; who frees it does not matter.
unsafe impl Send for Backing {}
// SAFETY: as above.
unsafe impl Sync for Backing {}

impl Drop for Backing {
    fn drop(&mut self) {
        if let Self::HostAllocator { at, free } = self {
            // SAFETY: allocated by the other function, freed once.
            unsafe { free(at.as_ptr().cast()) };
        }
    }
}

/// A zeroed, 64-byte-aligned (2 MiB-aligned when large) region that belongs to us alone.
pub struct Region {
    backing: Backing,
    len: usize,
}

impl Region {
    /// Maps `len` bytes (at least 1). Fails with the operating system's reason.
    pub fn new(len: usize) -> std::io::Result<Self> {
        let len = len.max(1);
        let slack = if len >= HUGE { HUGE } else { 0 };
        let total = len.checked_add(slack).filter(|t| *t <= isize::MAX as usize);
        let total = total.ok_or_else(|| std::io::Error::from_raw_os_error(libc::ENOMEM))?;
        let map = MmapMut::map_anon(total)?;
        if slack > 0 {
            // Only a wish: kernels without transparent huge pages refuse, and that is fine.
            let _ = map.advise(Advice::HugePage);
        }
        let offset = if slack > 0 { map.as_ptr().align_offset(HUGE) } else { 0 };
        Ok(Self { backing: Backing::Mapped { map, offset }, len })
    }

    /// The same for weights: where the host has them.
    pub fn of_weights(len: usize) -> std::io::Result<Self> {
        let Some(HostAllocator { allocate, free }) = HOST_ALLOCATOR.get().copied() else { return Self::new(len) };
        let (len, mut at) = (len.max(1), std::ptr::null_mut());
        let align = if len >= HUGE { HUGE } else { 64 };
        // SAFETY: the functions are those of their names.
        let error = unsafe { allocate(&mut at, align, len) };
        let at = NonNull::new(at.cast::<u8>()).filter(|_| error == 0);
        let at = at.ok_or_else(|| std::io::Error::from_raw_os_error(if error == 0 { libc::ENOMEM } else { error }))?;
        // SAFETY: so many bytes were allocated.
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

    /// Tells the kernel that what lies from byte `from` on may be forgotten when memory is short.
    pub fn let_go_from(&mut self, from: usize) {
        const PAGE: usize = 4096;
        let from = from.next_multiple_of(PAGE).min(self.len);
        let bytes = (self.len - from) / PAGE * PAGE;
        if bytes > 0 && matches!(self.backing, Backing::Mapped { .. }) {
            // SAFETY: the pages are ours alone; whatever they hold afterwards. A wish: the answer does not matter.
            unsafe { libc::madvise(self.base().as_ptr().add(from).cast(), bytes, libc::MADV_FREE) };
        }
    }

    /// Bytes from [`Region::base`] on.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the region has no bytes: never, kept for the convention.
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
            // SAFETY: the region is len bytes long and nobody else has it.
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

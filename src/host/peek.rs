//! Memory behind addresses that may be none: what a host's words mean is a guess until they were looked behind. The system is
//! asked about every word: a call that reads (writes) eight bytes fails where they cannot be read (written), and no signal
//! comes. The call is one that every process may make, for no thread runs without it.

use libc::{c_char, c_int, c_long};

/// `rt_sigprocmask` with these two sets: the error number, 0 if there is none. Nothing is changed.
fn ask(how: c_int, new: usize, old: usize) -> c_int {
    // SAFETY: errno is this thread's; the set is read or written by the system, which checks the addresses.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        let done: c_long = libc::syscall(libc::SYS_rt_sigprocmask, c_long::from(how), new, old, 8usize);
        let error = if done == 0 { 0 } else { *errno };
        *errno = before;
        error
    }
}

/// The word at an address, if there is one.
pub fn word(at: usize) -> Option<usize> {
    // The set is read before it is seen that no such change of the mask exists.
    let is_there = at != 0 && ask(-1, at, 0) == libc::EINVAL;
    // SAFETY: just read by the system.
    is_there.then(|| unsafe { (at as *const usize).read_unaligned() })
}

/// Writes a word, if that is possible there.
///
/// # Safety
/// Nobody else may use what is there.
pub unsafe fn write(at: usize, value: usize) -> bool {
    // The system writes the mask of this thread there.
    let is_there = at != 0 && ask(libc::SIG_BLOCK, 0, at) == 0;
    if is_there {
        // SAFETY: just written by the system; promised by the caller.
        unsafe { (at as *mut usize).write_unaligned(value) };
    }
    is_there
}

/// The C string at an address; `None` if there is none, or none that ends within `limit` bytes.
pub fn text(at: *const c_char, limit: usize) -> Option<String> {
    let mut bytes = Vec::new();
    // Words do not reach over the ends of pages.
    let (mut place, mut skip) = (at as usize & !7, at as usize & 7);
    while bytes.len() < limit {
        for byte in word(place)?.to_le_bytes().into_iter().skip(skip) {
            if byte == 0 {
                return Some(String::from_utf8_lossy(&bytes).into_owned());
            }
            bytes.push(byte);
        }
        (place, skip) = (place + 8, 0);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_not_there_is_no_crash() {
        // SAFETY: a mapping of two pages, of which the second becomes unreadable and the first read-only.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let two = libc::mmap(std::ptr::null_mut(), 8192, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert_ne!(two, libc::MAP_FAILED);
            let at = two as usize;
            assert!(write(at + 4088, 7) && word(at + 4088) == Some(7));
            libc::mprotect((at + 4096) as *mut _, 4096, libc::PROT_NONE);
            assert_eq!((word(at + 4096), word(at + 4092), write(at + 4090, 1)), (None, None, false));
            ((at + 4092) as *mut u32).write(u32::from_le_bytes(*b"abcd"));
            assert_eq!(text((at + 4090) as *const c_char, 64), Some(String::new()));
            assert_eq!(text((at + 4092) as *const c_char, 64), None);
            ((at + 4095) as *mut u8).write(0);
            assert_eq!(text((at + 4092) as *const c_char, 64).as_deref(), Some("abc"));
            assert_eq!(text((at + 4092) as *const c_char, 2).as_deref(), Some("abc"));
            libc::mprotect(two, 4096, libc::PROT_READ);
            assert!(word(at).is_some() && !write(at, 1));
            libc::munmap(two, 8192);
        }
        for at in [0, 8, 1 << 20, 1 << 63, usize::MAX - 7] {
            assert_eq!(word(at), None);
        }
    }
}

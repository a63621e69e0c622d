//! Memory at addresses that may be invalid. What the words of a host's structs mean is a guess until it was tried, so
//! Linux is asked before a word is read or written: a system call that reads (writes) eight bytes fails where
//! there is no memory, and raises no signal. `rt_sigprocmask` is the call, because every sandbox allows it: no thread
//! starts without it.

use libc::{c_char, c_int, c_long};

/// `rt_sigprocmask(how, new, old)`: the error number, or 0. `errno` stays as it was.
fn ask(how: c_int, new: usize, old: usize) -> c_int {
    // SAFETY: `errno` is this thread's. Linux reads `new` and writes `old`, and checks both addresses.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        let done: c_long = libc::syscall(libc::SYS_rt_sigprocmask, c_long::from(how), new, old, 8usize);
        let error = if done == 0 { 0 } else { *errno };
        *errno = before;
        error
    }
}

/// The word at an address; `None` if there is no memory.
pub fn word(at: usize) -> Option<usize> {
    // There is no change of the mask by the number -1. Linux finds that out after it has read the set, so it
    // answers EINVAL if it could read it, and EFAULT if it could not.
    let is_there = at != 0 && ask(-1, at, 0) == libc::EINVAL;
    // SAFETY: Linux has just read these eight bytes.
    is_there.then(|| unsafe { (at as *const usize).read_unaligned() })
}

/// Writes a word; false if there is no memory that can be written.
///
/// # Safety
/// Nothing else may use these eight bytes meanwhile.
pub unsafe fn write(at: usize, value: usize) -> bool {
    // Linux writes this thread's signal mask there.
    let is_there = at != 0 && ask(libc::SIG_BLOCK, 0, at) == 0;
    if is_there {
        // SAFETY: Linux has just written these eight bytes, and nothing else uses them.
        unsafe { (at as *mut usize).write_unaligned(value) };
    }
    is_there
}

/// The C string at an address; `None` if there is no memory, or no end within `limit` bytes.
pub fn text(at: *const c_char, limit: usize) -> Option<String> {
    let mut bytes = Vec::new();
    // Aligned words: none of them lies in two pages.
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

/// What a function of the host's returned as a name; empty if that is no text.
pub fn name(at: *const c_char) -> String {
    /// Longer than any name, in bytes.
    const LIMIT: usize = 1024;
    text(at, LIMIT).unwrap_or_default()
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

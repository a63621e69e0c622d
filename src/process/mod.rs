//! Which process this is, and what threads of it share: locks, and things that are made once. A forked child has the memory
//! of its parent but none of its other threads: what one of those held, or was about to make, nobody will ever give back.
//! So both know who holds them by [`generation`]; a child takes from threads that it does not have.
//!
//! Nothing is waited for in `fork` itself (`pthread_atfork`): who forks may hold locks that the other threads want, and
//! children that the system makes without `fork` (`clone`) would not be told.

mod locks;
mod once;

pub use locks::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use once::{Lazy, Once};

use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// Where this process's number is: in a page that children find zeroed. Null: not mapped yet.
static PAGE: AtomicPtr<AtomicU32> = AtomicPtr::new(std::ptr::null_mut());
/// The last number that was given. Children have it from their parents.
static LAST: AtomicU32 = AtomicU32::new(0);

/// The number of this process: never 0, and another one than any of those that it was forked from. Process ids do not tell
/// them apart: in namespaces of their own a parent and its child may both have the id 1.
#[inline]
pub fn generation() -> u32 {
    // SAFETY: null, or a word that stays.
    let number = unsafe { PAGE.load(Ordering::Acquire).as_ref() }.map_or(0, |word| word.load(Ordering::Relaxed));
    if number != 0 { number } else { begin() }
}

/// Gives this process its number.
#[cold]
fn begin() -> u32 {
    let mut page = PAGE.load(Ordering::Acquire);
    if page.is_null() {
        let made = wiped_word();
        // Another thread may be faster; the page of the slower one is left alone, as it is when this thread is forked off here.
        page = match PAGE.compare_exchange(page, made, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => made,
            Err(first) => first,
        };
    }
    let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    // SAFETY: a word that stays.
    match unsafe { &*page }.compare_exchange(0, number, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => number,
        Err(first) => first,
    }
}

/// A word that is 0, and becomes 0 in every child.
fn wiped_word() -> *mut AtomicU32 {
    const PAGE_BYTES: usize = 4096;
    // SAFETY: new memory; what the kernel does to it in a child, it does to nothing else.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let page = libc::mmap(std::ptr::null_mut(), PAGE_BYTES, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        if page != libc::MAP_FAILED {
            if libc::madvise(page, PAGE_BYTES, libc::MADV_WIPEONFORK) == 0 {
                return page.cast();
            }
            libc::munmap(page, PAGE_BYTES);
        }
        // Linux before 4.14, or no memory: then the C library wipes it, in children that it makes itself.
        libc::pthread_atfork(None, None, Some(wipe));
    }
    (&raw const WORD).cast_mut()
}

/// The word that is wiped by [`wipe`].
static WORD: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" fn wipe() {
    WORD.store(0, Ordering::Relaxed);
}

/// Sleeps until [`wake_all`], if `word` is still `value`; may come back without that.
pub fn sleep(word: &AtomicU32, value: u32) {
    // SAFETY: the word lives; no timeout.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            value,
            std::ptr::null::<libc::timespec>(),
        )
    };
}

/// Wakes all that sleep on `word`.
pub fn wake_all(word: &AtomicU32) {
    // SAFETY: the address only names the sleepers.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, i32::MAX) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds that a child may take.
    const SECONDS: u32 = 20;

    /// What `body` says in a forked child; by the bare system call, if the C library is not to know of it.
    pub(super) fn in_child(bare: bool, body: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child calls what may be called after a fork, and ends.
        unsafe {
            let child =
                if bare { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as i32 } else { libc::fork() };
            assert!(child >= 0);
            if child == 0 {
                libc::alarm(SECONDS);
                libc::_exit(i32::from(!body()));
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
            status == 0
        }
    }

    #[test]
    fn a_child_has_another_number_than_all_before_it_also_with_the_same_id() {
        let own = generation();
        assert_eq!(own, generation());
        for bare in [false, true] {
            assert!(in_child(bare, || {
                let child = generation();
                child != own && child == generation() && in_child(bare, || ![own, child].contains(&generation()))
            }));
        }
        assert_eq!(own, generation());
    }

    #[test]
    fn without_pages_that_are_wiped_the_c_library_tells_a_child() {
        // SAFETY: the handler only writes the word.
        assert_eq!(unsafe { libc::pthread_atfork(None, None, Some(wipe)) }, 0);
        WORD.store(7, Ordering::Relaxed);
        assert!(in_child(false, || WORD.load(Ordering::Relaxed) == 0));
        WORD.store(0, Ordering::Relaxed);
    }
}

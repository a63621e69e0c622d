//! Which process this is, and what its threads share: locks, and values that are made once. A forked child has the
//! memory of its parent, but only the thread that forked. A lock that another thread held is never released in the
//! child, and a value that another thread was making is never finished. So locks and values keep the number of their
//! process ([`generation`]), and a child takes them over from threads that it does not have.
//!
//! `fork` copies memory page by page, while other threads go on. If a word says whether a value is whole, a child could
//! get the new word and the old value. So such words change only while no thread forks ([`settled`]), and `fork` waits
//! for such changes (`pthread_atfork`), which are short. It does not wait until locks are free or values are made: the
//! thread that forks may hold what others wait for. A child that is made without the C library's `fork` (by `clone`) is
//! safe as long as no other thread was in this module at that moment.

mod locks;
mod once;

pub use locks::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use once::{Lazy, Once};

use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::time::Duration;

/// Words that belong to one process: every child finds them zeroed.
#[repr(C)]
struct Own {
    /// The number of this process; 0 if it has none yet.
    number: AtomicU32,
    /// How many threads are forking.
    forking: AtomicU32,
    /// How many threads are in [`settled`].
    settling: AtomicU32,
}

impl Own {
    const fn new() -> Self {
        Self { number: AtomicU32::new(0), forking: AtomicU32::new(0), settling: AtomicU32::new(0) }
    }
}

/// The words of this process; null until they are made.
static OWN: AtomicPtr<Own> = AtomicPtr::new(std::ptr::null_mut());
/// The words, where the kernel cannot zero a page in children.
static WITHOUT_WIPING: Own = Own::new();
/// The last number that was given. A child starts from its parent's.
static LAST: AtomicU32 = AtomicU32::new(0);

/// The number of this process: never 0, and different from those of its parent, its parent's parent and so on. Process
/// ids do not do: in PID namespaces of their own a parent and its child may both have the id 1.
#[inline]
pub fn generation() -> u32 {
    // SAFETY: null, or words that are never freed.
    let number = unsafe { OWN.load(Ordering::Acquire).as_ref() }.map_or(0, |own| own.number.load(Ordering::Relaxed));
    if number != 0 { number } else { begin() }
}

/// Gives this process its number.
#[cold]
fn begin() -> u32 {
    let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    match own().number.compare_exchange(0, number, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => number,
        Err(first) => first,
    }
}

fn own() -> &'static Own {
    let mut found = OWN.load(Ordering::Acquire);
    if found.is_null() {
        let made = wiped();
        // If another thread is faster, this page leaks, and the handlers of forks are called twice, which does no harm.
        found = match OWN.compare_exchange(found, made, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => made,
            Err(first) => first,
        };
    }
    // SAFETY: words that are never freed.
    unsafe { &*found }
}

/// Makes words that are 0, and become 0 in every child.
fn wiped() -> *mut Own {
    const PAGE: usize = 4096;
    // SAFETY: the handlers use only these words; the page is new, and nothing else lies in it that the kernel could
    // zero.
    unsafe {
        libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(in_child));
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let page = libc::mmap(std::ptr::null_mut(), PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        if page != libc::MAP_FAILED {
            if libc::madvise(page, PAGE, libc::MADV_WIPEONFORK) == 0 {
                return page.cast();
            }
            libc::munmap(page, PAGE);
        }
    }
    // Linux before 4.14, or no memory: then `in_child` zeroes the words, in children that the C library makes.
    (&raw const WITHOUT_WIPING).cast_mut()
}

/// How often a thread that forks checks whether others are still in [`settled`]: longer than any of them takes. Not for
/// ever: it may fork in the handler of a signal that interrupted itself in there.
const CHECKS: u32 = 1000;
/// How long other threads wait for a thread that forks. Not for ever: it may wait for a lock that one of them holds.
const PATIENCE: Duration = Duration::from_secs(1);

unsafe extern "C" fn before_fork() {
    let own = own();
    own.forking.fetch_add(1, Ordering::SeqCst);
    let is_settling = || own.settling.load(Ordering::SeqCst) > 0;
    for _ in (0..CHECKS).take_while(|_| is_settling()) {
        std::thread::yield_now();
    }
}

unsafe extern "C" fn after_fork() {
    let own = own();
    own.forking.fetch_sub(1, Ordering::SeqCst);
    wake_all(&own.forking);
}

unsafe extern "C" fn in_child() {
    for word in [&WITHOUT_WIPING.number, &WITHOUT_WIPING.forking, &WITHOUT_WIPING.settling] {
        word.store(0, Ordering::Relaxed);
    }
}

/// Makes a change that children rely on (whether a value is whole) while no thread forks. The change must be short, and
/// call no other code.
fn settled<T>(change: impl FnOnce() -> T) -> T {
    let own = own();
    let mut waits = true;
    loop {
        own.settling.fetch_add(1, Ordering::SeqCst);
        let forking = own.forking.load(Ordering::SeqCst);
        if forking == 0 || !waits {
            break;
        }
        own.settling.fetch_sub(1, Ordering::SeqCst);
        waits = sleep_for(&own.forking, forking, Some(PATIENCE));
    }
    let changed = change();
    own.settling.fetch_sub(1, Ordering::SeqCst);
    changed
}

/// Sleeps until [`wake_all`] if `word` is still `value`; may return earlier. False if `most` has passed.
fn sleep_for(word: &AtomicU32, value: u32, most: Option<Duration>) -> bool {
    let most = most.map(|most| libc::timespec { tv_sec: most.as_secs() as i64, tv_nsec: most.subsec_nanos().into() });
    let most = most.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word and the time live until the call returns.
    let answer = unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, value, most)
    };
    answer == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ETIMEDOUT)
}

/// Sleeps until [`wake_all`] if `word` is still `value`; may return earlier.
pub fn sleep(word: &AtomicU32, value: u32) {
    sleep_for(word, value, None);
}

/// Wakes all threads that sleep on `word`.
pub fn wake_all(word: &AtomicU32) {
    // SAFETY: nothing is read or written; the address only tells which threads to wake.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, i32::MAX) };
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Seconds after which a child is ended.
    const SECONDS: u32 = 20;

    /// What `body` returns in a forked child; `bare`: forked by the system call, unknown to the C library.
    pub(crate) fn in_child(bare: bool, body: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child runs only `body`, which may run after a fork, and ends.
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
    fn a_child_has_another_number_than_its_parents_also_with_the_same_id() {
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
    fn without_wiped_pages_the_c_library_zeroes_the_words_of_a_child() {
        generation();
        WITHOUT_WIPING.number.store(7, Ordering::Relaxed);
        assert!(in_child(false, || WITHOUT_WIPING.number.load(Ordering::Relaxed) == 0));
        WITHOUT_WIPING.number.store(0, Ordering::Relaxed);
    }

    #[test]
    fn what_children_rely_on_does_not_change_while_a_thread_forks() {
        static WORD: AtomicU32 = AtomicU32::new(0);
        let own = own();
        own.forking.fetch_add(1, Ordering::SeqCst);
        let other = std::thread::spawn(|| settled(|| WORD.store(1, Ordering::SeqCst)));
        std::thread::sleep(PATIENCE / 5);
        let early = WORD.load(Ordering::SeqCst);
        // SAFETY: ends the fork that began above.
        unsafe { after_fork() };
        other.join().unwrap();
        assert_eq!((early, WORD.load(Ordering::SeqCst)), (0, 1));

        // A thread that forks may wait for one that waits for it: that one goes on after a while.
        own.forking.fetch_add(1, Ordering::SeqCst);
        settled(|| WORD.store(2, Ordering::SeqCst));
        // SAFETY: ends the fork that began above.
        unsafe { after_fork() };
        assert_eq!(WORD.load(Ordering::SeqCst), 2);
        // In a child nobody is forking.
        own.forking.fetch_add(1, Ordering::SeqCst);
        assert!(in_child(true, || super::own().forking.load(Ordering::SeqCst) == 0 && settled(|| true)));
        // SAFETY: ends the fork that began above.
        unsafe { after_fork() };
    }
}

//! Which process this is, and what threads of it share: locks, and things that are made once. A forked child has the memory
//! of its parent but none of its other threads: what one of those held, or was about to make, nobody will ever give back.
//! So both know who holds them by [`generation`]; a child takes from threads that it does not have.
//!
//! `fork` copies memory page by page, while other threads go on. So what tells a child whether something is whole changes only
//! while nobody forks ([`settled`]): else a child could have the new word and the old memory. That is all that `fork` waits for
//! (`pthread_atfork`). It does not wait until locks are free or things are made: who forks may hold what the other threads want.
//! A child that was made past the C library (`clone`) is safe as long as no other thread was in here meanwhile.

mod locks;
mod once;

pub use locks::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use once::{Lazy, Once};

use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::time::Duration;

/// What every child finds zeroed.
#[repr(C)]
struct Own {
    /// The number of this process; 0: none yet.
    number: AtomicU32,
    /// Threads that are forking.
    forking: AtomicU32,
    /// Threads that are in [`settled`].
    settling: AtomicU32,
}

impl Own {
    const fn new() -> Self {
        Self { number: AtomicU32::new(0), forking: AtomicU32::new(0), settling: AtomicU32::new(0) }
    }
}

/// Where that is. Null: not made yet.
static OWN: AtomicPtr<Own> = AtomicPtr::new(std::ptr::null_mut());
/// It, where the kernel does not zero pages in a child.
static KEPT: Own = Own::new();
/// The last number that was given. Children have it from their parents.
static LAST: AtomicU32 = AtomicU32::new(0);

/// The number of this process: never 0, and another one than any of those that it was forked from. Process ids do not tell
/// them apart: in namespaces of their own a parent and its child may both have the id 1.
#[inline]
pub fn generation() -> u32 {
    // SAFETY: null, or words that stay.
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
        // Another thread may be faster: the slower one's page is left alone, and the handlers are called twice.
        found = match OWN.compare_exchange(found, made, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => made,
            Err(first) => first,
        };
    }
    // SAFETY: words that stay.
    unsafe { &*found }
}

/// Words that are 0, and become 0 in every child.
fn wiped() -> *mut Own {
    const PAGE: usize = 4096;
    // SAFETY: new memory, and handlers that only use these words. What the kernel does to the page in a child, it does to
    // nothing else.
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
    // Linux before 4.14, or no memory: then the C library tells children, those that it makes itself.
    (&raw const KEPT).cast_mut()
}

/// How often a thread that forks looks whether others are done: longer than any of them takes. Not for ever: it may itself have
/// been interrupted by the signal in whose handler it forks.
const LOOKS: u32 = 1000;
/// How long others wait for a thread that forks. Not for ever: it may wait for what one of them holds.
const PATIENCE: Duration = Duration::from_secs(1);

unsafe extern "C" fn before_fork() {
    let own = own();
    own.forking.fetch_add(1, Ordering::SeqCst);
    let is_settling = || own.settling.load(Ordering::SeqCst) > 0;
    for _ in (0..LOOKS).take_while(|_| is_settling()) {
        std::thread::yield_now();
    }
}

unsafe extern "C" fn after_fork() {
    let own = own();
    own.forking.fetch_sub(1, Ordering::SeqCst);
    wake_all(&own.forking);
}

unsafe extern "C" fn in_child() {
    for word in [&KEPT.number, &KEPT.forking, &KEPT.settling] {
        word.store(0, Ordering::Relaxed);
    }
}

/// Makes a change that tells a child whether something is whole, while no thread forks. It must take no time, and call nobody.
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

/// Sleeps until [`wake_all`], if `word` is still `value`; may come back without that. False if it took longer than `most`.
fn sleep_for(word: &AtomicU32, value: u32, most: Option<Duration>) -> bool {
    let most = most.map(|most| libc::timespec { tv_sec: most.as_secs() as i64, tv_nsec: most.subsec_nanos().into() });
    let most = most.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word lives, and so does the time.
    let answer = unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, value, most)
    };
    answer == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ETIMEDOUT)
}

/// Sleeps until [`wake_all`], if `word` is still `value`; may come back without that.
pub fn sleep(word: &AtomicU32, value: u32) {
    sleep_for(word, value, None);
}

/// Wakes all that sleep on `word`.
pub fn wake_all(word: &AtomicU32) {
    // SAFETY: the address only names the sleepers.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, i32::MAX) };
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Seconds that a child may take.
    const SECONDS: u32 = 20;

    /// What `body` says in a forked child; by the bare system call, if the C library is not to know of it.
    pub(crate) fn in_child(bare: bool, body: impl FnOnce() -> bool) -> bool {
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
        generation();
        KEPT.number.store(7, Ordering::Relaxed);
        assert!(in_child(false, || KEPT.number.load(Ordering::Relaxed) == 0));
        KEPT.number.store(0, Ordering::Relaxed);
    }

    #[test]
    fn what_children_rely_on_does_not_change_while_a_thread_forks() {
        static WORD: AtomicU32 = AtomicU32::new(0);
        let own = own();
        own.forking.fetch_add(1, Ordering::SeqCst);
        let other = std::thread::spawn(|| settled(|| WORD.store(1, Ordering::SeqCst)));
        std::thread::sleep(PATIENCE / 5);
        let early = WORD.load(Ordering::SeqCst);
        // SAFETY: the other half of what was done above.
        unsafe { after_fork() };
        other.join().unwrap();
        assert_eq!((early, WORD.load(Ordering::SeqCst)), (0, 1));

        // Who forks may wait for somebody who waits for it.
        own.forking.fetch_add(1, Ordering::SeqCst);
        settled(|| WORD.store(2, Ordering::SeqCst));
        // SAFETY: as above.
        unsafe { after_fork() };
        assert_eq!(WORD.load(Ordering::SeqCst), 2);
        // A child settles at once, whoever was forking.
        own.forking.fetch_add(1, Ordering::SeqCst);
        assert!(in_child(true, || super::own().forking.load(Ordering::SeqCst) == 0 && settled(|| true)));
        // SAFETY: as above.
        unsafe { after_fork() };
    }
}

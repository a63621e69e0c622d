//! Locks that survive a fork. In a forked child nobody holds them. If another thread of the parent was writing when it
//! forked, the value may be half written: in the child it begins anew with its default. A panic does not poison a lock:
//! the code under these locks leaves values whole when it panics.

use std::cell::UnsafeCell;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use super::{generation, settled};

/// Added to the number of a process that is about to take a lock over.
const TAKING: u32 = 1 << 31;

/// A lock of the standard library, and who uses it.
struct Owned<L> {
    /// The number of the process that it belongs to; 0 until it is used.
    process: AtomicU32,
    /// Whether a thread may be writing the value.
    writes: AtomicBool,
    lock: UnsafeCell<L>,
}

/// What both kinds of locks can do.
trait Lock<T> {
    fn make(value: T) -> Self;
    fn take(self) -> T;
}

impl<T> Lock<T> for std::sync::Mutex<T> {
    fn make(value: T) -> Self {
        Self::new(value)
    }

    fn take(self) -> T {
        self.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Lock<T> for std::sync::RwLock<T> {
    fn make(value: T) -> Self {
        Self::new(value)
    }

    fn take(self) -> T {
        self.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<L> Owned<L> {
    const fn new(lock: L) -> Self {
        Self { process: AtomicU32::new(0), writes: AtomicBool::new(false), lock: UnsafeCell::new(lock) }
    }

    /// The lock. If anybody holds it, it is a thread of this process.
    #[inline]
    fn of_this_process<T: Default>(&self) -> &L
    where
        L: Lock<T>,
    {
        if self.process.load(Ordering::Acquire) != generation() {
            self.take_over();
        }
        // SAFETY: it belongs to this process, where it is not replaced any more.
        unsafe { &*self.lock.get() }
    }

    #[cold]
    fn take_over<T: Default>(&self)
    where
        L: Lock<T>,
    {
        let mine = generation();
        loop {
            let of = self.process.load(Ordering::Acquire);
            if of == mine {
                return;
            }
            if of == mine | TAKING {
                // Another thread of this process is taking it over, which takes no time.
                std::thread::yield_now();
                continue;
            }
            let take = || self.process.compare_exchange(of, mine | TAKING, Ordering::AcqRel, Ordering::Relaxed);
            if settled(take).is_err() {
                continue;
            }
            // The first: this process was forked while its parent took the lock over, which may be half done.
            let is_torn = of & TAKING != 0 || self.writes.load(Ordering::Relaxed);
            if of != 0 {
                // SAFETY: no thread of this process uses the lock before it belongs to this process. A value that may
                // be half written is never read; its memory leaks.
                unsafe {
                    let value = if is_torn { T::default() } else { self.lock.get().read().take() };
                    self.lock.get().write(L::make(value));
                }
            }
            return settled(|| {
                self.writes.store(false, Ordering::Relaxed);
                self.process.store(mine, Ordering::Release);
            });
        }
    }
}

/// A lock that one thread holds at a time.
pub struct Mutex<T>(Owned<std::sync::Mutex<T>>);

// SAFETY: as for the lock inside, which is replaced only while nobody uses it.
unsafe impl<T: Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    /// Around `value`.
    pub const fn new(value: T) -> Self {
        Self(Owned::new(std::sync::Mutex::new(value)))
    }
}

impl<T: Default> Mutex<T> {
    /// Waits until no other thread holds the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let guard = self.0.of_this_process().lock().unwrap_or_else(PoisonError::into_inner);
        WriteGuard::begin(guard, &self.0.writes)
    }
}

/// A lock that one thread holds for writing, or any number for reading.
pub struct RwLock<T>(Owned<std::sync::RwLock<T>>);

// SAFETY: as for the lock inside, which is replaced only while nobody uses it.
unsafe impl<T: Send + Sync> Sync for RwLock<T> {}

/// Holds an [`RwLock`] for reading.
pub type RwLockReadGuard<'a, T> = std::sync::RwLockReadGuard<'a, T>;

impl<T> RwLock<T> {
    /// Around `value`.
    pub const fn new(value: T) -> Self {
        Self(Owned::new(std::sync::RwLock::new(value)))
    }
}

impl<T: Default> RwLock<T> {
    /// Waits until nobody writes.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.of_this_process().read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody reads or writes.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        let guard = self.0.of_this_process().write().unwrap_or_else(PoisonError::into_inner);
        WriteGuard::begin(guard, &self.0.writes)
    }
}

/// A guard of the standard library through which the value may be written. While it lives, the lock's `writes` says so.
pub struct WriteGuard<'a, G> {
    guard: ManuallyDrop<G>,
    writes: &'a AtomicBool,
}

/// Holds a [`Mutex`].
pub type MutexGuard<'a, T> = WriteGuard<'a, std::sync::MutexGuard<'a, T>>;
/// Holds an [`RwLock`] for writing.
pub type RwLockWriteGuard<'a, T> = WriteGuard<'a, std::sync::RwLockWriteGuard<'a, T>>;

impl<'a, G> WriteGuard<'a, G> {
    /// Before anything is written.
    fn begin(guard: G, writes: &'a AtomicBool) -> Self {
        settled(|| writes.swap(true, Ordering::AcqRel));
        Self { guard: ManuallyDrop::new(guard), writes }
    }

    /// The guard inside, after everything was written.
    fn end(mut self) -> (G, &'a AtomicBool) {
        settled(|| self.writes.store(false, Ordering::Release));
        // SAFETY: it is not used again: `self` is forgotten.
        let guard = unsafe { ManuallyDrop::take(&mut self.guard) };
        let writes = self.writes;
        std::mem::forget(self);
        (guard, writes)
    }
}

impl<G> Drop for WriteGuard<'_, G> {
    fn drop(&mut self) {
        settled(|| self.writes.store(false, Ordering::Release));
        // SAFETY: it is not used again.
        unsafe { ManuallyDrop::drop(&mut self.guard) };
    }
}

impl<G: Deref> Deref for WriteGuard<'_, G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for WriteGuard<'_, G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

/// Where threads wait until the value of a mutex has changed.
#[derive(Default)]
pub struct Condvar(std::sync::Condvar);

impl Condvar {
    /// Nobody waits yet.
    pub const fn new() -> Self {
        Self(std::sync::Condvar::new())
    }

    /// Releases the lock while `is` is true, and takes it again. `is` must only read the value.
    pub fn wait_while<'a, T>(&self, guard: MutexGuard<'a, T>, is: impl FnMut(&mut T) -> bool) -> MutexGuard<'a, T> {
        let (guard, writes) = guard.end();
        let guard = self.0.wait_while(guard, is).unwrap_or_else(PoisonError::into_inner);
        WriteGuard::begin(guard, writes)
    }

    /// Releases the lock until another thread wakes this one, or for `time`, and takes it again.
    pub fn wait_timeout<'a, T>(&self, guard: MutexGuard<'a, T>, time: Duration) -> MutexGuard<'a, T> {
        let (guard, writes) = guard.end();
        let (guard, _) = self.0.wait_timeout(guard, time).unwrap_or_else(PoisonError::into_inner);
        WriteGuard::begin(guard, writes)
    }

    /// Wakes all threads that wait.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::super::tests::in_child;
    use super::*;

    /// Forks while another thread is in `hold`, which calls its argument once it holds a lock.
    fn while_held(hold: impl Fn(&dyn Fn()) + Send + 'static, in_the_child: impl Fn() -> bool) {
        let ((told, is_held), (let_go, go_on)) = (channel(), channel::<()>());
        let holder = std::thread::spawn(move || {
            hold(&|| {
                told.send(()).unwrap();
                let _ = go_on.recv();
            })
        });
        is_held.recv().unwrap();
        for bare in [false, true] {
            // Also in a child's child, which finds locks that its parent has taken over.
            assert!(in_child(bare, || in_the_child() && in_child(bare, &in_the_child)));
        }
        drop(let_go);
        holder.join().unwrap();
    }

    #[test]
    fn in_a_child_nobody_holds_a_lock_and_whole_values_stay() {
        static MUTEX: Mutex<Vec<u32>> = Mutex::new(Vec::new());
        static LOCK: RwLock<Vec<u32>> = RwLock::new(Vec::new());
        MUTEX.lock().push(1);
        LOCK.write().push(1);
        while_held(
            |held| (LOCK.read(), held()).1,
            || {
                LOCK.read()[..] == [1] && LOCK.write().pop() == Some(1) && LOCK.write().is_empty() && {
                    LOCK.write().push(1);
                    true
                }
            },
        );
        assert!(in_child(true, || MUTEX.lock()[..] == [1]));
        assert_eq!((LOCK.read().len(), MUTEX.lock().len()), (1, 1));
    }

    #[test]
    fn in_a_child_a_value_that_was_being_written_begins_anew() {
        static MUTEX: Mutex<Vec<u32>> = Mutex::new(Vec::new());
        static LOCK: RwLock<Vec<u32>> = RwLock::new(Vec::new());
        while_held(
            |held| {
                let mut list = MUTEX.lock();
                list.push(1);
                held();
            },
            || MUTEX.lock().is_empty(),
        );
        while_held(
            |held| {
                let mut list = LOCK.write();
                list.push(1);
                held();
            },
            || LOCK.read().is_empty() && LOCK.write().is_empty(),
        );
        assert_eq!((LOCK.read().len(), MUTEX.lock().len()), (1, 1));
    }

    #[test]
    fn a_thread_that_waits_for_a_change_is_woken() {
        static MUTEX: Mutex<u32> = Mutex::new(0);
        static CHANGED: Condvar = Condvar::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                *MUTEX.lock() = 1;
                CHANGED.notify_all();
            });
            assert_eq!(*CHANGED.wait_while(MUTEX.lock(), |number| *number == 0), 1);
        });
        // A thread that waits for the lock writes nothing.
        while_held(
            |held| {
                held();
                drop(MUTEX.lock());
            },
            || *MUTEX.lock() == 1,
        );
    }
}

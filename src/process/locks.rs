//! Locks. A thread that panics leaves what they protect whole. In a forked child nobody holds them: if a thread that the child
//! does not have was writing when its process was forked, what the lock protects begins anew, for it may be half written.

use std::cell::UnsafeCell;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use super::{generation, settled};

/// Set in the number of the process that a lock belongs to: that is about to take it over.
const TAKING: u32 = 1 << 31;

/// A lock of the standard library, the number of the process that it belongs to (0: the first that uses it), and whether
/// somebody writes what it protects.
struct Owned<L> {
    process: AtomicU32,
    writes: AtomicBool,
    lock: UnsafeCell<L>,
}

/// What the two kinds have in common.
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

    /// The lock, which threads of this process hold or nobody.
    #[inline]
    fn of_this_process<T: Default>(&self) -> &L
    where
        L: Lock<T>,
    {
        if self.process.load(Ordering::Acquire) != generation() {
            self.take_over();
        }
        // SAFETY: it is not written any more in this process.
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
                // Another thread of this process does it; it takes no time.
                std::thread::yield_now();
                continue;
            }
            let take = || self.process.compare_exchange(of, mine | TAKING, Ordering::AcqRel, Ordering::Relaxed);
            if settled(take).is_err() {
                continue;
            }
            // Forked while the parent took it over from its own parent: half done, perhaps.
            let is_torn = of & TAKING != 0 || self.writes.load(Ordering::Relaxed);
            if of != 0 {
                // SAFETY: no thread of this process uses the lock before it belongs to it. What may be half written is left where
                // it is, and never looked at.
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

/// One at a time.
pub struct Mutex<T>(Owned<std::sync::Mutex<T>>);

// SAFETY: as the lock inside; it is replaced only while nobody uses it.
unsafe impl<T: Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    /// Around `value`.
    pub const fn new(value: T) -> Self {
        Self(Owned::new(std::sync::Mutex::new(value)))
    }
}

impl<T: Default> Mutex<T> {
    /// Waits for it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let guard = self.0.of_this_process().lock().unwrap_or_else(PoisonError::into_inner);
        MutexGuard(Writing::begin(guard, &self.0.writes))
    }
}

/// One that writes, or any number that read.
pub struct RwLock<T>(Owned<std::sync::RwLock<T>>);

// SAFETY: as for a mutex.
unsafe impl<T: Send + Sync> Sync for RwLock<T> {}

/// Reads what a lock protects.
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
        RwLockWriteGuard(Writing::begin(guard, &self.0.writes))
    }
}

/// A guard that may write, and the lock's word that says so.
struct Writing<'a, G> {
    guard: ManuallyDrop<G>,
    writes: &'a AtomicBool,
}

impl<'a, G> Writing<'a, G> {
    fn begin(guard: G, writes: &'a AtomicBool) -> Self {
        // Before anything is written.
        settled(|| writes.swap(true, Ordering::AcqRel));
        Self { guard: ManuallyDrop::new(guard), writes }
    }

    /// The guard, after what was written.
    fn end(mut self) -> (G, &'a AtomicBool) {
        settled(|| self.writes.store(false, Ordering::Release));
        // SAFETY: nobody uses it afterwards.
        let guard = unsafe { ManuallyDrop::take(&mut self.guard) };
        let writes = self.writes;
        std::mem::forget(self);
        (guard, writes)
    }
}

impl<G> Drop for Writing<'_, G> {
    fn drop(&mut self) {
        settled(|| self.writes.store(false, Ordering::Release));
        // SAFETY: nobody uses it afterwards.
        unsafe { ManuallyDrop::drop(&mut self.guard) };
    }
}

/// Holds a [`Mutex`].
pub struct MutexGuard<'a, T>(Writing<'a, std::sync::MutexGuard<'a, T>>);
/// Holds a [`RwLock`] for writing.
pub struct RwLockWriteGuard<'a, T>(Writing<'a, std::sync::RwLockWriteGuard<'a, T>>);

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.guard
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0.guard
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.guard
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0.guard
    }
}

/// Where threads wait until what a mutex protects has changed.
#[derive(Default)]
pub struct Condvar(std::sync::Condvar);

impl Condvar {
    /// Nobody waits.
    pub const fn new() -> Self {
        Self(std::sync::Condvar::new())
    }

    /// Gives the lock away as long as `is` holds, which only looks.
    pub fn wait_while<'a, T>(&self, guard: MutexGuard<'a, T>, is: impl FnMut(&mut T) -> bool) -> MutexGuard<'a, T> {
        let (guard, writes) = guard.0.end();
        let guard = self.0.wait_while(guard, is).unwrap_or_else(PoisonError::into_inner);
        MutexGuard(Writing::begin(guard, writes))
    }

    /// Gives the lock away until somebody wakes this thread, or for so long.
    pub fn wait_timeout<'a, T>(&self, guard: MutexGuard<'a, T>, time: Duration) -> MutexGuard<'a, T> {
        let (guard, writes) = guard.0.end();
        let (guard, _) = self.0.wait_timeout(guard, time).unwrap_or_else(PoisonError::into_inner);
        MutexGuard(Writing::begin(guard, writes))
    }

    /// Wakes all that wait.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::super::tests::in_child;
    use super::*;

    /// Forks while another thread is in `hold`, which calls what it is given when it holds something.
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
            // A child of a child too, which finds what its parent has taken over.
            assert!(in_child(bare, || in_the_child() && in_child(bare, &in_the_child)));
        }
        drop(let_go);
        holder.join().unwrap();
    }

    #[test]
    fn in_a_child_nobody_holds_what_is_whole() {
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
    fn in_a_child_what_was_being_written_begins_anew() {
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
    fn who_waits_for_a_change_is_told() {
        static MUTEX: Mutex<u32> = Mutex::new(0);
        static CHANGED: Condvar = Condvar::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                *MUTEX.lock() = 1;
                CHANGED.notify_all();
            });
            assert_eq!(*CHANGED.wait_while(MUTEX.lock(), |number| *number == 0), 1);
        });
        // Who waits, writes nothing.
        while_held(
            |held| {
                held();
                drop(MUTEX.lock());
            },
            || *MUTEX.lock() == 1,
        );
    }
}

//! The locks of the C library, for `cargo xtask race`. ThreadSanitizer knows them; the standard library's are compiled
//! without it, so that it would not see that they order anything.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};

/// A lock that one thread holds at a time.
pub struct Mutex<T> {
    raw: UnsafeCell<libc::pthread_mutex_t>,
    value: UnsafeCell<T>,
}

// SAFETY: the lock lets one thread at a time to the value.
unsafe impl<T: Send> Sync for Mutex<T> {}
// SAFETY: no thread holds it while it moves.
unsafe impl<T: Send> Send for Mutex<T> {}

/// Holds a [`Mutex`].
pub struct MutexGuard<'a, T>(&'a Mutex<T>);

impl<T> Mutex<T> {
    /// Around `value`.
    pub const fn new(value: T) -> Self {
        Self { raw: UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER), value: UnsafeCell::new(value) }
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        // SAFETY: it does not move while it is borrowed.
        unsafe { libc::pthread_mutex_lock(self.raw.get()) };
        MutexGuard(self)
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the lock is held.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: this thread has locked it.
        unsafe { libc::pthread_mutex_unlock(self.0.raw.get()) };
    }
}

/// A lock that one writer or any number of readers hold.
pub struct RwLock<T> {
    raw: UnsafeCell<libc::pthread_rwlock_t>,
    value: UnsafeCell<T>,
}

// SAFETY: the lock lets threads that read, or one that writes, to the value.
unsafe impl<T: Send + Sync> Sync for RwLock<T> {}
// SAFETY: no thread holds it while it moves.
unsafe impl<T: Send> Send for RwLock<T> {}

/// Holds a [`RwLock`] for reading.
pub struct RwLockReadGuard<'a, T>(&'a RwLock<T>);
/// Holds a [`RwLock`] for writing.
pub struct RwLockWriteGuard<'a, T>(&'a RwLock<T>);

impl<T> RwLock<T> {
    /// Around `value`.
    pub const fn new(value: T) -> Self {
        Self { raw: UnsafeCell::new(libc::PTHREAD_RWLOCK_INITIALIZER), value: UnsafeCell::new(value) }
    }

    /// Waits until no thread writes.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        // SAFETY: it does not move while it is borrowed.
        unsafe { libc::pthread_rwlock_rdlock(self.raw.get()) };
        RwLockReadGuard(self)
    }

    /// Waits until no thread reads or writes.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        // SAFETY: it does not move while it is borrowed.
        unsafe { libc::pthread_rwlock_wrlock(self.raw.get()) };
        RwLockWriteGuard(self)
    }
}

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the lock is held.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the lock is held.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for RwLockReadGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: this thread has locked it.
        unsafe { libc::pthread_rwlock_unlock(self.0.raw.get()) };
    }
}

impl<T> Drop for RwLockWriteGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: this thread has locked it.
        unsafe { libc::pthread_rwlock_unlock(self.0.raw.get()) };
    }
}

/// Where threads wait until what a mutex protects has changed.
pub struct Condvar(UnsafeCell<libc::pthread_cond_t>);

// SAFETY: a condition variable of the C library is made for several threads.
unsafe impl Sync for Condvar {}

impl Condvar {
    /// One that no thread waits for.
    pub const fn new() -> Self {
        Self(UnsafeCell::new(libc::PTHREAD_COND_INITIALIZER))
    }

    /// Gives up the lock until another thread has woken this one and `is` no longer holds.
    pub fn wait_while<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        mut is: impl FnMut(&mut T) -> bool,
    ) -> MutexGuard<'a, T> {
        while is(&mut guard) {
            // SAFETY: this thread has locked the mutex.
            unsafe { libc::pthread_cond_wait(self.0.get(), guard.0.raw.get()) };
        }
        guard
    }

    /// Wakes all threads that wait.
    pub fn notify_all(&self) {
        // SAFETY: it does not move while it is borrowed.
        unsafe { libc::pthread_cond_broadcast(self.0.get()) };
    }
}

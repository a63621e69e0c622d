//! Values that are made once, by the first thread that wants them; also when a process forks while one is being made.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{generation, settled, sleep, wake_all};

/// State: not made, and no thread is making it.
const NOBODY: u32 = 0;
/// State: made.
const THERE: u32 = u32::MAX;
/// In any other state a thread is making it. The upper 31 bits are the number of its process; the lowest bit says that
/// other threads sleep until it is there.
const ASLEEP: u32 = 1;

/// A value that is made at most once in a process, and once made not again in its children. If a thread was making it
/// when another one forked, the child makes it anew; side effects that it had until then stay.
pub struct Once<T> {
    state: AtomicU32,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: one thread writes the value, and others read it only afterwards.
unsafe impl<T: Send + Sync> Sync for Once<T> {}
// SAFETY: a `Once` that moves is not borrowed, so no thread is making the value.
unsafe impl<T: Send> Send for Once<T> {}

impl<T> Once<T> {
    /// Not made yet.
    pub const fn new() -> Self {
        Self { state: AtomicU32::new(NOBODY), value: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    /// The value, if it was made. Never waits.
    #[inline]
    pub fn get(&self) -> Option<&T> {
        // SAFETY: the value was written before the state became `THERE`, and is not written again.
        (self.state.load(Ordering::Acquire) == THERE).then(|| unsafe { (*self.value.get()).assume_init_ref() })
    }

    /// The value; made by `make` if it was not made yet. If `make` panics, the next caller makes it.
    #[inline]
    pub fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        match self.get() {
            Some(value) => value,
            None => self.wait_or_make(make),
        }
    }

    /// Sets the value; gives `value` back if it was made before.
    pub fn set(&self, value: T) -> Result<(), T> {
        let mut value = Some(value);
        self.get_or_init(|| value.take().expect("asked once"));
        value.map_or(Ok(()), Err)
    }

    #[cold]
    fn wait_or_make(&self, make: impl FnOnce() -> T) -> &T {
        let (mut make, mut made) = (Some(make), None);
        loop {
            if let Some(value) = self.get() {
                return value;
            }
            let mine = generation() << 1;
            let state = self.state.load(Ordering::Acquire);
            let exchange = |new| self.state.compare_exchange(state, new, Ordering::Acquire, Ordering::Relaxed).is_ok();
            if state == THERE {
                continue;
            }
            if state & !ASLEEP == mine {
                if state & ASLEEP != 0 || exchange(mine | ASLEEP) {
                    sleep(&self.state, mine | ASLEEP);
                }
                continue;
            }
            // Nobody is making it, or only a thread of a process that this one was forked from.
            if !exchange(mine) {
                continue;
            }
            let making = Making { state: &self.state, mine };
            let value = made.take().unwrap_or_else(|| make.take().expect("made at most once")());
            if self.state.load(Ordering::Relaxed) & !ASLEEP != mine {
                // `make` forked, and asked for the value in the child: the state is not this thread's any more.
                made = Some(value);
                continue;
            }
            // SAFETY: only the thread in the state writes the value; others read it once it is `THERE`.
            unsafe { (*self.value.get()).write(value) };
            making.end(THERE);
        }
    }
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Drop for Once<T> {
    fn drop(&mut self) {
        if *self.state.get_mut() == THERE {
            // SAFETY: the value was made, and is not used again.
            unsafe { self.value.get_mut().assume_init_drop() };
        }
    }
}

/// Lives while a thread makes the value; dropped by a panic, it makes the state `NOBODY` again.
struct Making<'a> {
    state: &'a AtomicU32,
    mine: u32,
}

impl Making<'_> {
    fn end(self, state: u32) {
        self.leave(state);
        std::mem::forget(self);
    }

    fn leave(&self, new: u32) {
        let leave = |old| (old & !ASLEEP == self.mine).then_some(new);
        let left = settled(|| self.state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, leave));
        if left.is_ok_and(|old| old & ASLEEP != 0) {
            wake_all(self.state);
        }
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.leave(NOBODY);
    }
}

/// A value that is made when it is used first.
pub struct Lazy<T> {
    once: Once<T>,
    make: fn() -> T,
}

impl<T> Lazy<T> {
    /// To be made by `make`.
    pub const fn new(make: fn() -> T) -> Self {
        Self { once: Once::new(), make }
    }
}

impl<T> Deref for Lazy<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.once.get_or_init(self.make)
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize};
    use std::time::Duration;

    use super::super::tests::in_child;
    use super::*;

    #[test]
    fn a_value_is_made_once_and_all_other_threads_wait() {
        let (once, made) = (Once::new(), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let make = || {
                        std::thread::sleep(Duration::from_millis(20));
                        made.fetch_add(1, Ordering::Relaxed) + 5
                    };
                    assert_eq!(*once.get_or_init(make), 5);
                });
            }
        });
        assert_eq!((once.get(), once.set(9), made.into_inner()), (Some(&5), Err(9), 1));
    }

    #[test]
    fn after_a_panic_the_next_caller_makes_it_and_what_was_made_is_dropped() {
        let (once, value) = (Once::new(), Arc::new(1));
        assert!(catch_unwind(AssertUnwindSafe(|| once.get_or_init(|| panic!("planted")))).is_err());
        assert!(once.get().is_none());
        assert!(once.set(value.clone()).is_ok());
        drop(once);
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn a_child_makes_what_a_thread_of_its_parent_was_making() {
        static ONCE: Once<u32> = Once::new();
        static LAZY: Lazy<Vec<u32>> = Lazy::new(|| vec![1]);
        static IS_MAKING: AtomicBool = AtomicBool::new(false);
        static GO_ON: AtomicBool = AtomicBool::new(false);
        let wait = |flag: &AtomicBool| {
            while !flag.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
        };
        let maker = std::thread::spawn(move || {
            *ONCE.get_or_init(|| {
                IS_MAKING.store(true, Ordering::Release);
                wait(&GO_ON);
                1
            })
        });
        let waiter = std::thread::spawn(move || {
            wait(&IS_MAKING);
            *ONCE.get_or_init(|| 3)
        });
        wait(&IS_MAKING);
        std::thread::sleep(Duration::from_millis(50));
        for bare in [false, true] {
            assert!(in_child(bare, || ONCE.get().is_none() && *ONCE.get_or_init(|| 2) == 2 && ONCE.get() == Some(&2)));
        }
        assert!(ONCE.get().is_none());
        GO_ON.store(true, Ordering::Release);
        assert_eq!((maker.join().unwrap(), waiter.join().unwrap(), LAZY.len()), (1, 1, 1));
        assert!(in_child(true, || *ONCE.get_or_init(|| 4) == 1 && LAZY[0] == 1));
    }

    #[test]
    fn a_thread_that_forks_in_make_makes_the_value_in_both_processes() {
        static ONCE: Once<u32> = Once::new();
        let made = *ONCE.get_or_init(|| {
            // Asks for it in the child, where nobody is making it.
            assert!(in_child(false, || *ONCE.get_or_init(|| 2) == 2));
            1
        });
        assert_eq!((made, ONCE.get()), (1, Some(&1)));
    }
}

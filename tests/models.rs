//! What threads share, in every order that a processor may do it in (loom). The sources are compiled as they are, with
//! loom's locks and atomics in place of the real ones.

// A model does not use everything.
#[allow(dead_code)]
#[path = "../src/host/ik/address_map.rs"]
mod address_map;
#[allow(dead_code)]
#[path = "../src/cpu/rendezvous.rs"]
mod rendezvous;

mod sync {
    pub use loom::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
    use loom::sync::{Condvar, Mutex, RwLockReadGuard, RwLockWriteGuard};

    pub struct RwLock<T>(loom::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub fn new(value: T) -> Self {
            Self(loom::sync::RwLock::new(value))
        }

        pub fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap()
        }

        pub fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap()
        }
    }

    loom::lazy_static! {
        /// All threads sleep here, whatever word they sleep on.
        static ref BED: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());
    }

    pub fn look(_: bool, there: impl Fn() -> bool) -> bool {
        there()
    }

    /// Compares and sleeps in one step, as the operating system does.
    pub fn sleep(word: &AtomicU32, value: u32) {
        let guard = BED.0.lock().unwrap();
        if word.load(Ordering::Relaxed) == value {
            drop(BED.1.wait(guard).unwrap());
        }
    }

    pub fn wake_all(_: &AtomicU32) {
        let _guard = BED.0.lock().unwrap();
        BED.1.notify_all();
    }
}

use address_map::AddressMap;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use rendezvous::{Rendezvous, Signal};

/// Runs `run` in all orders with up to `switches` switches away from a thread that could have gone on.
fn model(switches: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(switches);
    builder.check(run);
}

/// One word for each thread; loom fails if a word is read and written at the same time.
struct Words(Vec<UnsafeCell<usize>>);

// SAFETY: loom checks all accesses.
unsafe impl Sync for Words {}
// SAFETY: loom checks all accesses.
unsafe impl Send for Words {}

impl Words {
    fn new(count: usize) -> Self {
        Self((0..count).map(|_| UnsafeCell::new(0)).collect())
    }

    fn set(&self, at: usize, value: usize) {
        // SAFETY: loom checks all accesses.
        self.0[at].with_mut(|word| unsafe { *word = value });
    }

    fn get(&self, at: usize) -> usize {
        // SAFETY: loom checks all accesses.
        self.0[at].with(|word| unsafe { *word })
    }
}

/// Every thread writes its word, meets the others, reads all words, and meets them again.
fn meetings(threads: usize, rounds: usize) {
    let shared = Arc::new((Rendezvous::new(), Words::new(threads)));
    let run = move |thread: usize, shared: &(Rendezvous, Words)| {
        let (meeting, words) = shared;
        for round in 1..=rounds {
            words.set(thread, round);
            meeting.wait(threads, false);
            (0..threads).for_each(|other| assert_eq!(words.get(other), round));
            meeting.wait(threads, false);
        }
    };
    let others: Vec<_> = (1..threads)
        .map(|thread| {
            let shared = shared.clone();
            thread::spawn(move || run(thread, &shared))
        })
        .collect();
    run(0, &shared);
    others.into_iter().for_each(|other| other.join().unwrap());
}

#[test]
fn two_threads_see_each_others_words_at_every_meeting() {
    model(3, || meetings(2, 2));
}

#[test]
fn three_threads_see_each_others_words_at_every_meeting() {
    model(2, || meetings(3, 1));
}

#[test]
fn a_signal_wakes_everybody_that_waits_for_its_value_or_a_smaller_one() {
    model(3, || {
        let shared = Arc::new((Signal::new(), Words::new(2)));
        let waiting: Vec<_> = [1, 2]
            .into_iter()
            .map(|wanted| {
                let shared = shared.clone();
                thread::spawn(move || {
                    shared.0.wait_until(true, |value| value >= wanted);
                    (0..wanted as usize).for_each(|word| assert_eq!(shared.1.get(word), 7));
                })
            })
            .collect();
        for word in 0..2 {
            shared.1.set(word, 7);
            shared.0.set(word as u32 + 1);
        }
        waiting.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// One thread looks up a tensor that is always there, while another one loads and unloads a model.
fn loading<const REGIONS: usize>() {
    let map = Arc::new(AddressMap::<u32, REGIONS>::new());
    map.add_region(100..200);
    map.add(120, 10, 1);
    let other = map.clone();
    let loader = thread::spawn(move || {
        other.add_region(300..400);
        other.add(310, 10, 2);
        assert_eq!(other.around(319), Some((310, 2)));
        other.remove_region(300..400);
        assert_eq!(other.around(319), None);
    });
    assert_eq!(map.around(129), Some((120, 1)));
    assert_eq!(map.around(130), None);
    loader.join().unwrap();
    assert_eq!(map.totals(), (1, 10));
}

#[test]
fn a_tensor_is_found_while_another_model_is_loaded_and_unloaded() {
    model(3, loading::<2>);
}

#[test]
fn a_tensor_is_found_when_there_are_more_buffers_than_places_for_them() {
    model(3, loading::<1>);
}

//! Which weights may be packed: as many as there is memory for. That is decided when a loader asks about a tensor, before it
//! allocates anything; what is refused stays where the host would have it without this library.
//!
//! Asking is not allocating. A loader may ask about a tensor twice (a tied output), go through a model without loading it, or
//! load it again. So what was accepted is kept by name until it is allocated, or until another pass begins: when the
//! question that began the last one comes again, when something was allocated since, or after a while.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::buffer::held;
use crate::cpu::limits::{self, Free};
use crate::info;
use crate::process::{Mutex, generation};

/// After so long without a question a pass is over.
const OVER_AFTER: Duration = Duration::from_secs(60);

/// A question: the tensor's name, type and shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// ggml's number of its type.
    pub ty: i32,
    /// Elements per dimension.
    pub ne: [i64; 4],
}

/// What one thread that loads models asked. All of it is bytes that are accepted and not allocated.
struct Pass {
    /// Number of the process that knows of these bytes.
    process: u32,
    /// The first question: the tensor's name, and the operation.
    first: Option<(String, i32)>,
    answers: HashMap<Tensor, bool>,
    bytes: u64,
    allocated: bool,
    last: Option<Instant>,
}

/// Accepted and not allocated, by all threads of a process, whose number is in front.
static ACCEPTED: Mutex<(u32, u64)> = Mutex::new((0, 0));

/// Changes it; what it is then. A forked child begins with nothing: its parent's other threads load nothing there.
fn accepted(change: impl FnOnce(&mut u64)) -> u64 {
    let mut of = ACCEPTED.lock();
    if of.0 != generation() {
        *of = (generation(), 0);
    }
    change(&mut of.1);
    of.1
}

impl Pass {
    fn new() -> Self {
        Self { process: generation(), first: None, answers: HashMap::new(), bytes: 0, allocated: false, last: None }
    }

    /// Bytes that are accepted no more, or allocated.
    fn take(&mut self, bytes: u64) {
        self.follow_into_a_child();
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        accepted(|all| *all = all.saturating_sub(bytes));
    }

    /// A thread that was forked while it loaded a model may go on with that.
    fn follow_into_a_child(&mut self) {
        if self.process != generation() {
            self.process = generation();
            accepted(|all| *all += self.bytes);
        }
    }

    fn begin(&mut self) {
        self.take(self.bytes);
        self.answers.clear();
        (self.first, self.allocated) = (None, false);
    }

    /// Whether `tensor`, of so many bytes, may be packed, for which somebody asks with an operation at this moment. `free` is
    /// told what this pass has accepted, 0 as it begins.
    fn ask(&mut self, tensor: Tensor, op: i32, bytes: u64, now: Instant, free: impl FnOnce(u64) -> Free) -> bool {
        self.follow_into_a_child();
        // Of any shape: another model begins with the same name.
        let again = self.first.as_ref().is_some_and(|(first, of)| *of == op && *first == tensor.name);
        let late = self.last.is_some_and(|last| now.duration_since(last) > OVER_AFTER);
        if again || late || self.allocated {
            self.begin();
        }
        self.last = Some(now);
        if self.first.is_none() {
            self.first = Some((tensor.name.clone(), op));
        }
        if let Some(answer) = self.answers.get(&tensor) {
            return *answer;
        }
        let free = free(self.bytes);
        let fits = bytes <= free.bytes;
        if fits {
            self.bytes += bytes;
            accepted(|all| *all += bytes);
        } else if self.answers.values().all(|answer| *answer) {
            info!(
                "from {} on some weights stay with the host, {:.2} MiB were accepted: {}",
                tensor.name,
                mebibytes(self.bytes),
                leaves(free)
            );
        }
        self.answers.insert(tensor, fits);
        fits
    }

    fn allocate(&mut self, bytes: u64) {
        self.take(bytes);
        self.allocated = true;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.take(self.bytes);
    }
}

thread_local! {
    static PASS: RefCell<Pass> = RefCell::new(Pass::new());
    /// What the system said last, and when.
    static SAID: Cell<Option<(Instant, Free)>> = const { Cell::new(None) };
}

/// So long one answer of the system is good for the questions of a loader, which come all at once: groups with many pages
/// take milliseconds to answer.
const GOOD_FOR: Duration = Duration::from_millis(20);

/// What there is for weights besides what was promised already, as it was a moment ago; but not before this pass, which has
/// `accepted` so much.
fn recently_free(accepted: u64, now: Instant) -> Free {
    let is_recent = |when: Instant| accepted > 0 && now.duration_since(when) < GOOD_FOR;
    let recent = SAID.get().filter(|(when, _)| is_recent(*when)).map(|(_, free)| free);
    let free = recent.unwrap_or_else(|| {
        let free = limits::free();
        SAID.set(Some((now, free)));
        free
    });
    besides_promised(free)
}

fn besides_promised(free: Free) -> Free {
    let promised = held::unwritten() + accepted(|_| ());
    Free { bytes: free.bytes.saturating_sub(promised), ..free }
}

/// What there is for weights now.
fn free() -> Free {
    besides_promised(limits::free())
}

/// Whether a tensor of so many bytes may be packed, about which a loader asks with an operation of this number.
pub fn accept(tensor: Tensor, op: i32, bytes: usize) -> bool {
    let now = Instant::now();
    PASS.with_borrow_mut(|pass| pass.ask(tensor, op, bytes as u64, now, |accepted| recently_free(accepted, now)))
}

/// Notes that a buffer of so many bytes is being allocated.
pub fn allocate(bytes: usize) {
    SAID.set(None);
    // Somebody may free and allocate as the thread ends.
    let _ = PASS.try_with(|pass| pass.borrow_mut().allocate(bytes as u64));
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn leaves(free: Free) -> String {
    format!("{} leaves {:.2} MiB for more", free.limit, mebibytes(free.bytes))
}

/// What there is now, for a message.
pub fn shown() -> String {
    leaves(free())
}

/// Whether so many bytes can be had now, for weights nobody asked about before.
pub fn has_room(bytes: usize) -> bool {
    bytes as u64 <= free().bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::limits::Limit;
    use crate::process::tests::in_child;

    const MUL_MAT: i32 = 29;
    const GET_ROWS: i32 = 40;

    fn tensor(name: &str) -> Tensor {
        Tensor { name: name.into(), ty: 2, ne: [64, 64, 1, 1] }
    }

    /// Asks about tensors of 10 bytes; what is free besides what this pass has.
    struct Loader {
        pass: Pass,
        now: Instant,
        free: u64,
    }

    impl Loader {
        fn new(free: u64) -> Self {
            Self { pass: Pass::new(), now: Instant::now(), free }
        }

        fn ask(&mut self, name: &str, op: i32) -> bool {
            let free = |accepted| Free { bytes: self.free.saturating_sub(accepted), limit: Limit::Machine };
            self.pass.ask(tensor(name), op, 10, self.now, free)
        }

        fn model(&mut self) -> Vec<bool> {
            [("a", MUL_MAT), ("b", MUL_MAT), ("c", MUL_MAT), ("c", GET_ROWS)]
                .map(|(name, op)| self.ask(name, op))
                .into()
        }
    }

    #[test]
    fn what_does_not_fit_stays_with_the_host_and_counts_once() {
        let mut loader = Loader::new(25);
        assert_eq!(loader.model(), [true, true, false, false]);
        assert_eq!(loader.pass.bytes, 20);
        let mut loader = Loader::new(30);
        assert_eq!(loader.model(), [true; 4]);
        assert_eq!(loader.pass.bytes, 30);
    }

    #[test]
    fn passes_that_only_look_change_nothing() {
        let mut loader = Loader::new(25);
        for _ in 0..3 {
            assert_eq!(loader.model(), [true, true, false, false]);
        }
        assert_eq!(loader.pass.bytes, 20);
        // Others have taken memory meanwhile.
        loader.free = 15;
        assert_eq!(loader.model(), [true, false, false, false]);
        // So many other questions that the first one did not come again.
        loader.now += 2 * OVER_AFTER;
        assert!(loader.ask("d", MUL_MAT) && !loader.ask("e", MUL_MAT));
        assert_eq!(loader.pass.bytes, 10);
    }

    #[test]
    fn what_is_allocated_is_accepted_no_more_and_the_next_load_asks_anew() {
        let mut loader = Loader::new(25);
        loader.model();
        loader.pass.allocate(20);
        assert_eq!(loader.pass.bytes, 0);
        // What is held is no longer free.
        loader.free = 5;
        assert_eq!(loader.model(), [false; 4]);
        // It was unloaded.
        loader.free = 25;
        loader.now += 2 * OVER_AFTER;
        assert_eq!(loader.model(), [true, true, false, false]);
    }

    #[test]
    fn other_models_begin_with_other_questions_or_the_same() {
        let mut loader = Loader::new(40);
        loader.model();
        assert!(loader.ask("d", MUL_MAT) && !loader.ask("e", MUL_MAT));
        // The first question again: everything is asked anew.
        assert_eq!(loader.model(), [true; 4]);
        assert_eq!(loader.pass.bytes, 30);
        // Of another model.
        let other = Tensor { ne: [128, 64, 1, 1], ..tensor("a") };
        let free = |accepted| Free { bytes: 40 - accepted, limit: Limit::Machine };
        assert!(loader.pass.ask(other, MUL_MAT, 20, loader.now, free) && loader.pass.bytes == 20);
    }

    #[test]
    fn what_one_thread_accepted_is_not_free_for_another() {
        let name = |i: usize| Tensor { name: format!("budget {i}"), ..tensor("") };
        let before = accepted(|_| ());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert!(accept(name(1), MUL_MAT, 1000));
                assert!(accepted(|_| ()) >= before + 1000);
            });
        });
        assert!(!accept(name(2), MUL_MAT, usize::MAX / 2));
        // A child has what the thread that forks has accepted.
        assert!(accept(name(3), MUL_MAT, 500));
        assert!(in_child(false, || accepted(|_| ()) == 0 && accept(name(4), MUL_MAT, 70) && accepted(|_| ()) == 570));
        assert!(has_room(1) && !has_room(usize::MAX / 2));
    }
}

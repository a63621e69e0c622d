//! Which weights may be packed: as many as there is memory for. A loader asks about every tensor before it allocates
//! anything, and gets its answer here. What is refused stays where the host would have it without this library.
//!
//! A question is no allocation. A loader may ask about a tensor twice (a tied output), go through a model without
//! loading it, or load it again. So a *pass* of questions remembers its answers, and what it has accepted counts once,
//! until it is allocated or the next pass begins. A new pass begins when the first question of the last one comes
//! again, when something was allocated since, or after [`OVER_AFTER`] without a question.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::buffer::held;
use crate::cpu::limits::{self, Free};
use crate::diag::log;
use crate::info;
use crate::process::{Mutex, generation};

/// How long after its last question a pass is over.
const OVER_AFTER: Duration = Duration::from_secs(60);

/// The tensor that a loader asks about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// Its name.
    pub name: String,
    /// ggml's number of its type.
    pub ty: i32,
    /// Elements per dimension.
    pub ne: [i64; 4],
}

/// The questions that a thread was asked since it began to load a model.
struct Pass {
    /// The process whose [`ACCEPTED`] has counted `bytes`.
    process: u32,
    /// The first question: the tensor's name, and the operation.
    first: Option<(String, i32)>,
    answers: HashMap<Question, bool>,
    /// Bytes that are accepted and not allocated yet.
    bytes: u64,
    /// Whether something was allocated since the first question.
    allocated: bool,
    /// When the last question came.
    last: Option<Instant>,
}

/// A process, and the bytes that its threads have accepted and not allocated yet.
static ACCEPTED: Mutex<(u32, u64)> = Mutex::new((0, 0));

/// Changes the bytes of [`ACCEPTED`], and returns them. A forked child begins with 0: its parent's other threads load
/// nothing there.
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

    /// Takes back bytes that were accepted: they are allocated now, or will not be.
    fn take(&mut self, bytes: u64) {
        self.follow_into_a_child();
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        accepted(|all| *all = all.saturating_sub(bytes));
    }

    /// In a forked child: the thread that was forked may go on to load its model, so what it has accepted counts there
    /// too.
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

    /// Whether `tensor` may be packed in `bytes` bytes; the loader asks about operation `op` on it. `free` gets the
    /// bytes that this pass has accepted, 0 at its first question.
    fn ask(&mut self, tensor: Question, op: i32, bytes: u64, now: Instant, free: impl FnOnce(u64) -> Free) -> bool {
        self.follow_into_a_child();
        // The shape does not count: another model may begin with a tensor of the same name.
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
    /// What [`limits::free`] said last, and when.
    static SAID: Cell<Option<(Instant, Free)>> = const { Cell::new(None) };
}

/// How long an answer of [`limits::free`] is used again. A loader's questions come all at once, and to read the use of
/// a large control group takes milliseconds.
const GOOD_FOR: Duration = Duration::from_millis(20);

/// What is free for weights, at most [`GOOD_FOR`] ago. A pass that has accepted nothing yet asks anew.
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

/// What is left of `free` after all that was promised: accepted, or allocated and not written yet.
fn besides_promised(free: Free) -> Free {
    let promised = held::unwritten() + accepted(|_| ());
    Free { bytes: free.bytes.saturating_sub(promised), ..free }
}

/// What is free for weights now.
fn free() -> Free {
    besides_promised(limits::free())
}

/// Whether a tensor may be packed in `bytes` bytes; a loader asks about operation `op` on it.
pub fn accept(tensor: Question, op: i32, bytes: usize) -> bool {
    let now = Instant::now();
    // The host's log callback may ask about other tensors.
    let _until_the_pass_is_free = log::hold();
    PASS.with_borrow_mut(|pass| pass.ask(tensor, op, bytes as u64, now, |accepted| recently_free(accepted, now)))
}

/// Notes that a buffer of `bytes` bytes is being allocated.
pub fn allocate(bytes: usize) {
    SAID.set(None);
    // The thread may be ending, and its pass be gone.
    let _ = PASS.try_with(|pass| pass.borrow_mut().allocate(bytes as u64));
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn leaves(free: Free) -> String {
    format!("{} leaves {:.2} MiB for more", free.limit, mebibytes(free.bytes))
}

/// What is free now, for a message.
pub fn shown() -> String {
    leaves(free())
}

/// Whether `bytes` bytes are free now, for weights that no loader has asked about.
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

    fn tensor(name: &str) -> Question {
        Question { name: name.into(), ty: 2, ne: [64, 64, 1, 1] }
    }

    /// Asks about tensors of 10 bytes.
    struct Loader {
        pass: Pass,
        now: Instant,
        /// Bytes that are free, without what the pass has accepted.
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
        // Meanwhile other processes have taken memory.
        loader.free = 15;
        assert_eq!(loader.model(), [true, false, false, false]);
        // Much later; the first question does not come again.
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
        // What was allocated is no longer free.
        loader.free = 5;
        assert_eq!(loader.model(), [false; 4]);
        // The model was unloaded.
        loader.free = 25;
        loader.now += 2 * OVER_AFTER;
        assert_eq!(loader.model(), [true, true, false, false]);
    }

    #[test]
    fn other_models_begin_with_other_questions_or_the_same() {
        let mut loader = Loader::new(40);
        loader.model();
        assert!(loader.ask("d", MUL_MAT) && !loader.ask("e", MUL_MAT));
        // The first question again begins a new pass.
        assert_eq!(loader.model(), [true; 4]);
        assert_eq!(loader.pass.bytes, 30);
        // And so does that of another model.
        let other = Question { ne: [128, 64, 1, 1], ..tensor("a") };
        let free = |accepted| Free { bytes: 40 - accepted, limit: Limit::Machine };
        assert!(loader.pass.ask(other, MUL_MAT, 20, loader.now, free) && loader.pass.bytes == 20);
    }

    #[test]
    fn what_one_thread_accepted_is_not_free_for_another() {
        let name = |i: usize| Question { name: format!("budget {i}"), ..tensor("") };
        let before = accepted(|_| ());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert!(accept(name(1), MUL_MAT, 1000));
                assert!(accepted(|_| ()) >= before + 1000);
            });
        });
        assert!(!accept(name(2), MUL_MAT, usize::MAX / 2));
        // A child counts what the thread that forks has accepted.
        assert!(accept(name(3), MUL_MAT, 500));
        assert!(in_child(false, || accepted(|_| ()) == 0 && accept(name(4), MUL_MAT, 70) && accepted(|_| ()) == 570));
        assert!(has_room(1) && !has_room(usize::MAX / 2));
    }
}

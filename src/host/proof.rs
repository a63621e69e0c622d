//! Proof of what only calls can show: which virtual functions the host calls, with what, and the order of its compute
//! parameters. A trial node is computed by the host's own CPU backend, and the objects of [`super::cxx`] note who calls
//! them. It is done before anything is packed, never while the buffer type is made: in a swapped build that is inside the
//! initialiser of the host's list of buffer types, which the trial walks. One thread computes: no team of OpenMP is started.
//! It may be another one than the one that asked: a trial belongs to the process, and is known by its node.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use libc::c_void;

use super::abi::TYPE_F32;
use super::discover::in_context;
use super::objects::{Interface, RawBufferType};
use super::{Host, caught, cxx, peek};
use crate::process::{Condvar, Mutex, generation};
use crate::{debug, info};

/// Which of the two objects is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// `extra_buffer_type`.
    BufferType,
    /// `tensor_traits`.
    Traits,
}

impl Class {
    /// Its name in ggml.
    pub fn name(self) -> &'static str {
        match self {
            Self::BufferType => "extra_buffer_type",
            Self::Traits => "tensor_traits",
        }
    }
}

/// What the trial node asks for as its work buffer.
const WORK: usize = 0x12340;
/// What the host may add to it.
const MORE_WORK: usize = 0x10000;
/// Bits above 32 that it has where the host only plans.
const LONG: usize = 1 << 40;
/// Words of a plan (`struct ggml_cplan`), and of what later versions may have there.
const PLAN_WORDS: usize = 128;
/// Words of the thread pool that are looked through for the graph.
const POOL_WORDS: usize = 24;

/// How long a thread waits for the trial of another one. A thread of the host's that the trial itself waits for would wait
/// for ever.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The slot of functions in front of the first: destructors.
pub const DESTRUCTOR: usize = usize::MAX;

/// A trial that is going on.
struct Trial {
    /// The thread that makes it.
    thread: ThreadId,
    device: usize,
    node: usize,
    graph: usize,
    /// What the node asks for as its work buffer.
    work: usize,
    calls: Vec<(Class, usize)>,
    error: Option<String>,
}

impl Trial {
    /// One of this thread's. No argument is any of its addresses.
    fn new() -> Self {
        let none = usize::MAX;
        Self {
            thread: this_thread(),
            device: none,
            node: none,
            graph: none,
            work: WORK,
            calls: Vec::new(),
            error: None,
        }
    }

    /// Notes the first thing that is not as it is known. The answer is none.
    fn refuse(&mut self, what: &str) -> usize {
        self.error.get_or_insert_with(|| format!("the host calls {what}"));
        0
    }
}

/// What a trial showed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The host calls as it is known.
    Proved,
    /// It calls nothing: a program that reaches this library by its C functions only.
    Uncalled,
    Declined,
}

#[derive(Default)]
struct Stage {
    trial: Option<Trial>,
    verdict: Option<Verdict>,
}

static STAGE: Mutex<Stage> = Mutex::new(Stage { trial: None, verdict: None });
/// A trial came to its end.
static ENDED: Condvar = Condvar::new();
/// Whether the verdict is [`Verdict::Proved`].
static PROVED: AtomicBool = AtomicBool::new(false);

/// The process and the thread in it.
pub type ThreadId = (u32, usize);

/// Who this is. In a child it is another one than the thread that forked.
pub fn this_thread() -> ThreadId {
    // SAFETY: no preconditions.
    (generation(), unsafe { libc::pthread_self() as usize })
}

/// Whether the proof was made and held; never makes it.
#[inline]
pub fn is_proved() -> bool {
    PROVED.load(Ordering::Acquire)
}

/// Ends the trial whatever happens, an exception that passes included.
struct Running;

impl Running {
    fn end(self, verdict: Verdict) {
        let mut stage = STAGE.lock();
        stage.verdict = Some(verdict);
        PROVED.store(verdict == Verdict::Proved, Ordering::Release);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut stage = STAGE.lock();
        stage.verdict.get_or_insert(Verdict::Declined);
        stage.trial = None;
        ENDED.notify_all();
    }
}

/// Makes the proof, once. False, with one line in the log, if the host calls in a way that is not known; and in the midst of
/// the trial.
pub fn prove(host: &'static Host, buft: *mut RawBufferType) -> bool {
    prove_for(host, buft, false)
}

/// The same for one of our virtual functions, which a host calls that called none in its trial: then there is another trial,
/// now that its list of buffer types is made.
pub fn prove_called(host: &'static Host, buft: *mut RawBufferType) -> bool {
    prove_for(host, buft, true)
}

fn prove_for(host: &'static Host, buft: *mut RawBufferType, called: bool) -> bool {
    let until = Instant::now() + PATIENCE;
    let mut now = STAGE.lock();
    loop {
        match now.verdict {
            Some(Verdict::Proved) => return true,
            Some(Verdict::Declined) => return false,
            Some(Verdict::Uncalled) if !called => return true,
            _ => {}
        }
        let left = until.saturating_duration_since(Instant::now());
        match &now.trial {
            None => break,
            // That of a parent will never end.
            Some(trial) if trial.thread.0 != this_thread().0 => break,
            Some(trial) if trial.thread == this_thread() || left.is_zero() => return false,
            Some(_) => now = ENDED.wait_timeout(now, left),
        }
    }
    now.verdict = None;
    now.trial = Some(Trial::new());
    drop(now);
    let running = Running;
    let verdict = match caught(|| run(host, buft)) {
        Ok(Verdict::Uncalled) if called => Err("the host calls this library for some nodes only".to_string()),
        other => other,
    };
    running.end(*verdict.as_ref().unwrap_or(&Verdict::Declined));
    if let Err(reason) = &verdict {
        info!("not used: {reason}");
    }
    verdict.is_ok()
}

/// Declines what was not proved yet, with one line in the log.
pub fn decline(reason: &str) {
    let is_new = {
        let mut stage = STAGE.lock();
        let is_new = matches!(stage.verdict, None | Some(Verdict::Uncalled)) && stage.trial.is_none();
        if is_new {
            stage.verdict = Some(Verdict::Declined);
        }
        is_new
    };
    if is_new {
        info!("not used: {reason}");
    }
}

/// The answer to a call of virtual function `slot` (behind the destructors) while a trial goes on; `None` if there is none.
/// Arguments that are not as expected are noted, and never looked behind. Other threads that do not ask about the trial's
/// node wait until it ends.
pub fn answer(class: Class, slot: usize, args: [usize; 3]) -> Option<usize> {
    let until = Instant::now() + PATIENCE;
    let mut now = STAGE.lock();
    loop {
        let trial = now.trial.as_mut().filter(|trial| trial.thread.0 == this_thread().0)?;
        if trial.thread == this_thread() || args.contains(&trial.node) {
            return Some(trial.answer(class, slot, args));
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            trial.refuse(&format!("{} from a thread that the trial waits for", class.name()));
        }
        if trial.error.is_some() {
            return Some(0);
        }
        now = ENDED.wait_timeout(now, left);
    }
}

impl Trial {
    /// Whether the place for the size is one: 0, in all its 64 bits.
    fn give_size(&self, place: usize) -> bool {
        // SAFETY: by the arguments in front of it the host's, for us to write.
        peek::word(place) == Some(0) && unsafe { peek::write(place, self.work) }
    }

    fn answer(&mut self, class: Class, slot: usize, args: [usize; 3]) -> usize {
        self.calls.push((class, slot));
        let [a, b, c] = args;
        match (class, slot) {
            (Class::BufferType, 0) if a == self.device && b == self.node => 1,
            (Class::BufferType, 0) => self.refuse("extra_buffer_type::supports_op with other arguments than are known"),
            (Class::BufferType, 1) if a == self.node => cxx::tensor_traits() as usize,
            (Class::BufferType, 1) => {
                self.refuse("extra_buffer_type::get_tensor_traits with other arguments than are known")
            }
            (Class::Traits, 0) if a as u32 == 1 && b == self.node && is_pointer(c) && self.give_size(c) => 1,
            (Class::Traits, 0) => self.refuse("tensor_traits::work_size with other arguments than are known"),
            (Class::Traits, 1) if is_pointer(a) && b == self.node => {
                if let Err(what) = check_params(a, self.graph) {
                    self.error.get_or_insert(format!("ggml_compute_params.{what} is not where it is known to be"));
                }
                1
            }
            (Class::Traits, 1) => self.refuse("tensor_traits::compute_forward with other arguments than are known"),
            (_, DESTRUCTOR) => {
                self.refuse(&format!("a destructor of {}, or something else in its place", class.name()))
            }
            _ => self.refuse(&format!("virtual function {slot} of {}, which is not known", class.name())),
        }
    }
}

/// Whether a word may be the address of something that is aligned.
fn is_pointer(word: usize) -> bool {
    word >= 1 << 16 && word.is_multiple_of(8)
}

/// What of the parameters of the one thread is not in its place. Nothing needs to be there.
fn check_params(params: usize, graph: usize) -> Result<(), &'static str> {
    let [threads, wsize, wdata, pool] = [0, 8, 16, 24].map(|at| peek::word(params + at).unwrap_or(usize::MAX));
    if threads != 1 << 32 {
        return Err("ith or nth");
    }
    if !(WORK..WORK + MORE_WORK).contains(&wsize) {
        return Err("wsize");
    }
    // The pool knows the graph; fresh memory does not.
    let knows_graph = |at: usize| {
        let words = (0..POOL_WORDS).map_while(|i| peek::word(at.checked_add(8 * i)?));
        words.into_iter().any(|word| word == graph)
    };
    if !is_pointer(pool) || !knows_graph(pool) {
        return Err("threadpool");
    }
    // Every page of the work buffer.
    let is_there = || (0..WORK).step_by(4096).chain([WORK - 8]).all(|at| peek::word(wdata.wrapping_add(at)).is_some());
    if !is_pointer(wdata) || !is_there() {
        return Err("wdata");
    }
    Ok(())
}

/// Sets what the node asks for.
fn set_work(work: usize) {
    if let Some(trial) = &mut STAGE.lock().trial {
        trial.work = work;
    }
}

/// Makes the trial of the stage.
fn run(host: &'static Host, buft: *mut RawBufferType) -> Result<Verdict, String> {
    let llama = &host.llama;
    let begin = Instant::now();
    let (Some(supports), Some(cpu), Some(threads), Some(compute), Some(free)) = (
        llama.ggml_backend_dev_supports_op,
        llama.ggml_backend_cpu_init,
        llama.ggml_backend_cpu_set_n_threads,
        llama.ggml_backend_graph_compute,
        llama.ggml_backend_free,
    ) else {
        debug!("this host has no CPU backend that could be tried");
        return Ok(Verdict::Proved);
    };
    if host.device.is_null() {
        return Ok(Verdict::Proved);
    }
    let mut memory = vec![0f32; 1024];
    let missing = || "a trial tensor, graph or buffer is NULL".to_string();
    // SAFETY: the host's functions; tensors have memory that outlives them; what is made is freed.
    unsafe {
        in_context(&host.symbols, |context| {
            let weights = (host.symbols.ggml_new_tensor_4d)(context, TYPE_F32, 32, 16, 1, 1);
            let x = (host.symbols.ggml_new_tensor_4d)(context, TYPE_F32, 32, 2, 1, 1);
            if weights.is_null() || x.is_null() {
                return Err(missing());
            }
            let node = (host.symbols.ggml_mul_mat)(context, weights, x);
            let graph = (host.symbols.ggml_new_graph_custom)(context, 16, false);
            let buffer = host.buffer_init(buft, Interface::NONE, std::ptr::null_mut(), 0);
            if node.is_null() || graph.is_null() || buffer.is_null() {
                return Err(missing());
            }
            (host.symbols.ggml_build_forward_expand)(graph, node);
            for (tensor, at) in [(weights, 0), (x, 512), (node, 768)] {
                let tensor = host.tensor(tensor).ok_or_else(missing)?;
                tensor.set_data(memory.as_mut_ptr().add(at).cast::<c_void>());
                if at == 0 {
                    tensor.set_buffer(buffer);
                }
            }
            if let Some(trial) = &mut STAGE.lock().trial {
                (trial.device, trial.node, trial.graph) = (host.device as usize, node as usize, graph as usize);
            }
            let supported = supports(host.device, node) != 0;
            let is_clean = STAGE.lock().trial.as_ref().is_some_and(|t| t.error.is_none() && !t.calls.is_empty());
            if is_clean && supported {
                if let Some(plan) = llama.ggml_graph_plan {
                    set_work(LONG + WORK);
                    let mut words = [0usize; PLAN_WORDS];
                    plan(words.as_mut_ptr(), graph, 1, std::ptr::null_mut());
                    set_work(WORK);
                    // Its first word is the work buffer's size.
                    if (WORK..WORK + MORE_WORK).contains(&words[0]) {
                        return Err("the host calls tensor_traits::work_size with a size of 32 bits".to_string());
                    }
                }
                let backend = cpu();
                if !backend.is_null() {
                    threads(backend, 1);
                    compute(backend, graph);
                    free(backend);
                }
            }
            (host.symbols.ggml_backend_buffer_free)(buffer);
            Ok(())
        })?;
    }
    // It stays until the verdict: others wait for that.
    let (calls, error) = match &mut STAGE.lock().trial {
        Some(trial) => (trial.calls.clone(), trial.error.take()),
        None => return Err("the trial is gone".to_string()),
    };
    debug!("virtual functions and parameters tried in {:?}: {calls:?}", begin.elapsed());
    if let Some(error) = error {
        return Err(error);
    }
    if calls.is_empty() {
        return Ok(Verdict::Uncalled);
    }
    let names = [
        (Class::BufferType, 1, "extra_buffer_type::get_tensor_traits"),
        (Class::Traits, 0, "tensor_traits::work_size"),
        (Class::Traits, 1, "tensor_traits::compute_forward"),
    ];
    match names.iter().find(|(class, slot, _)| !calls.contains(&(*class, *slot))) {
        Some((_, _, name)) => Err(format!("the host never calls {name}")),
        None => Ok(Verdict::Proved),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_in_another_order_are_named() {
        let graph = 0x7000_1230;
        let (mut pool, work) = ([0usize; POOL_WORDS], vec![0usize; WORK / 8]);
        pool[11] = graph;
        let (pool, work) = (pool.as_ptr() as usize, work.as_ptr() as usize);
        let check = |words: [usize; 5]| check_params(words.as_ptr() as usize, graph);
        let threads = 1 << 32;
        assert_eq!(check([threads, WORK + 64, work, pool, 0]), Ok(()));
        assert_eq!(check([1, WORK + 64, work, pool, 0]), Err("ith or nth"));
        assert_eq!(check([work, threads, WORK + 64, work, pool]), Err("ith or nth"));
        assert_eq!(check([threads, work, WORK + 64, pool, 0]), Err("wsize"));
        assert_eq!(check([threads, WORK + 64, 0, pool, 0]), Err("wdata"));
        assert_eq!(check([threads, WORK + 64, work, work, 0]), Err("threadpool"));
        for nowhere in [1 << 20, 1 << 63, usize::MAX - 7] {
            assert_eq!(check([threads, WORK + 64, nowhere, pool, 0]), Err("wdata"));
            assert_eq!(check([threads, WORK + 64, work, nowhere, 0]), Err("threadpool"));
            assert_eq!(check_params(nowhere, graph), Err("ith or nth"));
        }
    }

    #[test]
    fn calls_with_other_arguments_are_refused_and_named() {
        const DEVICE: usize = 0x10_0000;
        const NODE: usize = 0x20_0000;
        let ask = |class, slot, args| {
            let mut trial = Trial { device: DEVICE, node: NODE, ..Trial::new() };
            (trial.answer(class, slot, args), trial.error.unwrap_or_default())
        };
        let mut size = [0usize, 7];
        let at = size.as_mut_ptr() as usize;
        assert_eq!(ask(Class::Traits, 0, [1, NODE, at]), (1, String::new()));
        assert_eq!(size, [WORK, 7]);
        // What is behind a number of 32 bits is something else.
        for place in [at, at + 8, 0x30_0000, 1 << 63] {
            assert!(ask(Class::Traits, 0, [1, NODE, place]).1.contains("work_size"));
        }
        assert_eq!(ask(Class::BufferType, 0, [DEVICE, NODE, 0]), (1, String::new()));
        assert_eq!(ask(Class::BufferType, 1, [NODE, 0, 0]).1, "");
        for (class, slot, args, name) in [
            (Class::BufferType, 0, [NODE, 0, 0], "supports_op"),
            (Class::BufferType, 1, [DEVICE, NODE, 0], "get_tensor_traits"),
            (Class::BufferType, 2, [NODE, 0, 0], "virtual function 2"),
            (Class::BufferType, DESTRUCTOR, [DEVICE, NODE, 0], "a destructor of extra_buffer_type"),
            (Class::Traits, 0, [0x30_0000, NODE, 0], "work_size"),
            (Class::Traits, 1, [1, NODE, 0x30_0000], "compute_forward"),
            (Class::Traits, 3, [1, NODE, 0], "virtual function 3"),
        ] {
            let (answer, error) = ask(class, slot, args);
            assert!(answer == 0 && error.contains(name), "{error}");
        }
        assert_eq!(answer(Class::BufferType, 0, [DEVICE, NODE, 0]), None);
    }
}

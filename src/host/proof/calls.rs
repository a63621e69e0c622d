//! What the host's calls of our virtual functions must be like in a trial.

use super::super::peek;
use super::super::waiting::ThreadId;

/// One of our C++ objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// `ggml::cpu::extra_buffer_type`.
    BufferType,
    /// `ggml::cpu::tensor_traits`.
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

/// A virtual function of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `extra_buffer_type::supports_op(device, op)`.
    SupportsOp,
    /// `extra_buffer_type::get_tensor_traits(op)`.
    GetTensorTraits,
    /// `tensor_traits::work_size(n_threads, op, size)`.
    WorkSize,
    /// `tensor_traits::compute_forward(params, op)`.
    ComputeForward,
    /// A destructor.
    Destructor(Class),
    /// The one with this number after the destructors, which no known version has.
    Unknown(Class, usize),
}

impl Method {
    /// Whose function it is.
    fn class(self) -> Class {
        match self {
            Self::SupportsOp | Self::GetTensorTraits => Class::BufferType,
            Self::WorkSize | Self::ComputeForward => Class::Traits,
            Self::Destructor(class) | Self::Unknown(class, _) => class,
        }
    }

    /// Its name in messages.
    fn name(self) -> &'static str {
        match self {
            Self::SupportsOp => "extra_buffer_type::supports_op",
            Self::GetTensorTraits => "extra_buffer_type::get_tensor_traits",
            Self::WorkSize => "tensor_traits::work_size",
            Self::ComputeForward => "tensor_traits::compute_forward",
            Self::Destructor(_) => "a destructor",
            Self::Unknown(..) => "a virtual function that is not known",
        }
    }
}

/// Bytes of work buffer that the trial node asks for.
pub const WORK: usize = 0x12340;
/// Bytes that the host may add.
const MORE_WORK: usize = 0x10000;
/// Words of the thread pool that are searched for the graph.
const POOL_WORDS: usize = 24;

/// Whether a host that was asked for [`WORK`] bytes may have this many.
pub fn is_work_size(bytes: usize) -> bool {
    (WORK..WORK + MORE_WORK).contains(&bytes)
}

/// A trial that is going on: what it expects, and what was called.
pub struct Trial {
    /// The thread that makes it.
    thread: ThreadId,
    /// The addresses that the host's calls must have as arguments; at first what no argument is.
    pub device: usize,
    /// See `device`.
    pub node: usize,
    /// See `device`.
    pub graph: usize,
    /// What `get_tensor_traits` returns.
    traits: usize,
    /// Bytes of work buffer that the node asks for.
    pub work: usize,
    /// The functions that were called.
    pub calls: Vec<Method>,
    /// The first thing that is not as it should be.
    pub error: Option<String>,
}

impl Trial {
    /// A trial that this thread makes.
    pub fn new(traits: usize) -> Self {
        let none = usize::MAX;
        Self {
            thread: ThreadId::current(),
            device: none,
            node: none,
            graph: none,
            traits,
            work: WORK,
            calls: Vec::new(),
            error: None,
        }
    }

    /// Whether this thread makes it.
    pub fn is_mine(&self) -> bool {
        self.thread == ThreadId::current()
    }

    /// Whether it goes on in this process: a forked child has a copy of its parent's, which will never end.
    pub fn is_here(&self) -> bool {
        self.thread.is_here()
    }

    /// Notes an error, if it is the first. The answer to the host is 0.
    fn refuse(&mut self, what: &str) -> usize {
        self.error.get_or_insert_with(|| format!("the host calls {what}"));
        0
    }

    /// Notes that one of the host's threads calls `method` and cannot wait for the end of the trial.
    pub fn refuse_thread(&mut self, method: Method) {
        self.refuse(&format!("{} from a thread that the trial waits for", method.class().name()));
    }

    /// Writes the size of the work buffer to `place`, which must hold 0 in all its 64 bits.
    fn give_size(&self, place: usize) -> bool {
        // SAFETY: the other arguments are the trial's, so this one is the host's variable for the size, which we are to
        // write.
        peek::word(place) == Some(0) && unsafe { peek::write(place, self.work) }
    }

    /// The answer to a call. Arguments that are not as expected are noted, and nothing is read through them.
    pub fn answer(&mut self, method: Method, args: [usize; 3]) -> usize {
        self.calls.push(method);
        let [a, b, c] = args;
        match method {
            Method::SupportsOp if a == self.device && b == self.node => 1,
            Method::GetTensorTraits if a == self.node => self.traits,
            Method::WorkSize if a as u32 == 1 && b == self.node && is_pointer(c) && self.give_size(c) => 1,
            Method::ComputeForward if is_pointer(a) && b == self.node => {
                if let Err(what) = check_params(a, self.graph) {
                    self.error.get_or_insert(format!("ggml_compute_params.{what} is not where it is known to be"));
                }
                1
            }
            Method::Destructor(class) => {
                self.refuse(&format!("a destructor of {}, or something else in its place", class.name()))
            }
            Method::Unknown(class, slot) => {
                self.refuse(&format!("virtual function {slot} of {}, which is not known", class.name()))
            }
            _ => self.refuse(&format!("{} with other arguments than are known", method.name())),
        }
    }

    /// The error, or that of a function that was never called though it should have been.
    pub fn verdict(&mut self) -> Result<(), String> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let needed = [Method::GetTensorTraits, Method::WorkSize, Method::ComputeForward];
        match needed.into_iter().find(|method| !self.calls.contains(method)) {
            Some(method) => Err(format!("the host never calls {}", method.name())),
            None => Ok(()),
        }
    }
}

/// Whether a word may be the address of something aligned.
fn is_pointer(word: usize) -> bool {
    word >= 1 << 16 && word.is_multiple_of(8)
}

/// Checks the compute parameters of the only thread; the error names the field that is not in its place. There need not
/// be any memory at `params`.
fn check_params(params: usize, graph: usize) -> Result<(), &'static str> {
    let [threads, wsize, wdata, pool] = [0, 8, 16, 24].map(|at| peek::word(params + at).unwrap_or(usize::MAX));
    if threads != 1 << 32 {
        return Err("ith or nth");
    }
    if !is_work_size(wsize) {
        return Err("wsize");
    }
    // The thread pool has the address of the graph, a fresh work buffer has not.
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
        const TRAITS: usize = 0x40_0000;
        let ask = |method, args| {
            let mut trial = Trial { device: DEVICE, node: NODE, ..Trial::new(TRAITS) };
            (trial.answer(method, args), trial.error.unwrap_or_default())
        };
        let mut size = [0usize, 7];
        let at = size.as_mut_ptr() as usize;
        assert_eq!(ask(Method::WorkSize, [1, NODE, at]), (1, String::new()));
        assert_eq!(size, [WORK, 7]);
        // Words that are not 0, and addresses without memory: none of them is the host's variable.
        for place in [at, at + 8, 0x30_0000, 1 << 63] {
            assert!(ask(Method::WorkSize, [1, NODE, place]).1.contains("work_size"));
        }
        assert_eq!(ask(Method::SupportsOp, [DEVICE, NODE, 0]), (1, String::new()));
        assert_eq!(ask(Method::GetTensorTraits, [NODE, 0, 0]), (TRAITS, String::new()));
        for (method, args, name) in [
            (Method::SupportsOp, [NODE, 0, 0], "supports_op"),
            (Method::GetTensorTraits, [DEVICE, NODE, 0], "get_tensor_traits"),
            (Method::Unknown(Class::BufferType, 2), [NODE, 0, 0], "virtual function 2"),
            (Method::Destructor(Class::BufferType), [DEVICE, NODE, 0], "a destructor of extra_buffer_type"),
            (Method::WorkSize, [0x30_0000, NODE, 0], "work_size"),
            (Method::ComputeForward, [1, NODE, 0x30_0000], "compute_forward"),
            (Method::Unknown(Class::Traits, 3), [1, NODE, 0], "virtual function 3"),
        ] {
            let (answer, error) = ask(method, args);
            assert!(answer == 0 && error.contains(name), "{error}");
        }
    }
}

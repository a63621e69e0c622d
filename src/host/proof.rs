//! Proof of what only calls can show: which virtual functions the host calls, with what, and the order of its compute
//! parameters. A trial node is computed by the host's own CPU backend, and the objects of [`super::cxx`] note who calls
//! them. It is done before anything is packed, never while the buffer type is made: in a swapped build that is inside the
//! initialiser of the host's list of buffer types, which the trial walks. One thread computes: no team of OpenMP is started.

use crate::process::Once;
use std::cell::RefCell;

use libc::c_void;

use super::abi::TYPE_F32;
use super::discover::in_context;
use super::objects::{Interface, RawBufferType};
use super::{Host, cxx};
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
    fn name(self) -> &'static str {
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
/// Words of the thread pool that are looked through for the graph.
const POOL_WORDS: usize = 24;

/// A trial that is going on in this thread.
struct Trial {
    device: usize,
    node: usize,
    graph: usize,
    calls: Vec<(Class, usize)>,
    error: Option<String>,
}

thread_local! {
    static TRIAL: RefCell<Option<Trial>> = const { RefCell::new(None) };
}

static PROVED: Once<bool> = Once::new();

/// Whether the proof was made and held; never makes it.
#[inline]
pub fn is_proved() -> bool {
    PROVED.get() == Some(&true)
}

/// Makes the proof, once. False, with one line in the log, if the host calls in a way that is not known.
pub fn prove(host: &'static Host, buft: *mut RawBufferType) -> bool {
    *PROVED.get_or_init(|| match run(host, buft) {
        Ok(()) => true,
        Err(reason) => {
            info!("not used: {reason}");
            false
        }
    })
}

/// The answer to a call of virtual function `slot` (behind the destructors) while a trial goes on in this thread; `None`
/// if there is none. Arguments that are not as expected are noted, and never looked behind.
pub fn answer(class: Class, slot: usize, args: [usize; 3]) -> Option<usize> {
    TRIAL.with_borrow_mut(|trial| {
        let trial = trial.as_mut()?;
        trial.calls.push((class, slot));
        let [a, b, c] = args;
        let refuse = |trial: &mut Trial, what: &str| {
            trial.error.get_or_insert_with(|| format!("the host calls {what}"));
            0
        };
        Some(match (class, slot) {
            (Class::BufferType, 0) if a == trial.device && b == trial.node => 1,
            (Class::BufferType, 0) => {
                refuse(trial, "extra_buffer_type::supports_op with other arguments than are known")
            }
            (Class::BufferType, 1) if a == trial.node => cxx::tensor_traits() as usize,
            (Class::BufferType, 1) => {
                refuse(trial, "extra_buffer_type::get_tensor_traits with other arguments than are known")
            }
            (Class::Traits, 0) if a as u32 == 1 && b == trial.node && is_pointer(c) => {
                // SAFETY: the place for the size, by the arguments in front of it.
                unsafe { *(c as *mut usize) = WORK };
                1
            }
            (Class::Traits, 0) => refuse(trial, "tensor_traits::work_size with other arguments than are known"),
            (Class::Traits, 1) if is_pointer(a) && b == trial.node => {
                // SAFETY: parameters of the host's, by the arguments.
                if let Err(what) = unsafe { check_params(a as *const usize, trial.graph) } {
                    trial.error.get_or_insert(format!("ggml_compute_params.{what} is not where it is known to be"));
                }
                1
            }
            (Class::Traits, 1) => refuse(trial, "tensor_traits::compute_forward with other arguments than are known"),
            _ => refuse(trial, &format!("virtual function {slot} of {}, which is not known", class.name())),
        })
    })
}

/// Whether a word may be the address of something that is aligned.
fn is_pointer(word: usize) -> bool {
    word >= 1 << 16 && word.is_multiple_of(8)
}

/// What of the parameters of the one thread is not in its place.
///
/// # Safety
/// At least four words must be there, and so must be what the pointers among them point to.
unsafe fn check_params(params: *const usize, graph: usize) -> Result<(), &'static str> {
    // SAFETY: promised by the caller.
    let [threads, wsize, wdata, pool] = std::array::from_fn(|i| unsafe { *params.add(i) });
    if threads != 1 << 32 {
        return Err("ith or nth");
    }
    if !(WORK..WORK + MORE_WORK).contains(&wsize) {
        return Err("wsize");
    }
    // The pool knows the graph; fresh memory does not.
    // SAFETY: a pool has as many words, and so has the work buffer.
    let knows_graph = |at: usize| unsafe { (0..POOL_WORDS).any(|i| *(at as *const usize).add(i) == graph) };
    if !is_pointer(wdata) {
        return Err("wdata");
    }
    if !is_pointer(pool) || !knows_graph(pool) {
        return Err("threadpool");
    }
    Ok(())
}

fn run(host: &'static Host, buft: *mut RawBufferType) -> Result<(), String> {
    let llama = &host.llama;
    let begin = std::time::Instant::now();
    let (Some(supports), Some(cpu), Some(threads), Some(compute), Some(free)) = (
        llama.ggml_backend_dev_supports_op,
        llama.ggml_backend_cpu_init,
        llama.ggml_backend_cpu_set_n_threads,
        llama.ggml_backend_graph_compute,
        llama.ggml_backend_free,
    ) else {
        debug!("this host has no CPU backend that could be tried");
        return Ok(());
    };
    if host.device.is_null() {
        return Ok(());
    }
    let mut memory = vec![0f32; 1024];
    // SAFETY: the host's functions; tensors have memory that outlives them; what is made is freed.
    let trial = unsafe {
        in_context(&host.symbols, |context| {
            let weights = (host.symbols.ggml_new_tensor_4d)(context, TYPE_F32, 32, 16, 1, 1);
            let x = (host.symbols.ggml_new_tensor_4d)(context, TYPE_F32, 32, 2, 1, 1);
            let node = (host.symbols.ggml_mul_mat)(context, weights, x);
            let graph = (host.symbols.ggml_new_graph_custom)(context, 16, false);
            (host.symbols.ggml_build_forward_expand)(graph, node);
            let buffer = host.buffer_init(buft, Interface::NONE, std::ptr::null_mut(), 0);
            for (tensor, at) in [(weights, 0), (x, 512), (node, 768)] {
                let tensor = host.tensor(tensor).ok_or("ggml_new_tensor_4d gave NULL")?;
                tensor.set_data(memory.as_mut_ptr().add(at).cast::<c_void>());
                if at == 0 {
                    tensor.set_buffer(buffer);
                }
            }
            TRIAL.set(Some(Trial {
                device: host.device as usize,
                node: node as usize,
                graph: graph as usize,
                calls: Vec::new(),
                error: None,
            }));
            let supported = supports(host.device, node);
            let is_clean = TRIAL.with_borrow(|t| t.as_ref().is_some_and(|t| t.error.is_none() && !t.calls.is_empty()));
            if is_clean && supported {
                let backend = cpu();
                if !backend.is_null() {
                    threads(backend, 1);
                    compute(backend, graph);
                    free(backend);
                }
            }
            let trial = TRIAL.take();
            (host.symbols.ggml_backend_buffer_free)(buffer);
            trial.ok_or_else(|| "the trial is gone".to_string())
        })?
    };
    debug!("virtual functions and parameters tried in {:?}: {:?}", begin.elapsed(), trial.calls);
    if let Some(error) = trial.error {
        return Err(error);
    }
    // A program that reaches this library by its C functions only.
    if trial.calls.is_empty() {
        return Ok(());
    }
    let names = [
        (Class::BufferType, 1, "extra_buffer_type::get_tensor_traits"),
        (Class::Traits, 0, "tensor_traits::work_size"),
        (Class::Traits, 1, "tensor_traits::compute_forward"),
    ];
    match names.iter().find(|(class, slot, _)| !trial.calls.contains(&(*class, *slot))) {
        Some((_, _, name)) => Err(format!("the host never calls {name}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_in_another_order_are_named() {
        let graph = 0x7000_1230;
        let (mut pool, work) = ([0usize; POOL_WORDS], [0usize; POOL_WORDS]);
        pool[11] = graph;
        let (pool, work) = (pool.as_ptr() as usize, work.as_ptr() as usize);
        // SAFETY: pointers among the words are those of the arrays above.
        let check = |words: [usize; 5]| unsafe { check_params(words.as_ptr(), graph) };
        let threads = 1 << 32;
        assert_eq!(check([threads, WORK + 64, work, pool, 0]), Ok(()));
        assert_eq!(check([1, WORK + 64, work, pool, 0]), Err("ith or nth"));
        assert_eq!(check([work, threads, WORK + 64, work, pool]), Err("ith or nth"));
        assert_eq!(check([threads, work, WORK + 64, pool, 0]), Err("wsize"));
        assert_eq!(check([threads, WORK + 64, 0, pool, 0]), Err("wdata"));
        assert_eq!(check([threads, WORK + 64, pool, work, 0]), Err("threadpool"));
    }

    #[test]
    fn calls_with_other_arguments_are_refused_and_named() {
        const DEVICE: usize = 0x10_0000;
        const NODE: usize = 0x20_0000;
        let ask = |class, slot, args| {
            TRIAL.set(Some(Trial { device: DEVICE, node: NODE, graph: 0, calls: Vec::new(), error: None }));
            let answer = answer(class, slot, args);
            (answer, TRIAL.take().and_then(|trial| trial.error).unwrap_or_default())
        };
        assert_eq!(ask(Class::BufferType, 0, [DEVICE, NODE, 0]), (Some(1), String::new()));
        assert_eq!(ask(Class::BufferType, 1, [NODE, 0, 0]).1, "");
        for (class, slot, args, name) in [
            (Class::BufferType, 0, [NODE, 0, 0], "supports_op"),
            (Class::BufferType, 1, [DEVICE, NODE, 0], "get_tensor_traits"),
            (Class::BufferType, 2, [NODE, 0, 0], "virtual function 2"),
            (Class::Traits, 0, [0x30_0000, NODE, 0], "work_size"),
            (Class::Traits, 1, [1, NODE, 0x30_0000], "compute_forward"),
            (Class::Traits, 3, [1, NODE, 0], "virtual function 3"),
        ] {
            let (answer, error) = ask(class, slot, args);
            assert!(answer == Some(0) && error.contains(name), "{error}");
        }
        assert_eq!(answer(Class::BufferType, 0, [DEVICE, NODE, 0]), None);
    }
}

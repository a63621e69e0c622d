//! The trial node: a product of two F32 matrices, whose weights lie in a buffer of our type that has no memory. The
//! host's CPU device is asked about it, and the host's CPU backend computes it on one thread, so that no team of OpenMP
//! is started.

use std::time::Instant;

use libc::c_void;

use super::super::abi::TYPE_F32;
use super::super::discover::in_context;
use super::super::llama::Host;
use super::super::objects::{BufferInterface, RawBuffer, RawBufferType};
use super::super::tensor::RawTensor;
use super::calls::{WORK, is_work_size};
use super::stage::{Verdict, with_trial};
use crate::debug;

/// Added to the size that the node asks for while the host only plans: it does not fit 32 bits.
const LONG: usize = 1 << 40;
/// Words of a plan (`struct ggml_cplan`), with some to spare for later versions.
const PLAN_WORDS: usize = 128;

/// The functions of the host's CPU backend.
struct CpuBackend {
    supports_op: unsafe extern "C-unwind" fn(*mut c_void, *const RawTensor) -> u8,
    init: unsafe extern "C-unwind" fn() -> *mut c_void,
    set_n_threads: unsafe extern "C-unwind" fn(*mut c_void, i32),
    graph_compute: unsafe extern "C-unwind" fn(*mut c_void, *mut c_void) -> i32,
    free: unsafe extern "C-unwind" fn(*mut c_void),
}

impl CpuBackend {
    /// `None` if the host has no CPU backend, or none that this library could call.
    fn of(host: &Host) -> Option<Self> {
        let llama = &host.llama;
        let backend = Self {
            supports_op: llama.ggml_backend_dev_supports_op?,
            init: llama.ggml_backend_cpu_init?,
            set_n_threads: llama.ggml_backend_cpu_set_n_threads?,
            graph_compute: llama.ggml_backend_graph_compute?,
            free: llama.ggml_backend_free?,
        };
        Some(backend)
    }
}

/// Shows the node to the host, and what the host called then. The trial must be on the stage, and stays there: other
/// threads wait for the verdict.
pub fn show(host: &'static Host, buft: *mut RawBufferType) -> Result<Verdict, String> {
    let begin = Instant::now();
    let Some(backend) = CpuBackend::of(host) else {
        debug!("this host has no CPU backend that could be tried");
        return Ok(Verdict::Proved);
    };
    if host.device.is_null() {
        return Ok(Verdict::Proved);
    }
    let mut memory = vec![0f32; 1024];
    // SAFETY: the host's functions; the node's tensors have memory that outlives the context.
    unsafe {
        in_context(&host.symbols, |context| {
            let TrialNode { node, graph, buffer } = TrialNode::new(host, buft, context, &mut memory)?;
            with_trial(|trial| {
                (trial.device, trial.node, trial.graph) = (host.device as usize, node as usize, graph as usize);
            });
            let supported = (backend.supports_op)(host.device, node) != 0;
            let is_clean = with_trial(|t| t.error.is_none() && !t.calls.is_empty()).unwrap_or(false);
            let shown = if is_clean && supported { compute(host, &backend, graph) } else { Ok(()) };
            (host.symbols.ggml_backend_buffer_free)(buffer);
            shown
        })?;
    }
    let shown = with_trial(|trial| {
        let uncalled = trial.error.is_none() && trial.calls.is_empty();
        let verdict = if uncalled { Ok(Verdict::Uncalled) } else { trial.verdict().map(|()| Verdict::Proved) };
        (trial.calls.clone(), verdict)
    });
    let (calls, verdict) = shown.ok_or("the trial is gone")?;
    debug!("virtual functions and parameters tried in {:?}: {calls:?}", begin.elapsed());
    verdict
}

/// Lets the host's CPU backend plan and compute the graph of the node.
///
/// # Safety
/// The functions must be the host's, and the graph alive, with data.
unsafe fn compute(host: &Host, backend: &CpuBackend, graph: *mut c_void) -> Result<(), String> {
    // SAFETY: the host's functions, on a live graph; a plan has fewer words than are given.
    unsafe {
        if let Some(graph_plan) = host.llama.ggml_graph_plan {
            with_trial(|trial| trial.work = LONG + WORK);
            let mut plan = [0usize; PLAN_WORDS];
            graph_plan(plan.as_mut_ptr(), graph, 1, std::ptr::null_mut());
            with_trial(|trial| trial.work = WORK);
            // The first word of a plan is the size of the work buffer; here it has lost its upper half.
            if is_work_size(plan[0]) {
                return Err("the host calls tensor_traits::work_size with a size of 32 bits".to_string());
            }
        }
        let cpu = (backend.init)();
        if !cpu.is_null() {
            (backend.set_n_threads)(cpu, 1);
            (backend.graph_compute)(cpu, graph);
            (backend.free)(cpu);
        }
    }
    Ok(())
}

/// The node, a graph of nothing else, and the buffer of its weights.
struct TrialNode {
    node: *mut RawTensor,
    graph: *mut c_void,
    buffer: *mut RawBuffer,
}

impl TrialNode {
    /// # Safety
    /// `context` must be a live context of the host, `buft` our buffer type; `memory` has 1024 floats and outlives the
    /// node.
    unsafe fn new(
        host: &'static Host,
        buft: *mut RawBufferType,
        context: *mut c_void,
        memory: &mut [f32],
    ) -> Result<Self, String> {
        let missing = || "a trial tensor, graph or buffer is NULL".to_string();
        let symbols = &host.symbols;
        // SAFETY: the functions are called as ggml documents them, on tensors of a live context. A buffer without
        // functions and memory needs no context. The three tensors have 512, 64 and 32 floats, which lie apart in the
        // memory.
        unsafe {
            let weights = (symbols.ggml_new_tensor_4d)(context, TYPE_F32, 32, 16, 1, 1);
            let x = (symbols.ggml_new_tensor_4d)(context, TYPE_F32, 32, 2, 1, 1);
            if weights.is_null() || x.is_null() {
                return Err(missing());
            }
            let node = (symbols.ggml_mul_mat)(context, weights, x);
            let graph = (symbols.ggml_new_graph_custom)(context, 16, false);
            let buffer = host.buffer_init(buft, BufferInterface::NONE, std::ptr::null_mut(), 0);
            if node.is_null() || graph.is_null() || buffer.is_null() {
                return Err(missing());
            }
            (symbols.ggml_build_forward_expand)(graph, node);
            for (tensor, at) in [(weights, 0), (x, 512), (node, 768)] {
                let tensor = host.tensor(tensor).ok_or_else(missing)?;
                tensor.set_data(memory.as_mut_ptr().add(at).cast::<c_void>());
                if at == 0 {
                    tensor.set_buffer(buffer);
                }
            }
            Ok(Self { node, graph, buffer })
        }
    }
}

//! The proof that this host multiplies through us: before anything is packed, it computes a small graph. Either all our
//! functions in front of the host's must be called; or the host must ask about every product who computes it
//! ([`surface`](super::surface)). Otherwise it would read packed bytes as plain ones, and nothing is packed: its calls
//! go past us (if it is linked with `-Bsymbolic-functions`, say), or it computes products together with the one before
//! without asking. Weights in place do such a host no harm. A host whose kernels have other arguments is left alone
//! altogether.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use libc::{c_int, c_long, c_void};

use super::abi::RawBackend;
use super::host::IkHost;
use crate::diag::log;
use crate::format::WeightType;
use crate::host::abi::{GgmlComputeParams, TYPE_F32, TYPE_I32};
use crate::host::discover::in_context;
use crate::host::foreign::caught;
use crate::host::peek;
use crate::host::symbols::host_symbols;
use crate::host::{Flavour, RawBuffer, RawTensor, Tensor};
use crate::info;
use crate::process::{Mutex, Once};

host_symbols! {
    /// What makes the host compute a graph as it does for a model.
    ComputeSymbols in ggml_amx_ik_computing_symbols;
    ggml_backend_cpu_init: unsafe extern "C-unwind" fn() -> *mut RawBackend;
    ggml_backend_cpu_set_n_threads: unsafe extern "C-unwind" fn(*mut RawBackend, i32);
    ggml_backend_graph_compute: unsafe extern "C-unwind" fn(*mut RawBackend, *mut c_void) -> i32;
    ggml_backend_free: unsafe extern "C-unwind" fn(*mut RawBackend);
}

/// A function of the host's that one of ours stands in front of; its value is a bit of [`Seen::called`].
#[derive(Clone, Copy)]
pub enum WrappedFn {
    /// `ggml_graph_compute`.
    GraphCompute = 1,
    /// `iqk_mul_mat_4d`.
    MulMat = 2,
    /// `iqk_mul_mat_moe`.
    Experts = 4,
    /// `iqk_moe_fused_up_gate`.
    Gated = 8,
}

const WRAPPED: [(WrappedFn, &str); 4] = [
    (WrappedFn::GraphCompute, "ggml_graph_compute"),
    (WrappedFn::MulMat, "iqk_mul_mat_4d"),
    (WrappedFn::Experts, "iqk_mul_mat_moe"),
    (WrappedFn::Gated, "iqk_moe_fused_up_gate"),
];

/// The nodes of the graph in their order: what a host that asks by function must ask about.
const NODES: [&str; 5] = [
    "MUL_MAT",
    "MUL_MAT that follows another one of the same activations (its weights lie in a buffer of the type AMX)",
    "MUL_MAT_ID",
    "FUSED_UP_GATE",
    "MOE_FUSED_UP_GATE",
];

/// What is seen while the host computes the graph.
#[derive(Clone, Copy)]
pub struct Seen {
    /// Bits of [`WrappedFn`]: which were called.
    called: u32,
    /// Those of them that were called with other arguments than are known.
    misunderstood: u32,
    /// Addresses of the graph's nodes.
    nodes: [usize; NODES.len()],
    /// For each node, the addresses of its two matrices of weights (twice the same if it has one) and of its result.
    addresses: [[usize; 3]; NODES.len()],
    /// Which nodes the host asked about: bit `i` for node `i`.
    asked: u32,
    /// Whether it asked with parameters as they are known.
    params_known: bool,
}

impl Default for Seen {
    /// Nothing: also what a forked child gets if another thread was changing it during the fork.
    fn default() -> Self {
        Self::NONE
    }
}

impl Seen {
    const NONE: Self = Self {
        called: 0,
        misunderstood: 0,
        nodes: [0; NODES.len()],
        addresses: [[0; 3]; NODES.len()],
        asked: 0,
        params_known: true,
    };

    /// Whether a kernel's arguments are those of a node: the addresses of weights (twice the same if it has one matrix)
    /// and result, the shape and type of the weights, and a share of the rows.
    pub fn fits(
        &self,
        weights: [*const c_void; 2],
        result: *const f32,
        (nx, ne00, stride, ty): (c_long, c_long, c_long, c_int),
        (ith, nth): (c_int, c_int),
    ) -> bool {
        self.addresses.contains(&[weights[0] as usize, weights[1] as usize, result as usize])
            && [nx, ne00, stride] == [SIDE as c_long, SIDE as c_long, (SIDE / 32 * 18) as c_long]
            && ty == WeightType::Q4_0 as c_int
            && (0..nth).contains(&ith)
            && nth <= SIDE as c_int
    }
}

/// What is seen of the handshake's graph, whichever threads of the host compute it.
static SEEN: Mutex<Seen> = Mutex::new(Seen::NONE);
/// Address of the handshake's graph; 0 while there is no handshake.
static GRAPH: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether this thread computes the handshake's graph.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// This thread computes a graph, until this is dropped.
pub struct Computing {
    was_inside: bool,
}

/// Notes that this thread computes a graph, with `threads` threads.
pub fn computes(graph: *const c_void, threads: c_int) -> Computing {
    let is_it = GRAPH.load(Ordering::Acquire) == graph as usize && !graph.is_null();
    let computing = Computing { was_inside: INSIDE.replace(is_it) };
    note(WrappedFn::GraphCompute, |_| threads == 1);
    computing
}

impl Drop for Computing {
    fn drop(&mut self) {
        INSIDE.set(self.was_inside);
    }
}

/// Notes that a function was called, if this thread computes the handshake's graph. `is_known` says whether its
/// arguments are as they are known.
#[inline]
pub fn note(function: WrappedFn, is_known: impl FnOnce(&Seen) -> bool) {
    if is_running() {
        let mut seen = SEEN.lock();
        let misunderstood = if is_known(&seen) { 0 } else { function as u32 };
        seen.called |= function as u32;
        seen.misunderstood |= misunderstood;
    }
}

/// Whether this thread computes the handshake's graph.
pub fn is_running() -> bool {
    INSIDE.get()
}

/// Notes that the host asked about a node, if that is one of the handshake's graph.
pub fn note_node(node: Tensor, params: &GgmlComputeParams) {
    let graph = GRAPH.load(Ordering::Acquire);
    if graph == 0 {
        return;
    }
    let mut seen = SEEN.lock();
    if let Some(number) = seen.nodes.iter().position(|at| *at == node.address() as usize) {
        // The state that the threads share has a pointer to the graph; the work buffer has none.
        let knows_graph = |at: *mut c_void| (0..8).any(|i| peek::word(at as usize + 8 * i) == Some(graph));
        // The graph is computed by one thread, and needs a work buffer.
        let known = (params.ith, params.nth) == (0, 1)
            && (1..1 << 30).contains(&params.wsize)
            && peek::word(params.wdata as usize).is_some()
            && !knows_graph(params.wdata)
            && knows_graph(params.threadpool);
        seen.asked |= 1 << number;
        seen.params_known &= known;
    }
}

/// Makes a buffer of the type AMX; null if there is no memory for it. It is an argument because the module of that
/// type stands above this one: it asks [`is_done`] before it packs a tensor.
type NewBuffer = fn(usize) -> *mut RawBuffer;

/// Whether weights may be packed. The first call does the handshake, so it must not be made while the host is looked
/// for.
pub fn is_done(host: &'static IkHost, new_buffer: NewBuffer) -> bool {
    let outcome = outcome(host, new_buffer);
    if let Err(why) = outcome {
        static SAID: AtomicBool = AtomicBool::new(false);
        if !SAID.swap(true, Ordering::Relaxed) {
            info!("nothing is packed: {}", why.text);
        }
    }
    outcome.is_ok()
}

/// Whether calls of the host may be computed here: false only if it was seen to call with other arguments than are
/// known. The first call does the handshake.
pub fn is_understood(host: &'static IkHost, new_buffer: NewBuffer) -> bool {
    match outcome(host, new_buffer) {
        Err(why) if why.is_misunderstood => {
            static SAID: AtomicBool = AtomicBool::new(false);
            if !SAID.swap(true, Ordering::Relaxed) {
                info!("not used: {}", why.text);
            }
            false
        }
        _ => true,
    }
}

/// Why the handshake failed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refusal {
    text: String,
    /// Whether arguments were other than those that are known.
    is_misunderstood: bool,
}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Self { text, is_misunderstood: false }
    }
}

/// The outcome of the handshake, which is done once.
fn outcome(host: &'static IkHost, new_buffer: NewBuffer) -> &'static Result<(), Refusal> {
    static DONE: Once<Result<(), Refusal>> = Once::new();
    let _until_it_is_there = log::hold();
    DONE.get_or_init(|| {
        caught(|| {
            let computing = ComputeSymbols::find(Flavour::Ik)?;
            // SAFETY: the functions are the host's, and the context is alive while the graph is computed.
            unsafe { in_context(&host.symbols, |context| compute(host, &computing, context, new_buffer)) }
        })?
    })
}

/// The handshake is under way until this is dropped. A guard, because the host may throw an exception.
struct Handshake;

impl Handshake {
    fn begin(graph: *mut c_void) -> Self {
        GRAPH.store(graph as usize, Ordering::Release);
        Self
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        GRAPH.store(0, Ordering::Release);
    }
}

/// Rows of all matrices, and weights per row: a size that every kernel of the host takes.
const SIDE: usize = 64;
/// Rows of activations of the plain products. Many, because some hosts reserve too small a work buffer for those with
/// gates.
pub const ROWS: usize = 80;
/// Most bytes of data that a tensor of the graph has.
const TENSOR_BYTES: usize = SIDE * ROWS * 4;

/// Has the host compute the graph. The outer error means that there was nothing to see.
///
/// # Safety
/// `context` must be a live context of the host.
unsafe fn compute(
    host: &'static IkHost,
    computing: &ComputeSymbols,
    context: *mut c_void,
    new_buffer: NewBuffer,
) -> Result<Result<(), Refusal>, String> {
    let (symbols, side) = (&host.symbols, SIDE as i64);
    let mut memory: Vec<Vec<u64>> = Vec::new();
    // Zeros are good weights, activations and choices of experts.
    let mut with_data = |tensor: *mut RawTensor| {
        memory.push(vec![0; TENSOR_BYTES / 8 + 8]);
        let data = memory.last_mut().expect("just made").as_mut_ptr().cast::<u8>();
        // SAFETY: a live tensor of this context, or null; it has at most `TENSOR_BYTES` bytes.
        unsafe {
            if let Some(tensor) = host.tensor(tensor) {
                tensor.set_data(data.wrapping_add(data.align_offset(64)).cast());
            }
        }
        tensor
    };
    // SAFETY: documented uses of ggml's API, on live tensors of this context, whose data outlives the computation.
    unsafe {
        let mut new =
            |ty, ne: [i64; 4]| with_data((symbols.ggml_new_tensor_4d)(context, ty, ne[0], ne[1], ne[2], ne[3]));
        let q4_0 = WeightType::Q4_0 as i32;
        let (up, gate) = (new(q4_0, [side, side, 1, 1]), new(q4_0, [side, side, 1, 1]));
        // A host may tell by the buffer type about which products it must ask.
        let ours = new(q4_0, [side, side, 1, 1]);
        let buffer = new_buffer(TENSOR_BYTES);
        if let Some(ours) = host.tensor(ours) {
            ours.set_buffer(buffer);
        }
        let (x, token) = (new(TYPE_F32, [side, ROWS as i64, 1, 1]), new(TYPE_F32, [side, 1, 1, 1]));
        let choices = new(TYPE_I32, [1, 1, 1, 1]);
        let silu = host.ik_ops.glu_ops[0].0;
        let nodes = [
            (symbols.ggml_mul_mat)(context, up, x),
            (symbols.ggml_mul_mat)(context, ours, x),
            (symbols.ggml_mul_mat_id)(context, up, token, choices),
            (host.ik.ggml_fused_up_gate)(context, up, gate, token, silu),
            (host.ik.ggml_moe_up_gate)(context, up, gate, token, choices, silu),
        ];
        let graph = (symbols.ggml_new_graph_custom)(context, 16, false);
        if graph.is_null() || nodes.iter().any(|node| node.is_null()) {
            return Err("the host gave NULL for a node or a graph".to_string());
        }
        for node in nodes {
            (symbols.ggml_build_forward_expand)(graph, with_data(node));
        }
        let backend = (computing.ggml_backend_cpu_init)();
        if backend.is_null() {
            return Err("the host gave no CPU backend".to_string());
        }
        (computing.ggml_backend_cpu_set_n_threads)(backend, 1);
        let address = |tensor: *mut RawTensor| host.tensor(tensor).map_or(0, |tensor| tensor.data() as usize);
        let weights = [[up; 2], [ours; 2], [up; 2], [up, gate], [up, gate]];
        let addresses = std::array::from_fn(|i| [weights[i][0], weights[i][1], nodes[i]].map(address));
        *SEEN.lock() = Seen { nodes: nodes.map(|node| node as usize), addresses, ..Seen::NONE };
        let handshake = Handshake::begin(graph);
        let status = (computing.ggml_backend_graph_compute)(backend, graph);
        drop(handshake);
        let seen = *SEEN.lock();
        (computing.ggml_backend_free)(backend);
        if !buffer.is_null() {
            (symbols.ggml_backend_buffer_free)(buffer);
        }
        if status != 0 {
            return Err(format!("the host computed a small graph with status {status}"));
        }
        Ok(seen.verdict())
    }
}

impl Seen {
    /// Refuses unless all functions were called or all nodes asked about, with arguments that are known.
    fn verdict(&self) -> Result<(), Refusal> {
        if let Some((_, name)) = WRAPPED.iter().find(|(function, _)| self.misunderstood & *function as u32 != 0) {
            let text = format!("this host calls {name} with other arguments than are known");
            return Err(Refusal { text, is_misunderstood: true });
        }
        let past = WRAPPED.iter().filter(|(function, _)| self.called & *function as u32 == 0).map(|(_, name)| *name);
        let past: Vec<&str> = past.collect();
        let unasked = NODES.iter().enumerate().filter(|(i, _)| self.asked & 1 << i == 0).map(|(_, name)| *name);
        let unasked: Vec<&str> = unasked.collect();
        match (past.is_empty(), unasked.is_empty()) {
            (true, _) => Ok(()),
            (_, true) if self.params_known => Ok(()),
            (_, true) => {
                let text = "the parameters of ggml_backend_amx_compute_forward are not as they are known".to_string();
                Err(Refusal { text, is_misunderstood: true })
            }
            _ if self.asked == 0 => Err(format!("this host calls {} past this library", past.join(", ")).into()),
            _ => {
                let unasked = unasked.join(", ");
                Err(format!("this host computes {unasked} without asking ggml_backend_amx_compute_forward").into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_calls_or_all_questions_are_enough_and_what_is_missing_is_named() {
        let seen = |called, asked| Seen { called, asked, ..Seen::NONE };
        assert_eq!(seen(15, 0).verdict(), Ok(()));
        assert_eq!(seen(0, 31).verdict(), Ok(()));
        assert_eq!(seen(15, 3).verdict(), Ok(()));
        assert!(seen(13, 0).verdict().unwrap_err().text.contains("calls iqk_mul_mat_4d past"));
        assert!(seen(1, 29).verdict().unwrap_err().text.contains("computes MUL_MAT that follows another"));
        let other = Seen { params_known: false, ..seen(0, 31) }.verdict().unwrap_err();
        assert!(other.text.contains("parameters") && other.is_misunderstood);
        let other = Seen { misunderstood: 4, ..seen(15, 0) }.verdict().unwrap_err();
        assert!(other.text.contains("iqk_mul_mat_moe with other arguments") && other.is_misunderstood);
    }
}

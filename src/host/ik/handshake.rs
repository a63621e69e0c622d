//! The proof that this host multiplies through us: before anything is packed it computes a small graph. Either every
//! function that must be in front of the host's has to be called; or the host has to ask for every product who computes it
//! ([`surface`](super::surface)). A host whose calls go past us (linked with `-Bsymbolic-functions`, say), or that computes
//! a product together with the one before it without asking, would read packed bytes as plain ones; weights in place
//! do it no harm. One whose kernels have other arguments would be misunderstood: it is left alone.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use libc::{c_int, c_long, c_void};

use super::abi::RawBackend;
use super::{Flavour, IkHost, Tensor, place};
use crate::diag::log;
use crate::format::WeightType;
use crate::host::abi::{GgmlComputeParams, TYPE_F32, TYPE_I32};
use crate::host::discover::in_context;
use crate::host::foreign::caught;
use crate::host::peek;
use crate::host::symbols::host_symbols;
use crate::host::tensor::RawTensor;
use crate::info;
use crate::process::{Mutex, Once};

host_symbols! {
    /// What it takes to have the host compute a graph as it does for a model.
    ComputeSymbols in ggml_amx_ik_computing_symbols;
    ggml_backend_cpu_init: unsafe extern "C-unwind" fn() -> *mut RawBackend;
    ggml_backend_cpu_set_n_threads: unsafe extern "C-unwind" fn(*mut RawBackend, i32);
    ggml_backend_graph_compute: unsafe extern "C-unwind" fn(*mut RawBackend, *mut c_void) -> i32;
    ggml_backend_free: unsafe extern "C-unwind" fn(*mut RawBackend);
}

/// A function of ours that the host's code has to call.
#[derive(Clone, Copy)]
pub enum Step {
    /// `ggml_graph_compute`.
    Graph = 1,
    /// `iqk_mul_mat_4d`.
    MulMat = 2,
    /// `iqk_mul_mat_moe`.
    Experts = 4,
    /// `iqk_moe_fused_up_gate`.
    Gated = 8,
}

const STEPS: [(Step, &str); 4] = [
    (Step::Graph, "ggml_graph_compute"),
    (Step::MulMat, "iqk_mul_mat_4d"),
    (Step::Experts, "iqk_mul_mat_moe"),
    (Step::Gated, "iqk_moe_fused_up_gate"),
];

/// What the nodes of the graph are, in their order: what a host that asks by function has to ask about.
const NODES: [&str; 5] = [
    "MUL_MAT",
    "MUL_MAT that follows another one of the same activations (its weights lie in a buffer of the type AMX)",
    "MUL_MAT_ID",
    "FUSED_UP_GATE",
    "MOE_FUSED_UP_GATE",
];

/// What is seen of a graph.
#[derive(Clone, Copy)]
pub struct Seen {
    /// Bits of [`Step`].
    steps: u32,
    /// Those of them whose arguments were not as they are known.
    other: u32,
    /// Its nodes.
    nodes: [usize; NODES.len()],
    /// Where their one or two matrices of weights lie, and their results.
    places: [[usize; 3]; NODES.len()],
    /// Bits of those that the host asked about.
    asked: u32,
    /// Whether it did so with parameters as they are known.
    params_known: bool,
}

impl Default for Seen {
    fn default() -> Self {
        Self::NONE
    }
}

impl Seen {
    const NONE: Self = Self {
        steps: 0,
        other: 0,
        nodes: [0; NODES.len()],
        places: [[0; 3]; NODES.len()],
        asked: 0,
        params_known: true,
    };

    /// Whether a kernel's arguments fit a node: where weights (twice the same, if it has one matrix) and results lie, what the
    /// weights are, and a share of the rows.
    pub fn fits(
        &self,
        weights: [*const c_void; 2],
        result: *const f32,
        (nx, ne00, stride, ty): (c_long, c_long, c_long, c_int),
        (ith, nth): (c_int, c_int),
    ) -> bool {
        let place = [weights[0] as usize, weights[1] as usize, result as usize];
        self.places.contains(&place)
            && [nx, ne00, stride] == [SIDE as c_long, SIDE as c_long, (SIDE / 32 * 18) as c_long]
            && ty == WeightType::Q4_0 as c_int
            && (0..nth).contains(&ith)
            && nth <= SIDE as c_int
    }
}

/// What is seen of the handshake's graph, by whichever threads of the host compute it.
static SEEN: Mutex<Seen> = Mutex::new(Seen::NONE);
/// The graph while there is a handshake; 0: there is none.
static GRAPH: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether this thread computes that graph.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// The computation of a graph by this thread, until it is dropped.
pub struct Computing {
    was_inside: bool,
}

/// This thread computes a graph, in so many threads.
pub fn computes(graph: *const c_void, threads: c_int) -> Computing {
    let is_it = GRAPH.load(Ordering::Acquire) == graph as usize && !graph.is_null();
    let computing = Computing { was_inside: INSIDE.replace(is_it) };
    note(Step::Graph, |_| threads == 1);
    computing
}

impl Drop for Computing {
    fn drop(&mut self) {
        INSIDE.set(self.was_inside);
    }
}

/// Notes that one of our functions was called, if this thread computes the handshake's graph; `is_known` is asked about its
/// arguments.
#[inline]
pub fn note(step: Step, is_known: impl FnOnce(&Seen) -> bool) {
    if is_running() {
        let mut seen = SEEN.lock();
        let other = if is_known(&seen) { 0 } else { step as u32 };
        seen.steps |= step as u32;
        seen.other |= other;
    }
}

/// Whether this thread computes the handshake's graph.
pub fn is_running() -> bool {
    INSIDE.get()
}

/// Notes that the host asked about a node.
pub fn note_node(node: Tensor, params: &GgmlComputeParams) {
    let graph = GRAPH.load(Ordering::Acquire);
    if graph == 0 {
        return;
    }
    let mut seen = SEEN.lock();
    if let Some(number) = seen.nodes.iter().position(|at| *at == node.address() as usize) {
        // What the threads share knows the graph; a work buffer does not.
        let knows_graph = |at: *mut c_void| (0..8).any(|i| peek::word(at as usize + 8 * i) == Some(graph));
        // The graph has one thread, and needs a work buffer.
        let known = (params.ith, params.nth) == (0, 1)
            && (1..1 << 30).contains(&params.wsize)
            && peek::word(params.wdata as usize).is_some()
            && !knows_graph(params.wdata)
            && knows_graph(params.threadpool);
        seen.asked |= 1 << number;
        seen.params_known &= known;
    }
}

/// Whether weights may be packed. Found out once, by the first who asks; not while the host is looked for.
pub fn is_done(host: &'static IkHost) -> bool {
    let outcome = outcome(host);
    if let Err(why) = outcome {
        static SAID: Once<()> = Once::new();
        SAID.get_or_init(|| info!("nothing is packed: {}", why.text));
    }
    outcome.is_ok()
}

/// Whether what the host calls may be computed here. Weights in place do no harm to a host whose calls go past this library, or
/// that cannot be tried; but one that calls with other arguments than are known would be misunderstood.
pub fn is_understood(host: &'static IkHost) -> bool {
    match outcome(host) {
        Err(why) if why.is_misunderstood => {
            static SAID: Once<()> = Once::new();
            SAID.get_or_init(|| info!("not used: {}", why.text));
            false
        }
        _ => true,
    }
}

/// Why there is no handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refusal {
    text: String,
    /// Whether arguments were not as they are known.
    is_misunderstood: bool,
}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Self { text, is_misunderstood: false }
    }
}

fn outcome(host: &'static IkHost) -> &'static Result<(), Refusal> {
    static DONE: Once<Result<(), Refusal>> = Once::new();
    let _until_it_is_there = log::hold();
    DONE.get_or_init(|| caught(|| shake(host))?)
}

fn shake(host: &'static IkHost) -> Result<Result<(), Refusal>, String> {
    let computing = ComputeSymbols::find(Flavour::Ik)?;
    // SAFETY: the host's functions; the context is alive while the graph is computed.
    unsafe { in_context(&host.symbols, |context| compute(host, &computing, context)) }
}

/// There is a handshake, until it is dropped: an exception of the host's may pass.
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

/// Rows and weights per row of all matrices: what every kernel of the host takes.
const SIDE: usize = 64;
/// Rows of activations of the plain product. Many, for some hosts ask for too small a work buffer for those with gates.
pub const ROWS: usize = 80;
/// Bytes of the data of any of the tensors.
const ROOM: usize = SIDE * ROWS * 4;

/// # Safety
/// `context` must be a live context of the host.
unsafe fn compute(
    host: &'static IkHost,
    computing: &ComputeSymbols,
    context: *mut c_void,
) -> Result<Result<(), Refusal>, String> {
    let (symbols, side) = (&host.symbols, SIDE as i64);
    let mut memory: Vec<Vec<u64>> = Vec::new();
    // Zeros are weights, floats and numbers of experts.
    let mut with_data = |tensor: *mut RawTensor| {
        memory.push(vec![0; ROOM / 8 + 8]);
        let data = memory.last_mut().expect("just made").as_mut_ptr().cast::<u8>();
        // SAFETY: a live tensor of this context, of at most `ROOM` bytes.
        if let Some(tensor) = unsafe { host.tensor(tensor) } {
            // SAFETY: as above.
            unsafe { tensor.set_data(data.wrapping_add(data.align_offset(64)).cast()) };
        }
        tensor
    };
    // SAFETY: documented uses of ggml's API on live tensors of this context, whose data outlives the computation.
    unsafe {
        let mut new =
            |ty, ne: [i64; 4]| with_data((symbols.ggml_new_tensor_4d)(context, ty, ne[0], ne[1], ne[2], ne[3]));
        let q4_0 = WeightType::Q4_0 as i32;
        let (up, gate) = (new(q4_0, [side, side, 1, 1]), new(q4_0, [side, side, 1, 1]));
        // A host may tell by the buffer whose products it must ask about.
        let ours = new(q4_0, [side, side, 1, 1]);
        let lies_in = place::buffer_of(ROOM);
        if let Some(ours) = host.tensor(ours) {
            ours.set_buffer(lies_in);
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
        let at = |tensor| host.tensor(tensor).map_or(0, |tensor| tensor.data() as usize);
        let weights = [[up; 2], [ours; 2], [up; 2], [up, gate], [up, gate]];
        let places = std::array::from_fn(|i| [at(weights[i][0]), at(weights[i][1]), at(nodes[i])]);
        *SEEN.lock() = Seen { nodes: nodes.map(|node| node as usize), places, ..Seen::NONE };
        let handshake = Handshake::begin(graph);
        let status = (computing.ggml_backend_graph_compute)(backend, graph);
        drop(handshake);
        let seen = *SEEN.lock();
        (computing.ggml_backend_free)(backend);
        if !lies_in.is_null() {
            (symbols.ggml_backend_buffer_free)(lies_in);
        }
        if status != 0 {
            return Err(format!("the host computed a small graph with status {status}"));
        }
        Ok(seen.verdict())
    }
}

impl Seen {
    /// Whether one of both ways is whole, and all that was seen is known.
    fn verdict(&self) -> Result<(), Refusal> {
        if let Some((_, name)) = STEPS.iter().find(|(step, _)| self.other & *step as u32 != 0) {
            let text = format!("this host calls {name} with other arguments than are known");
            return Err(Refusal { text, is_misunderstood: true });
        }
        let past = STEPS.iter().filter(|(step, _)| self.steps & *step as u32 == 0).map(|(_, name)| *name);
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
    fn one_whole_way_is_enough_and_what_is_missing_is_named() {
        let seen = |steps, asked| Seen { steps, asked, ..Seen::NONE };
        assert_eq!(seen(15, 0).verdict(), Ok(()));
        assert_eq!(seen(0, 31).verdict(), Ok(()));
        assert_eq!(seen(15, 3).verdict(), Ok(()));
        assert!(seen(13, 0).verdict().unwrap_err().text.contains("calls iqk_mul_mat_4d past"));
        assert!(seen(1, 29).verdict().unwrap_err().text.contains("computes MUL_MAT that follows another"));
        let other = Seen { params_known: false, ..seen(0, 31) }.verdict().unwrap_err();
        assert!(other.text.contains("parameters") && other.is_misunderstood);
        let other = Seen { other: 4, ..seen(15, 0) }.verdict().unwrap_err();
        assert!(other.text.contains("iqk_mul_mat_moe with other arguments") && other.is_misunderstood);
    }
}

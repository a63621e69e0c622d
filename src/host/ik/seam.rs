//! What happens in the functions that stand in front of the host's: products that are ours are computed, all others are
//! handed on as they came.

use libc::{c_char, c_int, c_long, c_void};

use super::abi::{IkBackend, IkBuffer, IkBufferType, IkTensor};
use super::graph::{self, Call, Node};
use super::{IkHost, place, product, team};
use crate::cpu;
use crate::diag::env::{Mode, env};
use crate::matmul::{Op, Settings, Thread};

/// The arguments of `iqk_mul_mat_4d`, in its order.
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs)] // the host's names
pub struct Mul4d {
    pub nx: c_long,
    pub ny: c_long,
    pub ne00: c_long,
    pub ne02: c_long,
    pub ne03: c_long,
    pub ne12: c_long,
    pub ne13: c_long,
    pub nb02: c_long,
    pub nb03: c_long,
    pub nb12: c_long,
    pub nb13: c_long,
    pub nb2: c_long,
    pub nb3: c_long,
    pub type_a: c_int,
    pub a: *const c_void,
    pub stride_a: c_long,
    pub type_b: c_int,
    pub b: *const c_void,
    pub stride_b: c_long,
    pub c: *mut f32,
    pub stride_c: c_long,
    pub ith: c_int,
    pub nth: c_int,
}

/// Computes the product that a kernel was called for: `Some(true)` if that is done, `None` if the host shall do it.
///
/// # Safety
/// As for the host's kernels.
unsafe fn compute(
    result: *mut f32,
    weights: *const c_void,
    (ith, nth): (c_int, c_int),
    fits: impl Fn(&Node) -> bool,
) -> Option<bool> {
    match graph::call(result as usize, weights as usize, fits) {
        Call::Foreign => None,
        Call::Done => Some(true),
        Call::Compute(node, op) => {
            // SAFETY: promised by the caller.
            unsafe { run(node, op, ith as usize, nth as usize) };
            Some(true)
        }
    }
}

/// # Safety
/// All threads of the operation must come.
unsafe fn run(node: &Node, op: &Op, index: usize, count: usize) {
    if op.is_empty() {
        return;
    }
    let host = IkHost::get().expect("nodes are announced by a host");
    let name = || String::from_utf8_lossy(&node.name).trim_end_matches('\0').to_string();
    let settings = Settings { isa: cpu::isa(), exact: env().exact };
    let place = (node.result, index, count);
    // SAFETY: shapes were checked as the node was announced; the work buffer is as large as asked for.
    let run = |thread: &Thread<'_>, work| unsafe { op.run(settings, thread, work) };
    // SAFETY: the results are there.
    together(host, place, op.work_size(count), name, run, || unsafe { op.has_nan() });
}

/// An operation whose result lies at an address, by this thread of so many: in a team with a work buffer of `bytes`, and
/// looked through for NaN if the environment says so.
pub(super) fn together(
    host: &IkHost,
    (result, index, count): (usize, usize, usize),
    bytes: Option<usize>,
    name: impl Fn() -> String,
    run: impl FnOnce(&Thread<'_>, *mut u8),
    has_nan: impl FnOnce() -> bool,
) {
    let bytes = bytes.unwrap_or(usize::MAX);
    let member = team::join(result, count, bytes)
        .unwrap_or_else(|e| host.abort(&format!("{}: no work buffer of {bytes} bytes: {e}", name())));
    let barrier = || member.wait();
    run(&Thread { index, count, barrier: &barrier }, member.work());
    if env().check_nan {
        member.wait();
        if index == 0 && has_nan() {
            host.abort(&format!("NaN or infinity in {}", name()));
        }
    }
}

/// In place of `iqk_mul_mat_4d`. `real` is the host's.
///
/// # Safety
/// As for the host's function.
pub unsafe fn mul_mat_4d(args: Mul4d, real: impl Fn(Mul4d) -> bool) -> bool {
    let fits = |n: &Node| !n.fused && !n.with_ids && n.rows == args.ny as usize;
    // SAFETY: promised by the caller.
    if let Some(done) = unsafe { compute(args.c, args.a, (args.ith, args.nth), fits) } {
        return done;
    }
    let rows = args.nx as usize * args.stride_a as usize;
    let batches = (args.ne02 as usize - 1) * args.nb02 as usize + (args.ne03 as usize - 1) * args.nb03 as usize;
    with_plain(args.a, rows + batches, |a| real(Mul4d { a, ..args }))
}

/// Hands `weights` on as plain bytes: for products that only the host can compute, of packed weights.
fn with_plain<T>(weights: *const c_void, bytes: usize, run: impl Fn(*const c_void) -> T) -> T {
    match place::packed_around(weights.cast()) {
        None => run(weights),
        Some((shape, base, offset)) => {
            let mut plain = vec![0; bytes.min(shape.plain_size() - offset)];
            // SAFETY: the range is inside the packed tensor.
            unsafe { shape.read(base, offset, &mut plain) };
            run(plain.as_ptr().cast())
        }
    }
}

/// In place of `iqk_mul_mat_moe` for the weights of one expert, `bytes` of them.
///
/// # Safety
/// As for the host's function.
pub unsafe fn mul_mat_moe(
    a: *const c_void,
    bytes: usize,
    c: *mut f32,
    threads: (c_int, c_int),
    real: impl Fn(*const c_void) -> bool,
) -> bool {
    // SAFETY: promised by the caller.
    let done = unsafe { compute(c, a, threads, |n| !n.fused && n.with_ids) };
    done.unwrap_or_else(|| with_plain(a, bytes, real))
}

/// In place of `iqk_moe_fused_up_gate` for the weights of one expert, or of a dense product.
///
/// # Safety
/// As for the host's function.
pub unsafe fn fused_up_gate(
    [up, gate]: [*const c_void; 2],
    bytes: usize,
    c: *mut f32,
    threads: (c_int, c_int),
    real: impl Fn(*const c_void, *const c_void) -> bool,
) -> bool {
    // SAFETY: promised by the caller.
    let done = unsafe { compute(c, up, threads, |n| n.fused) };
    done.unwrap_or_else(|| with_plain(up, bytes, |up| with_plain(gate, bytes, |gate| real(up, gate))))
}

/// Around `ggml_graph_compute`.
///
/// # Safety
/// `graph` must be a graph of the host's.
pub unsafe fn graph_compute(graph: *mut c_void, real: impl Fn() -> c_int) -> c_int {
    let Some(host) = IkHost::get() else { return real() };
    // SAFETY: promised by the caller.
    let nodes: &[*mut IkTensor] = unsafe {
        let count = usize::try_from((host.symbols.ggml_graph_n_nodes)(graph)).unwrap_or(0);
        let nodes = (host.symbols.ggml_graph_nodes)(graph);
        if nodes.is_null() { &[] } else { std::slice::from_raw_parts(nodes, count) }
    };
    // SAFETY: nodes of a graph are live tensors.
    let nodes = || nodes.iter().map(|node| unsafe { &**node });
    if place::any() {
        place::report();
        nodes().for_each(|node| guard(host, node));
    }
    let run = graph::begin(nodes().filter_map(|node| announce(host, node)));
    let status = real();
    drop(run);
    status
}

/// The node, if it is a product, and whether it is ours.
fn announce(host: &IkHost, node: &IkTensor) -> Option<Node> {
    if !product::is_product(host, node) {
        return None;
    }
    let op = product::product(host, node).unwrap_or_else(|why| {
        crate::debug!("left to the host, unpacked: {why}");
        None
    });
    let weights = node.source(0)?;
    let (fused, with_ids) = (product::is_fused(host, node), product::has_ids(host, node));
    // Calls name the matrix `up`: of a merged tensor the second half.
    let skip = if fused && node.source(1).is_none() { weights.nb[2] / 2 } else { 0 };
    Some(Node {
        op: op.filter(|op| !op.lacks_data()),
        fused,
        with_ids,
        rows: usize::try_from(node.ne[1]).ok()?,
        result: node.data as usize,
        weights: weights.data as usize + skip,
        stride: weights.nb[2],
        experts: if with_ids { usize::try_from(weights.ne[2]).ok()? } else { 1 },
        name: node.name.map(|c| c as u8),
    })
}

/// Makes sure that nothing but products reads packed bytes, and those as weights.
fn guard(host: &IkHost, node: &IkTensor) {
    if host.ops.no_data.contains(&node.op) {
        return;
    }
    let weights = usize::from(product::is_product(host, node)) + usize::from(product::is_fused(host, node));
    for packed in (weights..node.src.len()).filter_map(|i| node.source(i)).filter(|t| place::packed(t).is_some()) {
        let reader = format!("{} ({})", host.op_name(node.op), node.name());
        if !graph::is_idle() {
            host.abort(&format!("{} is packed, {reader} would read it, and another graph runs", packed.name()));
        }
        // SAFETY: no graph runs.
        unsafe { place::give_back(packed, &reader) };
    }
}

/// Around `ggml_backend_cpu_init`: lets the CPU backend of the host have our buffers.
///
/// # Safety
/// `backend` must be one that the host has just made, or null.
pub unsafe fn widen_cpu_backend(backend: *mut IkBackend) {
    if IkHost::get().is_none() {
        return;
    }
    // SAFETY: promised by the caller; the offsets are those of the struct.
    if let Some(b) = unsafe { backend.as_mut() } {
        let _ = SUPPORTS_BUFT.set(b.supports_buft);
        b.supports_buft = supports_buft;
    }
}

static SUPPORTS_BUFT: std::sync::OnceLock<unsafe extern "C" fn(*mut IkBackend, *mut IkBufferType) -> bool> =
    std::sync::OnceLock::new();

unsafe extern "C" fn supports_buft(backend: *mut IkBackend, buft: *mut IkBufferType) -> bool {
    // SAFETY: passed on.
    buft == place::buffer_type() || SUPPORTS_BUFT.get().is_some_and(|f| unsafe { f(backend, buft) })
}

/// Around `ggml_backend_reg_get_count`: makes sure that the buffer type `AMX` can be named in options.
pub fn register(count: impl Fn() -> usize) -> usize {
    static DONE: std::sync::Once = std::sync::Once::new();
    // The first call makes the host's own list, in which the CPU must be first.
    let before = count();
    if let Some(host) = IkHost::get() {
        DONE.call_once(|| {
            // SAFETY: the host's function; name and buffer type live for ever.
            unsafe {
                (host.symbols.ggml_backend_register)(
                    c"AMX".as_ptr(),
                    no_backend,
                    place::buffer_type(),
                    std::ptr::null_mut(),
                )
            }
        });
        return count();
    }
    before
}

/// There is no backend of that name, only a buffer type.
unsafe extern "C" fn no_backend(_: *const c_char, _: *mut c_void) -> *mut IkBackend {
    std::ptr::null_mut()
}

/// Around `ggml_backend_tensor_alloc`.
///
/// # Safety
/// As for the host's function, which `real` is.
pub unsafe fn tensor_alloc(
    buffer: *mut IkBuffer,
    tensor: *mut IkTensor,
    address: *mut c_void,
    real: place::TensorAlloc,
) -> i32 {
    let packs = env().mode == Mode::Packed;
    // SAFETY: passed on.
    unsafe {
        let done = packs && IkHost::get().is_some_and(|host| place::pack_mapped(host, buffer, tensor, address, real));
        if done { 0 } else { real(buffer, tensor, address) }
    }
}

/// Around `ggml_backend_alloc_ctx_tensors_from_buft`.
///
/// # Safety
/// As for the host's function, which `real` is; `alloc` must be its `ggml_backend_tensor_alloc`.
pub unsafe fn alloc_ctx_tensors(
    context: *mut c_void,
    buft: *mut IkBufferType,
    alloc: place::TensorAlloc,
    real: impl Fn() -> *mut IkBuffer,
) -> *mut IkBuffer {
    let host = if env().mode == Mode::Packed { IkHost::get() } else { None };
    // SAFETY: the host's function without arguments.
    let host = host.filter(|host| buft == unsafe { (host.symbols.ggml_backend_cpu_buffer_type)() });
    let Some(host) = host else { return real() };
    // SAFETY: a live context of the host's.
    unsafe {
        let first = (host.symbols.ggml_get_first_tensor)(context);
        let next = |t: &*mut IkTensor| Some((host.symbols.ggml_get_next_tensor)(context, *t)).filter(|t| !t.is_null());
        let tensors: Vec<_> = std::iter::successors(Some(first).filter(|t| !t.is_null()), next).collect();
        let ours = place::pack_unmapped(host, &tensors, alloc);
        place::tied(real(), ours)
    }
}

//! What happens in the functions that stand in front of the host's: products that are ours are computed, all others are
//! handed on as they came.

use libc::{c_char, c_int, c_long, c_void};

use super::abi::{IkPlan, RawBackend};
use super::graph::{self, Beginning, Call, Kernel, Node};
use super::handshake::{self, ComputeSymbols};
use super::team::{Member, Place};
use super::{IkHost, RawBuffer, RawBufferType, RawTensor, Tensor, place, product};
use crate::buffer::held;
use crate::cpu;
use crate::diag::border::{Passing, ffi_boundary};
use crate::diag::env::{Mode, env};
use crate::diag::log;
use crate::host::Flavour;
use crate::host::abi::TYPE_F32;
use crate::matmul::{Op, Settings, Thread};
use crate::panel::weights::Shape;

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

/// The share of the rows that a kernel of the host is called for: its number, and how many there are. Mostly a thread's number
/// and that of all threads.
pub type Threads = (c_int, c_int);

/// Computes the product that a kernel was called for: `Some(true)` if that is done, `None` if the host shall do it.
/// `follows` as for [`Place`].
///
/// # Safety
/// As for the host's kernels.
unsafe fn compute(
    kernel: Kernel,
    result: *mut f32,
    weights: *const c_void,
    threads: Threads,
    follows: bool,
    fits: impl Fn(&Node) -> bool,
) -> Option<bool> {
    match graph::call(kernel, result as usize, weights as usize, threads, fits) {
        Call::Foreign => None,
        Call::Done => Some(true),
        Call::Compute { team, place, node, op } => {
            if !op.is_empty() {
                // SAFETY: promised by the caller.
                team.operation(Place { follows, ..place }, |member| unsafe { run(node, op, member) });
            }
            Some(true)
        }
    }
}

/// # Safety
/// All threads of the team must come.
unsafe fn run(node: &Node, op: &Op, member: Member<'_>) {
    let host = IkHost::get().expect("nodes are announced by a host");
    let name = || String::from_utf8_lossy(&node.name).trim_end_matches('\0').to_string();
    let settings = Settings { isa: cpu::isa(), demand: node.demand };
    // SAFETY: shapes were checked as the node was announced; the work buffer is as large as asked for.
    let run = |thread: &Thread<'_>, work| unsafe { op.run(settings, thread, work) };
    // SAFETY: the results are there.
    together(host, member, name, run, || unsafe { op.has_nan() });
}

/// This thread's part of an operation, which is looked through for NaN if the environment says so.
pub(super) fn together(
    host: &'static IkHost,
    member: Member<'_>,
    name: impl Fn() -> String,
    run: impl FnOnce(&Thread<'_>, *mut u8),
    has_nan: impl FnOnce() -> bool,
) {
    let barrier = || member.wait();
    run(&Thread { index: member.index, count: member.count, barrier: &barrier }, member.work());
    if env().check_nan {
        member.wait();
        if member.index == 0 && has_nan() {
            host.abort(&format!("NaN or infinity in {}", name()));
        }
    }
}

/// In front of `iqk_mul_mat_4d`: what it returns, or `None` if the host shall do it. `real` is the host's.
///
/// # Safety
/// As for the host's function.
pub unsafe fn mul_mat_4d(args: Mul4d, real: impl Fn(Mul4d) -> bool) -> Option<bool> {
    // Products of the same activations come one after the other, with activations that were quantised for the first.
    let follows = args.type_b != TYPE_F32;
    let (kernel, fits) = (Kernel::MulMat, |n: &Node| n.rows == args.ny as usize);
    // SAFETY: promised by the caller.
    if let Some(done) = unsafe { compute(kernel, args.c, args.a, (args.ith, args.nth), follows, fits) } {
        return Some(done);
    }
    let mut weights = HostWeights::new(args.a, args.stride_a);
    if !weights.are_packed() {
        return None;
    }
    // One matrix at a time, with the batches that share it.
    let (share2, share3) = (args.ne12 / args.ne02, args.ne13 / args.ne03);
    let matrices = (args.ne02 * args.ne03) as usize;
    let done = in_blocks(args.nx as usize, args.stride_a, matrices, (args.ith, args.nth), |block, threads| {
        let (i2, i3) = (block.matrix as c_long % args.ne02, block.matrix as c_long / args.ne02);
        let skip = i2 * args.nb02 + i3 * args.nb03;
        real(Mul4d {
            nx: block.rows as c_long,
            ne02: 1,
            ne03: 1,
            ne12: share2,
            ne13: share3,
            a: weights.rows(skip as usize, block),
            b: args.b.wrapping_byte_offset((i2 * share2 * args.nb12 + i3 * share3 * args.nb13) as isize),
            c: args
                .c
                .wrapping_offset((i2 * share2 * args.nb2 + i3 * share3 * args.nb3) as isize)
                .wrapping_add(block.first),
            ith: threads.0,
            nth: threads.1,
            ..args
        })
    });
    Some(done)
}

/// Bytes of weights that are unpacked at a time for products that only the host can compute.
const BLOCK_BYTES: usize = 256 << 10;
/// Rows of a block: a multiple of what the host interleaves.
const BLOCK_STEP: usize = 32;
/// As the last of so many threads the host's kernels have no rows to compute. A prime, so that they share in one way.
const NO_SHARE: Threads = (65_536, 65_537);

/// Some rows of a matrix, and where they begin.
#[derive(Clone, Copy)]
pub struct Block {
    /// Number of the matrix.
    matrix: usize,
    /// Its first row.
    pub first: usize,
    /// How many rows.
    pub rows: usize,
}

/// Calls the host's kernel for one block of rows of `n` after the other, as if this thread were alone: those that are
/// this thread's share. False as soon as the kernel says so.
fn in_blocks(
    n: usize,
    stride: c_long,
    matrices: usize,
    (ith, nth): Threads,
    mut kernel: impl FnMut(Block, Threads) -> bool,
) -> bool {
    let step = (BLOCK_BYTES / (stride as usize).max(1) / BLOCK_STEP).clamp(1, 32) * BLOCK_STEP;
    let per_matrix = n.div_ceil(step);
    let block = |i: usize| {
        let (matrix, first) = (i / per_matrix, i % per_matrix * step);
        Block { matrix, first, rows: step.min(n - first) }
    };
    let (ith, nth) = if cfg!(mutant = "whole-matrix") { (0, 1) } else { (ith, nth) };
    let mut mine = (ith as usize..per_matrix * matrices).step_by(nth as usize).map(block).peekable();
    if mine.peek().is_none() && n > 0 && matrices > 0 {
        // Threads with nothing to do must say the same as the others.
        return kernel(Block { matrix: 0, first: 0, rows: n.min(BLOCK_STEP) }, NO_SHARE);
    }
    mine.all(|block| kernel(block, (0, 1)))
}

/// Weights as a kernel of the host gets them, that may be packed.
pub(super) struct HostWeights {
    address: *const c_void,
    /// Bytes of a row.
    stride: usize,
    packed: Option<(Shape, *const u8, usize)>,
    /// Unpacked rows.
    plain: Vec<u8>,
}

impl HostWeights {
    pub fn new(address: *const c_void, stride: c_long) -> Self {
        Self { address, stride: stride as usize, packed: place::packed_around(address.cast()), plain: Vec::new() }
    }

    pub fn are_packed(&self) -> bool {
        self.packed.is_some()
    }

    /// The rows of a block of the matrix that begins `skip` bytes behind the address, as plain bytes.
    fn rows(&mut self, skip: usize, block: Block) -> *const c_void {
        let skip = skip + block.first * self.stride;
        let Some((shape, base, offset)) = self.packed else { return self.address.wrapping_byte_add(skip) };
        self.plain.resize((block.rows * self.stride).min(shape.plain_size() - (offset + skip)), 0);
        // SAFETY: the range is inside the packed tensor.
        unsafe { shape.read(base, offset + skip, &mut self.plain) };
        self.plain.as_ptr().cast()
    }
}

/// In front of `iqk_mul_mat_moe` for the weights of one expert, `nx` rows of `stride` bytes each: as [`mul_mat_4d`]; `real`
/// gets those of a block.
///
/// # Safety
/// As for the host's function.
pub unsafe fn mul_mat_moe(
    a: *const c_void,
    (nx, stride): (c_long, c_long),
    c: *mut f32,
    threads: Threads,
    real: impl Fn(*const c_void, Block, Threads) -> bool,
) -> Option<bool> {
    // SAFETY: promised by the caller.
    if let Some(done) = unsafe { compute(Kernel::Experts, c, a, threads, false, |_| true) } {
        return Some(done);
    }
    let mut weights = HostWeights::new(a, stride);
    weights.are_packed().then(|| {
        in_blocks(nx as usize, stride, 1, threads, |block, threads| real(weights.rows(0, block), block, threads))
    })
}

/// In front of `iqk_moe_fused_up_gate`, as [`mul_mat_moe`], for the weights of one expert, or of a dense product.
///
/// # Safety
/// As for the host's function.
pub unsafe fn fused_up_gate(
    [up, gate]: [*const c_void; 2],
    (nx, stride): (c_long, c_long),
    c: *mut f32,
    threads: Threads,
    real: impl Fn([*const c_void; 2], Block, Threads) -> bool,
) -> Option<bool> {
    // SAFETY: promised by the caller.
    if let Some(done) = unsafe { compute(Kernel::Gated, c, up, threads, false, |_| true) } {
        return Some(done);
    }
    let mut weights = [up, gate].map(|address| HostWeights::new(address, stride));
    weights.iter().any(HostWeights::are_packed).then(|| {
        in_blocks(nx as usize, stride, 1, threads, |block, threads| {
            real(weights.each_mut().map(|w| w.rows(0, block)), block, threads)
        })
    })
}

/// Around `ggml_graph_compute`.
///
/// # Safety
/// `graph` must be a graph of the host's, `plan` its plan.
pub unsafe fn graph_compute(graph: *mut c_void, plan: *const IkPlan, real: impl Fn() -> c_int) -> c_int {
    let Some(host) = IkHost::get() else { return real() };
    // SAFETY: promised by the caller.
    let threads = unsafe { plan.as_ref() }.map_or(1, |plan| plan.n_threads);
    let _computing = handshake::computes(graph, threads);
    if !handshake::is_running() && !handshake::is_understood(host) {
        return real();
    }
    // SAFETY: promised by the caller.
    let nodes: &[*mut RawTensor] = unsafe {
        let count = usize::try_from((host.symbols.ggml_graph_n_nodes)(graph)).unwrap_or(0);
        let nodes = (host.ik.ggml_graph_nodes)(graph);
        if nodes.is_null() { &[] } else { std::slice::from_raw_parts(nodes, count) }
    };
    // SAFETY: nodes of a graph are live tensors.
    let nodes = || nodes.iter().filter_map(|node| unsafe { host.tensor(*node) });
    place::report();
    held::lock_as_the_host_does();
    // Some lines are said while nothing else can begin.
    let hold = log::hold();
    let run = graph::begin(usize::try_from(threads).unwrap_or(1).max(1), |beginning, list| {
        if place::any() {
            nodes().for_each(|node| guard(host, node, beginning));
        }
        list.extend(nodes().filter_map(|node| announce(host, node)));
    });
    drop(hold);
    let status = real();
    drop(run);
    status
}

/// The node, if it is one that may be computed here.
fn announce(host: &'static IkHost, node: Tensor) -> Option<Node> {
    let new = Node {
        op: None,
        is_packed: false,
        kernel: Kernel::Attention,
        rows: usize::try_from(node.ne()[1]).ok()?,
        result: node.data() as usize,
        weights: 0,
        stride: 0,
        experts: 1,
        demand: product::demand(host, node),
        name: node.name_bytes(),
    };
    if node.op() == host.ik_ops.flash_attn_ext && cpu::isa() == cpu::Isa::Amx {
        // What stands behind Q, K, V, mask and sinks makes another attention of it (an indexer, in later versions).
        return node.sources_from(5).next().is_none().then_some(new);
    }
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
    let skip = if fused && node.source(1).is_none() { weights.nb()[2] / 2 } else { 0 };
    Some(Node {
        op: op.filter(|op| !op.lacks_data()),
        is_packed: [0, 1].into_iter().filter_map(|i| node.source(i)).any(|w| place::packed(w).is_some()),
        kernel: match (fused, with_ids) {
            (true, _) => Kernel::Gated,
            (false, true) => Kernel::Experts,
            (false, false) => Kernel::MulMat,
        },
        weights: weights.data() as usize + skip,
        stride: weights.nb()[2],
        experts: if with_ids { usize::try_from(weights.ne()[2]).ok()? } else { 1 },
        ..new
    })
}

/// Makes sure that nothing but products reads packed bytes, and those as weights.
fn guard(host: &'static IkHost, node: Tensor, beginning: &mut Beginning<'_>) {
    if host.ops.no_data.contains(&node.op()) {
        return;
    }
    let weights = usize::from(product::is_product(host, node)) + usize::from(product::is_fused(host, node));
    for packed in node.sources_from(weights).filter(|t| place::packed(*t).is_some()) {
        let reader = format!("{} ({})", host.op_name(node.op()), node.name());
        if !beginning.wait_until_alone() {
            host.abort(&format!("{} is packed, and {reader} inside another graph would read it", packed.name()));
        }
        // SAFETY: no graph runs, and none begins.
        unsafe { place::give_back(packed, &reader) };
    }
}

/// Around `ggml_backend_cpu_init`: lets the CPU backend of the host have our buffers.
///
/// # Safety
/// `backend` must be one that the host has just made, or null.
pub unsafe fn widen_cpu_backend(backend: *mut RawBackend) {
    let Some(host) = IkHost::get().filter(|_| !backend.is_null()) else { return };
    // SAFETY: promised by the caller; the place was found out.
    unsafe {
        let member = backend.cast::<Option<SupportsBuft>>().add(host.supports_buft);
        if let Some(of_host) = member.replace(Some(supports_buft)) {
            let _ = SUPPORTS_BUFT.set(of_host);
        }
    }
}

/// Whether a backend can have buffers of a type.
type SupportsBuft = unsafe extern "C" fn(*mut RawBackend, *mut RawBufferType) -> bool;

static SUPPORTS_BUFT: crate::process::Once<SupportsBuft> = crate::process::Once::new();

unsafe extern "C" fn supports_buft(backend: *mut RawBackend, buft: *mut RawBufferType) -> bool {
    ffi_boundary!("supports_buft", else false, {
        // SAFETY: passed on.
        buft == place::buffer_type() || SUPPORTS_BUFT.get().is_some_and(|f| unsafe { f(backend, buft) })
    })
}

/// Around `ggml_backend_reg_get_count`: makes sure that the buffer type `AMX` can be named in options.
pub fn register(count: impl Fn() -> usize) -> usize {
    static DONE: crate::process::Once<()> = crate::process::Once::new();
    // The first call makes the host's own list, in which the CPU must be first.
    let before = count();
    if let Some(host) = IkHost::get() {
        DONE.get_or_init(|| {
            // SAFETY: the host's function; name and buffer type live for ever.
            unsafe {
                (host.ik.ggml_backend_register)(
                    c"AMX".as_ptr(),
                    cpu_backend,
                    place::buffer_type(),
                    std::ptr::null_mut(),
                )
            }
        });
        return count();
    }
    before
}

/// There is no backend of that name, only a buffer type; who wants one gets that of the CPU, which computes with it.
unsafe extern "C-unwind" fn cpu_backend(_: *const c_char, _: *mut c_void) -> *mut RawBackend {
    let _border = Passing::new("the backend AMX");
    let Ok(computing) = ComputeSymbols::find(Flavour::Ik) else { return std::ptr::null_mut() };
    // SAFETY: the host's function without arguments; what it made is widened once, if that was not done on the way.
    unsafe {
        let backend = (computing.ggml_backend_cpu_init)();
        widen_cpu_backend(backend);
        backend
    }
}

/// Around `ggml_backend_tensor_alloc`.
///
/// # Safety
/// As for the host's function, which `real` is.
pub unsafe fn tensor_alloc(
    buffer: *mut RawBuffer,
    tensor: *mut RawTensor,
    address: *mut c_void,
    real: impl Fn(*mut RawBuffer, *mut RawTensor, *mut c_void) -> i32,
) -> i32 {
    let packs = env().mode == Mode::Packed;
    // SAFETY: passed on.
    unsafe {
        let done = packs && IkHost::get().is_some_and(|host| place::pack_mapped(host, buffer, tensor, address, &real));
        if done { 0 } else { real(buffer, tensor, address) }
    }
}

/// Around `ggml_backend_alloc_ctx_tensors_from_buft`.
///
/// # Safety
/// As for the host's function, which `real` is; `alloc` must be its `ggml_backend_tensor_alloc`.
pub unsafe fn alloc_ctx_tensors(
    context: *mut c_void,
    buft: *mut RawBufferType,
    alloc: impl Fn(*mut RawBuffer, *mut RawTensor, *mut c_void) -> i32,
    real: impl Fn() -> *mut RawBuffer,
) -> *mut RawBuffer {
    let host = if env().mode == Mode::Packed { IkHost::get() } else { None };
    // SAFETY: the host's function without arguments.
    let host = host.filter(|host| buft == unsafe { (host.ik.ggml_backend_cpu_buffer_type)() });
    let Some(host) = host else { return real() };
    // SAFETY: a live context of the host's.
    unsafe {
        let first = (host.ik.ggml_get_first_tensor)(context);
        let next = |t: &*mut RawTensor| Some((host.ik.ggml_get_next_tensor)(context, *t)).filter(|t| !t.is_null());
        let tensors: Vec<_> = std::iter::successors(Some(first).filter(|t| !t.is_null()), next).collect();
        place::pack_unmapped(host, &tensors, alloc, real)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::cpu::memory::Region;
    use crate::format::WeightType;

    /// How the host shares rows: `kernel(first row, rows)`.
    fn share(rows: usize, (ith, nth): Threads) -> std::ops::Range<usize> {
        let each = rows.div_ceil(nth as usize);
        let first = (ith as usize * each).min(rows);
        first..rows.min(first + each)
    }

    #[test]
    fn threads_unpack_the_rows_they_need_and_no_others() {
        let [k, n, ne02, ne03, ny, r2, r3] = [4096, 208, 2, 3, 2, 2, 1];
        let shape = Shape::new(WeightType::Q8_0, k, n, ne02 * ne03).unwrap();
        let plain: Vec<u8> = (0..shape.plain_size()).map(|i| (i * 31 + i / 251) as u8).collect();
        let region = Region::new(shape.packed_size()).unwrap();
        let base = region.base().as_ptr();
        // SAFETY: the region is as large.
        unsafe { shape.write(base, 0, &plain) };
        place::PACKED.add_region(place::range_of(&region));
        place::PACKED.add(base as usize, shape.plain_size(), shape);

        let (row, matrix) = (shape.row_bytes, shape.slice_plain);
        let results = (n * ny * ne02 * r2 * ne03 * r3) as usize;
        for nth in [1, 2, 7, 100] {
            let (seen, most) = (RefCell::new(vec![0u8; results]), RefCell::new(0));
            for ith in 0..nth {
                let unpacked = RefCell::new(0);
                let args = Mul4d {
                    nx: n,
                    ny,
                    ne00: k,
                    ne02,
                    ne03,
                    ne12: ne02 * r2,
                    ne13: ne03 * r3,
                    nb02: matrix as c_long,
                    nb03: matrix as c_long * ne02,
                    // The number of the batch is where its activations are.
                    nb12: 1,
                    nb13: ne02 * r2,
                    nb2: n * ny,
                    nb3: n * ny * ne02 * r2,
                    type_a: WeightType::Q8_0 as c_int,
                    a: base.cast(),
                    stride_a: row as c_long,
                    type_b: 8,
                    b: std::ptr::null(),
                    stride_b: 0,
                    c: std::ptr::null_mut(),
                    stride_c: n,
                    ith,
                    nth,
                };
                let real = |x: Mul4d| {
                    let (batch, first) = (x.b as usize, x.c as usize / 4);
                    let (i2, i3) = (batch as c_long % (ne02 * r2), batch as c_long / (ne02 * r2));
                    for r in share(x.nx as usize, (x.ith, x.nth)) {
                        // SAFETY: the weights that a call is given have as many rows.
                        let got = unsafe { std::slice::from_raw_parts(x.a.cast::<u8>().add(r * row), row) };
                        let at = first - (i2 * args.nb2 + i3 * args.nb3) as usize + r;
                        let of = (i2 / r2 + i3 / r3 * ne02) as usize * matrix + at * row;
                        assert!(got == &plain[of..of + row], "batch {batch}, row {at}");
                        *unpacked.borrow_mut() += 1;
                        for (i, y) in (0..x.ne12 * x.ne13).flat_map(|i| (0..x.ny).map(move |y| (i, y))) {
                            let batch = (i % x.ne12) * x.nb2 + i / x.ne12 * x.nb3;
                            seen.borrow_mut()[first + (batch + y * x.stride_c) as usize + r] += 1;
                        }
                    }
                    true
                };
                // SAFETY: the kernel is the one above.
                assert_eq!(unsafe { mul_mat_4d(args, real) }, Some(true));
                let rows = *unpacked.borrow();
                most.replace_with(|most| rows.max(*most));
            }
            assert!(seen.borrow().iter().all(|count| *count == 1), "{nth} threads");
            let all = (n * ne02 * ne03) as usize;
            assert!(*most.borrow() <= all / nth as usize + 64, "{nth} threads: one unpacked {most:?} of {all}");
        }
        place::PACKED.remove_region(place::range_of(&region));
    }

    #[test]
    fn a_kernel_that_refuses_is_believed_by_all_threads() {
        let refuse = |block: Block, threads: Threads| {
            // Those without rows ask for none.
            assert!(threads == (0, 1) || share(block.rows, threads).is_empty());
            false
        };
        assert!((0..9).all(|ith| !in_blocks(96, 1 << 20, 1, (ith, 9), refuse)));
    }

    #[test]
    fn panics_end_at_the_border() {
        use std::ptr::{null, null_mut};

        use crate::diag::border::trip::{ends, goes_on};

        // SAFETY: all of them panic before they look at anything.
        unsafe {
            goes_on("supports_buft", || !supports_buft(null_mut(), null_mut()));
            ends("the backend AMX", || cpu_backend(null(), null_mut()));
        }
    }
}

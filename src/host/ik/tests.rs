//! Several contexts compute graphs, each by its own threads, while models are loaded and unloaded and a packed tensor is
//! given back and packed again: what `cargo xtask race` runs under ThreadSanitizer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;

use super::Tensor;
use super::graph::{self, Call, Kernel, Node};
use super::place::{self, PACKED};
use super::seam::HostWeights;
use super::table::Table;
use crate::cpu;
use crate::cpu::memory::Region;
use crate::cpu::rendezvous::Rendezvous;
use crate::dispatch::Demand;
use crate::format::WeightType;
use crate::host::layout::TensorLayout;
use crate::matmul::{Choices, ExpertMul, Input, MatMul, Op, Output, Settings, Thread, Weights};
use crate::panel::weights::Shape;
use crate::process::tests::in_child;

const K: usize = 64;
const N: usize = 32;
const EXPERTS: usize = 3;
/// Results of every node of a graph.
const RESULTS: [usize; 4] = [N, 2 * N, 4 * N, N];

/// Held by tests of which one waits until nothing runs and one waits for others while it runs: a process has one list of runs.
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// The plain bytes of a matrix of `n` rows; its scales are 1.
fn plain(n: usize, seed: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..n * K / 32 * 18).map(|i| (i * 37 + i / 7 * 11 + seed * 53) as u8).collect();
    bytes.chunks_exact_mut(18).for_each(|block| block[..2].copy_from_slice(&0x3c00u16.to_le_bytes()));
    bytes
}

/// A buffer with one packed matrix.
struct Packed {
    region: Region,
    shape: Shape,
    plain: Vec<u8>,
}

impl Packed {
    fn load(slices: usize, seed: usize) -> Self {
        let shape = Shape::new(WeightType::Q4_0, K as i64, N as i64, slices as i64).unwrap();
        let packed = Self { region: Region::new(shape.packed_size()).unwrap(), shape, plain: plain(N * slices, seed) };
        PACKED.add_region(place::range_of(&packed.region));
        packed.pack();
        packed
    }

    fn base(&self) -> *mut u8 {
        self.region.base().as_ptr()
    }

    fn pack(&self) {
        // SAFETY: the region is as large, and nobody computes with it.
        unsafe { self.shape.write(self.base(), 0, &self.plain) };
        PACKED.add(self.base() as usize, self.shape.plain_size(), self.shape);
    }

    fn tensor(&self) -> Tensor {
        const LAYOUT: &TensorLayout = &TensorLayout::SAMPLE;
        let memory = Box::leak(Box::new([0u64; LAYOUT.size / 8]));
        // SAFETY: numbers, and pointers that may be null.
        unsafe {
            let tensor = Tensor::new(memory.as_mut_ptr().cast(), LAYOUT).unwrap();
            tensor.set_data(self.base().cast());
            tensor
        }
    }
}

impl Drop for Packed {
    fn drop(&mut self) {
        PACKED.remove_region(place::range_of(&self.region));
    }
}

/// How a host calls for products of experts.
#[derive(Clone, Copy, PartialEq)]
enum Shares {
    /// Every thread for its share of every expert.
    OfThreads,
    /// Each expert has so many shares. A thread begins with that of its number, then takes the next that is left.
    HandedOut(usize),
    /// The same, but threads take the first one too.
    TakenFromTheFirst(usize),
}

/// A graph of a context: two products of the same matrix to the same place, one of experts, and one of a matrix that
/// may have been given back.
struct Graph<'a> {
    threads: usize,
    /// Where the host's threads wait after every node.
    host: Rendezvous,
    matrix: &'a Packed,
    experts: &'a Packed,
    borrowed: &'a Packed,
    x: Vec<f32>,
    choices: Vec<i32>,
    results: Vec<f32>,
    /// How the host calls for the products of experts.
    shares: Shares,
    /// The next share to be handed out.
    next: AtomicUsize,
    /// Whether `borrowed` was packed when the run began.
    is_packed: AtomicBool,
    /// Things that were not as they should be. Counted, for the other threads would wait for one that panics.
    wrong: AtomicUsize,
}

// SAFETY: threads share it as a host's do.
unsafe impl Sync for Graph<'_> {}

impl<'a> Graph<'a> {
    fn new(threads: usize, [matrix, experts, borrowed]: [&'a Packed; 3]) -> Self {
        Self {
            threads,
            host: Rendezvous::new(),
            matrix,
            experts,
            borrowed,
            x: (0..2 * K).map(|i| ((i * 29 % 41) as f32 - 20.0) / 16.0).collect(),
            choices: vec![0, 2, 2, 0],
            results: vec![0.0; 4 * N],
            shares: Shares::OfThreads,
            next: AtomicUsize::new(0),
            is_packed: AtomicBool::new(false),
            wrong: AtomicUsize::new(0),
        }
    }

    fn check(&self, is_right: bool) {
        self.wrong.fetch_add(usize::from(!is_right), Ordering::Relaxed);
    }

    fn result(&self) -> *mut f32 {
        self.results.as_ptr().cast_mut()
    }

    fn dense(&self, of: &Packed, rows: usize) -> Op {
        Op::Dense(MatMul {
            weights: Weights::whole(of.shape, of.base(), [K, N, 1, 1]),
            gate: None,
            input: Input { data: self.x.as_ptr().cast(), ne: [K, rows, 1, 1], nb: [4, 4 * K, 0, 0] },
            output: Output { data: self.result().cast(), nb: [4 * N, 0, 0] },
        })
    }

    fn of_experts(&self) -> Op {
        Op::Experts(ExpertMul {
            weights: Weights::whole(self.experts.shape, self.experts.base(), [K, N, EXPERTS, 1]),
            gate: None,
            input: Input { data: self.x.as_ptr().cast(), ne: [K, 1, 2, 1], nb: [4, 4 * K, 4 * K, 0] },
            choices: Choices { data: self.choices.as_ptr().cast(), used: 2, tokens: 2, nb: [4, 8], skip_others: true },
            output: Output { data: self.result().cast(), nb: [4 * N, 8 * N, 0] },
        })
    }

    fn node(&self, op: Option<Op>, of: &Packed, kernel: Kernel, rows: usize) -> Node {
        Node {
            op,
            is_packed: place::packed(of.tensor()).is_some(),
            kernel,
            rows,
            result: self.result() as usize,
            weights: of.base() as usize,
            stride: of.shape.slice_plain,
            experts: of.shape.slices,
            demand: Demand::Auto,
            name: [0; 64],
        }
    }

    /// Announces it; to be called by one thread.
    fn begin(&self) -> Option<graph::Run> {
        graph::begin(self.threads, |_, nodes| {
            let is_packed = place::packed(self.borrowed.tensor()).is_some();
            self.is_packed.store(is_packed, Ordering::Relaxed);
            let borrowed = is_packed.then(|| self.dense(self.borrowed, 1));
            nodes.push(self.node(Some(self.dense(self.matrix, 1)), self.matrix, Kernel::MulMat, 1));
            nodes.push(self.node(Some(self.dense(self.matrix, 2)), self.matrix, Kernel::MulMat, 2));
            nodes.push(self.node(Some(self.of_experts()), self.experts, Kernel::Experts, 2));
            nodes.push(self.node(borrowed, self.borrowed, Kernel::MulMat, 1));
        })
    }

    /// What thread `index` does in a run; `done(node, results)` is called by one thread after each node.
    fn run(&self, index: usize, done: &mut impl FnMut(usize, &[f32])) {
        let nodes: [(&Packed, Kernel, usize); 4] = [
            (self.matrix, Kernel::MulMat, 1),
            (self.matrix, Kernel::MulMat, 2),
            (self.experts, Kernel::Experts, 2),
            (self.borrowed, Kernel::MulMat, 1),
        ];
        for (number, (of, kernel, rows)) in nodes.into_iter().enumerate() {
            if index == 0 {
                self.next.store(self.threads, Ordering::Relaxed);
                if let Shares::TakenFromTheFirst(_) = self.shares {
                    self.next.store(0, Ordering::Relaxed);
                }
            }
            self.host.wait(self.threads, false);
            let mut is_first = true;
            let mut call = |slice: usize, share: usize, shares: usize| {
                let weights = of.base() as usize + slice * of.shape.slice_plain;
                let threads = (share as i32, shares as i32);
                match graph::call(kernel, self.result() as usize, weights, threads, |n: &Node| n.rows == rows) {
                    Call::Compute { team, place, op, .. } => {
                        // The first call computes everything.
                        self.check(is_first);
                        team.operation(place, |member| {
                            let barrier = || member.wait();
                            let thread = Thread { index: member.index, count: member.count, barrier: &barrier };
                            // SAFETY: the buffers have the shapes, the work buffer the size asked for.
                            unsafe { op.run(settings(), &thread, member.work()) };
                        });
                    }
                    Call::Done => self.check(!is_first),
                    Call::Foreign => {
                        self.check(number == 3 && !self.is_packed.load(Ordering::Relaxed));
                        // The host reads them; nobody may pack them meanwhile.
                        self.check(!HostWeights::new(of.base().cast(), of.shape.row_bytes as i64).are_packed());
                        // SAFETY: the matrix is there.
                        let seen = unsafe { std::slice::from_raw_parts(of.base(), of.plain.len()) };
                        self.check(seen == of.plain);
                    }
                }
                is_first = false;
            };
            const CHOSEN: [usize; 2] = [0, 2];
            match self.shares {
                _ if kernel == Kernel::MulMat => call(0, index, self.threads),
                Shares::OfThreads => CHOSEN.iter().for_each(|slice| call(*slice, index, self.threads)),
                Shares::HandedOut(each) | Shares::TakenFromTheFirst(each) => {
                    let take = || self.next.fetch_add(1, Ordering::Relaxed);
                    let mut at = if self.shares == Shares::HandedOut(each) { index } else { take() };
                    while at < CHOSEN.len() * each {
                        call(CHOSEN[at / each], at % each, each);
                        at = take();
                    }
                }
            }
            self.host.wait(self.threads, false);
            if index == 0 {
                done(number, &self.results[..RESULTS[number]]);
            }
            self.host.wait(self.threads, false);
        }
    }
}

/// Waits for threads one by one: that they end at all is all that ThreadSanitizer would see of the end of a scope.
pub(super) fn join(threads: Vec<ScopedJoinHandle<'_, ()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn settings() -> Settings {
    Settings { isa: cpu::isa(), demand: Demand::Auto }
}

/// The results of a run, of one thread.
fn expected(graph: &Graph<'_>) -> Vec<Vec<f32>> {
    let run = graph.begin().expect("it has products of ours");
    let mut results: Vec<Vec<f32>> = Vec::new();
    graph.run(0, &mut |_, result| results.push(result.to_vec()));
    drop(run);
    results
}

#[test]
fn contexts_compute_while_models_are_loaded_and_unloaded_and_a_tensor_is_given_back() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    const ROUNDS: usize = 40;
    let [matrix, experts, borrowed] = [(1, 1), (EXPERTS, 2), (1, 3)].map(|(slices, seed)| Packed::load(slices, seed));
    let all = [&matrix, &experts, &borrowed];
    let wanted = expected(&Graph::new(1, all));
    assert!(wanted.iter().flatten().all(|v| v.is_finite()) && wanted[3][0] != 0.0);
    let graphs = [2, 16, 3].map(|threads| Graph::new(threads, all));
    let (computing, given_back) = (AtomicUsize::new(graphs.len()), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for graph in &graphs {
            for index in 0..graph.threads {
                let (wanted, computing) = (&wanted, &computing);
                threads.push(scope.spawn(move || {
                    let mut is_right = |node: usize, results: &[f32]| {
                        // What the host would compute is not.
                        let by_host = node == 3 && !graph.is_packed.load(Ordering::Relaxed);
                        graph.check(by_host || results == wanted[node]);
                    };
                    for _ in 0..ROUNDS {
                        let run = (index == 0).then(|| graph.begin().expect("it has products of ours"));
                        graph.host.wait(graph.threads, false);
                        graph.run(index, &mut is_right);
                        drop(run);
                        graph.host.wait(graph.threads, false);
                    }
                    if index == 0 {
                        computing.fetch_sub(1, Ordering::Relaxed);
                    }
                }));
            }
        }
        for loader in 0..2 {
            let computing = &computing;
            threads.push(scope.spawn(move || {
                let mut seed = loader;
                while computing.load(Ordering::Relaxed) > 0 {
                    let model: Vec<Packed> = (0..3).map(|i| Packed::load(1, seed + i)).collect();
                    for packed in &model {
                        let (shape, base, offset) = place::packed_around(packed.base().wrapping_add(100)).unwrap();
                        assert!(base == packed.base().cast_const() && offset == 100);
                        let mut back = vec![0; shape.plain_size()];
                        // SAFETY: the tensor is there.
                        unsafe { shape.read(base, 0, &mut back) };
                        assert!(back == packed.plain);
                    }
                    seed += 1;
                }
            }));
        }
        let (borrowed, computing, given_back) = (&borrowed, &computing, &given_back);
        threads.push(scope.spawn(move || {
            while computing.load(Ordering::Relaxed) > 0 {
                let nothing = graph::begin(1, |beginning, _| {
                    assert!(beginning.wait_until_alone());
                    if place::packed(borrowed.tensor()).is_some() {
                        // SAFETY: nothing runs.
                        unsafe { place::give_back(borrowed.tensor(), "a test") };
                        given_back.fetch_add(1, Ordering::Relaxed);
                    } else {
                        borrowed.pack();
                    }
                });
                assert!(nothing.is_none());
                std::thread::yield_now();
            }
        }));
        join(threads);
    });
    let wrong = graphs.each_ref().map(|graph| graph.wrong.load(Ordering::Relaxed));
    assert_eq!(wrong, [0; 3]);
    assert!(given_back.load(Ordering::Relaxed) > 0);
}

#[test]
fn given_shares_that_are_handed_out_then_all_of_them_are_computed_once() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let packed = [(1, 7), (EXPERTS, 8), (1, 9)].map(|(slices, seed)| Packed::load(slices, seed));
    let wanted = expected(&Graph::new(1, packed.each_ref()));
    for threads in [1, 2, 3, 7, 40] {
        for each in [1, 2, 3, threads] {
            for shares in [Shares::HandedOut(each), Shares::TakenFromTheFirst(each)] {
                let graph = Graph { shares, ..Graph::new(threads, packed.each_ref()) };
                std::thread::scope(|scope| {
                    let thread = |index| {
                        let (graph, wanted) = (&graph, &wanted);
                        scope.spawn(move || {
                            for _ in 0..20 {
                                let run = (index == 0).then(|| graph.begin().expect("it has products of ours"));
                                graph.host.wait(graph.threads, false);
                                graph.run(index, &mut |node, results| graph.check(results == wanted[node]));
                                drop(run);
                                graph.host.wait(graph.threads, false);
                            }
                        })
                    };
                    join((0..threads).map(thread).collect());
                });
                assert_eq!(graph.wrong.into_inner(), 0, "{threads} threads, {each} shares of an expert");
            }
        }
    }
}

#[test]
fn forty_contexts_at_once_are_all_computed_here() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    const CONTEXTS: usize = 40;
    let packed = [(1, 4), (EXPERTS, 5), (1, 6)].map(|(slices, seed)| Packed::load(slices, seed));
    let all = packed.each_ref();
    let wanted = expected(&Graph::new(1, all));
    let everybody = Rendezvous::new();
    std::thread::scope(|scope| {
        let context = || {
            scope.spawn(|| {
                let graph = Graph::new(1, all);
                let run = graph.begin().expect("it has products of ours");
                everybody.wait(CONTEXTS, true);
                graph.run(0, &mut |node, results| graph.check(results == wanted[node]));
                // All of them run at the same time.
                everybody.wait(CONTEXTS, true);
                drop(run);
                assert_eq!(graph.wrong.into_inner(), 0);
            })
        };
        join((0..CONTEXTS).map(|_| context()).collect());
    });
}

#[test]
fn a_graph_runs_if_the_host_computes_with_packed_weights_and_not_if_nothing_is_ours() {
    let packed = [(1, 10), (EXPERTS, 11), (1, 12)].map(|(slices, seed)| Packed::load(slices, seed));
    let graph = Graph::new(1, packed.each_ref());
    let of_host = graph.node(None, &packed[0], Kernel::MulMat, 1);
    assert!(graph::begin(1, |_, nodes| nodes.push(of_host)).is_some(), "they could be given back");
    assert!(graph::begin(1, |_, nodes| nodes.push(Node { is_packed: false, ..of_host })).is_none());
    assert!(graph::begin(1, |_, _| ()).is_none());
}

#[test]
fn in_a_forked_child_only_runs_of_the_thread_that_forked_go_on() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let packed = [(1, 13), (EXPERTS, 14), (1, 15)].map(|(slices, seed)| Packed::load(slices, seed));
    let (own, other) = (Graph::new(1, packed.each_ref()), Graph::new(1, packed.each_ref()));
    let wanted = expected(&own);
    let (begun, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let wait = |flag: &AtomicBool| {
        while !flag.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let run = other.begin().unwrap();
            begun.store(true, Ordering::Release);
            wait(&over);
            drop(run);
        });
        wait(&begun);
        let run = own.begin().unwrap();
        let mut run = Some(run);
        let in_the_child = || {
            own.run(0, &mut |node, results| own.check(results == wanted[node]));
            drop(run.take());
            // Nobody else runs.
            assert!(graph::begin(1, |beginning, _| assert!(beginning.wait_until_alone())).is_none());
            let again = other.begin().unwrap();
            other.run(0, &mut |node, results| other.check(results == wanted[node]));
            drop(again);
            assert_eq!((own.wrong.load(Ordering::Relaxed), other.wrong.load(Ordering::Relaxed)), (0, 0));
        };
        let in_the_child = std::panic::AssertUnwindSafe(in_the_child);
        let went_well = in_child(false, || std::panic::catch_unwind(in_the_child).is_ok());
        over.store(true, Ordering::Release);
        assert!(went_well);
        own.run(0, &mut |node, results| assert!(results == wanted[node]));
    });
}

#[test]
fn a_graph_inside_another_one_is_found_and_so_is_the_rest_of_the_outer_one() {
    let packed = [(1, 7), (EXPERTS, 8), (1, 9)].map(|(slices, seed)| Packed::load(slices, seed));
    let (outer, inner) = (Graph::new(1, packed.each_ref()), Graph::new(1, packed.each_ref()));
    let wanted = expected(&outer);
    let run = outer.begin().unwrap();
    let mut nested = 0;
    outer.run(0, &mut |node, results| {
        assert!(results == wanted[node], "node {node}");
        let run = inner.begin().unwrap();
        inner.run(0, &mut |node, results| assert!(results == wanted[node], "inner node {node}"));
        drop(run);
        nested += 1;
        // It would wait for itself.
        assert!(graph::begin(1, |beginning, _| assert!(!beginning.wait_until_alone())).is_none());
    });
    drop(run);
    assert_eq!((nested, outer.wrong.into_inner(), inner.wrong.into_inner()), (4, 0, 0));
}

#[test]
fn ranges_are_found_by_any_address_in_them_and_nowhere_else() {
    // The second one with more buffers than places for them.
    for buffers in [3, 100] {
        let table = Table::<usize>::new();
        for i in 0..buffers {
            let base = i * 1000 + 1000;
            table.add_region(base..base + 500);
            table.add(base + 10, 20, i);
            table.add(base + 30, 5, i + 1000);
        }
        assert_eq!(table.totals(), (2 * buffers, 25 * buffers));
        for i in 0..buffers {
            let base = i * 1000 + 1000;
            assert_eq!(table.at(base + 10), Some(i));
            assert_eq!(table.at(base + 11), None);
            assert_eq!(table.around(base + 29), Some((base + 10, i)));
            assert_eq!(table.around(base + 34), Some((base + 30, i + 1000)));
            for none in [base, base + 9, base + 35, base + 600] {
                assert_eq!(table.around(none), None, "{none}");
            }
        }
        for i in 0..buffers {
            table.remove_region(i * 1000 + 1000..i * 1000 + 1500);
        }
        assert_eq!(table.totals(), (0, 0));
        assert!(table.around(1010).is_none());
    }
}

#[test]
fn a_range_takes_the_place_of_those_it_overlaps() {
    let table = Table::<u32>::new();
    table.add_region(0..1000);
    (0..4).for_each(|i| table.add(i as usize * 100 + 100, 100, i));
    table.add(250, 100, 9);
    let found = [150, 220, 260, 340, 360, 450].map(|address| table.around(address));
    assert_eq!(found, [Some((100, 0)), None, Some((250, 9)), Some((250, 9)), None, Some((400, 3))]);
    table.remove(260..260);
    assert_eq!(table.totals(), (3, 300));
    table.remove(0..251);
    assert_eq!(table.totals(), (1, 100));
}

//! A context of a host: its threads compute a graph by calling the kernels, with a barrier after every node. Thread
//! `index` of a context does for a run:
//!
//! ```text
//! if index == 0: begin()
//! host.wait()
//! for each node: call the kernel for the shares that this thread has; host.wait()
//! if index == 0: end the run
//! host.wait()
//! ```

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{K, N, PackedMatrix};
use crate::cpu;
use crate::cpu::rendezvous::Rendezvous;
use crate::dispatch::Demand;
use crate::host::ik::calls::{self, Lookup};
use crate::host::ik::node::{HostKernel, Node};
use crate::host::ik::packed;
use crate::host::ik::runs::{self, RunGuard};
use crate::host::ik::unpack::HostWeights;
use crate::matmul::{Choices, ExpertMul, Input, MatMul, Op, Output, Settings, Thread, Weights};

const EXPERTS: usize = 3;
/// The experts that are chosen.
const CHOSEN: [usize; 2] = [0, 2];
/// The node whose weights may have been given back.
pub const BORROWED: usize = 3;
/// How many results each node has.
const RESULTS: [usize; 4] = [N, 2 * N, 4 * N, N];

/// What a graph multiplies with.
pub struct Model {
    matrix: PackedMatrix,
    experts: PackedMatrix,
    /// May be given back, and be packed again.
    pub borrowed: PackedMatrix,
}

impl Model {
    /// With weights that depend on `seed`.
    pub fn load(seed: usize) -> Self {
        let [matrix, experts, borrowed] =
            [(1, seed), (EXPERTS, seed + 1), (1, seed + 2)].map(|(slices, seed)| PackedMatrix::load(slices, seed));
        Self { matrix, experts, borrowed }
    }

    /// The results of every node, computed by one thread.
    pub fn results(&self) -> Vec<Vec<f32>> {
        let context = Context::new(1, self);
        let run = context.begin().expect("it has products of ours");
        let mut results: Vec<Vec<f32>> = Vec::new();
        context.run(0, &mut |_, result| results.push(result.to_vec()));
        drop(run);
        results
    }
}

/// How a host calls for products of experts.
#[derive(Clone, Copy, PartialEq)]
pub enum Shares {
    /// Every thread calls for its own share of every expert.
    OfThreads,
    /// Each expert has so many shares. A thread begins with the share of its number, then takes the next that is left.
    HandedOut(usize),
    /// The same, but threads take their first share from those that are left too.
    TakenFromTheFirst(usize),
}

/// A context. Its graph has two products of the same matrix to the same address, one of experts, and one of a matrix
/// that may have been given back.
pub struct Context<'a> {
    pub threads: usize,
    /// Where the host's threads wait after every node.
    host: Rendezvous,
    model: &'a Model,
    x: Vec<f32>,
    choices: Vec<i32>,
    results: Vec<f32>,
    pub shares: Shares,
    /// The next share to be handed out.
    next: AtomicUsize,
    /// Whether [`Model::borrowed`] was packed when the run began.
    is_packed: AtomicBool,
    /// How many checks have failed. Counted, because the other threads would wait for one that panics.
    wrong: AtomicUsize,
}

// SAFETY: threads share it as a host's do, with barriers between what they write.
unsafe impl Sync for Context<'_> {}

impl<'a> Context<'a> {
    pub fn new(threads: usize, model: &'a Model) -> Self {
        Self {
            threads,
            host: Rendezvous::new(),
            model,
            x: (0..2 * K).map(|i| ((i * 29 % 41) as f32 - 20.0) / 16.0).collect(),
            choices: vec![0, 2, 2, 0],
            results: vec![0.0; 4 * N],
            shares: Shares::OfThreads,
            next: AtomicUsize::new(0),
            is_packed: AtomicBool::new(false),
            wrong: AtomicUsize::new(0),
        }
    }

    pub fn check(&self, is_right: bool) {
        self.wrong.fetch_add(usize::from(!is_right), Ordering::Relaxed);
    }

    /// How many checks have failed.
    pub fn failed(&self) -> usize {
        self.wrong.load(Ordering::Relaxed)
    }

    /// Whether [`Model::borrowed`] was packed when the run began.
    pub fn borrowed_is_packed(&self) -> bool {
        self.is_packed.load(Ordering::Relaxed)
    }

    /// Waits for the context's other threads.
    pub fn wait(&self) {
        self.host.wait(self.threads, false);
    }

    fn result(&self) -> *mut f32 {
        self.results.as_ptr().cast_mut()
    }

    fn dense(&self, of: &PackedMatrix, rows: usize) -> Op {
        Op::Dense(MatMul {
            weights: Weights::whole(of.shape, of.base(), [K, N, 1, 1]),
            gate: None,
            input: Input { data: self.x.as_ptr().cast(), ne: [K, rows, 1, 1], nb: [4, 4 * K, 0, 0] },
            output: Output { data: self.result().cast(), nb: [4 * N, 0, 0] },
        })
    }

    fn of_experts(&self) -> Op {
        let experts = &self.model.experts;
        Op::Experts(ExpertMul {
            weights: Weights::whole(experts.shape, experts.base(), [K, N, EXPERTS, 1]),
            gate: None,
            input: Input { data: self.x.as_ptr().cast(), ne: [K, 1, 2, 1], nb: [4, 4 * K, 4 * K, 0] },
            choices: Choices { data: self.choices.as_ptr().cast(), used: 2, tokens: 2, nb: [4, 8], skip_others: true },
            output: Output { data: self.result().cast(), nb: [4 * N, 8 * N, 0] },
        })
    }

    fn node(&self, op: Option<Op>, of: &PackedMatrix, kernel: HostKernel, rows: usize) -> Node {
        Node {
            op,
            is_packed: packed::is_packed(of.tensor()),
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

    /// A product that the host computes, of a packed matrix.
    pub fn node_of_host(&self) -> Node {
        self.node(None, &self.model.matrix, HostKernel::MulMat, 1)
    }

    /// Begins a run; to be called by one thread.
    pub fn begin(&self) -> Option<RunGuard> {
        let Model { matrix, experts, borrowed } = self.model;
        runs::begin(self.threads, |_, nodes| {
            let is_packed = packed::is_packed(borrowed.tensor());
            self.is_packed.store(is_packed, Ordering::Relaxed);
            let product = is_packed.then(|| self.dense(borrowed, 1));
            nodes.push(self.node(Some(self.dense(matrix, 1)), matrix, HostKernel::MulMat, 1));
            nodes.push(self.node(Some(self.dense(matrix, 2)), matrix, HostKernel::MulMat, 2));
            nodes.push(self.node(Some(self.of_experts()), experts, HostKernel::Experts, 2));
            nodes.push(self.node(product, borrowed, HostKernel::MulMat, 1));
        })
    }

    /// What thread `index` does in a run. Thread 0 calls `done(node, results)` after each node.
    pub fn run(&self, index: usize, done: &mut impl FnMut(usize, &[f32])) {
        let Model { matrix, experts, borrowed } = self.model;
        let nodes: [(&PackedMatrix, HostKernel, usize); 4] = [
            (matrix, HostKernel::MulMat, 1),
            (matrix, HostKernel::MulMat, 2),
            (experts, HostKernel::Experts, 2),
            (borrowed, HostKernel::MulMat, 1),
        ];
        for (number, (of, kernel, rows)) in nodes.into_iter().enumerate() {
            if index == 0 {
                let first = if let Shares::TakenFromTheFirst(_) = self.shares { 0 } else { self.threads };
                self.next.store(first, Ordering::Relaxed);
            }
            self.wait();
            let mut is_first = true;
            self.each_share(kernel, index, |slice, share, shares| {
                self.call((number, of, kernel, rows), slice, (share as i32, shares as i32), is_first);
                is_first = false;
            });
            self.wait();
            if index == 0 {
                done(number, &self.results[..RESULTS[number]]);
            }
            self.wait();
        }
    }

    /// Calls `call(slice, share, shares)` for everything that thread `index` computes of a node.
    fn each_share(&self, kernel: HostKernel, index: usize, mut call: impl FnMut(usize, usize, usize)) {
        match self.shares {
            _ if kernel == HostKernel::MulMat => call(0, index, self.threads),
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
    }

    /// One call of a kernel, for a share of one slice of node `number`; `is_first`: this thread's first call for that
    /// node.
    fn call(
        &self,
        (number, of, kernel, rows): (usize, &PackedMatrix, HostKernel, usize),
        slice: usize,
        share: calls::Share,
        is_first: bool,
    ) {
        let weights = of.base() as usize + slice * of.shape.slice_plain;
        match calls::look_up(kernel, self.result() as usize, weights, share, |n: &Node| n.rows == rows) {
            Lookup::Compute { team, arrival, op, .. } => {
                // The first call computes everything.
                self.check(is_first);
                team.operation(arrival, |member| {
                    let barrier = || member.wait();
                    let thread = Thread { index: member.index, count: member.count, barrier: &barrier };
                    let settings = Settings { isa: cpu::isa(), demand: Demand::Auto };
                    // SAFETY: the buffers have the product's shapes, and the team has reserved its work buffer.
                    unsafe { op.run(settings, &thread, member.work()) };
                });
            }
            Lookup::Done => self.check(!is_first),
            Lookup::NotOurs => {
                self.check(number == BORROWED && !self.borrowed_is_packed());
                // The host reads them, and nobody may pack them meanwhile.
                self.check(!HostWeights::new(of.base().cast(), of.shape.row_bytes as i64).are_packed());
                // SAFETY: the matrix is there, and no thread writes it during a run.
                let seen = unsafe { std::slice::from_raw_parts(of.base(), of.plain.len()) };
                self.check(seen == of.plain);
            }
        }
    }

    /// What thread `index` does for `rounds` runs, each of which is begun by thread 0.
    pub fn repeat(&self, index: usize, rounds: usize, done: &mut impl FnMut(usize, &[f32])) {
        for _ in 0..rounds {
            let run = (index == 0).then(|| self.begin().expect("it has products of ours"));
            self.wait();
            self.run(index, done);
            drop(run);
            self.wait();
        }
    }
}

//! One MUL_MAT or MUL_MAT_ID: [`dense`], [`experts`].
//!
//! Every thread of the host calls [`Op::run`] with its number. First they quantise the activations together into the
//! shared work buffer, then (behind one barrier) each computes its own part of the result. Nothing is allocated, locked
//! or asked of the kernel meanwhile, but for what is remembered of matrices that are met for the first time.
//!
//! | file | what it does |
//! |---|---|
//! | `dense`, `experts` | the course of one operation, on every thread |
//! | `to_tiles` | looks at activations, makes tiles of them, holds each row to its bound |
//! | `known_errors` | what is remembered of matrices: how much requantising them costs |
//! | `split`, `experts/routing` | which pieces of the result are which thread's |
//! | `piece` | one piece: the kernel that fits its operands |
//! | `float_rows` | rows that tiles are not good enough for |
//! | `weights`, `stored` | the weight operand: its views, how it is stored |
//! | `gate` | two products made into one result |
//! | `work` | where things lie in the work buffer |

mod dense;
mod experts;
mod float_rows;
mod gate;
pub mod known_errors;
mod piece;
mod split;
mod stored;
#[cfg(test)]
mod tests;
mod to_tiles;
mod weights;
mod work;

use crate::cpu::Isa;
use crate::diag::env::env;
use crate::dispatch::Demand;
pub use dense::MatMul;
pub use experts::{Choices, ExpertMul};
pub use gate::{Biases, Gate};
use known_errors::KnownErrors;
pub use stored::{Stored, StoredInfo};
pub use weights::Weights;

/// The f32 operand, src1: `ne` elements, `nb` bytes apart; any strides.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    /// Address of element 0.
    pub data: *const u8,
    /// Elements per dimension: K, M, batches.
    pub ne: [usize; 4],
    /// Bytes from one element to the next per dimension.
    pub nb: [usize; 4],
}

/// The f32 result: rows of contiguous floats, `nb` bytes apart in dimensions 1..3.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Address of element 0.
    pub data: *mut u8,
    /// Bytes per step of dimensions 1 (rows), 2 and 3 (batches).
    pub nb: [usize; 3],
}

impl Output {
    /// Whether a result is NaN or infinite: one of `n` floats of a row; `counts` are rows and batches.
    ///
    /// # Safety
    /// All of them must be readable.
    pub unsafe fn has_nan(&self, n: usize, counts: [usize; 3]) -> bool {
        let [m, b2, b3] = counts;
        (0..m * b2 * b3).any(|i| {
            let offset = i % m * self.nb[0] + i / m % b2 * self.nb[1] + i / m / b2 * self.nb[2];
            // SAFETY: the row is one of the results.
            (0..n).any(|col| unsafe { !self.data.add(offset + 4 * col).cast::<f32>().read_unaligned().is_finite() })
        })
    }
}

/// A product of either kind.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// MUL_MAT.
    Dense(MatMul),
    /// MUL_MAT_ID.
    Experts(ExpertMul),
}

impl Op {
    /// Whether shapes fit each other as ggml demands; `Err` names what does not.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Op::Dense(p) => p.check(),
            Op::Experts(p) => p.check(),
        }
    }

    /// Bytes of work buffer that `threads` threads need; `None` if that does not fit.
    pub fn work_size(&self, threads: usize) -> Option<usize> {
        match self {
            Op::Dense(p) => p.work_size(threads),
            Op::Experts(p) => p.work_size(threads),
        }
    }

    /// Whether there are no results.
    pub fn is_empty(&self) -> bool {
        match self {
            Op::Dense(p) => p.weights.ne[1] == 0 || p.input.ne[1..].contains(&0),
            Op::Experts(p) => p.is_empty(),
        }
    }

    /// Whether a tensor that is read or written has no data yet.
    pub fn lacks_data(&self) -> bool {
        let (w, x, y, ids) = match self {
            Op::Dense(p) => (&p.weights, &p.input, &p.output, false),
            Op::Experts(p) => (&p.weights, &p.input, &p.output, p.choices.data.is_null()),
        };
        y.data.is_null() || ids || x.ne[0] > 0 && (w.base.is_null() || x.data.is_null())
    }

    /// Whether weights have more digits than BF16.
    pub fn has_fine_weights(&self) -> bool {
        match self {
            Op::Dense(p) => p.weights.stored.info().planes > 1,
            Op::Experts(p) => p.weights.stored.info().planes > 1,
        }
    }

    /// Whether a result is NaN or infinite.
    ///
    /// # Safety
    /// The results must be there.
    pub unsafe fn has_nan(&self) -> bool {
        let (output, n, [m, b2, b3]) = match self {
            Op::Dense(p) => (&p.output, p.weights.ne[1], [p.input.ne[1], p.input.ne[2], p.input.ne[3]]),
            Op::Experts(p) => (&p.output, p.weights.ne[1], [p.choices.used, p.choices.tokens, 1]),
        };
        // SAFETY: these are all results there are.
        unsafe { output.has_nan(n, [m, b2, b3]) }
    }

    /// Computes this thread's part. All threads of the operation must call it with equal settings.
    ///
    /// # Safety
    /// As for [`MatMul::run`] or [`ExpertMul::run`].
    pub unsafe fn run(&self, settings: Settings, thread: &Thread<'_>, work: *mut u8) {
        // SAFETY: what is valid for the product is valid for either kind.
        unsafe {
            match self {
                Op::Dense(p) => p.run(settings, thread, work),
                Op::Experts(p) => p.run(settings, thread, work),
            }
        }
    }
}

/// How the result may be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Highest instruction set.
    pub isa: Isa,
    /// The precision that is demanded.
    pub demand: Demand,
}

/// What the user demands: `GGML_AMX_PRECISION`.
pub fn demand_of_user() -> Demand {
    if env().exact { Demand::Bf16 } else { Demand::Auto }
}

/// This thread's place in the operation.
pub struct Thread<'a> {
    /// Number of this thread.
    pub index: usize,
    /// How many there are.
    pub count: usize,
    /// Waits for all of them.
    pub barrier: &'a dyn Fn(),
}

impl Thread<'_> {
    /// Waits for the other threads, if any.
    fn wait(&self) {
        if self.count > 1 {
            (self.barrier)();
        }
    }
}

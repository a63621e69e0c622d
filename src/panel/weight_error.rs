//! What a matrix does to errors, measured from its weights: how much each channel of activations counts in the results,
//! and what requantising the weights costs. Together with a row of activations this gives the error of the row's
//! results before they are computed ([`super::row_error`]).
//!
//! Every energy is a mean square over the columns, relative to the largest of the matrix. Two things are kept apart,
//! for errors are not independent there:
//!
//! - What all columns have in common, the mean of a channel's weights and the mean of their errors: these add up over
//!   the channels to one number for all columns.
//! - What neighbouring channels of a column have in common (a minimum of their block; the same rounding of the same few
//!   quants): a covariance of 16 and of 32 channels.

use std::arch::x86_64::*;

use super::precision::{OutlierChannels, PASSES};
use super::weight_sums::{ErrorSums, WeightSums};
use crate::format::{ACT_BLOCK, LANES};

/// Share of a row's errors that may be neglected.
const NEGLIGIBLE: f32 = 0.05;
/// Results of a row that the promise is about, at least.
const JUDGED_COLUMNS: f64 = 256.0;

/// What is known of one matrix.
#[derive(Debug)]
pub struct WeightError {
    /// Variance of each channel among the columns, BF16.
    energy: Box<[u16]>,
    /// Mean of each channel over the columns, BF16.
    mean: Box<[u16]>,
    /// Errors of int8 tiles per length of [`PASSES`], per block of 32 channels; empty for weights that have no such
    /// tiles.
    int8: [Box<[BlockError]>; PASSES.len()],
    /// Errors of BF16 tiles, per block of 32 channels.
    bf16: Box<[BlockError]>,
    /// Covariance of two weights of 16 channels, never negative.
    shared_by_16: Box<[f32]>,
    /// Covariance of two weights of 32 channels, never negative.
    shared_by_32: Box<[f32]>,
    /// Whether covariances, of weights or of errors, matter in any row.
    is_shared: bool,
    /// Columns of equal size whose results would spread as these do: few where some columns are much larger than
    /// others. 0: the matrix has NaN, infinity or squares that do not fit a float, and nothing can be said.
    columns: f32,
}

/// What is known of 16 channels.
#[derive(Clone, Copy)]
pub(super) struct Lanes {
    /// Variances.
    pub energy: __m512,
    /// Variances without what the 16 channels have in common.
    pub own: __m512,
    /// Means.
    pub mean: __m512,
}

/// What requantising 32 channels costs.
#[derive(Clone, Copy, Debug, Default)]
pub struct BlockError {
    /// Mean square of a weight's error, in the channel that has most: a row may be large there and nowhere else.
    pub energy: f32,
    /// Mean of the errors.
    pub mean: f32,
    /// Covariance of two errors in one column, never negative.
    pub shared: f32,
    /// Mean of a weight times its error, as a share of the mean square of a weight: not 0 where few quants are all
    /// rounded to the same side. A share, because the channels of a block have different sizes.
    pub cross: f32,
}

/// Sums over all measured columns of a matrix.
struct Totals {
    energy: Vec<f64>,
    mean: Vec<f64>,
    squares_of_16: Vec<f64>,
    squares_of_32: Vec<f64>,
    /// Of int8 tiles per length of [`PASSES`], then of BF16 tiles.
    errors: [ErrorSums<f64>; PASSES.len() + 1],
    /// Measured columns.
    count: usize,
    /// All columns: how many, the sum of their sizes, and the sum of the squares of these.
    columns: (usize, f64, f64),
}

impl Totals {
    /// Of units of columns, always in the same order, of a matrix of `k` channels.
    fn of(k: usize, units: impl Iterator<Item = WeightSums>) -> Self {
        let zeros = |n: usize| vec![0f64; n];
        let mut totals = Self {
            energy: zeros(k),
            mean: zeros(k),
            squares_of_16: zeros(k / LANES),
            squares_of_32: zeros(k / ACT_BLOCK),
            errors: std::array::from_fn(|_| ErrorSums::new(k)),
            count: 0,
            columns: (0, 0.0, 0.0),
        };
        let add = |sums: &mut [f64], of: &[f32]| sums.iter_mut().zip(of).for_each(|(sum, v)| *sum += f64::from(*v));
        for unit in units {
            add(&mut totals.energy, &unit.energy);
            add(&mut totals.mean, &unit.mean);
            add(&mut totals.squares_of_16, &unit.squares_of_16);
            add(&mut totals.squares_of_32, &unit.squares_of_32);
            for (sums, of) in totals.errors.iter_mut().zip(unit.int8.iter().chain([&unit.bf16])) {
                add(&mut sums.squares, &of.squares);
                add(&mut sums.errors, &of.errors);
                add(&mut sums.block_squares, &of.block_squares);
                add(&mut sums.cross, &of.cross);
            }
            totals.count += unit.count;
            let (all, total, squares) = &mut totals.columns;
            for size in unit.column_sizes.iter().map(|size| f64::from(*size)) {
                (*all, *total, *squares) = (*all + 1, *total + size, *squares + size * size);
            }
        }
        totals
    }

    /// The largest mean square of a channel.
    fn largest(&self) -> f64 {
        self.energy.iter().copied().fold(0.0, f64::max) / self.count.max(1) as f64
    }

    /// Whether all weights are 0.
    fn is_zero(&self) -> bool {
        self.columns.1 == 0.0 && self.mean.iter().all(|m| *m == 0.0)
    }

    /// [`WeightError::columns`].
    fn columns(&self, is_known: bool) -> f64 {
        let (all, total, squares) = self.columns;
        // Where there are few columns, several draws are judged as one.
        let draws = (JUDGED_COLUMNS / all.max(1) as f64).max(1.0);
        match (is_known, self.is_zero()) {
            (false, _) => 0.0,
            (true, true) => JUDGED_COLUMNS,
            (true, false) => total * total / squares * draws,
        }
    }

    /// For a test that must fail: nothing of the matrix was seen.
    fn forget(&mut self, largest: f64) {
        let (k, count) = (self.energy.len(), self.count as f64);
        self.energy.fill(count * largest);
        self.mean.fill(0.0);
        for sums in &mut self.errors {
            *sums = ErrorSums { squares: vec![7e-5 * count * largest; k], ..ErrorSums::new(k) };
        }
    }
}

/// Totals, and the factors that make them means over the columns in units of the largest.
struct Means {
    totals: Totals,
    /// For sums of squares.
    square: f64,
    /// For sums of weights or errors.
    linear: f64,
}

impl Means {
    /// Variance of each channel among the columns.
    fn variances(&self) -> Vec<f64> {
        let channels = self.totals.energy.iter().zip(&self.totals.mean);
        channels.map(|(e, m)| (e * self.square - (m * self.linear).powi(2)).max(0.0)).collect()
    }

    /// Covariances of two weights of `n` neighbouring channels. `sums` are the squares of what they add up to in a
    /// column.
    fn covariances(&self, sums: &[f64], variances: &[f64], n: usize) -> Box<[f32]> {
        let groups = sums.iter().zip(self.totals.mean.chunks(n)).zip(variances.chunks(n));
        let one = |((sum, mean), own): ((&f64, &[f64]), &[f64])| {
            let all = mean.iter().sum::<f64>() * self.linear;
            covariance(sum * self.square - all * all, own.iter().sum(), n) as f32
        };
        groups.map(one).collect()
    }

    /// What the errors `sums` are, block by block.
    fn block_errors(&self, sums: &ErrorSums<f64>) -> Box<[BlockError]> {
        let most = |squares: &[f64]| match cfg!(mutant = "errors-averaged") {
            false => squares.iter().copied().fold(0.0, f64::max),
            true => squares.iter().sum::<f64>() / ACT_BLOCK as f64,
        };
        let blocks = sums.squares.chunks(ACT_BLOCK).zip(self.totals.energy.chunks(ACT_BLOCK)).enumerate();
        let block = |(i, (squares, energy)): (usize, (&[f64], &[f64]))| {
            let of_weights: f64 = energy.iter().sum();
            let all = sums.errors[i] * self.linear;
            let mean = all / ACT_BLOCK as f64;
            let own = squares.iter().sum::<f64>() * self.square - ACT_BLOCK as f64 * mean * mean;
            BlockError {
                energy: (most(squares) * self.square) as f32,
                mean: mean as f32,
                shared: covariance(sums.block_squares[i] * self.square - all * all, own, ACT_BLOCK) as f32,
                cross: if of_weights > 0.0 { (sums.cross[i] / of_weights) as f32 } else { 0.0 },
            }
        };
        blocks.map(block).collect()
    }
}

/// Covariance of two of `n` numbers, at least 0: the square of what they add up to, less their own squares, is n (n -
/// 1) covariances.
fn covariance(square_of_sum: f64, own_squares: f64, n: usize) -> f64 {
    let covariance = (square_of_sum - own_squares) / (n * (n - 1)) as f64;
    if cfg!(mutant = "neighbours-independent") { 0.0 } else { covariance.max(0.0) }
}

/// Whether covariances count. Where all of 32 channels are alike in a row, 32 covariances count as much as one
/// variance.
fn matters(covariances: f32, variances: f32) -> bool {
    covariances * ACT_BLOCK as f32 > NEGLIGIBLE * variances
}

impl WeightError {
    /// What units of columns, always in the same order, say about a matrix of `k` channels. `has_int8`: int8 tiles may
    /// be made of it.
    pub fn of(k: usize, units: impl Iterator<Item = WeightSums>, has_int8: bool) -> Self {
        let mut totals = Totals::of(k, units);
        let (largest, count) = (totals.largest(), totals.count as f64);
        // Squares of all must fit a float; a matrix of zeros has none.
        let is_known = totals.columns.1.is_finite() && (largest > 1e-25 || totals.is_zero());
        let has_size = is_known && !totals.is_zero();
        let columns = totals.columns(is_known) as f32;
        if cfg!(mutant = "weights-unseen") {
            totals.forget(largest);
        }
        let square = if has_size { 1.0 / (count * largest) } else { 0.0 };
        let linear = if has_size { 1.0 / (count * largest.sqrt()) } else { 0.0 };
        let means = Means { totals, square, linear };
        let (totals, variances) = (&means.totals, means.variances());
        let shared_by_16 = means.covariances(&totals.squares_of_16, &variances, LANES);
        let shared_by_32 = means.covariances(&totals.squares_of_32, &variances, ACT_BLOCK);
        let int8 =
            std::array::from_fn(|i| if has_int8 { means.block_errors(&totals.errors[i]) } else { Box::default() });
        let bf16 = means.block_errors(&totals.errors[PASSES.len()]);
        let of_errors = |blocks: &[BlockError]| {
            matters(blocks.iter().map(|b| b.shared).sum(), blocks.iter().map(|b| b.energy).sum())
        };
        let own = variances.iter().sum::<f64>() as f32 / ACT_BLOCK as f32;
        let is_shared = matters(shared_by_32.iter().sum(), own) || int8.iter().chain([&bf16]).any(|b| of_errors(b));
        let bits = |v: f64| half::bf16::from_f64(v).to_bits();
        Self {
            energy: variances.iter().map(|v| bits(*v)).collect(),
            mean: totals.mean.iter().map(|m| bits(m * linear)).collect(),
            int8,
            bf16,
            shared_by_16,
            shared_by_32,
            is_shared,
            columns,
        }
    }

    /// Columns of equal size whose results would spread as these do; 0: nothing can be said.
    pub fn columns(&self) -> f32 {
        self.columns
    }

    /// What is known of channels `channel..channel + 16`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn lanes(&self, channel: usize) -> Lanes {
        let widen = |all: &[u16]| {
            let bits = &all[channel..channel + LANES];
            // SAFETY: `bits` has 16 numbers of 16 bits.
            unsafe { super::bf16::widened(_mm256_loadu_si256(bits.as_ptr().cast())) }
        };
        let energy = widen(&self.energy);
        let own = _mm512_sub_ps(energy, _mm512_set1_ps(self.shared_by_16[channel / LANES]));
        Lanes { energy, own: _mm512_max_ps(own, _mm512_setzero_ps()), mean: widen(&self.mean) }
    }

    /// Whether covariances matter in any row.
    pub(super) fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Covariance of two weights of the block of 32 channels number `block`.
    pub(super) fn shared(&self, block: usize) -> f32 {
        self.shared_by_32[block]
    }

    /// Of each outlier channel: variance, variance without what its neighbours have in common, mean; and what BF16
    /// costs.
    pub(super) fn outliers(&self, channels: &OutlierChannels) -> impl Iterator<Item = ([f32; 3], BlockError)> {
        channels.iter().map(|c| {
            let c = *c as usize;
            let [energy, mean] = [&self.energy, &self.mean].map(|all| f32::from_bits(u32::from(all[c]) << 16));
            ([energy, (energy - self.shared_by_16[c / LANES]).max(0.0), mean], self.bf16[c / ACT_BLOCK])
        })
    }

    /// Errors of int8 tiles with passes of `pass` channels, per block of 32.
    pub(super) fn int8(&self, pass: usize) -> &[BlockError] {
        let index = PASSES.iter().position(|p| *p == pass).expect("one of the passes");
        &self.int8[index]
    }

    /// Errors of BF16 tiles, per block of 32.
    pub(super) fn bf16(&self) -> &[BlockError] {
        &self.bf16
    }
}

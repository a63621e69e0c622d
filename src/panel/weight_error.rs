//! What a matrix does to errors, measured from its weights: how much each channel of activations counts in the results,
//! and what requantising the weights costs. Together with a row of activations this gives the error of the row's
//! results before they are computed ([`super::row_error`]).
//!
//! All energies are mean squares over the columns, relative to the largest of the matrix. What all columns have in common,
//! the mean of a channel's weights and of their errors, is kept apart: there errors of different channels are no longer
//! independent, but add up to one number for all columns. What neighbouring channels of a column have in common (a minimum
//! of their block; the same rounding of the same few quants) is a covariance, of 16 and of 32 channels.

use std::arch::x86_64::*;

use super::precision::{OutlierChannels, PASSES};
use crate::format::{ACT_BLOCK, LANES};

/// Of one matrix.
#[derive(Debug)]
pub struct WeightError {
    /// Every channel's variance among the columns, and its mean, BF16.
    pub(super) energy: Box<[u16]>,
    /// See `energy`.
    pub(super) mean: Box<[u16]>,
    /// Errors of int8 tiles per length of [`PASSES`], of blocks of 32 channels; empty for weights that have none.
    pub(super) int8: [Box<[BlockError]>; PASSES.len()],
    /// Errors of BF16 tiles, of blocks of 32 channels.
    pub(super) bf16: Box<[BlockError]>,
    /// Covariance of two weights of 16 channels, never negative.
    pub(super) shared_by_16: Box<[f32]>,
    /// The same of 32 channels.
    pub(super) shared_by_32: Box<[f32]>,
    /// Whether covariances, of weights or of errors, matter in any row.
    pub(super) is_shared: bool,
    /// How many columns of equal size results are like: few, where some columns are much larger than others. 0: the
    /// matrix has NaN, infinity or squares that do not fit a float, and nothing can be said.
    pub(super) columns: f32,
}

/// What is known of 16 channels.
#[derive(Clone, Copy)]
pub(super) struct Lanes {
    pub energy: __m512,
    pub own: __m512,
    pub mean: __m512,
}

/// What requantising 32 channels costs.
#[derive(Clone, Copy, Debug, Default)]
pub struct BlockError {
    /// Mean square of a weight's error, in the channel that has most: a row may be large there and nowhere else.
    pub energy: f32,
    /// Mean of the errors.
    pub mean: f32,
    /// Covariance of two of them in one column, never negative.
    pub shared: f32,
    /// Mean of a weight times its error, as a share of the mean square of a weight: not 0 where few quants are all rounded to
    /// the same side. A share, because channels of a block have different sizes.
    pub cross: f32,
}
impl WeightError {
    /// How many columns of equal size results are like; 0: nothing is known.
    pub fn columns(&self) -> f32 {
        self.columns
    }

    /// Variances of channels `channel..channel + 16`, what of them no two channels have in common, and means.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn lanes(&self, channel: usize) -> Lanes {
        let widen = |all: &[u16]| {
            let bits = &all[channel..channel + LANES];
            // SAFETY: 16 numbers of 16 bits.
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

    /// Covariance of two weights of block `block` of 32 channels.
    pub(super) fn shared(&self, block: usize) -> f32 {
        self.shared_by_32[block]
    }

    /// The same of the outlier channels, one by one, and errors of their weights in BF16.
    pub(super) fn outliers(&self, channels: &OutlierChannels) -> impl Iterator<Item = ([f32; 3], BlockError)> {
        channels.iter().map(|c| {
            let c = *c as usize;
            let [energy, mean] = [&self.energy, &self.mean].map(|all| f32::from_bits(u32::from(all[c]) << 16));
            ([energy, (energy - self.shared_by_16[c / LANES]).max(0.0), mean], self.bf16[c / ACT_BLOCK])
        })
    }

    /// Errors of int8 tiles with scales for `pass` channels, of blocks of 32.
    pub(super) fn int8(&self, pass: usize) -> &[BlockError] {
        let index = PASSES.iter().position(|p| *p == pass).expect("one of the passes");
        &self.int8[index]
    }

    /// Errors of BF16 tiles, of blocks of 32.
    pub(super) fn bf16(&self) -> &[BlockError] {
        &self.bf16
    }
}

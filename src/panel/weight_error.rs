//! What a matrix does to errors, measured from its weights: how much each channel of activations counts in the results,
//! and what requantising the weights costs. Together with a row of activations this gives the error of the row's
//! results before they are computed ([`super::row_error`]).
//!
//! All energies are mean squares over the columns, relative to the largest of the matrix. What all columns have in common,
//! the mean of a channel's weights and of their errors, is kept apart: there errors of different channels are no longer
//! independent, but add up to one number for all columns.

use std::arch::x86_64::*;

use super::outliers::Channels;
use super::requant;
use super::tiles::{PASSES, STEP_BYTES, STEP_INT8};
use crate::format::{ACT_BLOCK, Format, LANES};

/// Columns whose sums are made together, by one thread.
pub const UNIT: usize = 128;
/// Channels that are looked at at a time.
pub const STRETCH: usize = PASSES[0];
/// Bytes of scratch for a panel: a stretch as floats, its int8 tiles, their scales.
pub const SCRATCH: usize = STRETCH * LANES * 4 + STRETCH / STEP_INT8 * STEP_BYTES + LANES * 4;

/// Of one matrix.
#[derive(Debug)]
pub struct WeightError {
    /// Every channel's variance among the columns, and its mean, BF16.
    energy: Box<[u16]>,
    /// See `energy`.
    mean: Box<[u16]>,
    /// Errors of int8 tiles per length of [`PASSES`], of blocks of 32 channels; empty for weights that have none.
    int8: [Box<[BlockError]>; PASSES.len()],
    /// Errors of BF16 tiles, of blocks of 32 channels.
    bf16: Box<[BlockError]>,
    /// How many columns of equal size results are like: few, where some columns are much larger than others. 0: the
    /// matrix has NaN, infinity or squares that do not fit a float, and nothing can be said.
    columns: f32,
}

/// What requantising 32 channels costs: mean square and mean of a weight's error.
#[derive(Clone, Copy, Debug, Default)]
pub struct BlockError {
    /// Mean square.
    pub energy: f32,
    /// Mean.
    pub mean: f32,
}

/// Sums over [`UNIT`] columns.
pub struct Sums {
    /// Squares and weights of every channel.
    energy: Vec<f32>,
    mean: Vec<f32>,
    int8: [Vec<BlockError>; PASSES.len()],
    bf16: Vec<BlockError>,
    /// Sums of every column's squares.
    columns: Vec<f32>,
}

impl Sums {
    /// Nothing yet, for `k` channels.
    pub fn new(k: usize) -> Self {
        let channels = || vec![0.0; k];
        let blocks = || vec![BlockError::default(); k / ACT_BLOCK];
        let int8 = std::array::from_fn(|_| blocks());
        Self { energy: channels(), mean: channels(), int8, bf16: blocks(), columns: Vec::new() }
    }

    /// Adds the first `lanes` columns of a packed panel.
    ///
    /// # Safety
    /// The panel must have the sums' channels; `scratch` be writable for [`SCRATCH`] and 64-byte aligned; AVX-512
    /// needed.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn add<F: Format>(&mut self, panel: *const u8, lanes: usize, scratch: *mut u8) {
        let weights = scratch.cast::<f32>();
        let (tiles, mask) = (scratch.wrapping_add(STRETCH * LANES * 4), ((1u32 << lanes) - 1) as u16);
        let scales = tiles.wrapping_add(STRETCH / STEP_INT8 * STEP_BYTES).cast::<f32>();
        let (k, mut columns) = (self.energy.len(), _mm512_setzero_ps());
        for from in (0..k).step_by(STRETCH) {
            let to = k.min(from + STRETCH);
            // SAFETY: promised by the caller; a stretch fits the scratch.
            unsafe {
                requant::floats::<F>(panel, from, to - from, weights);
                columns = _mm512_add_ps(columns, self.squares(from, to, weights, mask));
                for (i, pass) in PASSES.into_iter().enumerate() {
                    for start in (from..to).step_by(pass) {
                        let end = to.min(start + pass);
                        requant::int8::<F>(panel, start..end, tiles, scales, panel, &mut []);
                        let blocks = &mut self.int8[i][start / ACT_BLOCK..end / ACT_BLOCK];
                        int8_errors(blocks, weights.add((start - from) * LANES), tiles, _mm512_load_ps(scales), mask);
                    }
                }
            }
        }
        self.end(columns, lanes);
    }

    /// Adds the first `lanes` of 16 columns that only BF16 tiles are made of. `floats(from, len, out)` gives them as
    /// floats, a channel's side by side.
    ///
    /// # Safety
    /// As for [`Sums::add`].
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn add_floats(&mut self, floats: impl Fn(usize, usize, *mut f32), lanes: usize, scratch: *mut u8) {
        let (k, mut columns) = (self.energy.len(), _mm512_setzero_ps());
        for from in (0..k).step_by(STRETCH) {
            let to = k.min(from + STRETCH);
            floats(from, to - from, scratch.cast());
            // SAFETY: promised by the caller.
            let squares = unsafe { self.squares(from, to, scratch.cast(), ((1u32 << lanes) - 1) as u16) };
            columns = _mm512_add_ps(columns, squares);
        }
        self.end(columns, lanes);
    }

    #[target_feature(enable = "avx512f")]
    fn end(&mut self, columns: __m512, lanes: usize) {
        let mut all = [0.0; LANES];
        // SAFETY: 16 floats.
        unsafe { _mm512_storeu_ps(all.as_mut_ptr(), columns) };
        self.columns.extend_from_slice(&all[..lanes]);
    }

    /// Adds the squares of channels `from..to` and of what rounding them to BF16 costs; the columns' own sums come back.
    ///
    /// # Safety
    /// `weights` must have the channels, the first at its start; AVX-512 needed.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn squares(&mut self, from: usize, to: usize, weights: *const f32, mask: u16) -> __m512 {
        let mut columns = _mm512_setzero_ps();
        for block in from / ACT_BLOCK..to / ACT_BLOCK {
            let (mut error, mut mean) = (_mm512_setzero_ps(), _mm512_setzero_ps());
            for half in 0..ACT_BLOCK / LANES {
                let first = block * ACT_BLOCK + half * LANES;
                let (mut plain, mut squares) = ([_mm512_setzero_ps(); LANES], [_mm512_setzero_ps(); LANES]);
                for (i, (w, square)) in plain.iter_mut().zip(&mut squares).enumerate() {
                    // SAFETY: promised by the caller.
                    *w = unsafe { _mm512_maskz_loadu_ps(mask, weights.add((first + i - from) * LANES)) };
                    let w = *w;
                    *square = _mm512_mul_ps(w, w);
                    columns = _mm512_add_ps(columns, *square);
                    let low = requant::bf16_pairs(w, _mm512_setzero_ps());
                    let rest = _mm512_sub_ps(w, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(low)));
                    error = _mm512_fmadd_ps(rest, rest, error);
                    mean = _mm512_sub_ps(mean, rest);
                }
                for (sums, vectors) in [(&mut self.energy, squares), (&mut self.mean, plain)] {
                    let sums = &mut sums[first..first + LANES];
                    // SAFETY: 16 floats.
                    unsafe {
                        let sum = _mm512_add_ps(_mm512_loadu_ps(sums.as_ptr()), sums_of(vectors));
                        _mm512_storeu_ps(sums.as_mut_ptr(), sum);
                    }
                }
            }
            self.bf16[block].energy += _mm512_reduce_add_ps(error);
            self.bf16[block].mean += _mm512_reduce_add_ps(mean);
        }
        columns
    }

    /// What units of columns, always in the same order, say about a matrix of `k` channels. `has_int8`: it is one that
    /// int8 tiles may be made of.
    pub fn finish<'a>(k: usize, units: impl Iterator<Item = &'a Sums>, has_int8: bool) -> WeightError {
        let (mut energy, mut mean) = (vec![0f64; k], vec![0f64; k]);
        let mut blocks = vec![[[0f64; 2]; PASSES.len() + 1]; k / ACT_BLOCK];
        let (mut total, mut squares, mut count) = (0f64, 0f64, 0usize);
        let add = |sums: &mut [f64], of: &[f32]| sums.iter_mut().zip(of).for_each(|(sum, v)| *sum += f64::from(*v));
        for unit in units {
            add(&mut energy, &unit.energy);
            add(&mut mean, &unit.mean);
            for (b, sums) in blocks.iter_mut().enumerate() {
                let parts = unit.int8.iter().map(|v| v[b]).chain([unit.bf16[b]]);
                sums.iter_mut().zip(parts).for_each(|(sum, e)| add(sum, &[e.energy, e.mean]));
            }
            for e in unit.columns.iter().map(|e| f64::from(*e)) {
                (total, squares, count) = (total + e, squares + e * e, count + 1);
            }
        }
        let largest = energy.iter().copied().fold(0.0, f64::max) / count.max(1) as f64;
        let known = total.is_finite() && largest > 1e-25;
        // Few columns are judged by several draws together.
        let draws = (Self::JUDGED / count.max(1) as f64).max(1.0);
        let columns = if known { (total * total / squares * draws) as f32 } else { 0.0 };
        // Means over the columns, in units of the largest.
        let unit = if known { 1.0 / (count as f64 * largest) } else { 0.0 };
        let linear = if known { 1.0 / (count as f64 * largest.sqrt()) } else { 0.0 };
        let blocks_of = |blocks: &[[[f64; 2]; PASSES.len() + 1]], i: usize| {
            let error = |b: &[[f64; 2]; PASSES.len() + 1]| BlockError {
                energy: (b[i][0] * unit) as f32 / ACT_BLOCK as f32,
                mean: (b[i][1] * linear) as f32 / ACT_BLOCK as f32,
            };
            blocks.iter().map(error).collect()
        };
        if cfg!(mutant = "weights-unseen") {
            energy.fill(count as f64 * largest);
            mean.fill(0.0);
            blocks.fill([[7e-5 * count as f64 * largest * ACT_BLOCK as f64, 0.0]; PASSES.len() + 1]);
        }
        let bits = |v: f64| half::bf16::from_f64(v).to_bits();
        let means = || mean.iter().map(|m| m * linear);
        WeightError {
            energy: energy.iter().zip(means()).map(|(e, m)| bits((e * unit - m * m).max(0.0))).collect(),
            mean: means().map(bits).collect(),
            int8: std::array::from_fn(|i| if has_int8 { blocks_of(&blocks, i) } else { Box::default() }),
            bf16: blocks_of(&blocks, PASSES.len()),
            columns,
        }
    }

    /// Results of a row that the promise is about, at least.
    const JUDGED: f64 = 256.0;
}

/// Adds the squared errors of int8 tiles, a sum for every block of 32 channels. `weights` are what they should be.
///
/// # Safety
/// Tiles and weights must have the blocks' channels; AVX-512 needed.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn int8_errors(blocks: &mut [BlockError], weights: *const f32, tiles: *const u8, scales: __m512, mask: u16) {
    for (b, sum) in blocks.iter_mut().enumerate() {
        let (mut error, mut mean) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        for four in 0..ACT_BLOCK / 4 {
            let k = b * ACT_BLOCK + 4 * four;
            // SAFETY: promised by the caller.
            let quants =
                unsafe { _mm512_load_si512(tiles.add(k / STEP_INT8 * STEP_BYTES + k % STEP_INT8 * LANES).cast()) };
            let channels = [
                _mm512_slli_epi32::<24>(quants),
                _mm512_slli_epi32::<16>(quants),
                _mm512_slli_epi32::<8>(quants),
                quants,
            ];
            for (i, q) in channels.into_iter().enumerate() {
                let q = _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(q));
                // SAFETY: promised by the caller.
                let w = unsafe { _mm512_maskz_loadu_ps(mask, weights.add((k + i) * LANES)) };
                let rest = _mm512_fnmadd_ps(q, _mm512_maskz_mov_ps(mask, scales), w);
                error = _mm512_fmadd_ps(rest, rest, error);
                mean = _mm512_sub_ps(mean, rest);
            }
        }
        sum.energy += _mm512_reduce_add_ps(error);
        sum.mean += _mm512_reduce_add_ps(mean);
    }
}

/// The sum of each of 16 vectors.
#[target_feature(enable = "avx512f")]
fn sums_of(v: [__m512; LANES]) -> __m512 {
    let columns = super::plain::transpose(v.map(|v| _mm512_castps_si512(v)));
    columns.into_iter().fold(_mm512_setzero_ps(), |sum, c| _mm512_add_ps(sum, _mm512_castsi512_ps(c)))
}

impl WeightError {
    /// How many columns of equal size results are like; 0: nothing is known.
    pub fn columns(&self) -> f32 {
        self.columns
    }

    /// Variances and means of channels `channel..channel + 16`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn lanes(&self, channel: usize) -> [__m512; 2] {
        let widen = |all: &[u16]| {
            let bits = &all[channel..channel + LANES];
            // SAFETY: 16 numbers of 16 bits.
            unsafe { super::bf16::widened(_mm256_loadu_si256(bits.as_ptr().cast())) }
        };
        [widen(&self.energy), widen(&self.mean)]
    }

    /// Variances and means of the outlier channels, and errors of their weights in BF16.
    pub(super) fn outliers(&self, channels: &Channels) -> impl Iterator<Item = ([f32; 2], BlockError)> {
        channels.iter().map(|c| {
            let c = *c as usize;
            let widen = |v: u16| f32::from_bits(u32::from(v) << 16);
            ([widen(self.energy[c]), widen(self.mean[c])], self.bf16[c / ACT_BLOCK])
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

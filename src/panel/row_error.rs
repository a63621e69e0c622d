//! The error of one row of results, known before they are computed: what rounding the row's activations costs, each
//! channel as much as it counts in the weights; and what requantising the weights costs, each block as much as its
//! activations count.
//!
//! ```text
//! for every 32 channels:
//!     v = activations, rest = v - rounded v
//!     signal += v^2 * variance of the weights         error += rest^2 * variance + v^2 * error of the weights
//!     what all columns, or the channels of a block, have in common is added up first, then squared
//! ```
//!
//! Errors of different channels are independent, so their squares add up. What the channels of a block have in common
//! is added to the error as if it were one channel. It is left out of the signal: in a row it may cancel.

use std::arch::x86_64::*;

use super::bf16::{rounded, widened};
use super::precision::{OUTLIERS, OutlierChannels};
use super::rows::InputRow;
use super::scale::scale_of;
use super::weight_error::{BlockError, Lanes, WeightError};
use crate::format::ACT_BLOCK;

/// Mean squares of a row's results, in the unit of the row.
#[derive(Clone, Copy, Debug)]
pub struct RowError {
    /// Of the exact results.
    pub signal: f32,
    /// Of their errors.
    pub error: f32,
}

/// What a row's error may be: what the C header promises, less what the estimate may be off by. A row keeps it if its
/// error is below one of the two.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// As a share of the signal.
    pub of_signal: f32,
    /// As a multiple of the error of 8 bits per 32 activations.
    pub of_blocks: f32,
}

/// A tenth of the weight type's own NMSE is allowed, but no more than this.
pub const MAX_OF_TYPE: f32 = 3e-4;
/// NMSE that is allowed for any type.
const ALWAYS: f32 = 1e-5;
/// Multiple of the error of 8 bits per 32 activations that is allowed.
const OF_BLOCKS: f32 = 2.0;
/// Error and signal are mean squares over n results, each off by a share of sqrt(2 / n), so that their quotient is off
/// by 2 sqrt(1 / n). Four times that is kept as a margin: this constant times sqrt(1 / n).
const DEVIATIONS: f32 = 8.0;

impl Bound {
    /// For weights of a type whose own NMSE is `quant_nmse`.
    pub fn new(quant_nmse: f32, weights: &WeightError) -> Self {
        // Nothing is known: NaN, which no error is below.
        let margin =
            if weights.columns() > 0.0 { (1.0 - DEVIATIONS / weights.columns().sqrt()).max(0.0) } else { f32::NAN };
        Self { of_signal: margin * (quant_nmse / 10.0).clamp(ALWAYS, MAX_OF_TYPE), of_blocks: margin * OF_BLOCKS }
    }

    /// Whether a row keeps it; `blocks` gives the error of 8 bits per 32 activations and is called only if need be.
    pub fn holds(&self, row: RowError, blocks: impl FnOnce() -> RowError) -> bool {
        if cfg!(mutant = "rows-unchecked") {
            return true;
        }
        // The margin leaves nothing: too few columns for an estimate.
        if self.of_signal == 0.0 {
            return false;
        }
        // NaN compares as false.
        row.error <= self.of_signal * row.signal || row.error <= self.of_blocks * blocks().error
    }
}

/// The unit of a row: a power of two that brings the magnitude `amax` near 1, so that squares of any row fit a float.
fn unit(amax: f32) -> f32 {
    const SMALLEST: u32 = 1 << 23;
    f32::from_bits(0x7f00_0000u32.saturating_sub(amax.to_bits() & 0x7f80_0000).max(SMALLEST))
}

/// The largest magnitude of a row of `k` channels; NaN or infinity if it has any.
///
/// # Safety
/// The row must be readable and have the channels; AVX-512 must be there.
#[target_feature(enable = "avx512f")]
unsafe fn largest(x: &InputRow, k: usize) -> f32 {
    let magnitude = _mm512_set1_epi32(0x7fff_ffff);
    let max = (0..k).step_by(16).fold(_mm512_setzero_si512(), |max, c| {
        // SAFETY: the row has the channels.
        let v = unsafe { x.lanes(c) };
        _mm512_max_epu32(max, _mm512_and_si512(_mm512_castps_si512(v), magnitude))
    });
    f32::from_bits(_mm512_reduce_max_epu32(max))
}

/// Sums over the channels of a row, 16 channels side by side. Of signal and error there are two sums each: squares of
/// what differs from column to column, and what all columns have in common, not squared.
struct Sums {
    signal: [__m512; 2],
    error: [__m512; 2],
    /// Squares of the errors that channels of a block have in common.
    shared: f32,
}

impl Sums {
    #[target_feature(enable = "avx512f")]
    fn new() -> Self {
        Self { signal: [_mm512_setzero_ps(); 2], error: [_mm512_setzero_ps(); 2], shared: 0.0 }
    }

    /// Adds 16 activations `v`, which are rounded to `v - rest`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn add(&mut self, weights: Lanes, v: __m512, rest: __m512) {
        self.signal[0] = _mm512_fmadd_ps(_mm512_mul_ps(v, v), weights.own, self.signal[0]);
        self.signal[1] = _mm512_fmadd_ps(v, weights.mean, self.signal[1]);
        self.error[0] = _mm512_fmadd_ps(_mm512_mul_ps(rest, rest), weights.energy, self.error[0]);
        self.error[1] = _mm512_fnmadd_ps(rest, weights.mean, self.error[1]);
    }

    /// Adds what the channels of a block have in common. `of_weights` and `of_errors` are covariances; `all` and
    /// `rests` add up, over their lanes, to the sum of the block's activations and of their errors.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn add_shared(&mut self, of_weights: f32, of_errors: f32, all: __m512, rests: __m512) {
        let (all, rests) = (_mm512_reduce_add_ps(all), _mm512_reduce_add_ps(rests));
        self.shared += of_errors * all * all + of_weights * rests * rests;
    }

    /// Adds the errors of the weights that meet `v`. Some cancel errors of the activations, but no more than there are.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn add_weights(&mut self, error: BlockError, weights: Lanes, v: __m512, rest: __m512) {
        let of_rest = _mm512_mul_ps(rest, weights.energy);
        let both = _mm512_mul_ps(of_rest, _mm512_set1_ps(-2.0 * error.cross));
        let squares = _mm512_mul_ps(v, _mm512_fmadd_ps(v, _mm512_set1_ps(error.energy), both));
        let least = _mm512_fnmadd_ps(rest, of_rest, _mm512_setzero_ps());
        self.error[0] = _mm512_add_ps(_mm512_max_ps(least, squares), self.error[0]);
        self.error[1] = _mm512_fmadd_ps(v, _mm512_set1_ps(error.mean), self.error[1]);
    }

    /// Both sums of the signal and of the error.
    #[target_feature(enable = "avx512f")]
    fn end(self) -> ([f32; 2], [f32; 2]) {
        let [own, common] = self.error.map(|v| _mm512_reduce_add_ps(v));
        (self.signal.map(|v| _mm512_reduce_add_ps(v)), [own + self.shared, common])
    }
}

impl From<([f32; 2], [f32; 2])> for RowError {
    fn from((signal, error): ([f32; 2], [f32; 2])) -> Self {
        let energy = |[own, common]: [f32; 2]| own + common * common;
        Self { signal: energy(signal), error: energy(error) }
    }
}

/// Of int8 tiles with passes of `pass` channels. `scales` gives the scale of each pass; outliers are in BF16:
/// `channels`, which `keep` leaves out.
///
/// # Safety
/// The row must be readable and have as many channels as the weights; AVX-512 and its BF16 must be there.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline(never)]
pub unsafe fn int8(
    weights: &WeightError,
    x: &InputRow,
    pass: usize,
    scales: impl Fn(usize) -> f32,
    channels: &OutlierChannels,
    keep: &[u16],
) -> RowError {
    let blocks = weights.int8(pass);
    let k = blocks.len() * ACT_BLOCK;
    // SAFETY: outlier channels are channels of the row.
    let outliers: [f32; OUTLIERS] = std::array::from_fn(|j| unsafe { x.value(channels[j] as usize) });
    let amax = outliers.iter().fold(0f32, |max, v| max.max(v.abs()));
    let amax = (0..k.div_ceil(pass)).map(|i| 127.0 * scales(i)).fold(amax, f32::max);
    let unit = unit(amax);
    let (mut sums, wide, is_shared) = (Sums::new(), _mm512_set1_ps(unit), weights.is_shared());
    for from in (0..k).step_by(pass) {
        let scale = scales(from / pass);
        let inverse = _mm512_set1_ps(if scale == 0.0 { 0.0 } else { 1.0 / scale });
        let step = _mm512_set1_ps(scale * unit);
        let of_weights = &blocks[from / ACT_BLOCK..(from + pass).min(k) / ACT_BLOCK];
        for (block, of_weights) in of_weights.iter().enumerate() {
            let first = from + block * ACT_BLOCK;
            let (mut all, mut rests) = (_mm512_setzero_ps(), _mm512_setzero_ps());
            for c in [first, first + 16] {
                // SAFETY: the row has the channels.
                let v = unsafe { _mm512_maskz_mov_ps(keep[c / 16], x.lanes(c)) };
                let q = _mm512_roundscale_ps::<0>(_mm512_mul_ps(v, inverse));
                let v = _mm512_mul_ps(v, wide);
                let rest = _mm512_fnmadd_ps(q, step, v);
                let lanes = weights.lanes(c);
                sums.add(lanes, v, rest);
                sums.add_weights(*of_weights, lanes, v, rest);
                (all, rests) = (_mm512_add_ps(all, v), _mm512_add_ps(rests, rest));
            }
            if is_shared {
                sums.add_shared(weights.shared(first / ACT_BLOCK), of_weights.shared, all, rests);
            }
        }
    }
    let (mut signal, mut error) = sums.end();
    for (v, ([energy, own, mean], of_weights)) in outliers.iter().zip(weights.outliers(channels)) {
        let (v, rest) = (v * unit, (v - half::bf16::from_f32(*v).to_f32()) * unit);
        signal[0] += v * v * own;
        signal[1] += v * mean;
        let both = 2.0 * v * rest * of_weights.cross * energy;
        error[0] += (rest * rest * energy + v * v * of_weights.energy - both).max(0.0);
        error[1] += v * of_weights.mean - rest * mean;
    }
    // The maximum of floats above drops NaN. The sums keep it, except of outliers whose weights are all 0.
    if outliers.iter().any(|v| !v.is_finite()) {
        error[0] = f32::NAN;
    }
    (signal, error).into()
}

/// Of BF16 tiles.
///
/// # Safety
/// As for [`int8`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline(never)]
pub unsafe fn bf16(weights: &WeightError, x: &InputRow) -> RowError {
    let blocks = weights.bf16();
    // SAFETY: the row has the channels.
    let wide = _mm512_set1_ps(unit(unsafe { largest(x, blocks.len() * ACT_BLOCK) }));
    let mut sums = Sums::new();
    for (block, of_weights) in blocks.iter().enumerate() {
        // SAFETY: the row has the block.
        let v = unsafe { [x.lanes(block * ACT_BLOCK), x.lanes(block * ACT_BLOCK + 16)] };
        let tile = rounded(v[0], v[1]);
        let halves = [_mm512_castsi512_si256(tile), _mm512_extracti64x4_epi64::<1>(tile)];
        let (mut all, mut rests) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        for (i, v) in v.into_iter().enumerate() {
            let rest = _mm512_mul_ps(_mm512_sub_ps(v, widened(halves[i])), wide);
            let v = _mm512_mul_ps(v, wide);
            let lanes = weights.lanes(block * ACT_BLOCK + 16 * i);
            sums.add(lanes, v, rest);
            sums.add_weights(*of_weights, lanes, v, rest);
            (all, rests) = (_mm512_add_ps(all, v), _mm512_add_ps(rests, rest));
        }
        if weights.is_shared() {
            sums.add_shared(weights.shared(block), of_weights.shared, all, rests);
        }
    }
    sums.end().into()
}

/// Of 8 bits per 32 activations on exact weights.
///
/// # Safety
/// As for [`int8`].
#[target_feature(enable = "avx512f,avx512bw")]
#[inline(never)]
pub unsafe fn blocks_of_32(weights: &WeightError, x: &InputRow) -> RowError {
    let blocks = weights.bf16().len();
    // SAFETY: the row has the channels.
    let wide = _mm512_set1_ps(unit(unsafe { largest(x, blocks * ACT_BLOCK) }));
    let mut sums = Sums::new();
    let magnitude = _mm512_set1_epi32(0x7fff_ffff);
    let bits = |v| _mm512_and_si512(_mm512_castps_si512(v), magnitude);
    for block in 0..blocks {
        // SAFETY: the row has the block.
        let v = unsafe { [x.lanes(block * ACT_BLOCK), x.lanes(block * ACT_BLOCK + 16)] };
        let (scale, inverse) = scale_of(_mm512_reduce_max_epu32(_mm512_max_epu32(bits(v[0]), bits(v[1]))));
        let (scale, inverse) = (_mm512_set1_ps(scale), _mm512_set1_ps(inverse));
        for (i, v) in v.into_iter().enumerate() {
            let q = _mm512_roundscale_ps::<0>(_mm512_mul_ps(v, inverse));
            let rest = _mm512_mul_ps(_mm512_fnmadd_ps(q, scale, v), wide);
            let lanes = weights.lanes(block * ACT_BLOCK + 16 * i);
            // This error is a bound for others, so it must not be too large: what channels have in common may cancel.
            sums.add(Lanes { energy: lanes.own, ..lanes }, _mm512_mul_ps(v, wide), rest);
        }
    }
    sums.end().into()
}

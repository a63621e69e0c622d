//! Sums over columns of a weight matrix, of which [`super::weight_error`] makes what the matrix does to errors.
//!
//! ```text
//! for every column (row of the matrix) that is measured, 16 side by side:
//!     for every KC channels:
//!         weights as floats
//!         sums += weights, their squares, and what rounding them to BF16 costs
//!         for every length of a pass in int8: sums += what requantising them costs
//! ```

use std::arch::x86_64::*;
use std::ops::Range;

use super::precision::{PASSES, STEP_BYTES, STEP_INT8};
use super::requant;
use crate::format::{ACT_BLOCK, Format, LANES};

/// Columns whose sums one thread makes.
pub const UNIT_COLS: usize = 128;
/// Columns of quantised weights that are measured, evenly spaced, where there are more. The sizes of all are summed up.
pub const MEASURED_COLS: usize = 256;
/// Channels that are measured at a time.
pub const KC_ERROR: usize = PASSES[0];
/// Bytes of scratch: KC channels of 16 columns as floats, their int8 tiles, and 16 scales.
pub const SCRATCH_BYTES: usize = KC_ERROR * LANES * 4 + KC_ERROR / STEP_INT8 * STEP_BYTES + LANES * 4;

/// Sums of the errors of weights.
pub struct ErrorSums<T = f32> {
    /// Squares of the errors, per channel.
    pub squares: Vec<T>,
    /// Errors, per block of 32 channels.
    pub errors: Vec<T>,
    /// Squares of what the errors of a block add up to in a column.
    pub block_squares: Vec<T>,
    /// Weights times their errors, per block.
    pub cross: Vec<T>,
}

impl<T: Default + Copy> ErrorSums<T> {
    /// Zeros, for `k` channels.
    pub fn new(k: usize) -> Self {
        let zeros = |n| vec![T::default(); n];
        let blocks = || zeros(k / ACT_BLOCK);
        Self { squares: zeros(k), errors: blocks(), block_squares: blocks(), cross: blocks() }
    }
}

/// Sums over [`UNIT_COLS`] columns.
pub struct WeightSums {
    /// Squares of the weights, per channel.
    pub(super) energy: Vec<f32>,
    /// Weights, per channel.
    pub(super) mean: Vec<f32>,
    /// Squares of what the weights of 16 channels add up to in a column.
    pub(super) squares_of_16: Vec<f32>,
    /// The same of 32 channels.
    pub(super) squares_of_32: Vec<f32>,
    /// Errors of int8 tiles, per length of [`PASSES`].
    pub(super) int8: [ErrorSums; PASSES.len()],
    /// Errors of BF16 tiles.
    pub(super) bf16: ErrorSums,
    /// Columns that these are sums of.
    pub(super) count: usize,
    /// What the squares of every column add up to, or the most that they could; also of columns that were not measured.
    pub(super) column_sizes: Vec<f32>,
}

impl WeightSums {
    /// No columns yet, for `k` channels.
    pub fn new(k: usize) -> Self {
        let (channels, errors) = (|| vec![0.0; k], || ErrorSums::new(k));
        Self {
            energy: channels(),
            mean: channels(),
            squares_of_16: vec![0.0; k / LANES],
            squares_of_32: vec![0.0; k / ACT_BLOCK],
            int8: std::array::from_fn(|_| errors()),
            bf16: errors(),
            count: 0,
            column_sizes: Vec::new(),
        }
    }

    /// Adds the first `lanes` columns of a packed panel, without their sizes.
    ///
    /// # Safety
    /// The panel must be packed and have the sums' channels; `scratch` must be writable for [`SCRATCH_BYTES`] and
    /// 64-byte aligned; AVX-512 must be there.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn add<F: Format>(&mut self, panel: *const u8, lanes: usize, scratch: *mut u8) {
        let weights = scratch.cast::<f32>();
        let (tiles, mask) = (scratch.wrapping_add(KC_ERROR * LANES * 4), ((1u32 << lanes) - 1) as u16);
        let scales = tiles.wrapping_add(KC_ERROR / STEP_INT8 * STEP_BYTES).cast::<f32>();
        let k = self.energy.len();
        for from in (0..k).step_by(KC_ERROR) {
            let to = k.min(from + KC_ERROR);
            // SAFETY: the panel has the channels, and the scratch room for KC of them.
            unsafe {
                requant::floats::<F>(panel, from, to - from, weights);
                self.squares(from, to, weights, mask);
                for (i, pass) in PASSES.into_iter().enumerate() {
                    for start in (from..to).step_by(pass) {
                        let end = to.min(start + pass);
                        requant::int8::<F>(panel, start..end, tiles, scales, panel, &mut []);
                        let weights = weights.add((start - from) * LANES);
                        int8_errors(&mut self.int8[i], start..end, weights, tiles, _mm512_load_ps(scales), mask);
                    }
                }
            }
        }
        self.count += lanes;
    }

    /// Adds the sizes of the first `lanes` columns of a packed panel, from its scales alone.
    ///
    /// # Safety
    /// As for [`WeightSums::add`].
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn add_sizes<F: Format>(&mut self, panel: *const u8, lanes: usize) {
        let mut columns = _mm512_setzero_ps();
        for g in 0..self.energy.len() / F::GROUP {
            // SAFETY: the panel has the group.
            let largest = unsafe { requant::largest::<F>(panel, g) };
            columns = _mm512_fmadd_ps(largest, largest, columns);
        }
        self.add_column_sizes(columns, lanes);
    }

    /// Adds the first `lanes` of 16 columns that only BF16 tiles are made of, and their sizes. `floats(from, len, out)`
    /// writes them as floats, those of a channel side by side.
    ///
    /// # Safety
    /// `scratch` as for [`WeightSums::add`]; AVX-512 must be there.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn add_floats(&mut self, floats: impl Fn(usize, usize, *mut f32), lanes: usize, scratch: *mut u8) {
        let (k, mut columns) = (self.energy.len(), _mm512_setzero_ps());
        for from in (0..k).step_by(KC_ERROR) {
            let to = k.min(from + KC_ERROR);
            floats(from, to - from, scratch.cast());
            // SAFETY: the channels are in the scratch.
            let squares = unsafe { self.squares(from, to, scratch.cast(), ((1u32 << lanes) - 1) as u16) };
            columns = _mm512_add_ps(columns, squares);
        }
        self.count += lanes;
        self.add_column_sizes(columns, lanes);
    }

    /// Adds the sizes of `lanes` columns.
    #[target_feature(enable = "avx512f")]
    fn add_column_sizes(&mut self, columns: __m512, lanes: usize) {
        let mut all = [0.0; LANES];
        // SAFETY: 16 floats.
        unsafe { _mm512_storeu_ps(all.as_mut_ptr(), columns) };
        self.column_sizes.extend_from_slice(&all[..lanes]);
    }

    /// Adds channels `from..to` of 16 columns and what rounding them to BF16 costs; returns the sum of squares of each
    /// column. `mask` says which columns exist.
    ///
    /// # Safety
    /// `weights` must have 16 floats per channel from `from` on; AVX-512 must be there.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn squares(&mut self, from: usize, to: usize, weights: *const f32, mask: u16) -> __m512 {
        let mut columns = _mm512_setzero_ps();
        for block in from / ACT_BLOCK..to / ACT_BLOCK {
            let zero = _mm512_setzero_ps();
            let (mut mean, mut both, mut cross) = (zero, zero, zero);
            for first in [block * ACT_BLOCK, block * ACT_BLOCK + LANES] {
                let mut sum = _mm512_setzero_ps();
                let zeros = [_mm512_setzero_ps(); LANES];
                let (mut plain, mut squares, mut errors) = (zeros, zeros, zeros);
                for i in 0..LANES {
                    // SAFETY: `weights` has the channel.
                    let w = unsafe { _mm512_maskz_loadu_ps(mask, weights.add((first + i - from) * LANES)) };
                    (plain[i], squares[i]) = (w, _mm512_mul_ps(w, w));
                    sum = _mm512_add_ps(sum, w);
                    columns = _mm512_add_ps(columns, squares[i]);
                    let low = requant::bf16_pairs(w, _mm512_setzero_ps());
                    let rest = _mm512_sub_ps(w, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(low)));
                    errors[i] = _mm512_mul_ps(rest, rest);
                    mean = _mm512_sub_ps(mean, rest);
                    cross = _mm512_fnmadd_ps(w, rest, cross);
                }
                both = _mm512_add_ps(both, sum);
                self.squares_of_16[first / LANES] += sum_of_squares(sum);
                add_sums(&mut self.energy[first..first + LANES], squares);
                add_sums(&mut self.mean[first..first + LANES], plain);
                add_sums(&mut self.bf16.squares[first..first + LANES], errors);
            }
            self.squares_of_32[block] += sum_of_squares(both);
            self.bf16.errors[block] += _mm512_reduce_add_ps(mean);
            self.bf16.block_squares[block] += sum_of_squares(mean);
            self.bf16.cross[block] += _mm512_reduce_add_ps(cross);
        }
        columns
    }
}

/// Adds the errors of int8 tiles of `channels`, in 16 columns that share `scales`; `weights` are the weights
/// themselves.
///
/// # Safety
/// `tiles` and `weights` must begin with the first of the channels and have them all; AVX-512 must be there.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn int8_errors(
    sums: &mut ErrorSums,
    channels: Range<usize>,
    weights: *const f32,
    tiles: *const u8,
    scales: __m512,
    mask: u16,
) {
    let scales = _mm512_maskz_mov_ps(mask, scales);
    for block in channels.clone().step_by(ACT_BLOCK) {
        let (mut mean, mut cross) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        for first in [block, block + LANES] {
            let mut squares = [_mm512_setzero_ps(); LANES];
            for four in 0..LANES / 4 {
                let k = first - channels.start + 4 * four;
                // SAFETY: the tiles have the channels.
                let quants =
                    unsafe { _mm512_load_si512(tiles.add(k / STEP_INT8 * STEP_BYTES + k % STEP_INT8 * LANES).cast()) };
                let upper = [
                    _mm512_slli_epi32::<24>(quants),
                    _mm512_slli_epi32::<16>(quants),
                    _mm512_slli_epi32::<8>(quants),
                    quants,
                ];
                for (i, q) in upper.into_iter().enumerate() {
                    let q = _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(q));
                    // SAFETY: `weights` has the channel.
                    let w = unsafe { _mm512_maskz_loadu_ps(mask, weights.add((k + i) * LANES)) };
                    let rest = _mm512_fnmadd_ps(q, scales, w);
                    squares[4 * four + i] = _mm512_mul_ps(rest, rest);
                    mean = _mm512_sub_ps(mean, rest);
                    cross = _mm512_fnmadd_ps(w, rest, cross);
                }
            }
            add_sums(&mut sums.squares[first..first + LANES], squares);
        }
        sums.errors[block / ACT_BLOCK] += _mm512_reduce_add_ps(mean);
        sums.block_squares[block / ACT_BLOCK] += sum_of_squares(mean);
        sums.cross[block / ACT_BLOCK] += _mm512_reduce_add_ps(cross);
    }
}

/// The sum of the squares of 16 numbers.
#[target_feature(enable = "avx512f")]
fn sum_of_squares(v: __m512) -> f32 {
    _mm512_reduce_add_ps(_mm512_mul_ps(v, v))
}

/// Adds the sum of each of 16 vectors to one of 16 numbers.
#[target_feature(enable = "avx512f")]
fn add_sums(sums: &mut [f32], vectors: [__m512; LANES]) {
    assert_eq!(sums.len(), LANES);
    // SAFETY: 16 floats.
    unsafe {
        let sum = _mm512_add_ps(_mm512_loadu_ps(sums.as_ptr()), sums_of(vectors));
        _mm512_storeu_ps(sums.as_mut_ptr(), sum);
    }
}

/// The sum of each of 16 vectors: halves of two are added side by side, four times.
#[target_feature(enable = "avx512f")]
fn sums_of(v: [__m512; LANES]) -> __m512 {
    let mut fours = [_mm512_setzero_ps(); 4];
    for (i, sum) in fours.iter_mut().enumerate() {
        let [a, b] = [4 * i, 4 * i + 2].map(|i| {
            _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(v[i], v[i + 1]), _mm512_unpackhi_ps(v[i], v[i + 1])))
        });
        let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
        *sum = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    }
    let quarters = |a, b| _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
    quarters(quarters(fours[0], fours[1]), quarters(fours[2], fours[3]))
}

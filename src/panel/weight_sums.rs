//! Measures what a [`WeightError`] says: sums over columns of the weights, and what follows from them.

use std::arch::x86_64::*;
use std::ops::Range;

use super::precision::{PASSES, STEP_BYTES, STEP_INT8};
use super::requant;
use super::weight_error::{BlockError, WeightError};
use crate::format::{ACT_BLOCK, Format, LANES};

/// Columns whose sums are made together, by one thread.
pub const UNIT_COLS: usize = 128;
/// Columns of quantised weights that are measured, evenly spaced, where there are more. The size of all is looked at.
pub const MEASURED_COLS: usize = 256;
/// Channels that are looked at at a time.
pub const KC_ERROR: usize = PASSES[0];
/// Bytes of scratch for a panel: a stretch as floats, its int8 tiles, their scales.
pub const SCRATCH_BYTES: usize = KC_ERROR * LANES * 4 + KC_ERROR / STEP_INT8 * STEP_BYTES + LANES * 4;

/// Sums of errors: squares for every channel; for every 32 the errors themselves, squares of what they add up to in a
/// column, and errors times weights.
struct ErrorSums<T = f32> {
    squares: Vec<T>,
    errors: Vec<T>,
    together: Vec<T>,
    cross: Vec<T>,
}

impl<T: Default + Copy> ErrorSums<T> {
    fn new(k: usize) -> Self {
        let zeros = |n| vec![T::default(); n];
        let blocks = || zeros(k / ACT_BLOCK);
        Self { squares: zeros(k), errors: blocks(), together: blocks(), cross: blocks() }
    }
}

/// Sums over [`UNIT_COLS`] columns.
pub struct WeightSums {
    /// Squares and weights of every channel.
    energy: Vec<f32>,
    mean: Vec<f32>,
    /// Squares of what the weights of 16 channels, and of 32, add up to in a column.
    by_16: Vec<f32>,
    by_32: Vec<f32>,
    int8: [ErrorSums; PASSES.len()],
    bf16: ErrorSums,
    /// Columns that these are sums of.
    count: usize,
    /// What every column's squares add up to, or the most that they could; also of columns that were not measured.
    columns: Vec<f32>,
}

impl WeightSums {
    /// Nothing yet, for `k` channels.
    pub fn new(k: usize) -> Self {
        let (channels, errors) = (|| vec![0.0; k], || ErrorSums::new(k));
        Self {
            energy: channels(),
            mean: channels(),
            by_16: vec![0.0; k / LANES],
            by_32: vec![0.0; k / ACT_BLOCK],
            int8: std::array::from_fn(|_| errors()),
            bf16: errors(),
            count: 0,
            columns: Vec::new(),
        }
    }

    /// Adds the first `lanes` columns of a packed panel.
    ///
    /// # Safety
    /// The panel must have the sums' channels; `scratch` be writable for [`SCRATCH_BYTES`] and 64-byte aligned; AVX-512
    /// needed.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn add<F: Format>(&mut self, panel: *const u8, lanes: usize, scratch: *mut u8) {
        let weights = scratch.cast::<f32>();
        let (tiles, mask) = (scratch.wrapping_add(KC_ERROR * LANES * 4), ((1u32 << lanes) - 1) as u16);
        let scales = tiles.wrapping_add(KC_ERROR / STEP_INT8 * STEP_BYTES).cast::<f32>();
        let k = self.energy.len();
        for from in (0..k).step_by(KC_ERROR) {
            let to = k.min(from + KC_ERROR);
            // SAFETY: promised by the caller; a stretch fits the scratch.
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

    /// Notes the size of the first `lanes` columns of a packed panel, by its scales alone.
    ///
    /// # Safety
    /// As for [`WeightSums::add`].
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn add_sizes<F: Format>(&mut self, panel: *const u8, lanes: usize) {
        let mut columns = _mm512_setzero_ps();
        for g in 0..self.energy.len() / F::GROUP {
            // SAFETY: promised by the caller.
            let largest = unsafe { requant::largest::<F>(panel, g) };
            columns = _mm512_fmadd_ps(largest, largest, columns);
        }
        self.end(columns, lanes);
    }

    /// Adds the first `lanes` of 16 columns that only BF16 tiles are made of. `floats(from, len, out)` gives them as
    /// floats, a channel's side by side.
    ///
    /// # Safety
    /// As for [`WeightSums::add`].
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn add_floats(&mut self, floats: impl Fn(usize, usize, *mut f32), lanes: usize, scratch: *mut u8) {
        let (k, mut columns) = (self.energy.len(), _mm512_setzero_ps());
        for from in (0..k).step_by(KC_ERROR) {
            let to = k.min(from + KC_ERROR);
            floats(from, to - from, scratch.cast());
            // SAFETY: promised by the caller.
            let squares = unsafe { self.squares(from, to, scratch.cast(), ((1u32 << lanes) - 1) as u16) };
            columns = _mm512_add_ps(columns, squares);
        }
        self.count += lanes;
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
            let zero = _mm512_setzero_ps();
            let (mut mean, mut both, mut cross) = (zero, zero, zero);
            for first in [block * ACT_BLOCK, block * ACT_BLOCK + LANES] {
                let mut sum = _mm512_setzero_ps();
                let zeros = [_mm512_setzero_ps(); LANES];
                let (mut plain, mut squares, mut errors) = (zeros, zeros, zeros);
                for i in 0..LANES {
                    // SAFETY: promised by the caller.
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
                self.by_16[first / LANES] += sum_of_squares(sum);
                add_sums(&mut self.energy[first..first + LANES], squares);
                add_sums(&mut self.mean[first..first + LANES], plain);
                add_sums(&mut self.bf16.squares[first..first + LANES], errors);
            }
            self.by_32[block] += sum_of_squares(both);
            self.bf16.errors[block] += _mm512_reduce_add_ps(mean);
            self.bf16.together[block] += sum_of_squares(mean);
            self.bf16.cross[block] += _mm512_reduce_add_ps(cross);
        }
        columns
    }

    /// What units of columns, always in the same order, say about a matrix of `k` channels. `has_int8`: it is one that
    /// int8 tiles may be made of.
    pub fn finish(k: usize, units: impl Iterator<Item = WeightSums>, has_int8: bool) -> WeightError {
        let (mut energy, mut mean) = (vec![0f64; k], vec![0f64; k]);
        let blocks = || vec![0f64; k / ACT_BLOCK];
        let (mut by_16, mut by_32) = (vec![0f64; k / LANES], blocks());
        let mut errors: [ErrorSums<f64>; PASSES.len() + 1] = std::array::from_fn(|_| ErrorSums::new(k));
        let (mut total, mut squares, mut count, mut all) = (0f64, 0f64, 0usize, 0usize);
        let add = |sums: &mut [f64], of: &[f32]| sums.iter_mut().zip(of).for_each(|(sum, v)| *sum += f64::from(*v));
        for unit in units {
            add(&mut energy, &unit.energy);
            add(&mut mean, &unit.mean);
            add(&mut by_16, &unit.by_16);
            add(&mut by_32, &unit.by_32);
            for (sums, of) in errors.iter_mut().zip(unit.int8.iter().chain([&unit.bf16])) {
                add(&mut sums.squares, &of.squares);
                add(&mut sums.errors, &of.errors);
                add(&mut sums.together, &of.together);
                add(&mut sums.cross, &of.cross);
            }
            count += unit.count;
            for e in unit.columns.iter().map(|e| f64::from(*e)) {
                (total, squares, all) = (total + e, squares + e * e, all + 1);
            }
        }
        let largest = energy.iter().copied().fold(0.0, f64::max) / count.max(1) as f64;
        // Squares of all must fit a float; a matrix of zeros has none.
        let zeros = total == 0.0 && mean.iter().all(|m| *m == 0.0);
        let known = total.is_finite() && (largest > 1e-25 || zeros);
        // Few columns are judged by several draws together.
        let draws = (Self::JUDGED / all.max(1) as f64).max(1.0);
        let columns = match (known, zeros) {
            (false, _) => 0.0,
            (true, true) => Self::JUDGED as f32,
            (true, false) => (total * total / squares * draws) as f32,
        };
        // Means over the columns, in units of the largest.
        let has_size = known && !zeros;
        let unit = if has_size { 1.0 / (count as f64 * largest) } else { 0.0 };
        let linear = if has_size { 1.0 / (count as f64 * largest.sqrt()) } else { 0.0 };
        // Of n numbers of a column: the square of what they add up to, less their own squares, is n (n - 1) covariances.
        let shared = |together: f64, own: f64, n: usize| {
            let shared = (together - own) / (n * (n - 1)) as f64;
            if cfg!(mutant = "neighbours-independent") { 0.0 } else { shared.max(0.0) }
        };
        let of_weights: Vec<f64> = energy.chunks(ACT_BLOCK).map(|squares| squares.iter().sum()).collect();
        let blocks_of = |sums: &ErrorSums<f64>| {
            let most = |squares: &[f64]| match cfg!(mutant = "errors-averaged") {
                false => squares.iter().copied().fold(0.0, f64::max),
                true => squares.iter().sum::<f64>() / ACT_BLOCK as f64,
            };
            let block = |(i, squares): (usize, &[f64])| {
                let all = sums.errors[i] * linear;
                let mean = all / ACT_BLOCK as f64;
                let own = squares.iter().sum::<f64>() * unit - ACT_BLOCK as f64 * mean * mean;
                BlockError {
                    energy: (most(squares) * unit) as f32,
                    mean: mean as f32,
                    shared: shared(sums.together[i] * unit - all * all, own, ACT_BLOCK) as f32,
                    cross: if of_weights[i] > 0.0 { (sums.cross[i] / of_weights[i]) as f32 } else { 0.0 },
                }
            };
            sums.squares.chunks(ACT_BLOCK).enumerate().map(block).collect::<Box<[_]>>()
        };
        if cfg!(mutant = "weights-unseen") {
            energy.fill(count as f64 * largest);
            mean.fill(0.0);
            for sums in &mut errors {
                *sums = ErrorSums { squares: vec![7e-5 * count as f64 * largest; k], ..ErrorSums::new(k) };
            }
        }
        let bits = |v: f64| half::bf16::from_f64(v).to_bits();
        let variance: Vec<f64> =
            energy.iter().zip(&mean).map(|(e, m)| (e * unit - (m * linear).powi(2)).max(0.0)).collect();
        let of_groups = |together: &[f64], n: usize| {
            let one = |((together, mean), own): ((&f64, &[f64]), &[f64])| {
                let all = mean.iter().sum::<f64>() * linear;
                shared(together * unit - all * all, own.iter().sum(), n) as f32
            };
            together.iter().zip(mean.chunks(n)).zip(variance.chunks(n)).map(one).collect::<Box<[f32]>>()
        };
        let (shared_by_16, shared_by_32) = (of_groups(&by_16, LANES), of_groups(&by_32, ACT_BLOCK));
        let int8 = std::array::from_fn(|i| if has_int8 { blocks_of(&errors[i]) } else { Box::default() });
        let bf16 = blocks_of(&errors[PASSES.len()]);
        // Where all of 32 channels are alike in a row, 32 covariances count as much as one variance.
        let matters = |shared: f32, own: f32| shared * ACT_BLOCK as f32 > Self::MATTERS * own;
        let of_errors = |blocks: &[BlockError]| {
            matters(blocks.iter().map(|b| b.shared).sum(), blocks.iter().map(|b| b.energy).sum())
        };
        let own = variance.iter().sum::<f64>() as f32 / ACT_BLOCK as f32;
        let is_shared = matters(shared_by_32.iter().sum(), own) || int8.iter().chain([&bf16]).any(|b| of_errors(b));
        WeightError {
            energy: variance.iter().map(|v| bits(*v)).collect(),
            mean: mean.iter().map(|m| bits(m * linear)).collect(),
            int8,
            bf16,
            shared_by_16,
            shared_by_32,
            is_shared,
            columns,
        }
    }

    /// Share of the errors of a row that may be overlooked.
    const MATTERS: f32 = 0.05;
    /// Results of a row that the promise is about, at least.
    const JUDGED: f64 = 256.0;
}

/// Adds the errors of int8 tiles of some channels. `weights` are what they should be.
///
/// # Safety
/// Tiles and weights must have the channels, from their starts on; AVX-512 needed.
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
                // SAFETY: promised by the caller.
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
                    // SAFETY: promised by the caller.
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
        sums.together[block / ACT_BLOCK] += sum_of_squares(mean);
        sums.cross[block / ACT_BLOCK] += _mm512_reduce_add_ps(cross);
    }
}

/// The squares of 16 numbers.
#[target_feature(enable = "avx512f")]
fn sum_of_squares(v: __m512) -> f32 {
    _mm512_reduce_add_ps(_mm512_mul_ps(v, v))
}

/// Adds the sum of each of 16 vectors to as many numbers.
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

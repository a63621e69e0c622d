//! Outlier channels: those whose activations are too large to share an 8-bit scale with the others. This file finds
//! them, and estimates what errors each precision would have.
//!
//! ```text
//! for every outlier set (256 rows; of an expert all rows):
//!     maxima[c] = largest magnitude of channel c in every fourth row       (find_maxima: threads share the channels)
//!     outlier channels = the 32 channels with the largest maxima           (choose_channels: every thread for itself)
//!     for some rows:
//!         errors of that row's results in each precision                   (look)
//! ```
//!
//! Only a sample of the rows is looked at. Every row is held to its bound later, when it is quantised.

use std::arch::x86_64::*;
use std::fmt;
use std::ops::Range;

use super::precision::{OUTLIERS, OutlierChannels, PASSES};
use super::row_error::{self, Bound, RowError};
use super::rows::{InputRow, InputRows};
use super::scale::scale_of_pass;
use super::weight_error::WeightError;

/// Rows of an outlier set in a product with one matrix. With experts all rows of one are a set.
pub const OUTLIER_SET_ROWS: usize = 256;
/// Of so many rows one is looked at to find a set's outlier channels.
const MAXIMA_SAMPLE: usize = 4;
/// Sets of up to this many rows are looked at completely; the first row of a prompt is special in many models.
const SMALL_SET_ROWS: usize = OUTLIER_SET_ROWS / MAXIMA_SAMPLE;
/// Rows per [`OUTLIER_SET_ROWS`] that the errors of a product are estimated from.
pub const ERROR_SAMPLE_ROWS: usize = 8;

/// Rows of activations that share their outlier channels.
#[derive(Clone, Debug)]
pub struct OutlierSet {
    /// All rows of activations.
    pub x: InputRows,
    /// Those of the set.
    pub rows: Range<usize>,
    /// Channels, a multiple of 32.
    pub k: usize,
    /// The largest magnitude of each channel, as bits of a float: `k` numbers.
    pub maxima: *mut u32,
}

impl OutlierSet {
    /// The rows that outlier channels are found from.
    fn sample(&self) -> impl Iterator<Item = usize> + Clone + use<> {
        self.rows.clone().step_by(if self.rows.len() > SMALL_SET_ROWS { MAXIMA_SAMPLE } else { 1 })
    }

    /// First step: writes the maxima of channels `first..first + 32`.
    ///
    /// # Safety
    /// The rows must be readable; these maxima must be writable and used by no other thread; AVX-512 must be there.
    #[target_feature(enable = "avx512f")]
    #[inline(never)]
    pub unsafe fn find_maxima(&self, first: usize) {
        let magnitude = _mm512_set1_epi32(0x7fff_ffff);
        let mut max = [_mm512_setzero_si512(); 2];
        // SAFETY: the rows have the channels, and the maxima are this thread's.
        unsafe {
            for row in self.sample() {
                let x = self.x.row(row);
                for (i, max) in max.iter_mut().enumerate() {
                    let bits = _mm512_castps_si512(x.lanes(first + 16 * i));
                    *max = _mm512_max_epu32(*max, _mm512_and_si512(bits, magnitude));
                }
            }
            for (i, max) in max.iter().enumerate() {
                _mm512_storeu_si512(self.maxima.add(first + 16 * i).cast(), *max);
            }
        }
    }

    /// Second step, by every thread for itself: the outlier channels. All threads get the same.
    ///
    /// # Safety
    /// The maxima must be written and no longer change; AVX-512 must be there.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn choose_channels(&self) -> OutlierChannels {
        // SAFETY: there are k maxima.
        let maxima = unsafe { std::slice::from_raw_parts(self.maxima, self.k) };
        let above = |limit: u32| {
            let limit = _mm512_set1_epi32(limit as i32);
            // SAFETY: the slices have 16 numbers.
            let count = |v: &[u32]| unsafe {
                _mm512_cmpgt_epu32_mask(_mm512_loadu_si512(v.as_ptr().cast()), limit).count_ones()
            };
            maxima.chunks_exact(16).map(count).sum::<u32>() as usize
        };
        // The smallest limit that at most OUTLIERS channels exceed: it is one of the maxima, or 0.
        let (mut low, mut high) = (0u32, maxima.iter().copied().max().unwrap_or(0));
        while low < high {
            let middle = low + (high - low) / 2;
            if above(middle) <= OUTLIERS { high = middle } else { low = middle + 1 }
        }
        let mut rest = OUTLIERS - above(low);
        let mut channels = [0; OUTLIERS];
        let mut n = 0;
        for (channel, max) in maxima.iter().enumerate() {
            let take = *max > low || *max == low && rest > 0;
            if take && n < OUTLIERS {
                rest -= usize::from(*max == low);
                channels[n] = channel as u32;
                n += 1;
            }
        }
        channels
    }

    /// The rows that errors are estimated from, at most `most` per [`OUTLIER_SET_ROWS`].
    pub fn error_sample(&self, most: usize) -> impl Iterator<Item = usize> + Clone + use<> {
        let most = most * self.rows.len().div_ceil(OUTLIER_SET_ROWS);
        self.sample().step_by(self.sample().count().div_ceil(most).max(1))
    }

    /// The errors of row `row` in each precision. `channels` are the outlier channels, `keep` leaves them out.
    ///
    /// # Safety
    /// The row must be readable; AVX-512 and its BF16 must be there.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[inline(never)]
    pub unsafe fn look(
        &self,
        row: usize,
        channels: &OutlierChannels,
        keep: &[u16],
        weights: &WeightError,
        bound: &Bound,
    ) -> ErrorStats {
        // SAFETY: the row has the channels.
        unsafe {
            let x = self.x.row(row);
            let blocks = row_error::blocks_of_32(weights, &x);
            let bf16 = row_error::bf16(weights, &x);
            let int8 = PASSES.map(|pass| {
                let scale = |i: usize| scale_of_pass(&x, i * pass..self.k.min((i + 1) * pass), keep).0;
                row_error::int8(weights, &x, pass, scale, channels, keep)
            });
            ErrorStats::of_row(bound, blocks, bf16, int8, self.crest(&x, keep))
        }
    }

    /// Largest magnitude outside the outlier channels, relative to the root mean square there; 0 for a row of zeros.
    ///
    /// # Safety
    /// The row must be readable and have the channels; AVX-512 must be there.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn crest(&self, x: &InputRow, keep: &[u16]) -> f32 {
        // SAFETY: the row has the channels.
        let max = unsafe { scale_of_pass(x, 0..self.k, keep).0 } * 127.0;
        if max == 0.0 {
            return 0.0;
        }
        let inverse = _mm512_set1_ps(1.0 / max);
        let squares = (0..self.k).step_by(16).fold(_mm512_setzero_ps(), |sum, c| {
            // SAFETY: the row has the channels.
            let v = _mm512_mul_ps(unsafe { _mm512_maskz_mov_ps(keep[c / 16], x.lanes(c)) }, inverse);
            _mm512_fmadd_ps(v, v, sum)
        });
        1.0 / (_mm512_reduce_add_ps(squares) / self.k as f32).sqrt()
    }
}

/// Fills `keep`: bit `i % 16` of word `i / 16` is set if channel `i` is no outlier channel.
pub fn keep_mask(channels: &OutlierChannels, keep: &mut [u16]) {
    keep.fill(u16::MAX);
    for c in channels {
        keep[*c as usize / 16] &= !(1 << (c % 16));
    }
}

/// Sums over the rows that errors were estimated from. Errors are relative to the rows' signals.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ErrorStats {
    /// Rows.
    pub rows: usize,
    /// Sum of the errors of 8 bits per 32 activations.
    pub blocks: f32,
    /// Sums of the errors of int8 tiles, per length of [`PASSES`].
    pub int8: [f32; PASSES.len()],
    /// Rows that would break their bound in int8, per length of [`PASSES`].
    pub broken_int8: [usize; PASSES.len()],
    /// Rows that would break their bound in BF16.
    pub broken_bf16: usize,
    /// Sum of amax / rms outside the outlier channels.
    pub crest: f32,
}

impl ErrorStats {
    fn of_row(bound: &Bound, blocks: RowError, bf16: RowError, int8: [RowError; PASSES.len()], crest: f32) -> Self {
        let broken = |row| usize::from(!bound.holds(row, || blocks));
        let seen = Self { rows: 1, broken_int8: int8.map(broken), broken_bf16: broken(bf16), ..Self::default() };
        // Rows of zeros have no relative error. NaN is not equal to 0 and goes into the sums.
        if blocks.signal == 0.0 {
            return seen;
        }
        let int8 = int8.map(|row| row.error / row.signal);
        Self { blocks: blocks.error / blocks.signal, int8, crest, ..seen }
    }

    /// Adds the sums over other rows.
    pub fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.blocks += other.blocks;
        self.broken_bf16 += other.broken_bf16;
        self.crest += other.crest;
        for i in 0..PASSES.len() {
            self.int8[i] += other.int8[i];
            self.broken_int8[i] += other.broken_int8[i];
        }
    }

    /// The mean over the rows of one of the sums.
    pub fn mean(&self, sum: f32) -> f32 {
        sum / self.rows as f32
    }
}

impl fmt::Display for ErrorStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (crest, blocks) = (self.mean(self.crest), self.mean(self.blocks));
        write!(f, "amax / rms {crest:.1}; estimated NMSE 8 bits per 32: {blocks:.1e}")?;
        for ((pass, error), broken) in PASSES.iter().zip(self.int8).zip(self.broken_int8) {
            write!(f, ", per {pass}: {:.1e} ({broken} of {} rows break the bound)", self.mean(error), self.rows)?;
        }
        Ok(())
    }
}

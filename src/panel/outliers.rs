//! The outlier split: which channels of the activations are too large to share an 8-bit scale with the
//! others, and what precision the rest needs. Everything here looks at a sample of the rows.

use std::arch::x86_64::*;
use std::fmt;
use std::ops::Range;

use super::rows::Source;
use super::tiles::{FINEST, OUTLIERS, PASSES, Precision};
use crate::format::ACT_BLOCK;

/// Rows that share their outlier channels in one product; an expert's rows always do.
pub const CHUNK: usize = 256;
/// Rows between those that are looked at to find a chunk's outlier channels.
const SAMPLE: usize = 4;
/// Fewer rows than this are all looked at; the first row of a prompt is special in many models.
const FEW: usize = CHUNK / SAMPLE;
/// Rows per [`CHUNK`] that the errors are estimated from.
const LOOKED_AT: usize = 8;
/// Largest mean of amax / rms of a row without its outlier channels up to which all passes are allowed
/// (measured: 3.5 to 5.5 where outliers sit in fixed channels, above 9 where they move).
const MAX_CREST: f32 = 7.5;
/// Mean squared error of rounding to 8 bits: a step is amax / 127, the error uniform in it.
const STEP_ERROR: f32 = 1.0 / (127.0 * 127.0 * 12.0);
/// Relative squared error of requantising a column of weights over one pass (measured: 4e-5 to 7e-5).
const REQUANT_ERROR: f32 = 7e-5;
/// The estimates are from a few rows: keep this far below what is allowed, farther where outliers move.
const MARGIN: f32 = 0.8;
/// Coarse types allow more error by their own, but no more than this.
const MAX_ALLOWED: f32 = 3e-4;
const MARGIN_SPIKY: f32 = 0.3;

/// The outlier channels of a chunk, ascending.
pub type Channels = [u32; OUTLIERS];

/// Rows that share their outlier channels.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Where they are.
    pub x: Source,
    /// Which.
    pub rows: Range<usize>,
    /// Channels, a multiple of 32.
    pub k: usize,
    /// Room for a number per channel.
    pub maxima: *mut u32,
}

impl Chunk {
    /// The rows that are looked at.
    fn sample(&self) -> impl Iterator<Item = usize> + use<> {
        self.rows.clone().step_by(if self.rows.len() > FEW { SAMPLE } else { 1 })
    }

    /// First step: the largest magnitudes (as bits) of channels `first..first + 32`.
    ///
    /// # Safety
    /// The rows must exist; nobody else may write these maxima; AVX-512 needed.
    #[target_feature(enable = "avx512f")]
    #[inline(never)]
    pub unsafe fn find_maxima(&self, first: usize) {
        let magnitude = _mm512_set1_epi32(0x7fff_ffff);
        let mut max = [_mm512_setzero_si512(); 2];
        // SAFETY: rows and channels are inside.
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
    /// The maxima must be there; AVX-512 needed.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn choose(&self) -> Channels {
        // SAFETY: k numbers.
        let maxima = unsafe { std::slice::from_raw_parts(self.maxima, self.k) };
        let above = |limit: u32| {
            let limit = _mm512_set1_epi32(limit as i32);
            // SAFETY: k is a multiple of 32.
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

    /// Adds what a few rows show to `seen`, outlier channels left out by `mask`.
    ///
    /// # Safety
    /// As for [`Chunk::find_maxima`].
    #[target_feature(enable = "avx512f")]
    #[inline(never)]
    pub unsafe fn look(&self, mask: &[u16], seen: &mut Seen) {
        let most = LOOKED_AT * self.rows.len().div_ceil(CHUNK);
        let step = self.sample().count().div_ceil(most);
        for row in self.sample().step_by(step.max(1)) {
            // SAFETY: the row exists.
            let x = unsafe { self.x.row(row) };
            let mut all = _mm512_setzero_ps();
            let (mut rest, mut crest_max) = (_mm512_setzero_ps(), 0f32);
            // Largest magnitude so far in the pass of each length.
            let mut pass_max = [0f32; PASSES.len()];
            for (at, keep) in mask.chunks(FINEST / 16).enumerate() {
                let mut fine_max = _mm512_setzero_ps();
                for (i, keep) in keep.chunks_exact(2).enumerate() {
                    let channel = at * FINEST + 32 * i;
                    let mut block_max = _mm512_setzero_ps();
                    for (half, keep) in keep.iter().enumerate() {
                        // SAFETY: the row has k channels.
                        let v = unsafe { x.lanes(channel + 16 * half) };
                        let kept = _mm512_maskz_mov_ps(*keep, v);
                        all = _mm512_fmadd_ps(v, v, all);
                        rest = _mm512_fmadd_ps(kept, kept, rest);
                        block_max = _mm512_max_ps(block_max, _mm512_abs_ps(v));
                        fine_max = _mm512_max_ps(fine_max, _mm512_abs_ps(kept));
                    }
                    let block_max = _mm512_reduce_max_ps(block_max);
                    seen.host += ACT_BLOCK as f32 * STEP_ERROR * block_max * block_max;
                }
                let fine_max = _mm512_reduce_max_ps(fine_max);
                crest_max = crest_max.max(fine_max);
                let end = at * FINEST + 16 * keep.len();
                for ((max, error), pass) in pass_max.iter_mut().zip(&mut seen.int8).zip(PASSES) {
                    *max = max.max(fine_max);
                    if end.is_multiple_of(pass) || end == self.k {
                        *error += ((end - 1) % pass + 1) as f32 * STEP_ERROR * *max * *max;
                        *max = 0.0;
                    }
                }
            }
            let (all, rest) = (_mm512_reduce_add_ps(all), _mm512_reduce_add_ps(rest));
            seen.all += all;
            seen.rest += rest;
            if rest > 0.0 {
                seen.crest += crest_max / (rest / self.k as f32).sqrt();
                seen.rows += 1;
            }
        }
    }
}

/// Bit `i` of word `i / 16`: channel `i` is no outlier.
pub fn keep_mask(channels: &Channels, mask: &mut [u16]) {
    mask.fill(u16::MAX);
    for c in channels {
        mask[*c as usize / 16] &= !(1 << (c % 16));
    }
}

/// Sums over the rows that were looked at.
#[derive(Default)]
pub struct Seen {
    /// Squares of all activations, and of those outside the outlier channels.
    all: f32,
    rest: f32,
    /// Squared errors of blocks of 32, and of [`PASSES`] with the outlier split.
    host: f32,
    int8: [f32; PASSES.len()],
    /// amax / rms outside the outlier channels, and of how many rows.
    crest: f32,
    rows: usize,
}

impl Seen {
    /// The cheapest precision that is good enough. `own_error` is the NMSE of the weight type itself.
    ///
    /// int8 needs two things: the error it adds, estimated, is at most what ggml's own kernels add (8
    /// bits per 32 activations) or a tenth of the type's own (at most 3e-4); and where what is left after the split
    /// is spiky, errors hit few tokens hard, which a mean does not show: only the finest scales will do.
    pub fn decide(&self, own_error: f32) -> Precision {
        // Written so that NaN means spiky, here, and BF16 below, which passes it on as it is.
        let calm = self.crest <= MAX_CREST * self.rows as f32;
        let margin = if calm { MARGIN } else { MARGIN_SPIKY };
        let allowed = margin * self.host.max((own_error / 10.0).min(MAX_ALLOWED) * self.all);
        let good =
            |(pass, error): (usize, f32)| (calm || pass == FINEST) && error + REQUANT_ERROR * self.rest <= allowed;
        let pass = PASSES.into_iter().zip(self.int8).find(|p| good(*p));
        pass.map_or(Precision::Bf16, |(pass, _)| Precision::Int8 { pass })
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "amax / rms {:.1}; estimated NMSE 8 bits per 32: {:.1e}",
            self.crest / self.rows as f32,
            self.host / self.all
        )?;
        for (pass, error) in PASSES.iter().zip(&self.int8) {
            write!(f, ", per {pass}: {:.1e}", (error + REQUANT_ERROR * self.rest) / self.all)?;
        }
        Ok(())
    }
}

//! Activations for the tile unit (AVX-512 code: every AMX CPU has it), quantised once per operation by all threads together.
//!
//! Rows are cut into blocks of 32 (two tiles of 16). A block is a sequence of k-steps; each holds two
//! compact tiles of 16 rows x 64 bytes, so that a tile load touches 16 neighbouring cache lines.
//!
//! **int8** ([`Precision::Int8`]): 64 weights per k-step; one scale per row and pass of 256 to 1024
//! channels. Such coarse scales are only good without outliers, so the [`OUTLIERS`] channels with the
//! largest magnitudes among a chunk of [`CHUNK`] rows are set to zero here and kept apart in BF16: one
//! k-step of 32 channels, multiplied with the same channels of the weights.
//!
//! **BF16** ([`Precision::Bf16`]): 32 weights per k-step, no scales, no outliers.

use std::arch::x86_64::*;
use std::fmt;
use std::ops::Range;

use super::activations::scale_of;
use crate::format::ACT_BLOCK;

/// Rows of a block.
pub const ROWS: usize = 32;
/// Bytes of a k-step of a block: two tiles.
pub const STEP_BYTES: usize = 2048;
/// Channels per k-step, int8.
pub const STEP_INT8: usize = 64;
/// Channels per k-step, BF16.
pub const STEP_BF16: usize = 32;
/// Numbers of channels that may share an activation scale and a weight scale, coarsest first.
pub const PASSES: [usize; 3] = [1024, 512, 256];
/// The finest of them.
pub const FINEST: usize = 256;
/// Rows that share their outlier channels.
pub const CHUNK: usize = 256;
/// Outlier channels per chunk: one BF16 k-step.
pub const OUTLIERS: usize = 32;
/// Rows between those that are looked at to find a chunk's outlier channels.
const SAMPLE: usize = 4;
/// Largest mean of amax / rms of a row without its outlier channels up to which all passes are allowed
/// (measured: 3.5 to 5.5 where outliers sit in fixed channels, above 9 where they move).
const MAX_CREST: f32 = 7.5;
/// Mean squared error of rounding to 8 bits: a step is amax / 127, the error uniform in it.
const STEP_ERROR: f32 = 1.0 / (127.0 * 127.0 * 12.0);
/// Relative squared error of requantising a column of weights over one pass (measured: 4e-5 to 7e-5).
const REQUANT_ERROR: f32 = 7e-5;
/// The estimates are from a few rows: keep this far below what is allowed, farther where outliers move.
const MARGIN: f32 = 0.8;
const MARGIN_SPIKY: f32 = 0.3;

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

/// What the products are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 8-bit integers, a scale for every `pass` channels (one of [`PASSES`]), and the outlier split.
    Int8 {
        /// Channels per scale.
        pass: usize,
    },
    /// BF16 throughout.
    Bf16,
}

impl Precision {
    /// Channels per k-step.
    pub fn step(self) -> usize {
        match self {
            Precision::Int8 { .. } => STEP_INT8,
            Precision::Bf16 => STEP_BF16,
        }
    }

    /// k-steps of a pass: for int8 those that share scales, for BF16 as many bytes as the longest.
    pub fn pass_steps(self) -> usize {
        match self {
            Precision::Int8 { pass } => pass / STEP_INT8,
            Precision::Bf16 => PASSES[0] / STEP_INT8,
        }
    }
}

/// Where the parts lie in the work buffer, bytes from a 64-byte-aligned base.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Rows.
    pub m: usize,
    /// Channels, a multiple of 32.
    pub k: usize,
    scales: usize,
    outliers: usize,
    channels: usize,
    maxima: usize,
    /// Bytes of everything, a multiple of 64.
    pub bytes: usize,
}

impl Layout {
    /// For `m` rows of `k` channels in either precision; `None` if it does not fit.
    pub fn new(m: usize, k: usize) -> Option<Self> {
        let (blocks, chunks) = (m.div_ceil(ROWS), m.div_ceil(CHUNK));
        let steps = k.div_ceil(STEP_BF16);
        let scales = blocks.checked_mul(steps)?.checked_mul(STEP_BYTES)?;
        let outliers = scales.checked_add(blocks * k.div_ceil(FINEST) * ROWS * 4)?;
        let channels = outliers.checked_add(blocks * STEP_BYTES)?;
        let maxima = channels.checked_add(chunks * OUTLIERS * 4)?;
        let bytes = maxima.checked_add(chunks.checked_mul(k)?.checked_mul(4)?)?.checked_next_multiple_of(64)?;
        Some(Self { m, k, scales, outliers, channels, maxima, bytes })
    }

    /// The parts at `base`.
    ///
    /// # Safety
    /// `base` must be valid for `self.bytes` as long as the result is used.
    pub unsafe fn at(&self, base: *mut u8) -> Tiles {
        Tiles { layout: *self, base }
    }
}

/// Activation tiles in somebody's work buffer. Copies share it.
#[derive(Clone, Copy, Debug)]
pub struct Tiles {
    /// Sizes.
    pub layout: Layout,
    base: *mut u8,
}

/// f32 rows, any strides.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Row 0, channel 0.
    pub data: *const u8,
    /// Bytes from one row to the next.
    pub row: usize,
    /// Bytes from one channel to the next.
    pub channel: usize,
}

impl Source {
    fn at(&self, row: usize, channel: usize) -> *const u8 {
        self.data.wrapping_add(row * self.row + channel * self.channel)
    }

    /// 16 channels from `channel` on.
    ///
    /// # Safety
    /// The row must have them; AVX-512 must be there.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn lanes(&self, row: usize, channel: usize) -> __m512 {
        // SAFETY: promised by the caller.
        unsafe {
            if self.channel == 4 {
                _mm512_loadu_ps(self.at(row, channel).cast())
            } else {
                let values: [f32; 16] =
                    std::array::from_fn(|i| self.at(row, channel + i).cast::<f32>().read_unaligned());
                _mm512_loadu_ps(values.as_ptr())
            }
        }
    }
}

impl Tiles {
    /// Chunks of rows with outlier channels of their own.
    pub fn chunks(&self) -> usize {
        self.layout.m.div_ceil(CHUNK)
    }

    /// Tiles of block `block` from channel `channel` (a multiple of the step) on.
    #[inline]
    pub fn tiles(&self, precision: Precision, block: usize, channel: usize) -> *mut u8 {
        let steps = self.layout.k.div_ceil(precision.step());
        self.base.wrapping_add((block * steps + channel / precision.step()) * STEP_BYTES)
    }

    /// 32 scales of block `block` for the channels from `channel` on, a multiple of `pass`.
    #[inline]
    pub fn scales(&self, pass: usize, block: usize, channel: usize) -> *mut f32 {
        let index = (block * self.layout.k.div_ceil(pass) + channel / pass) * ROWS;
        self.base.wrapping_add(self.layout.scales).cast::<f32>().wrapping_add(index)
    }

    /// The two BF16 tiles of outliers of block `block`.
    #[inline]
    pub fn outliers(&self, block: usize) -> *mut u8 {
        self.base.wrapping_add(self.layout.outliers + block * STEP_BYTES)
    }

    /// The outlier channels of chunk `chunk`.
    pub fn channels(&self, chunk: usize) -> *mut [u32; OUTLIERS] {
        self.base.wrapping_add(self.layout.channels).cast::<[u32; OUTLIERS]>().wrapping_add(chunk)
    }

    fn maxima(&self, chunk: usize) -> *mut u32 {
        self.base.wrapping_add(self.layout.maxima).cast::<u32>().wrapping_add(chunk * self.layout.k)
    }

    /// The rows of `chunk` that are looked at.
    fn sample(&self, chunk: usize) -> impl Iterator<Item = usize> + use<> {
        let end = ((chunk + 1) * CHUNK).min(self.layout.m);
        // Few rows are all looked at; the first row of a prompt is special in many models.
        let step = if end - chunk * CHUNK > CHUNK / SAMPLE { SAMPLE } else { 1 };
        (chunk * CHUNK..end).step_by(step)
    }

    /// First step: largest magnitudes (as bits) of channels `first..first + 32` in a chunk's sample.
    ///
    /// # Safety
    /// The source must have the layout's shape; nobody else may write these maxima; AVX-512 needed.
    #[target_feature(enable = "avx512f")]
    #[inline(never)]
    pub unsafe fn find_maxima(&self, x: &Source, chunk: usize, first: usize) {
        let magnitude = _mm512_set1_epi32(0x7fff_ffff);
        let mut max = [_mm512_setzero_si512(); 2];
        // SAFETY: rows and channels are inside.
        unsafe {
            for row in self.sample(chunk) {
                for (i, max) in max.iter_mut().enumerate() {
                    let bits = _mm512_castps_si512(x.lanes(row, first + 16 * i));
                    *max = _mm512_max_epu32(*max, _mm512_and_si512(bits, magnitude));
                }
            }
            for (i, max) in max.iter().enumerate() {
                _mm512_storeu_si512(self.maxima(chunk).add(first + 16 * i).cast(), *max);
            }
        }
    }

    /// Second step, by every thread for itself: the outlier channels of a chunk, ascending. All
    /// threads get the same.
    ///
    /// # Safety
    /// The maxima must be there; AVX-512 needed.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn choose(&self, chunk: usize) -> [u32; OUTLIERS] {
        let k = self.layout.k;
        // SAFETY: the maxima of a chunk are k numbers.
        let maxima = unsafe { std::slice::from_raw_parts(self.maxima(chunk), k) };
        let above = |limit: u32| {
            let limit = _mm512_set1_epi32(limit as i32);
            // SAFETY: k is a multiple of 32.
            let count = |v: &[u32]| unsafe {
                _mm512_cmpgt_epu32_mask(_mm512_loadu_si512(v.as_ptr().cast()), limit).count_ones()
            };
            maxima.chunks_exact(16).map(count).sum::<u32>() as usize
        };
        // The smallest limit that at most OUTLIERS channels exceed.
        let (mut low, mut high) = (0u32, u32::MAX);
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

    /// Looks at a few rows of a chunk, outlier channels left out by `mask`.
    ///
    /// # Safety
    /// As for [`Tiles::find_maxima`].
    #[target_feature(enable = "avx512f")]
    unsafe fn look(&self, x: &Source, chunk: usize, mask: &[u16], seen: &mut Seen) {
        const ROWS_LOOKED_AT: usize = 8;
        let rows = self.sample(chunk).count();
        for row in self.sample(chunk).step_by(rows.div_ceil(ROWS_LOOKED_AT)) {
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
                        let v = unsafe { x.lanes(row, channel + 16 * half) };
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
                    if end.is_multiple_of(pass) || end == self.layout.k {
                        *error += ((end - 1) % pass + 1) as f32 * STEP_ERROR * *max * *max;
                        *max = 0.0;
                    }
                }
            }
            let (all, rest) = (_mm512_reduce_add_ps(all), _mm512_reduce_add_ps(rest));
            seen.all += all;
            seen.rest += rest;
            if rest > 0.0 {
                seen.crest += crest_max / (rest / self.layout.k as f32).sqrt();
                seen.rows += 1;
            }
        }
    }

    /// The cheapest precision that is good enough for these activations: looks at the sample of every
    /// chunk. All threads come to the same answer. `mask` holds k / 16 words of scratch, `own_error` is
    /// the NMSE of the weight type itself.
    ///
    /// int8 needs two things: the error it adds, estimated, is at most what ggml's own kernels add (8
    /// bits per 32 activations) or a tenth of the type's own; and where what is left after the split
    /// is spiky, errors hit few tokens hard, which a mean does not show: only the finest scales will do.
    ///
    /// # Safety
    /// The maxima must be there; AVX-512 needed.
    #[target_feature(enable = "avx512f")]
    #[inline(never)]
    pub unsafe fn decide(&self, x: &Source, mask: &mut [u16], own_error: f32, few_rows: bool) -> (Precision, Seen) {
        let mut seen = Seen::default();
        for chunk in 0..self.chunks() {
            // SAFETY: promised by the caller.
            unsafe {
                keep_mask(&self.choose(chunk), mask);
                self.look(x, chunk, mask, &mut seen);
            }
        }
        // Written so that NaN means spiky, here, and BF16 below, which passes it on as it is.
        let calm = seen.crest <= MAX_CREST * seen.rows as f32;
        let margin = if calm { MARGIN } else { MARGIN_SPIKY };
        let allowed = margin * seen.host.max(own_error / 10.0 * seen.all);
        let coarse = !few_rows && calm;
        for (pass, error) in PASSES.into_iter().zip(seen.int8) {
            if (coarse || pass == FINEST) && error + REQUANT_ERROR * seen.rest <= allowed {
                return (Precision::Int8 { pass }, seen);
            }
        }
        (Precision::Bf16, seen)
    }

    /// Third step, BF16: one row.
    ///
    /// # Safety
    /// The source must have the layout's shape; nobody else may write this row; AVX-512 needed.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[inline(never)]
    pub unsafe fn put_bf16(&self, x: &Source, row: usize) {
        for channel in (0..self.layout.k).step_by(STEP_BF16) {
            // SAFETY: the row has 32 channels from here on, its tile row 64 bytes.
            unsafe {
                let pair = _mm512_cvtne2ps_pbh(x.lanes(row, channel + 16), x.lanes(row, channel));
                let to = self.tiles(Precision::Bf16, row / ROWS, channel).add(row % ROWS * 64);
                _mm512_store_si512(to.cast(), std::mem::transmute::<__m512bh, __m512i>(pair));
            }
        }
    }

    /// Third step, int8: one row. `channels` are its chunk's outliers, `mask` says which are none.
    ///
    /// A pass with NaN or infinity outside the outlier channels gets the scale NaN.
    ///
    /// # Safety
    /// As for [`Tiles::put_bf16`].
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[inline(never)]
    pub unsafe fn put_int8(&self, pass: usize, x: &Source, row: usize, channels: &[u32; OUTLIERS], mask: &[u16]) {
        let (block, k) = (row / ROWS, self.layout.k);
        // SAFETY: all channels are below k; tiles, scales and outliers of this row are its own.
        unsafe {
            for from in (0..k).step_by(pass) {
                let to = (from + pass).min(k);
                let inverse = self.put_scale(pass, x, row, from..to, mask);
                for channel in (from..to).step_by(STEP_INT8) {
                    let out = self.tiles(Precision::Int8 { pass }, block, channel).add(row % ROWS * 64);
                    for i in 0..4 {
                        let c = channel + 16 * i;
                        // The last step may be half a one.
                        let q = if c < k {
                            let v = _mm512_maskz_mov_ps(mask[c / 16], x.lanes(row, c));
                            _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(v, inverse)))
                        } else {
                            _mm_setzero_si128()
                        };
                        _mm_store_si128(out.add(16 * i).cast(), q);
                    }
                }
            }
            let value = |j: usize| x.at(row, channels[j] as usize).cast::<f32>().read_unaligned();
            let values: [f32; OUTLIERS] = std::array::from_fn(value);
            let pair = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(values.as_ptr().add(16)), _mm512_loadu_ps(values.as_ptr()));
            let out = self.outliers(block).add(row % ROWS * 64);
            _mm512_store_si512(out.cast(), std::mem::transmute::<__m512bh, __m512i>(pair));
        }
    }

    /// Writes the scale of a row and pass; returns 127 / amax in all lanes.
    ///
    /// # Safety
    /// As for [`Tiles::put_int8`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn put_scale(&self, pass: usize, x: &Source, row: usize, channels: Range<usize>, mask: &[u16]) -> __m512 {
        let to = self.scales(pass, row / ROWS, channels.start);
        let magnitude = _mm512_set1_epi32(0x7fff_ffff);
        let mut max = _mm512_setzero_si512();
        for c in channels.step_by(16) {
            // SAFETY: the channels exist.
            let v = unsafe { _mm512_maskz_mov_ps(mask[c / 16], x.lanes(row, c)) };
            max = _mm512_max_epu32(max, _mm512_and_si512(_mm512_castps_si512(v), magnitude));
        }
        let (scale, inverse) = scale_of(_mm512_reduce_max_epu32(max));
        // SAFETY: this row's scale.
        unsafe { *to.add(row % ROWS) = scale };
        _mm512_set1_ps(inverse)
    }
}

/// Bit `i` of word `i / 16`: channel `i` is no outlier.
pub fn keep_mask(channels: &[u32; OUTLIERS], mask: &mut [u16]) {
    mask.fill(u16::MAX);
    for c in channels {
        mask[*c as usize / 16] &= !(1 << (c % 16));
    }
}

//! Activations for the tile unit (AVX-512 code: every AMX CPU has it), quantised once per operation by all
//! threads together.
//!
//! Rows are cut into blocks of 32 (two tiles of 16). A block is a sequence of k-steps; each holds two
//! compact tiles of 16 rows x 64 bytes, so that a tile load touches 16 neighbouring cache lines.
//!
//! **int8** ([`Precision::Int8`]): 64 weights per k-step; one scale per row and pass of 256 to 1024
//! channels. Such coarse scales are only good without outliers, so the [`OUTLIERS`] channels with the
//! largest magnitudes among the rows of a chunk ([`super::outliers`]) are set to zero here and kept
//! apart in BF16: one k-step of 32 channels, multiplied with the same channels of the weights.
//!
//! **BF16** ([`Precision::Bf16`]): 32 weights per k-step, no scales, no outliers.
//!
//! **BF16 twice** ([`Precision::Bf16Twice`]): every number as the sum of two in BF16, of which a block has
//! two planes, one behind the other.

use std::arch::x86_64::*;
use std::ops::Range;

use super::activations::scale_of;
use super::bf16::{rounded, split};
use super::outliers::Channels;
use super::row_error::{self, Bound};
use super::rows::Row;
use super::weight_error::WeightError;

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
/// Outlier channels per chunk: one BF16 k-step.
pub const OUTLIERS: usize = 32;

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
    /// BF16, and what it leaves of every number in BF16 too: 16 bits. For weights that have more than 8.
    Bf16Twice,
}

impl Precision {
    /// Channels per k-step.
    pub fn step(self) -> usize {
        match self {
            Precision::Int8 { .. } => STEP_INT8,
            Precision::Bf16 | Precision::Bf16Twice => STEP_BF16,
        }
    }

    /// Numbers that stand for one.
    pub const fn planes(self) -> usize {
        match self {
            Precision::Int8 { .. } | Precision::Bf16 => 1,
            Precision::Bf16Twice => 2,
        }
    }

    /// The planes of activations and of weights whose products make the result. Low times low is not among
    /// them: it is below 2^-15 of a product.
    pub fn products(self) -> &'static [(usize, usize)] {
        match self {
            Precision::Int8 { .. } | Precision::Bf16 => &[(0, 0)],
            // The same activations twice while they are in the first-level cache.
            Precision::Bf16Twice => &[(0, 0), (0, 1), (1, 0)],
        }
    }

    /// k-steps of a pass: for int8 those that share scales, for BF16 as many bytes as the longest.
    pub fn pass_steps(self) -> usize {
        match self {
            Precision::Int8 { pass } => pass / STEP_INT8,
            Precision::Bf16 | Precision::Bf16Twice => PASSES[0] / STEP_INT8,
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
    /// For `m` rows of `k` channels in any precision of up to `planes` planes, with `chunks` sets of outlier
    /// channels; `None` if it does not fit.
    pub fn new(m: usize, k: usize, planes: usize, chunks: usize) -> Option<Self> {
        let blocks = m.div_ceil(ROWS);
        let steps = k.div_ceil(STEP_BF16).checked_mul(planes)?;
        let scales = blocks.checked_mul(steps)?.checked_mul(STEP_BYTES)?;
        let outliers = scales.checked_add(blocks * k.div_ceil(FINEST) * ROWS * 4)?;
        let channels = outliers.checked_add(blocks * STEP_BYTES)?;
        let maxima = channels.checked_add(chunks.checked_mul(OUTLIERS * 4)?)?;
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

impl Tiles {
    /// Tiles of plane `plane` of block `block` from channel `channel` (a multiple of the step) on.
    #[inline]
    pub fn tiles(&self, precision: Precision, block: usize, plane: usize, channel: usize) -> *mut u8 {
        let steps = self.layout.k.div_ceil(precision.step());
        let step = (block * precision.planes() + plane) * steps + channel / precision.step();
        self.base.wrapping_add(step * STEP_BYTES)
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
    pub fn channels(&self, chunk: usize) -> *mut Channels {
        self.base.wrapping_add(self.layout.channels).cast::<Channels>().wrapping_add(chunk)
    }

    /// The maxima of a chunk's channels, k numbers.
    pub fn maxima(&self, chunk: usize) -> *mut u32 {
        self.base.wrapping_add(self.layout.maxima).cast::<u32>().wrapping_add(chunk * self.layout.k)
    }

    /// Makes rows `rows`, all of them `x`, in BF16: as many planes as `precision` has, each what rounding left
    /// of those before.
    ///
    /// # Safety
    /// `x` must have the layout's channels; nobody else may write these rows; AVX-512 needed.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[inline(never)]
    pub unsafe fn put_bf16(&self, precision: Precision, x: &Row, rows: &[usize]) {
        for channel in (0..self.layout.k).step_by(STEP_BF16) {
            // SAFETY: `x` has 32 channels from here on, a tile row 64 bytes.
            unsafe {
                let (first, second) = (x.lanes(channel), x.lanes(channel + 16));
                let both = if precision.planes() > 1 { split(first, second) } else { [rounded(first, second); 2] };
                for (plane, pair) in both[..precision.planes()].iter().enumerate() {
                    for row in rows {
                        let to = self.tiles(precision, row / ROWS, plane, channel).add(row % ROWS * 64);
                        _mm512_store_si512(to.cast(), *pair);
                    }
                }
            }
        }
    }

    /// Makes rows `rows`, all of them `x`, in int8. `channels` are its chunk's outliers, `mask` says which are none.
    ///
    /// A pass with NaN or infinity outside the outlier channels gets the scale NaN.
    ///
    /// # Safety
    /// As for [`Tiles::put_bf16`].
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[inline(never)]
    pub unsafe fn put_int8(&self, pass: usize, x: &Row, rows: &[usize], channels: &Channels, mask: &[u16]) {
        let k = self.layout.k;
        // SAFETY: all channels are below k; tiles, scales and outliers of a row are its own.
        unsafe {
            for from in (0..k).step_by(pass) {
                let to = (from + pass).min(k);
                let (scale, inverse) = scale_of_pass(x, from..to, mask);
                for row in rows {
                    *self.scales(pass, row / ROWS, from).add(row % ROWS) = scale;
                }
                let inverse = _mm512_set1_ps(inverse);
                for channel in (from..to).step_by(STEP_INT8) {
                    // The last step may be half a one.
                    let mut q = [_mm_setzero_si128(); 4];
                    for (i, q) in q[..(k - channel).min(STEP_INT8) / 16].iter_mut().enumerate() {
                        let c = channel + 16 * i;
                        let v = _mm512_maskz_mov_ps(mask[c / 16], x.lanes(c));
                        *q = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(v, inverse)));
                    }
                    let q = std::mem::transmute::<[__m128i; 4], __m512i>(q);
                    for row in rows {
                        let out = self.tiles(Precision::Int8 { pass }, row / ROWS, 0, channel).add(row % ROWS * 64);
                        _mm512_store_si512(out.cast(), q);
                    }
                }
            }
            let values: [f32; OUTLIERS] = std::array::from_fn(|j| x.value(channels[j] as usize));
            let pair = rounded(_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(16)));
            for row in rows {
                let out = self.outliers(row / ROWS).add(row % ROWS * 64);
                _mm512_store_si512(out.cast(), pair);
            }
        }
    }
}

impl Tiles {
    /// Whether row `row`, which is `x` in `precision`, keeps its bound with these weights. Outliers as for
    /// [`Tiles::put_int8`].
    ///
    /// # Safety
    /// The row must have been made here by this thread; the weights have the layout's channels; AVX-512 BF16 needed.
    #[allow(clippy::too_many_arguments)] // a row, its weights and its bound
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn holds(
        &self,
        precision: Precision,
        bound: &Bound,
        weights: &WeightError,
        x: &Row,
        row: usize,
        channels: &Channels,
        mask: &[u16],
    ) -> bool {
        // SAFETY: promised by the caller.
        unsafe {
            let error = match precision {
                Precision::Int8 { pass } => {
                    let scale = |i: usize| *self.scales(pass, row / ROWS, i * pass).add(row % ROWS);
                    row_error::int8(weights, x, pass, scale, channels, mask)
                }
                Precision::Bf16 => row_error::bf16(weights, x),
                // 16 bits are good enough for any row.
                Precision::Bf16Twice => return true,
            };
            bound.holds(error, || row_error::blocks_of_32(weights, x))
        }
    }
}

/// Scale of some channels of a row, outliers left out by `mask`, and its inverse.
///
/// # Safety
/// The row must have the channels; AVX-512 needed.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn scale_of_pass(x: &Row, channels: Range<usize>, mask: &[u16]) -> (f32, f32) {
    let magnitude = _mm512_set1_epi32(0x7fff_ffff);
    let mut max = _mm512_setzero_si512();
    for c in channels.step_by(16) {
        // SAFETY: promised by the caller.
        let v = unsafe { _mm512_maskz_mov_ps(mask[c / 16], x.lanes(c)) };
        max = _mm512_max_epu32(max, _mm512_and_si512(_mm512_castps_si512(v), magnitude));
    }
    scale_of(_mm512_reduce_max_epu32(max))
}

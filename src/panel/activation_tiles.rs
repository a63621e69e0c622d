//! Activations for the tile unit (AVX-512 code: every AMX CPU has it), quantised once per operation by all threads
//! together.
//!
//! Rows are cut into row blocks of 32 ([`TILE_MR`], two tiles of 16). A row block is a sequence of k-steps; each holds
//! two compact tiles of 16 rows x 64 bytes, so that a tile load touches 16 neighbouring cache lines.
//!
//! **int8** ([`Precision::Int8`]): 64 channels per k-step, one scale per row and pass of 256 to 1,024 channels. Such
//! coarse scales are only good without outliers, so the [`OUTLIERS`] channels with the largest magnitudes among the
//! rows of an outlier set ([`super::outliers`]) are zero here and kept apart in BF16: one k-step, multiplied with the
//! same channels of the weights.
//!
//! **BF16** ([`Precision::Bf16`]): 32 channels per k-step, no scales, no outliers.
//!
//! **BF16 twice** ([`Precision::Bf16Twice`]): every number as the sum of two in BF16; a row block has two planes, one
//! behind the other.

use std::arch::x86_64::*;

use super::bf16::{rounded, split};
use super::precision::{FINEST_PASS, OUTLIERS, OutlierChannels, Precision, STEP_BF16, STEP_BYTES, STEP_INT8, TILE_MR};
use super::row_error::{self, Bound};
use super::rows::InputRow;
use super::scale::scale_of_pass;
use super::weight_error::WeightError;

/// Where the parts lie in the work buffer, in bytes from a 64-byte-aligned base.
#[derive(Clone, Copy, Debug)]
pub struct TileLayout {
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

impl TileLayout {
    /// For `m` rows of `k` channels in any precision of up to `planes` planes, with `outlier_sets` outlier sets; `None`
    /// if that does not fit the address space.
    pub fn new(m: usize, k: usize, planes: usize, outlier_sets: usize) -> Option<Self> {
        let row_blocks = m.div_ceil(TILE_MR);
        let steps = k.div_ceil(STEP_BF16).checked_mul(planes)?;
        let scales = row_blocks.checked_mul(steps)?.checked_mul(STEP_BYTES)?;
        let outliers = scales.checked_add(row_blocks * k.div_ceil(FINEST_PASS) * TILE_MR * 4)?;
        let channels = outliers.checked_add(row_blocks * STEP_BYTES)?;
        let maxima = channels.checked_add(outlier_sets.checked_mul(OUTLIERS * 4)?)?;
        let bytes = maxima.checked_add(outlier_sets.checked_mul(k)?.checked_mul(4)?)?.checked_next_multiple_of(64)?;
        Some(Self { m, k, scales, outliers, channels, maxima, bytes })
    }

    /// The parts at `base`.
    ///
    /// # Safety
    /// `base` must be 64-byte aligned and valid for `self.bytes` as long as the result is used.
    pub unsafe fn at(&self, base: *mut u8) -> ActivationTiles {
        ActivationTiles { layout: *self, base }
    }
}

/// Activation tiles in a work buffer. Copies share it.
#[derive(Clone, Copy, Debug)]
pub struct ActivationTiles {
    /// Sizes.
    pub layout: TileLayout,
    base: *mut u8,
}

impl ActivationTiles {
    /// Tiles of plane `plane` of a row block from channel `channel` (a multiple of the k-step) on.
    #[inline]
    pub fn tiles(&self, precision: Precision, row_block: usize, plane: usize, channel: usize) -> *mut u8 {
        let steps = self.layout.k.div_ceil(precision.step());
        let step = (row_block * precision.planes() + plane) * steps + channel / precision.step();
        self.base.wrapping_add(step * STEP_BYTES)
    }

    /// 32 scales of a row block for the pass that begins with `channel`, a multiple of `pass`.
    #[inline]
    pub fn scales(&self, pass: usize, row_block: usize, channel: usize) -> *mut f32 {
        let index = (row_block * self.layout.k.div_ceil(pass) + channel / pass) * TILE_MR;
        self.base.wrapping_add(self.layout.scales).cast::<f32>().wrapping_add(index)
    }

    /// The two BF16 tiles of a row block's outliers.
    #[inline]
    pub fn outliers(&self, row_block: usize) -> *mut u8 {
        self.base.wrapping_add(self.layout.outliers + row_block * STEP_BYTES)
    }

    /// The outlier channels of set `set`.
    pub fn channels(&self, set: usize) -> *mut OutlierChannels {
        self.base.wrapping_add(self.layout.channels).cast::<OutlierChannels>().wrapping_add(set)
    }

    /// The largest magnitudes of set `set`, as bits of floats: one per channel.
    pub fn maxima(&self, set: usize) -> *mut u32 {
        self.base.wrapping_add(self.layout.maxima).cast::<u32>().wrapping_add(set * self.layout.k)
    }

    /// Writes the row `x` to all of `rows`, in BF16: as many planes as `precision` has, each what rounding left of
    /// those before.
    ///
    /// # Safety
    /// `x` must be readable and have the layout's channels; `rows` must be below the layout's and written by no
    /// other thread; AVX-512 and its BF16 must be there.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[inline(never)]
    pub unsafe fn put_bf16(&self, precision: Precision, x: &InputRow, rows: &[usize]) {
        for channel in (0..self.layout.k).step_by(STEP_BF16) {
            // SAFETY: `x` has 32 channels from here on, a tile row 64 bytes.
            unsafe {
                let (first, second) = (x.lanes(channel), x.lanes(channel + 16));
                let both = if precision.planes() > 1 { split(first, second) } else { [rounded(first, second); 2] };
                for (plane, pair) in both[..precision.planes()].iter().enumerate() {
                    for row in rows {
                        let to = self.tiles(precision, row / TILE_MR, plane, channel).add(row % TILE_MR * 64);
                        _mm512_store_si512(to.cast(), *pair);
                    }
                }
            }
        }
    }

    /// Writes the row `x` to all of `rows`, in int8. `channels` are the outlier channels of its set; `keep` has a bit
    /// for every channel that is none ([`keep_mask`](super::outliers::keep_mask)).
    ///
    /// A pass with NaN or infinity outside the outlier channels gets the scale NaN.
    ///
    /// # Safety
    /// As for [`ActivationTiles::put_bf16`].
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[inline(never)]
    pub unsafe fn put_int8(&self, pass: usize, x: &InputRow, rows: &[usize], channels: &OutlierChannels, keep: &[u16]) {
        let k = self.layout.k;
        // SAFETY: `x` has all channels below k; tiles, scales and outliers of `rows` are in the layout, used by no
        // other thread.
        unsafe {
            for from in (0..k).step_by(pass) {
                let to = (from + pass).min(k);
                let (scale, inverse) = scale_of_pass(x, from..to, keep);
                for row in rows {
                    *self.scales(pass, row / TILE_MR, from).add(row % TILE_MR) = scale;
                }
                let inverse = _mm512_set1_ps(inverse);
                for channel in (from..to).step_by(STEP_INT8) {
                    // The last k-step may be half filled.
                    let mut q = [_mm_setzero_si128(); 4];
                    for (i, q) in q[..(k - channel).min(STEP_INT8) / 16].iter_mut().enumerate() {
                        let c = channel + 16 * i;
                        let v = _mm512_maskz_mov_ps(keep[c / 16], x.lanes(c));
                        *q = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(v, inverse)));
                    }
                    let q = std::mem::transmute::<[__m128i; 4], __m512i>(q);
                    for row in rows {
                        let out =
                            self.tiles(Precision::Int8 { pass }, row / TILE_MR, 0, channel).add(row % TILE_MR * 64);
                        _mm512_store_si512(out.cast(), q);
                    }
                }
            }
            let values: [f32; OUTLIERS] = std::array::from_fn(|j| x.value(channels[j] as usize));
            let pair = rounded(_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(16)));
            for row in rows {
                let out = self.outliers(row / TILE_MR).add(row % TILE_MR * 64);
                _mm512_store_si512(out.cast(), pair);
            }
        }
    }

    /// Whether row `row`, which was made of `x` in `precision`, keeps its bound with these weights. `channels` and
    /// `keep` as for [`ActivationTiles::put_int8`].
    ///
    /// # Safety
    /// This thread must have written the row. `x` must be readable and have the layout's channels, as must the weights;
    /// AVX-512 and its BF16 must be there.
    #[allow(clippy::too_many_arguments)] // a row, its weights and its bound
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn holds(
        &self,
        precision: Precision,
        bound: &Bound,
        weights: &WeightError,
        x: &InputRow,
        row: usize,
        channels: &OutlierChannels,
        keep: &[u16],
    ) -> bool {
        // SAFETY: `x` and the weights have the same channels, and the row's scales are written.
        unsafe {
            let error = match precision {
                Precision::Int8 { pass } => {
                    let scale = |i: usize| *self.scales(pass, row / TILE_MR, i * pass).add(row % TILE_MR);
                    row_error::int8(weights, x, pass, scale, channels, keep)
                }
                Precision::Bf16 => row_error::bf16(weights, x),
                // 16 bits are good enough for any row.
                Precision::Bf16Twice => return true,
            };
            bound.holds(error, || row_error::blocks_of_32(weights, x))
        }
    }
}

//! Packed panels made into tiles, the second operand of the tile GEMM; the formats supply quants and scales, nothing
//! here knows a type.
//!
//! A k-step of a pair of panels is two compact tiles of 1 KB, laid out as TDPBSSD wants them (16 rows of 4 channels x
//! 16 columns) or TDPBF16PS (16 rows of 2 channels x 16 columns).
//!
//! ```text
//! int8: for every column: bound = largest magnitude that its quants in the pass could stand for
//!       for every group: tile = round(weight * 127 / bound), by 16-bit integers
//! BF16: for every group: tile = BF16(quant * scale + minimum)
//! ```

use std::arch::x86_64::*;
use std::ops::Range;

use super::precision::{OUTLIERS, OutlierChannels, STEP_BF16, STEP_BYTES, STEP_INT8};
use crate::format::{Format, LANES};

/// Bytes of one tile.
const TILE: usize = STEP_BYTES / 2;

/// Address of the block that has group `g` of a panel, and the number of the group in the block.
#[inline]
fn group_of<F: Format>(panel: *const u8, g: usize) -> (*const u8, usize) {
    let per_block = F::BLOCK / F::GROUP;
    (panel.wrapping_add(g / per_block * LANES * F::BYTES), g % per_block)
}

/// Address of the block that has channel `channel` of a panel.
pub fn block_at<F: Format>(panel: *const u8, channel: usize) -> *const u8 {
    group_of::<F>(panel, channel / F::GROUP).0
}

/// Prefetches as many bytes as a group has, `i` groups behind `next`. Packed weights come from memory once, in streams
/// too short for the hardware to recognise.
#[inline]
fn prefetch<F: Format>(next: *const u8, i: usize) {
    let bytes = LANES * F::BYTES / (F::BLOCK / F::GROUP);
    for line in 0..bytes.div_ceil(64) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(i * bytes + line * 64).cast()) };
    }
}

/// Copies the low 16 bits of every lane into its high ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn twice16(v: __m512i) -> __m512i {
    _mm512_mask_blend_epi16(0xaaaa_aaaa, v, _mm512_slli_epi32::<16>(v))
}

/// The largest magnitude that the quants of group `g` of a panel could stand for, per column; NaN and infinity stay.
///
/// # Safety
/// The panel must have the group; AVX-512 must be there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn largest<F: Format>(panel: *const u8, g: usize) -> __m512 {
    let lowest = _mm512_set1_ps((F::Q_MIN - F::ZERO_POINT) as f32);
    let highest = _mm512_set1_ps((F::Q_MAX - F::ZERO_POINT) as f32);
    let (block, g) = group_of::<F>(panel, g);
    // SAFETY: the panel has the group.
    let (scale, min) = unsafe { F::scales_avx512(block, g) };
    let ends = [_mm512_fmadd_ps(scale, lowest, min), _mm512_fmadd_ps(scale, highest, min)];
    // Compared as bits: a maximum of floats may drop NaN.
    let magnitude = |v| _mm512_castps_si512(_mm512_abs_ps(v));
    _mm512_castsi512_ps(_mm512_max_epu32(magnitude(ends[0]), magnitude(ends[1])))
}

/// Makes int8 tiles of `channels` of one panel: `w * 127 / bound`, rounded, where `bound` is the largest magnitude that
/// a column's quants could stand for. Writes `bound / 127` to `scales`.
///
/// `out` is the panel's tile in the first k-step. Quants and factors are integers; a factor has 8 bits behind the
/// point, which moves a weight by at most a quarter of a step. From `next` on, as many bytes are prefetched as are
/// read. Outlier channels among `channels` go to the tiles of `outliers`, exactly; those before them must have been
/// added.
///
/// # Safety
/// The panel must have the channels, whole groups; `out` must be writable for their k-steps and 64-byte aligned,
/// `scales` for 16 floats, and the tiles of `outliers`; AVX-512 must be there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn int8<F: Format>(
    panel: *const u8,
    channels: Range<usize>,
    out: *mut u8,
    scales: *mut f32,
    next: *const u8,
    outliers: &mut [OutlierTile<'_>],
) {
    let groups = channels.start / F::GROUP..channels.end / F::GROUP;
    // SAFETY: the panel has the groups, `out` the k-steps.
    unsafe {
        let mut bound = _mm512_setzero_ps();
        for g in groups.clone() {
            let larger = _mm512_castps_si512(largest::<F>(panel, g));
            bound = _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(bound), larger));
        }
        _mm512_storeu_ps(scales, _mm512_mul_ps(bound, _mm512_set1_ps(1.0 / 127.0)));
        // Below 1e-30 a column counts as zero, as activations do.
        let some = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(bound, _mm512_set1_ps(1e-30));
        let inverse = _mm512_maskz_div_ps(some, _mm512_set1_ps(127.0 * 256.0), bound);
        let low = _mm512_set1_epi16(0xff);
        for (i, g) in groups.enumerate() {
            let (block, g) = group_of::<F>(panel, g);
            let (scale, min) = F::scales_avx512(block, g);
            let factor = _mm512_cvtps_epi32(_mm512_mul_ps(scale, inverse));
            // The addend: the zero point, a half for rounding, and the minimum.
            let mut addend = _mm512_mullo_epi32(factor, _mm512_set1_epi32(-F::ZERO_POINT));
            addend = _mm512_add_epi32(addend, _mm512_set1_epi32(128));
            if F::HAS_MIN {
                addend = _mm512_add_epi32(addend, _mm512_cvtps_epi32(_mm512_mul_ps(min, inverse)));
            }
            let (factor, addend) = (twice16(factor), twice16(addend));
            prefetch::<F>(next, i);
            let quants = F::quants_avx512(block, g);
            let k = i * F::GROUP;
            let to = out.add(k / STEP_INT8 * STEP_BYTES + k % STEP_INT8 * LANES);
            for (r, q) in quants[..F::GROUP / 4].iter().enumerate() {
                let scaled = |q| _mm512_add_epi16(_mm512_mullo_epi16(q, factor), addend);
                let even = _mm512_srli_epi16::<8>(scaled(_mm512_and_si512(*q, low)));
                let odd = scaled(_mm512_srli_epi16::<8>(*q));
                let both = _mm512_mask_blend_epi8(0xaaaa_aaaa_aaaa_aaaa, even, odd);
                _mm512_store_si512(to.add(64 * r).cast(), both);
            }
            let end = channels.start + k + F::GROUP;
            for tile in outliers.iter_mut() {
                while let Some(channel) = tile.next(end) {
                    let (scale, offset) = scale_and_offset::<F>(block, g);
                    // A copy is indexed, so that the quants above stay in registers.
                    let copy = quants;
                    tile.add(&copy, channel % F::GROUP, scale, offset);
                }
            }
        }
    }
}

/// Scale and offset of group `g` of a block, per column: `w = q * scale + offset` for the unsigned quant.
///
/// NaN becomes the hardware's quiet NaN, which stays NaN when it is rounded to its upper half. Files may hold others,
/// whose digits would carry into the sign.
///
/// # Safety
/// The block must be packed and have the group; AVX-512 must be there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn scale_and_offset<F: Format>(block: *const u8, g: usize) -> (__m512, __m512) {
    // SAFETY: the block has the group.
    let (scale, min) = unsafe { F::scales_avx512(block, g) };
    let quiet = |v| _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v), _mm512_set1_ps(f32::NAN));
    let (scale, min) = if cfg!(mutant = "nan-rounded") { (scale, min) } else { (quiet(scale), quiet(min)) };
    (scale, _mm512_fnmadd_ps(_mm512_set1_ps(F::ZERO_POINT as f32), scale, min))
}

/// Four channels of 16 columns as weights, channel by channel; `q` has a double word of quants per column.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn four_channels(q: __m512i, scale: __m512, offset: __m512) -> [__m512; 4] {
    let byte = _mm512_set1_epi32(0xff);
    let weight = |q| _mm512_fmadd_ps(_mm512_cvtepi32_ps(q), scale, offset);
    [
        weight(_mm512_and_si512(q, byte)),
        weight(_mm512_and_si512(_mm512_srli_epi32::<8>(q), byte)),
        weight(_mm512_and_si512(_mm512_srli_epi32::<16>(q), byte)),
        weight(_mm512_srli_epi32::<24>(q)),
    ]
}

/// The weights of channels `from..from + len` of one panel as floats: the 16 columns' weights of a channel lie side by
/// side.
///
/// # Safety
/// The panel must have the channels, whole groups; `out` must be writable for 16 floats per channel and 64-byte
/// aligned; AVX-512 must be there.
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn floats<F: Format>(panel: *const u8, from: usize, len: usize, out: *mut f32) {
    for (i, g) in (from / F::GROUP..(from + len) / F::GROUP).enumerate() {
        let (block, g) = group_of::<F>(panel, g);
        // SAFETY: the panel has the group, `out` its channels.
        unsafe {
            let (scale, offset) = scale_and_offset::<F>(block, g);
            let quants = F::quants_avx512(block, g);
            for (r, q) in quants[..F::GROUP / 4].iter().enumerate() {
                for (c, weights) in four_channels(*q, scale, offset).into_iter().enumerate() {
                    _mm512_store_ps(out.add((i * F::GROUP + 4 * r + c) * LANES), weights);
                }
            }
        }
    }
}

/// Two channels of 16 columns as pairs of BF16, rounded half up; `even` goes to the low halves.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn bf16_pairs(even: __m512, odd: __m512) -> __m512i {
    let half = _mm512_set1_epi32(0x8000);
    let round = |v| _mm512_add_epi32(_mm512_castps_si512(v), half);
    _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_srli_epi32::<16>(round(even)), round(odd))
}

/// Makes BF16 tiles of channels `from..from + len` of one panel; `out` is its tile in the first k-step. The same
/// channels of `next_panel` are prefetched.
///
/// # Safety
/// The panel must have the channels, whole groups; `out` must be writable for their k-steps and 64-byte aligned;
/// AVX-512 must be there.
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn bf16<F: Format>(panel: *const u8, from: usize, len: usize, out: *mut u8, next_panel: *const u8) {
    let next = block_at::<F>(next_panel, from);
    for (i, g) in (from / F::GROUP..(from + len) / F::GROUP).enumerate() {
        let (block, g) = group_of::<F>(panel, g);
        prefetch::<F>(next, i);
        // SAFETY: the panel has the group, `out` its k-step.
        unsafe {
            let (scale, offset) = scale_and_offset::<F>(block, g);
            let quants = F::quants_avx512(block, g);
            let k = i * F::GROUP;
            let to = out.add(k / STEP_BF16 * STEP_BYTES + k % STEP_BF16 * 2 * LANES);
            for (r, q) in quants[..F::GROUP / 4].iter().enumerate() {
                let [w0, w1, w2, w3] = four_channels(*q, scale, offset);
                _mm512_store_si512(to.add(128 * r).cast(), bf16_pairs(w0, w1));
                _mm512_store_si512(to.add(128 * r + 64).cast(), bf16_pairs(w2, w3));
            }
        }
    }
}

/// The BF16 tile of a panel's outlier channels, made channel by channel in ascending order.
#[derive(Clone, Copy)]
pub struct OutlierTile<'a> {
    channels: &'a OutlierChannels,
    /// How many of them the tile has.
    done: usize,
    out: *mut u8,
}

impl<'a> OutlierTile<'a> {
    /// An empty one at `out`.
    pub fn new(channels: &'a OutlierChannels, out: *mut u8) -> Self {
        debug_assert_eq!(OUTLIERS / 2 * 64, TILE);
        Self { channels, done: 0, out }
    }

    /// The next channel, if it is below `end`.
    #[inline(always)]
    fn next(&self, end: usize) -> Option<usize> {
        self.channels.get(self.done).map(|c| *c as usize).filter(|c| *c < end)
    }

    /// Adds the next channel, which is number `k` of a group with these quants.
    ///
    /// # Safety
    /// `out` must be writable for a tile and 64-byte aligned; AVX-512 must be there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn add(&mut self, quants: &[__m512i; 8], k: usize, scale: __m512, offset: __m512) {
        let q = _mm512_srlv_epi32(quants[k / 4], _mm512_set1_epi32(k as i32 % 4 * 8));
        let q = _mm512_and_si512(q, _mm512_set1_epi32(0xff));
        let weight = _mm512_fmadd_ps(_mm512_cvtepi32_ps(q), scale, offset);
        // SAFETY: a tile has a row for every two of the channels.
        unsafe {
            let row = self.out.add(self.done / 2 * 64).cast::<__m512i>();
            let pairs = if self.done.is_multiple_of(2) {
                bf16_pairs(weight, _mm512_setzero_ps())
            } else {
                let odd = bf16_pairs(_mm512_setzero_ps(), weight);
                _mm512_or_si512(_mm512_load_si512(row), odd)
            };
            _mm512_store_si512(row, pairs);
        }
        self.done += 1;
    }

    /// Adds the channels that are left; `panel` gives a panel that has the channel.
    ///
    /// # Safety
    /// The panels must be packed; `out` as for [`OutlierTile::add`]; AVX-512 must be there.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn finish<F: Format>(mut self, panel: impl Fn(usize) -> *const u8) {
        while let Some(channel) = self.next(usize::MAX) {
            let (block, g) = group_of::<F>(panel(channel), channel / F::GROUP);
            // SAFETY: the panel has the channel's group.
            unsafe {
                let (scale, offset) = scale_and_offset::<F>(block, g);
                self.add(&F::quants_avx512(block, g), channel % F::GROUP, scale, offset);
            }
        }
    }
}

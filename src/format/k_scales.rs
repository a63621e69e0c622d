//! The 12 bytes of eight 6-bit scales and eight 6-bit minima that Q4_K and Q5_K share, and their
//! f16 super-block scales: f16 d, f16 dmin, 12 bytes (ggml-common.h, `K_SCALE_SIZE`).
//! `scale = d * sc[g]`, `min = -(dmin * m[g])`.

use std::arch::x86_64::*;

use super::q4_0::f16_lanes;
use super::{BlockScales, Format, GroupScales, LANES, f16_at};

/// Bytes of a plain block before its quants.
pub(super) const BYTES: usize = 16;
/// Where the packed 6-bit numbers start.
const SIX_BITS: usize = 4 * LANES;

/// Scales and minima of group `group` (0..8).
pub(super) fn scales(block: &[u8], group: usize) -> GroupScales {
    let byte = |j: usize, lane: usize| block[SIX_BITS + j * LANES + lane];
    let mut out = GroupScales::default();
    for lane in 0..LANES {
        let (sc, m) = if group < 4 {
            (byte(group, lane) & 63, byte(group + 4, lane) & 63)
        } else {
            let low = byte(group + 4, lane);
            (low & 15 | byte(group - 4, lane) >> 6 << 4, low >> 4 | byte(group, lane) >> 6 << 4)
        };
        out.scale[lane] = f16_at(block, 2 * lane) * f32::from(sc);
        out.min[lane] = -(f16_at(block, 2 * LANES + 2 * lane) * f32::from(m));
    }
    out
}

/// [`scales`] in registers.
///
/// # Safety
/// `block` must point to a packed block; AVX-512 F must be there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn scales_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
    // SAFETY: j < 12, 16 bytes each.
    let byte = |j: usize| unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(block.add(SIX_BITS + j * LANES).cast())) };
    let (sc, m) = if group < 4 {
        let mask = _mm512_set1_epi32(63);
        (_mm512_and_si512(byte(group), mask), _mm512_and_si512(byte(group + 4), mask))
    } else {
        let high = |j: usize| _mm512_slli_epi32::<4>(_mm512_srli_epi32::<6>(byte(j)));
        let low = byte(group + 4);
        let nibble = _mm512_and_si512(low, _mm512_set1_epi32(15));
        let sc = if cfg!(mutant = "six-bits") { nibble } else { _mm512_or_si512(nibble, high(group - 4)) };
        (sc, _mm512_or_si512(_mm512_srli_epi32::<4>(low), high(group)))
    };
    // SAFETY: d and dmin are the first 64 bytes.
    let (d, dmin) = unsafe { (f16_lanes(block), f16_lanes(block.add(2 * LANES))) };
    let scale = _mm512_mul_ps(d, _mm512_cvtepi32_ps(sc));
    let min = _mm512_mul_ps(dmin, _mm512_cvtepi32_ps(m));
    (scale, _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(min), _mm512_set1_epi32(i32::MIN))))
}

/// [`scales_avx512`] of all groups; the six bits of four are put together at once.
///
/// # Safety
/// As for [`scales_avx512`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn block_scales_avx512<F: Format>(block: *const u8, out: &mut BlockScales) {
    let [six, four, upper] = [63, 15, 0x30].map(|mask| _mm512_set1_epi8(mask));
    // SAFETY: the caller's block is large enough.
    let (d, dmin, [first, second, low]) = unsafe {
        let four_bytes = |j| _mm512_loadu_si512(block.add(SIX_BITS + j * LANES).cast());
        (f16_lanes(block), f16_lanes(block.add(2 * LANES)), [four_bytes(0), four_bytes(4), four_bytes(8)])
    };
    let high = |v| _mm512_and_si512(_mm512_srli_epi16::<2>(v), upper);
    let nibble = |v, high| _mm512_or_si512(_mm512_and_si512(v, four), high);
    let sc = [_mm512_and_si512(first, six), nibble(low, high(first))];
    let m = [_mm512_and_si512(second, six), nibble(_mm512_srli_epi16::<4>(low), high(second))];
    // SAFETY: a vector is four quarters, a byte for every row each.
    let [sc, m]: [[__m128i; 8]; 2] = unsafe { std::mem::transmute([sc, m]) };
    let negative = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(dmin), _mm512_set1_epi32(i32::MIN)));
    let times = |d, number| _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(number)));
    for group in 0..8 {
        out.set::<F>(group, times(d, sc[group]), times(negative, m[group]));
    }
}

/// Four-bit quants of K types: 32 bytes hold two groups, the even one in the low nibbles. Weight `l`
/// of the group is byte `l`. `qs` is the packed field.
///
/// # Safety
/// `qs` must point to the packed field of 128 bytes per row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn nibbles_avx512(qs: *const u8, group: usize) -> [__m512i; 8] {
    let mask = _mm512_set1_epi8(15);
    // SAFETY: group < 8, so the pair's 512 bytes are inside the field.
    let load = |r: usize| unsafe { _mm512_loadu_si512(qs.add(group / 2 * 512 + 64 * r).cast()) };
    if group.is_multiple_of(2) {
        std::array::from_fn(|r| _mm512_and_si512(load(r), mask))
    } else {
        std::array::from_fn(|r| _mm512_and_si512(_mm512_srli_epi16::<4>(load(r)), mask))
    }
}

/// [`nibbles_avx512`] for one position of the group's layout.
#[inline]
pub(super) fn nibble(qs: &[u8], group: usize, i: usize) -> u8 {
    qs[group / 2 * 512 + i] >> (4 * (group % 2)) & 15
}

//! IQ6_K of ik_llama.cpp: 256 weights in 16 groups of 16, `w = d * sc * table[q]`. Block: f16 d, 16 bits that choose
//! between two tables, 16 signed scales, 128 bytes of nibbles, 64 of high bit pairs (its ggml-common.h, `block_iq6_k`).
//!
//! 32 bytes of nibbles hold 64 weights, the first 32 in the low nibbles; each 32 bytes of pairs hold 128, quarter `q` of
//! them in bits `2q`.
//!
//! The table is what ik_llama.cpp multiplies with. Its decoder to floats (`dequantize_row_iq6_k`) takes the polynomial
//! itself, without rounding: up to half a unit of the table off the products of either.

use std::arch::x86_64::*;

use super::q4_0::f16_lanes;
use super::tables::{sixteen, unsigned};
use super::two_tables::{self, has_second, second_avx512};
use super::{Format, GroupScales, LANES, f16_at};

/// The type; see the module.
pub struct Iq6K;

/// Packed offsets of the scales, the nibbles and the pairs.
const SCALES: usize = 4 * LANES;
const QS: usize = 20 * LANES;
const QH: usize = 148 * LANES;

/// The first table (`iq6nl_values`): a polynomial of the index, rounded; here in units of 1e-7.
const VALUES: [i8; 64] = {
    let mut values = [0; 64];
    let mut i = 0;
    while i < 64 {
        let q = i as i64;
        let value = -1_270_000_000 + q * (62_568_000 + q * (-1_121_800 + q * 11_972));
        values[i] = (value + 5_000_000).div_euclid(10_000_000) as i8;
        i += 1;
    }
    values
};

/// Where group `group` reads: packed offset of its nibbles, whether they are the high ones, packed offset of its pairs,
/// and which pair of the byte.
#[inline]
fn place(group: usize) -> (usize, bool, usize, usize) {
    let sub = group % 2 * 16 * LANES;
    (QS + group / 4 * 32 * LANES + sub, group % 4 >= 2, QH + group / 8 * 32 * LANES + sub, group % 8 / 2)
}

// SAFETY: constants as in ik_llama.cpp's ggml-common.h.
unsafe impl Format for Iq6K {
    const GROUP: usize = 16;
    const ZERO_POINT: i32 = 128;
    const QUANT_NMSE: f32 = 2.3e-4;
    const Q_MIN: i32 = 1;
    const Q_MAX: i32 = 250;
    const HAS_MIN: bool = false;
    const STEP: i32 = 1;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        let (low, is_high, high, which) = place(group);
        for (i, o) in out[..Self::GROUP * LANES].iter_mut().enumerate() {
            let nibble = block[low + i] >> (4 * u8::from(is_high)) & 15;
            let pair = block[high + i] >> (2 * which) & 3;
            let step = if has_second(block, group, i) { Self::STEP as i8 } else { 0 };
            *o = VALUES[usize::from(nibble | pair << 4)] + step;
        }
    }

    fn scales(block: &[u8], group: usize) -> GroupScales {
        let scale =
            std::array::from_fn(|lane| f16_at(block, 2 * lane) * f32::from(block[SCALES + group * LANES + lane] as i8));
        GroupScales { scale, ..Default::default() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        // SAFETY: the caller's block is large enough.
        unsafe { two_tables::quants_avx512::<Self>(block, group) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn first_quants_avx512(block: *const u8, group: usize) -> ([__m512i; 8], __mmask16) {
        const TABLE: [u8; 64] = unsigned(&VALUES, Iq6K::ZERO_POINT);
        let tables: [__m512i; 4] = std::array::from_fn(|i| sixteen(&TABLE[16 * i..]));
        let (low, is_high, high, which) = place(group);
        let mask = _mm512_set1_epi8(15);
        let [even, odd] = [1u8, 2].map(|bit| _mm512_set1_epi8((bit << (2 * which)) as i8));
        // SAFETY: the caller's block is large enough.
        let second = unsafe { second_avx512(block, group) };
        let mut rows = [_mm512_setzero_si512(); 8];
        for (r, row) in rows[..4].iter_mut().enumerate() {
            // SAFETY: four vectors from each place, inside the caller's block.
            let (l, h) = unsafe {
                (
                    _mm512_loadu_si512(block.add(low + 64 * r).cast()),
                    _mm512_loadu_si512(block.add(high + 64 * r).cast()),
                )
            };
            let nibble = _mm512_and_si512(if is_high { _mm512_srli_epi16::<4>(l) } else { l }, mask);
            let (bit0, bit1) = (_mm512_test_epi8_mask(h, even), _mm512_test_epi8_mask(h, odd));
            let half =
                |first, second| _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(first, nibble), bit0, second, nibble);
            *row = _mm512_mask_blend_epi8(bit1, half(tables[0], tables[1]), half(tables[2], tables[3]));
        }
        (rows, second)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        let (d, sc) = unsafe {
            (f16_lanes(block), _mm512_cvtepi8_epi32(_mm_loadu_si128(block.add(SCALES + group * LANES).cast())))
        };
        (_mm512_mul_ps(d, _mm512_cvtepi32_ps(sc)), _mm512_setzero_ps())
    }
}

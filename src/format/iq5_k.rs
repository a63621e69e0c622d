//! IQ5_K of ik_llama.cpp: 256 weights in 16 groups of 16, `w = d * (ls - 32) * table[q]`. Block: f16 d, 16 bits that
//! choose between two tables, 12 bytes of 6-bit scales, 128 bytes of nibbles, 32 of fifth bits (its ggml-common.h,
//! `block_iq5_k`).
//!
//! 32 bytes of nibbles hold 64 weights, the first 32 in the low nibbles; bit `b` of fifth-bit byte `j` belongs to weight
//! `32 * b + j`.

use std::arch::x86_64::*;

use super::tables::{sixteen, unsigned};
use super::two_tables::{self, has_second, second_avx512, six_bits};
use super::{BlockScales, Format, GroupScales, LANES};

/// The type; see the module.
pub struct Iq5K;

/// Packed offsets of the nibbles and the fifth bits.
const QS: usize = six_bits::BYTES * LANES;
const QH: usize = QS + 128 * LANES;

/// The first table (`iq5nl_values`).
const VALUES: [i8; 32] = [
    -126, -114, -103, -92, -83, -74, -65, -57, -50, -43, -36, -30, -24, -18, -12, -6, -1, 5, 11, 17, 23, 29, 36, 43,
    51, 59, 68, 77, 87, 97, 109, 121,
];

/// Where group `group` reads: packed offset of its nibbles, whether they are the high ones, and packed offset of its
/// fifth bits.
#[inline]
fn place(group: usize) -> (usize, bool, usize) {
    let sub = group % 2 * 16 * LANES;
    (QS + group / 4 * 32 * LANES + sub, group % 4 >= 2, QH + sub)
}

// SAFETY: constants as in ik_llama.cpp's ggml-common.h.
unsafe impl Format for Iq5K {
    const GROUP: usize = 16;
    const ZERO_POINT: i32 = 128;
    const QUANT_NMSE: f32 = 1.0e-3;
    const Q_MIN: i32 = 2;
    const Q_MAX: i32 = 251;
    const HAS_MIN: bool = false;
    const STEP: i32 = 2;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        let (low, is_high, fifth) = place(group);
        for (i, o) in out[..Self::GROUP * LANES].iter_mut().enumerate() {
            let nibble = block[low + i] >> (4 * u8::from(is_high)) & 15;
            let bit = block[fifth + i] >> (group / 2) & 1;
            let step = if has_second(block, group, i) { Self::STEP as i8 } else { 0 };
            *o = VALUES[usize::from(nibble | bit << 4)] + step;
        }
    }

    fn scales(block: &[u8], group: usize) -> GroupScales {
        six_bits::scales(block, group)
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
        const TABLE: [u8; 32] = unsigned(&VALUES, Iq5K::ZERO_POINT);
        let [lower, upper] = [sixteen(&TABLE), sixteen(&TABLE[16..])];
        let (mask, bit) = (_mm512_set1_epi8(15), _mm512_set1_epi8((1u8 << (group / 2)) as i8));
        let (low, is_high, fifth) = place(group);
        // SAFETY: the caller's block is large enough.
        let second = unsafe { second_avx512(block, group) };
        let mut rows = [_mm512_setzero_si512(); 8];
        for (r, row) in rows[..4].iter_mut().enumerate() {
            // SAFETY: four vectors from each place, inside the caller's block.
            let (l, h) = unsafe {
                (
                    _mm512_loadu_si512(block.add(low + 64 * r).cast()),
                    _mm512_loadu_si512(block.add(fifth + 64 * r).cast()),
                )
            };
            let nibble = _mm512_and_si512(if is_high { _mm512_srli_epi16::<4>(l) } else { l }, mask);
            let value = _mm512_shuffle_epi8(lower, nibble);
            *row = _mm512_mask_shuffle_epi8(value, _mm512_test_epi8_mask(h, bit), upper, nibble);
        }
        (rows, second)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        unsafe { six_bits::scales_avx512(block, group) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn block_scales_avx512(block: *const u8, out: &mut BlockScales) {
        // SAFETY: the caller's block is large enough.
        unsafe { six_bits::block_scales_avx512::<Self>(block, out) }
    }
}

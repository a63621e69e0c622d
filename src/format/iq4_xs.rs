//! IQ4_XS: 256 weights in 8 groups of 32, `w = d * (ls - 32) * table[q]`. Block: f16 d, 16 bits with
//! the upper two bits of eight 6-bit scales, 4 bytes with their lower nibbles, 128 bytes of nibbles,
//! 16 per group, low nibbles first (ggml-common.h, `block_iq4_xs`).

use std::arch::x86_64::*;

use super::q4_0::{f16_lanes, nibbles, nibbles_avx512};
use super::tables::{IQ4, look_up, unsigned};
use super::{Format, GroupScales, LANES, f16_at};

/// The type; see the module.
pub struct Iq4Xs;

/// Packed offsets of the scales' high bits, their low nibbles, and the quants.
const SCALES_H: usize = 2 * LANES;
const SCALES_L: usize = 4 * LANES;
const QS: usize = 8 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Iq4Xs {
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 128;
    const QUANT_NMSE: f32 = 5.8e-3;
    const Q_MAX: i32 = 241;
    const HAS_MIN: bool = false;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        nibbles(&block[QS + group * 256..], |i, q| out[i] = IQ4[usize::from(q)]);
    }

    fn scales(block: &[u8], group: usize) -> GroupScales {
        let scale = std::array::from_fn(|lane| {
            let at = SCALES_H + 2 * lane;
            let high = u16::from_le_bytes([block[at], block[at + 1]]) >> (2 * group) & 3;
            let low = block[SCALES_L + group / 2 * LANES + lane] >> (4 * (group % 2)) & 15;
            f16_at(block, 2 * lane) * (i32::from(low) + i32::from(high << 4) - 32) as f32
        });
        GroupScales { scale, ..Default::default() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        const TABLE: [u8; 16] = unsigned(&IQ4, Iq4Xs::ZERO_POINT);
        // SAFETY: the caller's block is large enough.
        look_up(&TABLE, unsafe { nibbles_avx512(block.add(QS + group * 256)) })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        let (d, high, low) = unsafe {
            (
                f16_lanes(block),
                _mm512_cvtepu16_epi32(_mm256_loadu_si256(block.add(SCALES_H).cast())),
                _mm512_cvtepu8_epi32(_mm_loadu_si128(block.add(SCALES_L + group / 2 * LANES).cast())),
            )
        };
        let high = _mm512_and_si512(_mm512_srlv_epi32(high, _mm512_set1_epi32(2 * group as i32)), _mm512_set1_epi32(3));
        let low =
            _mm512_and_si512(_mm512_srlv_epi32(low, _mm512_set1_epi32(4 * (group as i32 % 2))), _mm512_set1_epi32(15));
        let ls = _mm512_sub_epi32(_mm512_or_si512(low, _mm512_slli_epi32::<4>(high)), _mm512_set1_epi32(32));
        (_mm512_mul_ps(d, _mm512_cvtepi32_ps(ls)), _mm512_setzero_ps())
    }
}

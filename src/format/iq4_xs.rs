//! IQ4_XS: 256 weights in 8 groups of 32, `w = d * (ls - 32) * table[q]`. Block: f16 d, 16 bits with
//! the upper two bits of eight 6-bit scales, 4 bytes with their lower nibbles, 128 bytes of nibbles,
//! 16 per group, low nibbles first (ggml-common.h, `block_iq4_xs`).

use std::arch::x86_64::*;

use super::lanes::*;
use super::lookup::{IQ4, look_up, unsigned};
use super::quants::{both_nibbles, both_nibbles_avx512};
use super::scales::{GroupScales, ScaleReader, times};
use super::{Format, LANES};

/// The type; see the module.
pub struct Iq4Xs;

/// Packed offsets of the scales' high bits, their low nibbles, and the quants.
const SCALES_H: usize = 2 * LANES;
const SCALES_L: usize = 4 * LANES;
const QS: usize = 8 * LANES;
/// Packed bytes of a group's quants.
const GROUP_BYTES: usize = 16 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Iq4Xs {
    type Scales = Self;
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 128;
    const QUANT_NMSE: f32 = 5.8e-3;
    const Q_MAX: i32 = 241;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        both_nibbles(&block[QS + group * GROUP_BYTES..], |i, q| out[i] = IQ4[usize::from(q)]);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        const TABLE: [u8; 16] = unsigned(&IQ4, Iq4Xs::ZERO_POINT);
        // SAFETY: a whole block, with 16 bytes of nibbles per row and group.
        look_up(&TABLE, unsafe { both_nibbles_avx512::<4>(block.add(QS + group * GROUP_BYTES)) })
    }
}

impl ScaleReader for Iq4Xs {
    fn read(block: &[u8], group: usize) -> GroupScales {
        GroupScales::of(|lane| {
            let high = word_at(block, SCALES_H + 2 * lane) >> (2 * group) & 3;
            let low = nibble_of_group(block, SCALES_L, group, lane);
            f16_at(block, 2 * lane) * (i32::from(low) + i32::from(high << 4) - 32) as f32
        })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn read_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: a whole block, which has these fields.
        let (d, high, low) = unsafe {
            (f16_lanes(block), word_lanes(block.add(SCALES_H)), byte_lanes(block.add(SCALES_L + group / 2 * LANES)))
        };
        let high = _mm512_and_si512(_mm512_srlv_epi32(high, _mm512_set1_epi32(2 * group as i32)), _mm512_set1_epi32(3));
        let low =
            _mm512_and_si512(_mm512_srlv_epi32(low, _mm512_set1_epi32(4 * (group as i32 % 2))), _mm512_set1_epi32(15));
        let ls = _mm512_sub_epi32(_mm512_or_si512(low, _mm512_slli_epi32::<4>(high)), _mm512_set1_epi32(32));
        (times(d, ls), _mm512_setzero_ps())
    }
}

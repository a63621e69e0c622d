//! Q3_K: 256 weights in 16 groups of 16, `w = d * (sc - 32) * (q - 4)`. Block: 32 bytes of third bits, 64
//! bytes of bit pairs as in Q2_K, 12 bytes of 6-bit scales, f16 d (ggml-common.h, `block_q3_K`).
//!
//! Bit `b` of third-bit byte `j` belongs to weight `32 * b + j`. Of the scale of group `g`, the low nibble
//! is in byte `g % 8` (the high nibble of it for g >= 8), the upper two bits are bits `g / 4 * 2` of
//! byte `8 + g % 4`.

use std::arch::x86_64::*;

use super::q2_k::Pairs;
use super::q4_0::f16_lanes;
use super::{Format, GroupScales, LANES, f16_at};

/// The type; see the module.
pub struct Q3K;

/// Packed offsets of the bit pairs, the scales and d.
const QS: usize = 32 * LANES;
const SCALES: usize = 96 * LANES;
const D: usize = 108 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Q3K {
    const GROUP: usize = 16;
    const ZERO_POINT: i32 = 4;
    const QUANT_NMSE: f32 = 2.3e-2;
    const Q_MAX: i32 = 7;
    const HAS_MIN: bool = false;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        let place = Pairs::of(group);
        for (i, o) in out[..Self::GROUP * LANES].iter_mut().enumerate() {
            let third = block[group % 2 * 16 * LANES + i] >> (group / 2) & 1;
            *o = (place.pair(&block[QS..], i) | third << 2) as i8 - 4;
        }
    }

    fn scales(block: &[u8], group: usize) -> GroupScales {
        let byte = |j: usize, lane: usize| block[SCALES + j * LANES + lane];
        let scale = std::array::from_fn(|lane| {
            let low = byte(group % 8, lane) >> (group / 8 * 4) & 15;
            let high = byte(8 + group % 4, lane) >> (group / 4 * 2) & 3;
            f16_at(block, D + 2 * lane) * (i32::from(low | high << 4) - 32) as f32
        });
        GroupScales { scale, ..Default::default() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        let bit = _mm512_set1_epi8((1u8 << (group / 2)) as i8);
        let four = _mm512_set1_epi8(4);
        // SAFETY: the caller's block is large enough.
        let mut rows = unsafe { Pairs::of(group).vectors::<4>(block.add(QS)) };
        for (r, row) in rows[..4].iter_mut().enumerate() {
            // SAFETY: 4 vectors of third bits for each half of 32 weights.
            let third = unsafe { _mm512_loadu_si512(block.add(group % 2 * 16 * LANES + 64 * r).cast()) };
            *row = _mm512_mask_add_epi8(*row, _mm512_test_epi8_mask(third, bit), *row, four);
        }
        rows
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: j < 12, 16 bytes each, shifted right by `shift`.
        let byte = |j: usize, shift: usize| unsafe {
            let v = _mm512_cvtepu8_epi32(_mm_loadu_si128(block.add(SCALES + j * LANES).cast()));
            _mm512_srlv_epi32(v, _mm512_set1_epi32(shift as i32))
        };
        let low = _mm512_and_si512(byte(group % 8, group / 8 * 4), _mm512_set1_epi32(15));
        let high = _mm512_and_si512(byte(8 + group % 4, group / 4 * 2), _mm512_set1_epi32(3));
        let sc = _mm512_or_si512(low, _mm512_slli_epi32::<4>(high));
        let sc = _mm512_cvtepi32_ps(_mm512_sub_epi32(sc, _mm512_set1_epi32(32)));
        // SAFETY: the caller's block is large enough.
        (_mm512_mul_ps(unsafe { f16_lanes(block.add(D)) }, sc), _mm512_setzero_ps())
    }
}

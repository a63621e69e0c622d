//! Q3_K: 256 weights in 16 groups of 16, `w = d * (sc - 32) * (q - 4)`. Block: 32 bytes of third bits, 64
//! bytes of bit pairs as in Q2_K, 12 bytes of 6-bit scales, f16 d (ggml-common.h, `block_q3_K`).
//!
//! Bit `b` of third-bit byte `j` belongs to weight `32 * b + j`. Of the scale of group `g`, the low nibble
//! is in byte `g % 8` (the high nibble of it for g >= 8), the upper two bits are bits `g / 4 * 2` of
//! byte `8 + g % 4`.

use std::arch::x86_64::*;

use super::lanes::*;
use super::quants::{Bits, Pairs, put};
use super::scales::{GroupScales, ScaleReader, times};
use super::{Format, LANES};

/// The type; see the module.
pub struct Q3K;

/// Packed offsets of the bit pairs, the scales and d; the third bits come first.
const QS: usize = 32 * LANES;
const SCALES: usize = 96 * LANES;
const D: usize = 108 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Q3K {
    type Scales = Self;
    const GROUP: usize = 16;
    const ZERO_POINT: i32 = 4;
    const QUANT_NMSE: f32 = 2.3e-2;
    const Q_MAX: i32 = 7;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        let (pairs, third) = (Pairs::of::<Self>(group), Bits::of::<Self>(group));
        put::<Self>(out, |i| (pairs.get(&block[QS..], i) | third.get(block, i) << 2) as i8 - 4);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        let (third, four) = (Bits::of::<Self>(group), _mm512_set1_epi8(4));
        // SAFETY: a whole block, which has the field.
        let mut rows = unsafe { Pairs::of::<Self>(group).vectors::<4>(block.add(QS)) };
        for (r, row) in rows[..4].iter_mut().enumerate() {
            // SAFETY: a whole block, which begins with the third bits; a group has 4 vectors.
            *row = _mm512_mask_add_epi8(*row, unsafe { third.mask(block, r) }, *row, four);
        }
        rows
    }
}

impl ScaleReader for Q3K {
    fn read(block: &[u8], group: usize) -> GroupScales {
        let byte = |j: usize, lane: usize| block[SCALES + j * LANES + lane];
        GroupScales::of(|lane| {
            let low = byte(group % 8, lane) >> (group / 8 * 4) & 15;
            let high = byte(8 + group % 4, lane) >> (group / 4 * 2) & 3;
            f16_at(block, D + 2 * lane) * (i32::from(low | high << 4) - 32) as f32
        })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn read_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // Byte `j` of the scales, shifted right by `shift`.
        let byte = |j: usize, shift: usize| {
            // SAFETY: a whole block; `j` is below 12.
            let v = unsafe { byte_lanes(block.add(SCALES + j * LANES)) };
            _mm512_srlv_epi32(v, _mm512_set1_epi32(shift as i32))
        };
        let low = _mm512_and_si512(byte(group % 8, group / 8 * 4), _mm512_set1_epi32(15));
        let high = _mm512_and_si512(byte(8 + group % 4, group / 4 * 2), _mm512_set1_epi32(3));
        let sc = _mm512_or_si512(low, _mm512_slli_epi32::<4>(high));
        // SAFETY: a whole block, which has d.
        let d = unsafe { f16_lanes(block.add(D)) };
        (times(d, _mm512_sub_epi32(sc, _mm512_set1_epi32(32))), _mm512_setzero_ps())
    }
}

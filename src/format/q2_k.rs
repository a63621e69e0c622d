//! Q2_K: 256 weights in 16 groups of 16, `w = d * sc * q - dmin * m`. Block: 16 bytes, sc in the low
//! nibble and m in the high one, 64 bytes of bit pairs, f16 d, f16 dmin (ggml-common.h, `block_q2_K`).
//!
//! Each half of the block (128 weights) has four quarters of 32, which are bits `2q` of the half's 32
//! bytes.

use std::arch::x86_64::*;

use super::lanes::*;
use super::quants::{Pairs, put};
use super::scales::{GroupScales, ScaleReader, negative, times};
use super::{Format, LANES};

/// The type; see the module.
pub struct Q2K;

/// Packed offsets of the bit pairs, d and dmin; the scales come first.
const QS: usize = 16 * LANES;
const D: usize = 80 * LANES;
const D_MIN: usize = 82 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Q2K {
    type Scales = Self;
    const GROUP: usize = 16;
    const ZERO_POINT: i32 = 0;
    const QUANT_NMSE: f32 = 8.8e-2;
    const Q_MAX: i32 = 3;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        let pairs = Pairs::of::<Self>(group);
        put::<Self>(out, |i| pairs.get(&block[QS..], i) as i8);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        // SAFETY: a whole block, which has the field.
        unsafe { Pairs::of::<Self>(group).vectors::<4>(block.add(QS)) }
    }
}

impl ScaleReader for Q2K {
    const HAS_MIN: bool = true;

    fn read(block: &[u8], group: usize) -> GroupScales {
        let byte = |lane: usize| block[group * LANES + lane];
        GroupScales::with_min(
            |lane| f16_at(block, D + 2 * lane) * f32::from(byte(lane) & 15),
            |lane| -(f16_at(block, D_MIN + 2 * lane) * f32::from(byte(lane) >> 4)),
        )
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn read_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: a whole block, which has these fields.
        let (d, dmin, byte) =
            unsafe { (f16_lanes(block.add(D)), f16_lanes(block.add(D_MIN)), byte_lanes(block.add(group * LANES))) };
        let min = times(dmin, _mm512_srli_epi32::<4>(byte));
        (times(d, _mm512_and_si512(byte, _mm512_set1_epi32(15))), negative(min))
    }
}

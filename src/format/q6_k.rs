//! Q6_K: 256 weights in 16 groups of 16, `w = d * sc * (q - 32)`. Block: 128 bytes of low nibbles,
//! 64 bytes of high bit pairs, 16 signed scales, f16 d (ggml-common.h, `block_q6_K`).
//!
//! Each half of the block (128 weights) has four quarters of 32: quarter `q` takes its nibbles from
//! bytes `32 * (q % 2)..` (low ones for q < 2, high ones after) and its bit pair from bits `2q` of
//! the half's 32 high bytes.

use std::arch::x86_64::*;

use super::lanes::*;
use super::quants::{Nibbles, Pairs, put};
use super::scales::{GroupScales, ScaleReader, times};
use super::{Format, LANES};

/// The type; see the module.
pub struct Q6K;

/// Packed offsets of the high bits, the scales and d; the nibbles come first.
const QH: usize = 128 * LANES;
const SCALES: usize = 192 * LANES;
const D: usize = 208 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Q6K {
    type Scales = Self;
    const GROUP: usize = 16;
    const ZERO_POINT: i32 = 32;
    const QUANT_NMSE: f32 = 3.1e-4;
    const Q_MAX: i32 = 63;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        let (nibbles, pairs) = (Nibbles::<64>::of::<Self>(group), Pairs::of::<Self>(group));
        put::<Self>(out, |i| (nibbles.get(block, i) | pairs.get(&block[QH..], i) << 4) as i8 - 32);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        let (pairs, pair_mask) = (Pairs::of::<Self>(group), _mm512_set1_epi8(0x30));
        // SAFETY: a whole block, which begins with the nibbles.
        let mut rows = unsafe { Nibbles::<64>::of::<Self>(group).vectors::<4>(block) };
        for (r, row) in rows[..4].iter_mut().enumerate() {
            // SAFETY: a whole block, which has the field; a group has 4 vectors.
            let h = unsafe { pairs.bytes(block.add(QH), r) };
            let pair = match pairs.nth {
                0 => _mm512_slli_epi16::<4>(h),
                1 => _mm512_slli_epi16::<2>(h),
                2 => h,
                _ => _mm512_srli_epi16::<2>(h),
            };
            *row = _mm512_or_si512(*row, _mm512_and_si512(pair, pair_mask));
        }
        rows
    }
}

impl ScaleReader for Q6K {
    fn read(block: &[u8], group: usize) -> GroupScales {
        let sc = |lane| block[SCALES + group * LANES + lane] as i8;
        GroupScales::of(|lane| f16_at(block, D + 2 * lane) * f32::from(sc(lane)))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn read_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: a whole block, which has these fields.
        let (d, sc) = unsafe { (f16_lanes(block.add(D)), signed_byte_lanes(block.add(SCALES + group * LANES))) };
        (times(d, sc), _mm512_setzero_ps())
    }
}

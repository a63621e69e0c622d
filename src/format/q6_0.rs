//! Q6_0 of ik_llama.cpp: 32 weights, `w = d * (q - 32)`. Block: f16 d, 8 bytes of high bit pairs, 16 bytes of nibbles as
//! in Q4_0 (its ggml-common.h, `block_q6_0`).
//!
//! Byte `j` of the pairs has, from its low bits, those of weights `j`, `j + 16`, `j + 8` and `j + 24`.

use std::arch::x86_64::*;

use super::q4_0::{f16_lanes, nibbles, nibbles_avx512};
use super::{Format, GroupScales, LANES, f16_at};

/// The type; see the module.
pub struct Q6_0;

/// Packed offsets of the pairs and the nibbles.
const QH: usize = 2 * LANES;
const QS: usize = 10 * LANES;

// SAFETY: constants as in ik_llama.cpp's ggml-common.h.
unsafe impl Format for Q6_0 {
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 32;
    const QUANT_NMSE: f32 = 4.1e-4;
    const Q_MAX: i32 = 63;
    const HAS_MIN: bool = false;

    fn quants(block: &[u8], _group: usize, out: &mut [i8]) {
        nibbles(&block[QS..], |i, q| {
            // Eight weights of 16 rows are 128 places.
            let shift = [0, 4, 2, 6][i / (8 * LANES)];
            let pair = block[QH + i % (8 * LANES)] >> shift & 3;
            out[i] = (q | pair << 4) as i8 - 32;
        });
    }

    fn scales(block: &[u8], _group: usize) -> GroupScales {
        GroupScales { scale: std::array::from_fn(|lane| f16_at(block, 2 * lane)), ..Default::default() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, _group: usize) -> [__m512i; 8] {
        let mask = _mm512_set1_epi8(0x30);
        // SAFETY: the caller's block is large enough: two vectors of pairs.
        let (nibbles, pairs) = unsafe {
            let pairs: [__m512i; 2] = std::array::from_fn(|i| _mm512_loadu_si512(block.add(QH + 64 * i).cast()));
            (nibbles_avx512(block.add(QS)), pairs)
        };
        std::array::from_fn(|r| {
            let h = pairs[r % 2];
            let pair = match r / 2 {
                0 => _mm512_slli_epi16::<4>(h),
                1 => h,
                2 => _mm512_slli_epi16::<2>(h),
                _ => _mm512_srli_epi16::<2>(h),
            };
            _mm512_or_si512(nibbles[r], _mm512_and_si512(pair, mask))
        })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, _group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        (unsafe { f16_lanes(block) }, _mm512_setzero_ps())
    }
}

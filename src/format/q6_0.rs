//! Q6_0 of ik_llama.cpp: 32 weights, `w = d * (q - 32)`. Block: f16 d, 8 bytes of high bit pairs, 16 bytes of nibbles
//! as in Q4_0 (its ggml-common.h, `block_q6_0`).
//!
//! Byte `j` of the pairs has, from its low bits, those of weights `j`, `j + 16`, `j + 8` and `j + 24`.

use std::arch::x86_64::*;

use super::lanes::dword_lanes;
use super::quants::{both_nibbles, both_nibbles_avx512};
use super::scales::OneScale;
use super::{Format, LANES};

/// The type; see the module.
pub struct Q6_0;

/// Packed offsets of the pairs and the nibbles.
const QH: usize = 2 * LANES;
const QS: usize = 10 * LANES;

// SAFETY: constants as in ik_llama.cpp's ggml-common.h.
unsafe impl Format for Q6_0 {
    type Scales = OneScale<0>;
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 32;
    const QUANT_NMSE: f32 = 4.1e-4;
    const Q_MAX: i32 = 63;

    fn quants(block: &[u8], _group: usize, out: &mut [i8]) {
        both_nibbles(&block[QS..], |i, q| {
            // Eight weights of 16 rows are 128 positions.
            let shift = [0, 4, 2, 6][i / (8 * LANES)];
            let pair = block[QH + i % (8 * LANES)] >> shift & 3;
            out[i] = (q | pair << 4) as i8 - 32;
        });
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, _group: usize) -> [__m512i; 8] {
        let mask = _mm512_set1_epi8(0x30);
        // SAFETY: a whole block, with two vectors of pairs and four of nibbles.
        let (nibbles, pairs) = unsafe {
            let pairs: [__m512i; 2] = std::array::from_fn(|i| dword_lanes(block.add(QH + 64 * i)));
            (both_nibbles_avx512::<4>(block.add(QS)), pairs)
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
}

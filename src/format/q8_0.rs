//! Q8_0: 32 weights, `w = d * q`. Block: f16 d, 32 signed bytes (ggml-common.h, `block_q8_0`).

use std::arch::x86_64::*;

use super::q4_0::f16_lanes;
use super::{Format, GroupScales, LANES, f16_at};

/// The type; see the module.
pub struct Q8_0;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Q8_0 {
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 128;
    const QUANT_NMSE: f32 = 2.8e-5;
    const Q_MAX: i32 = 255;
    const HAS_MIN: bool = false;

    fn quants(block: &[u8], _group: usize, out: &mut [i8]) {
        for (o, byte) in out.iter_mut().zip(&block[2 * LANES..]) {
            *o = *byte as i8;
        }
    }

    fn scales(block: &[u8], _group: usize) -> GroupScales {
        GroupScales { scale: std::array::from_fn(|lane| f16_at(block, 2 * lane)), ..Default::default() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, _group: usize) -> [__m512i; 8] {
        let flip = _mm512_set1_epi8(-128);
        std::array::from_fn(|r| {
            // SAFETY: the caller's block holds 8 vectors behind the scales.
            let v = unsafe { _mm512_loadu_si512(block.add(2 * LANES + 64 * r).cast()) };
            _mm512_xor_si512(v, flip)
        })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, _group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        (unsafe { f16_lanes(block) }, _mm512_setzero_ps())
    }
}

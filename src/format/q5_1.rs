//! Q5_1: 32 weights, `w = d * q + m`. Block: f16 d, f16 m, 4 bytes of fifth bits and 16 of nibbles as in
//! Q5_0 (ggml-common.h, `block_q5_1`).

use std::arch::x86_64::*;

use super::q4_0::f16_lanes;
use super::q5_0::{five_bits, five_bits_avx512};
use super::{Format, GroupScales, LANES, f16_at};

/// The type; see the module.
pub struct Q5_1;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Q5_1 {
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 0;
    const QUANT_NMSE: f32 = 1.4e-3;
    const Q_MAX: i32 = 31;
    const HAS_MIN: bool = true;

    fn quants(block: &[u8], _group: usize, out: &mut [i8]) {
        five_bits(&block[4 * LANES..], |i, q| out[i] = q as i8);
    }

    fn scales(block: &[u8], _group: usize) -> GroupScales {
        GroupScales {
            scale: std::array::from_fn(|lane| f16_at(block, 2 * lane)),
            min: std::array::from_fn(|lane| f16_at(block, 2 * LANES + 2 * lane)),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, _group: usize) -> [__m512i; 8] {
        // SAFETY: the caller's block is large enough.
        unsafe { five_bits_avx512(block.add(4 * LANES)) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, _group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        unsafe { (f16_lanes(block), f16_lanes(block.add(2 * LANES))) }
    }
}

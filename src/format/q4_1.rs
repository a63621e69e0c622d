//! Q4_1: 32 weights, `w = d * q + m`. Block: f16 d, f16 m, 16 bytes of nibbles as in Q4_0
//! (ggml-common.h, `block_q4_1`).

use std::arch::x86_64::*;

use super::q4_0::{f16_lanes, nibbles, nibbles_avx512};
use super::{Format, GroupScales, LANES, f16_at};

/// The type; see the module.
pub struct Q4_1;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Q4_1 {
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 0;
    const QUANT_NMSE: f32 = 6.1e-3;
    const Q_MAX: i32 = 15;
    const HAS_MIN: bool = true;

    fn quants(block: &[u8], _group: usize, out: &mut [i8]) {
        nibbles(&block[4 * LANES..], |i, q| out[i] = q as i8);
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
        unsafe { nibbles_avx512(block.add(4 * LANES)) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, _group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        unsafe { (f16_lanes(block), f16_lanes(block.add(2 * LANES))) }
    }
}

//! IQ4_NL: 32 weights, `w = d * table[q]`. Block: f16 d, 16 bytes of nibbles as in Q4_0 (ggml-common.h,
//! `block_iq4_nl`).

use std::arch::x86_64::*;

use super::q4_0::{f16_lanes, nibbles, nibbles_avx512};
use super::tables::{IQ4, look_up, unsigned};
use super::{Format, GroupScales, LANES, f16_at};

/// The type; see the module.
pub struct Iq4Nl;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Iq4Nl {
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 128;
    const QUANT_NMSE: f32 = 5.8e-3;
    const Q_MIN: i32 = 1;
    const Q_MAX: i32 = 241;
    const HAS_MIN: bool = false;

    fn quants(block: &[u8], _group: usize, out: &mut [i8]) {
        nibbles(&block[2 * LANES..], |i, q| out[i] = IQ4[usize::from(q)]);
    }

    fn scales(block: &[u8], _group: usize) -> GroupScales {
        GroupScales { scale: std::array::from_fn(|lane| f16_at(block, 2 * lane)), ..Default::default() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, _group: usize) -> [__m512i; 8] {
        const TABLE: [u8; 16] = unsigned(&IQ4, Iq4Nl::ZERO_POINT);
        // SAFETY: the caller's block is large enough.
        look_up(&TABLE, unsafe { nibbles_avx512(block.add(2 * LANES)) })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, _group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        (unsafe { f16_lanes(block) }, _mm512_setzero_ps())
    }
}

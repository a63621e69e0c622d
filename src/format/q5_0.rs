//! Q5_0: 32 weights, `w = d * (q - 16)`. Block: f16 d, 4 bytes whose bit `k` is the fifth bit of weight
//! `k`, 16 bytes of nibbles as in Q4_0 (ggml-common.h, `block_q5_0`).

use std::arch::x86_64::*;

use super::quants::{five_bits, five_bits_avx512};
use super::scales::OneScale;
use super::{Format, LANES};

/// The type; see the module.
pub struct Q5_0;

/// Packed offset of the fifth bits, which the nibbles follow.
const QH: usize = 2 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Q5_0 {
    type Scales = OneScale<0>;
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 16;
    const QUANT_NMSE: f32 = 1.8e-3;
    const Q_MAX: i32 = 31;

    fn quants(block: &[u8], _group: usize, out: &mut [i8]) {
        five_bits(&block[QH..], |i, q| out[i] = q as i8 - 16);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, _group: usize) -> [__m512i; 8] {
        // SAFETY: a whole block, with 20 bytes of bits and nibbles per row.
        unsafe { five_bits_avx512(block.add(QH)) }
    }
}

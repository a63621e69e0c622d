//! Q5_1: 32 weights, `w = d * q + m`. Block: f16 d, f16 m, 4 bytes of fifth bits and 16 of nibbles as in
//! Q5_0 (ggml-common.h, `block_q5_1`).

use std::arch::x86_64::*;

use super::quants::{five_bits, five_bits_avx512};
use super::scales::OneScaleAndMin;
use super::{Format, LANES};

/// The type; see the module.
pub struct Q5_1;

/// Packed offset of the fifth bits, which the nibbles follow.
const QH: usize = 4 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Q5_1 {
    type Scales = OneScaleAndMin;
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 0;
    const QUANT_NMSE: f32 = 1.4e-3;
    const Q_MAX: i32 = 31;

    fn quants(block: &[u8], _group: usize, out: &mut [i8]) {
        five_bits(&block[QH..], |i, q| out[i] = q as i8);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, _group: usize) -> [__m512i; 8] {
        // SAFETY: a whole block, with 20 bytes of bits and nibbles per row.
        unsafe { five_bits_avx512(block.add(QH)) }
    }
}

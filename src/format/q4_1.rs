//! Q4_1: 32 weights, `w = d * q + m`. Block: f16 d, f16 m, 16 bytes of nibbles as in Q4_0
//! (ggml-common.h, `block_q4_1`).

use std::arch::x86_64::*;

use super::quants::{both_nibbles, both_nibbles_avx512};
use super::scales::OneScaleAndMin;
use super::{Format, LANES};

/// The type; see the module.
pub struct Q4_1;

/// Packed offset of the nibbles.
const QS: usize = 4 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Q4_1 {
    type Scales = OneScaleAndMin;
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 0;
    const QUANT_NMSE: f32 = 6.1e-3;
    const Q_MAX: i32 = 15;

    fn quants(block: &[u8], _group: usize, out: &mut [i8]) {
        both_nibbles(&block[QS..], |i, q| out[i] = q as i8);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, _group: usize) -> [__m512i; 8] {
        // SAFETY: a whole block, with 16 bytes of nibbles per row.
        unsafe { both_nibbles_avx512::<4>(block.add(QS)) }
    }
}

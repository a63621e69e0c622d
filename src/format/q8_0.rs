//! Q8_0: 32 weights, `w = d * q`. Block: f16 d, 32 signed bytes (ggml-common.h, `block_q8_0`).

use std::arch::x86_64::*;

use super::lanes::dword_lanes;
use super::scales::OneScale;
use super::{Format, LANES};

/// The type; see the module.
pub struct Q8_0;

/// Packed offset of the quants.
const QS: usize = 2 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Q8_0 {
    type Scales = OneScale<0>;
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 128;
    const QUANT_NMSE: f32 = 2.8e-5;
    const Q_MAX: i32 = 255;

    fn quants(block: &[u8], _group: usize, out: &mut [i8]) {
        for (o, byte) in out.iter_mut().zip(&block[QS..]) {
            *o = *byte as i8;
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, _group: usize) -> [__m512i; 8] {
        let flip = _mm512_set1_epi8(-128);
        // SAFETY: a whole block, with 8 vectors of quants.
        std::array::from_fn(|r| _mm512_xor_si512(unsafe { dword_lanes(block.add(QS + 64 * r)) }, flip))
    }
}

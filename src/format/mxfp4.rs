//! MXFP4: 32 weights, `w = 2^(e - 128) * table[q]`. Block: byte e (E8M0), 16 bytes of nibbles as in Q4_0
//! (ggml-common.h, `block_mxfp4`).

use std::arch::x86_64::*;

use super::lanes::byte_lanes;
use super::lookup::{FP4, FP4_ZERO_POINT, look_up, unsigned};
use super::quants::{both_nibbles, both_nibbles_avx512};
use super::scales::{GroupScales, ScaleReader};
use super::{Format, LANES};

/// The type; see the module.
pub struct Mxfp4;

/// 2^-128, a subnormal number: half of what the exponent 0 stands for, because the table is doubled.
const SMALLEST: u32 = 1 << 21;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Mxfp4 {
    type Scales = Self;
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = FP4_ZERO_POINT;
    /// Of weights that were not trained in it: 1.3e-2.
    const QUANT_NMSE: f32 = 0.0;
    const Q_MAX: i32 = 2 * FP4_ZERO_POINT;

    fn quants(block: &[u8], _group: usize, out: &mut [i8]) {
        both_nibbles(&block[LANES..], |i, q| out[i] = FP4[usize::from(q)]);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, _group: usize) -> [__m512i; 8] {
        const TABLE: [u8; 16] = unsigned(&FP4, FP4_ZERO_POINT);
        // SAFETY: a whole block, with 16 bytes of nibbles per row behind the exponents.
        look_up(&TABLE, unsafe { both_nibbles_avx512::<4>(block.add(LANES)) })
    }
}

impl ScaleReader for Mxfp4 {
    fn read(block: &[u8], _group: usize) -> GroupScales {
        GroupScales::of(|lane| {
            let e = u32::from(block[lane]);
            f32::from_bits(if e < 2 { SMALLEST << e } else { (e - 1) << 23 })
        })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn read_avx512(block: *const u8, _group: usize) -> (__m512, __m512) {
        // SAFETY: a whole block, which begins with the exponents.
        let e = unsafe { byte_lanes(block) };
        let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, _mm512_set1_epi32(1)));
        let subnormal = _mm512_cmplt_epu32_mask(e, _mm512_set1_epi32(2));
        let bits = _mm512_mask_sllv_epi32(normal, subnormal, _mm512_set1_epi32(SMALLEST as i32), e);
        (_mm512_castsi512_ps(bits), _mm512_setzero_ps())
    }
}

//! NVFP4: 64 weights in 4 groups of 16, `w = d / 2 * table[q]`. Block: 4 scales (UE4M3), 32 bytes of
//! nibbles, 8 per group: low ones are the group's weights 0..8, high ones 8..16 (ggml-common.h,
//! `block_nvfp4`).

use std::arch::x86_64::*;

use super::lanes::byte_lanes;
use super::lookup::{FP4, FP4_ZERO_POINT, look_up, unsigned};
use super::quants::both_nibbles_avx512;
use super::scales::{GroupScales, ScaleReader};
use super::{Format, LANES};

/// The type; see the module.
pub struct Nvfp4;

/// Packed offset of the nibbles.
const QS: usize = 4 * LANES;
/// Bytes of one group's nibbles.
const GROUP_BYTES: usize = 8 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Nvfp4 {
    type Scales = Self;
    const GROUP: usize = 16;
    const ZERO_POINT: i32 = FP4_ZERO_POINT;
    /// Of weights that were not trained in it: 9.0e-3.
    const QUANT_NMSE: f32 = 0.0;
    const Q_MAX: i32 = 2 * FP4_ZERO_POINT;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        for (i, byte) in block[QS + group * GROUP_BYTES..][..GROUP_BYTES].iter().enumerate() {
            out[i] = FP4[usize::from(byte & 15)];
            out[i + GROUP_BYTES] = FP4[usize::from(byte >> 4)];
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        const TABLE: [u8; 16] = unsigned(&FP4, FP4_ZERO_POINT);
        // SAFETY: a whole block, with two vectors of nibbles per group.
        look_up(&TABLE, unsafe { both_nibbles_avx512::<2>(block.add(QS + group * GROUP_BYTES)) })
    }
}

impl ScaleReader for Nvfp4 {
    fn read(block: &[u8], group: usize) -> GroupScales {
        GroupScales::of(|lane| half_ue4m3(block[group * LANES + lane]))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn read_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: a whole block, which begins with a byte for every group.
        let d = unsafe { byte_lanes(block.add(group * LANES)) };
        let number = _mm512_cmpneq_epi32_mask(d, _mm512_set1_epi32(0x7f));
        let low = _mm512_and_si512(d, _mm512_set1_epi32(0x7f));
        let normal = _mm512_add_epi32(_mm512_slli_epi32::<20>(low), _mm512_set1_epi32(EXPONENT << 23));
        let subnormal = _mm512_mul_ps(_mm512_cvtepi32_ps(low), _mm512_set1_ps(SUBNORMAL));
        let is_subnormal = _mm512_cmplt_epu32_mask(low, _mm512_set1_epi32(8));
        let scale = _mm512_mask_mov_ps(_mm512_castsi512_ps(normal), is_subnormal, subnormal);
        (_mm512_maskz_mov_ps(number, scale), _mm512_setzero_ps())
    }
}

/// What is added to the exponent of a UE4M3 (bias 7) to make that of an f32 (bias 127), less one for the halving.
const EXPONENT: i32 = 127 - 7 - 1;
/// Half of 2^-9, the step of UE4M3 numbers whose exponent is 0.
const SUBNORMAL: f32 = 1.0 / 1024.0;

/// Half a UE4M3 number, because the table is doubled: 4 bits of exponent, 3 of mantissa. ggml reads 0x7f, which is
/// NaN, as 0, and ignores the eighth bit of others (ggml-impl.h, `ggml_ue4m3_to_fp32`).
fn half_ue4m3(d: u8) -> f32 {
    match d & 0x7f {
        _ if d == 0x7f => 0.0,
        low @ ..8 => f32::from(low) * SUBNORMAL,
        low => f32::from_bits((u32::from(low) << 20) + ((EXPONENT as u32) << 23)),
    }
}

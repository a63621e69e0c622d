//! Q1_0: 128 weights, `d` or `-d`. Block: f16 d, 16 bytes of bits, 1 for `d` (ggml-common.h, `block_q1_0`).

use std::arch::x86_64::*;

use super::q4_0::f16_lanes;
use super::{Format, GroupScales, LANES, bits, f16_at};

/// The type; see the module.
pub struct Q1_0;

/// Packed offset of the bits, and bytes of a group.
const QS: usize = 2 * LANES;
const GROUP_BYTES: usize = 4 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Q1_0 {
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 1;
    /// Weights that are not binary by training: 0.36.
    const QUANT_NMSE: f32 = 0.0;
    const Q_MAX: i32 = 2;
    const HAS_MIN: bool = false;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        for (i, o) in out[..Self::GROUP * LANES].iter_mut().enumerate() {
            *o = 2 * bits::bit(&block[QS + group * GROUP_BYTES..], i) as i8 - 1;
        }
    }

    fn scales(block: &[u8], _group: usize) -> GroupScales {
        GroupScales { scale: std::array::from_fn(|lane| f16_at(block, 2 * lane)), ..Default::default() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        let two = _mm512_set1_epi8(2);
        // SAFETY: the caller's block is large enough.
        let set = unsafe { bits::masks_avx512(block.add(QS + group * GROUP_BYTES)) };
        std::array::from_fn(|r| _mm512_maskz_mov_epi8(set[r], two))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, _group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        (unsafe { f16_lanes(block) }, _mm512_setzero_ps())
    }
}

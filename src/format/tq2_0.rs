//! TQ2_0: 256 weights, `w = d * (q - 1)`. Block: 64 bytes of bit pairs as in Q2_K, f16 d (ggml-common.h,
//! `block_tq2_0`). ggml's quantiser writes no 3, but a 3 stands for `2 * d`.

use std::arch::x86_64::*;

use super::q2_k::Pairs;
use super::q4_0::f16_lanes;
use super::{Format, GroupScales, LANES, f16_at};

/// The type; see the module.
pub struct Tq2_0;

/// Packed offset of d.
const D: usize = 64 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Tq2_0 {
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 1;
    /// Weights that are not ternary by training: 0.65.
    const QUANT_NMSE: f32 = 0.0;
    const Q_MAX: i32 = 3;
    const HAS_MIN: bool = false;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        let place = Pairs::of(2 * group);
        for (i, o) in out[..Self::GROUP * LANES].iter_mut().enumerate() {
            *o = place.pair(block, i) as i8 - 1;
        }
    }

    fn scales(block: &[u8], _group: usize) -> GroupScales {
        GroupScales { scale: std::array::from_fn(|lane| f16_at(block, D + 2 * lane)), ..Default::default() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        // SAFETY: the caller's block is large enough.
        unsafe { Pairs::of(2 * group).vectors::<8>(block) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, _group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        (unsafe { f16_lanes(block.add(D)) }, _mm512_setzero_ps())
    }
}

//! Q2_0: 64 weights, `w = d * (q - 1)`. Block: f16 d, 16 bytes of four bit pairs each, the lowest first
//! (ggml-common.h, `block_q2_0`).

use std::arch::x86_64::*;

use super::q4_0::f16_lanes;
use super::{Format, GroupScales, LANES, f16_at};

/// The type; see the module.
pub struct Q2_0;

/// Packed offset of the bit pairs, and bytes of a group.
const QS: usize = 2 * LANES;
const GROUP_BYTES: usize = 8 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Q2_0 {
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 1;
    /// Weights that are not of such values by training: 0.52.
    const QUANT_NMSE: f32 = 0.0;
    const Q_MAX: i32 = 3;
    const HAS_MIN: bool = false;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        for (i, o) in out[..Self::GROUP * LANES].iter_mut().enumerate() {
            *o = (block[QS + group * GROUP_BYTES + i / 4] >> (i % 4 * 2) & 3) as i8 - 1;
        }
    }

    fn scales(block: &[u8], _group: usize) -> GroupScales {
        GroupScales { scale: std::array::from_fn(|lane| f16_at(block, 2 * lane)), ..Default::default() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        let mask = _mm512_set1_epi8(3);
        std::array::from_fn(|r| {
            // SAFETY: a byte of every row, inside the caller's block.
            let v = unsafe { _mm_loadu_si128(block.add(QS + group * GROUP_BYTES + r * LANES).cast()) };
            // Copies of the byte, shifted so that pair `i` is the lowest of byte `i`.
            let one = _mm512_cvtepu8_epi32(v);
            let two = _mm512_or_si512(one, _mm512_slli_epi32::<12>(one));
            _mm512_and_si512(_mm512_or_si512(two, _mm512_slli_epi32::<6>(two)), mask)
        })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, _group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        (unsafe { f16_lanes(block) }, _mm512_setzero_ps())
    }
}

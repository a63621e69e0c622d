//! Q5_K: 256 weights in 8 groups of 32, `w = d * sc * q - dmin * m`. Block: f16 d, f16 dmin, 12 bytes
//! of 6-bit scales and minima, 32 bytes whose bit `g` is the fifth bit of group `g`, 128 bytes of
//! nibbles (ggml-common.h, `block_q5_K`).

use std::arch::x86_64::*;

use super::{BlockScales, Format, GroupScales, LANES, k_scales};

/// The type; see the module.
pub struct Q5K;

/// Packed offset of the fifth bits.
const QH: usize = k_scales::BYTES * LANES;
/// Packed offset of the nibbles.
const QS: usize = QH + 32 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Q5K {
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 0;
    const QUANT_NMSE: f32 = 1.3e-3;
    const Q_MAX: i32 = 31;
    const HAS_MIN: bool = true;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        for (i, o) in out[..Self::GROUP * LANES].iter_mut().enumerate() {
            let fifth = block[QH + i] >> group & 1;
            *o = (k_scales::nibble(&block[QS..], group, i) | fifth << 4) as i8;
        }
    }

    fn scales(block: &[u8], group: usize) -> GroupScales {
        k_scales::scales(block, group)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        let bit = _mm512_set1_epi8((1u8 << group) as i8);
        let sixteen = _mm512_set1_epi8(16);
        // SAFETY: the caller's block is large enough.
        let rows = unsafe { k_scales::nibbles_avx512(block.add(QS), group) };
        std::array::from_fn(|r| {
            // SAFETY: 8 vectors of fifth bits.
            let fifth = unsafe { _mm512_loadu_si512(block.add(QH + 64 * r).cast()) };
            _mm512_mask_add_epi8(rows[r], _mm512_test_epi8_mask(fifth, bit), rows[r], sixteen)
        })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        unsafe { k_scales::scales_avx512(block, group) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn block_scales_avx512(block: *const u8, out: &mut BlockScales) {
        // SAFETY: the caller's block is large enough.
        unsafe { k_scales::block_scales_avx512::<Self>(block, out) }
    }
}

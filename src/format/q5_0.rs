//! Q5_0: 32 weights, `w = d * (q - 16)`. Block: f16 d, 4 bytes whose bit `k` is the fifth bit of weight
//! `k`, 16 bytes of nibbles as in Q4_0 (ggml-common.h, `block_q5_0`).

use std::arch::x86_64::*;

use super::q4_0::{f16_lanes, nibbles, nibbles_avx512};
use super::{Format, GroupScales, LANES, bits, f16_at};

/// The type; see the module.
pub struct Q5_0;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Q5_0 {
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 16;
    const QUANT_NMSE: f32 = 1.8e-3;
    const Q_MAX: i32 = 31;
    const HAS_MIN: bool = false;

    fn quants(block: &[u8], _group: usize, out: &mut [i8]) {
        five_bits(&block[2 * LANES..], |i, q| out[i] = q as i8 - 16);
    }

    fn scales(block: &[u8], _group: usize) -> GroupScales {
        GroupScales { scale: std::array::from_fn(|lane| f16_at(block, 2 * lane)), ..Default::default() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, _group: usize) -> [__m512i; 8] {
        // SAFETY: the caller's block is large enough.
        unsafe { five_bits_avx512(block.add(2 * LANES)) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, _group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        (unsafe { f16_lanes(block) }, _mm512_setzero_ps())
    }
}

/// Quants of 4 interleaved bytes per row of fifth bits and 16 of nibbles behind them. Calls
/// `store(index in the group's layout, quant)`.
pub(super) fn five_bits(bytes: &[u8], mut store: impl FnMut(usize, u8)) {
    nibbles(&bytes[4 * LANES..], |i, q| store(i, q | bits::bit(bytes, i) << 4));
}

/// [`five_bits`] in registers.
///
/// # Safety
/// 320 readable bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn five_bits_avx512(bytes: *const u8) -> [__m512i; 8] {
    let sixteen = _mm512_set1_epi8(16);
    // SAFETY: as promised by the caller.
    let (fifth, rows) = unsafe { (bits::masks_avx512(bytes), nibbles_avx512(bytes.add(4 * LANES))) };
    std::array::from_fn(|r| _mm512_mask_add_epi8(rows[r], fifth[r], rows[r], sixteen))
}

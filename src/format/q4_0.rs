//! Q4_0: 32 weights, `w = d * (q - 8)`. Block: f16 d, 16 bytes whose low nibbles are weights 0..16
//! and high nibbles weights 16..32 (ggml-common.h, `block_q4_0`).

use std::arch::x86_64::*;

use super::{Format, GroupScales, LANES, f16_at};

/// The type; see the module.
pub struct Q4_0;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Q4_0 {
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 8;
    const QUANT_NMSE: f32 = 7.3e-3;
    const Q_MAX: i32 = 15;
    const HAS_MIN: bool = false;

    fn quants(block: &[u8], _group: usize, out: &mut [i8]) {
        nibbles(&block[2 * LANES..], |i, q| out[i] = q as i8 - 8);
    }

    fn scales(block: &[u8], _group: usize) -> GroupScales {
        GroupScales { scale: std::array::from_fn(|lane| f16_at(block, 2 * lane)), ..Default::default() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, _group: usize) -> [__m512i; 8] {
        // SAFETY: the caller's block is large enough.
        unsafe { nibbles_avx512(block.add(2 * LANES)) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, _group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        (unsafe { f16_lanes(block) }, _mm512_setzero_ps())
    }
}

/// Nibbles of 16 interleaved bytes per row: low ones are weights 0..16, high ones 16..32. Calls
/// `store(index in the group's layout, nibble)`.
pub(super) fn nibbles(bytes: &[u8], mut store: impl FnMut(usize, u8)) {
    for (i, byte) in bytes[..16 * LANES].iter().enumerate() {
        store(i, byte & 15);
        store(i + 16 * LANES, byte >> 4);
    }
}

/// [`nibbles`] in registers.
///
/// # Safety
/// 256 readable bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn nibbles_avx512(bytes: *const u8) -> [__m512i; 8] {
    let mask = _mm512_set1_epi8(15);
    let mut rows = [_mm512_setzero_si512(); 8];
    for r in 0..4 {
        // SAFETY: r < 4, 64 bytes each.
        let v = unsafe { _mm512_loadu_si512(bytes.add(64 * r).cast()) };
        rows[r] = _mm512_and_si512(v, mask);
        rows[r + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(v), mask);
    }
    rows
}

/// 16 f16 numbers as f32.
///
/// # Safety
/// 32 readable bytes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn f16_lanes(bytes: *const u8) -> __m512 {
    // SAFETY: as promised by the caller.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bytes.cast()) })
}

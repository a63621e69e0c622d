//! One bit per weight: 4 bytes of every row, side by side, hold 32 weights, bit `k` that of weight `k`.

use std::arch::x86_64::*;

/// The bit at one position of the group's layout.
#[inline]
pub(super) fn bit(bytes: &[u8], i: usize) -> u8 {
    let (lane, k) = (i % 64 / 4, i / 64 * 4 + i % 4);
    bytes[4 * lane + k / 8] >> (k % 8) & 1
}

/// [`bit`] of all positions: one mask for every vector of quants.
///
/// # Safety
/// 64 readable bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn masks_avx512(bytes: *const u8) -> [__mmask64; 8] {
    // SAFETY: as promised by the caller.
    masks_of(unsafe { _mm512_loadu_si512(bytes.cast()) })
}

/// [`masks_avx512`] of the rows' 32 bits in a register.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn masks_of(bits: __m512i) -> [__mmask64; 8] {
    // Four copies of byte b of every row are the bits of vectors 2b and 2b + 1.
    let first = _mm512_set4_epi32(0x0c0c_0c0c, 0x0808_0808, 0x0404_0404, 0);
    let single = [_mm512_set1_epi32(0x0804_0201), _mm512_set1_epi32(0x8040_2010_u32 as i32)];
    std::array::from_fn(|r| {
        let copies = _mm512_shuffle_epi8(bits, _mm512_add_epi8(first, _mm512_set1_epi8(r as i8 / 2)));
        _mm512_test_epi8_mask(copies, single[r % 2])
    })
}

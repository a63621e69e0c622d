//! Types whose quants are indices into a small fixed table of signed values: the tables that several types share, and
//! looking up in registers.

use std::arch::x86_64::*;

/// The values of IQ4_NL and IQ4_XS (ggml-common.h, `kvalues_iq4nl`), and the first table of IQ4_K.
pub(super) const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The values of MXFP4 and NVFP4: E2M1 numbers, doubled (ggml-common.h, `kvalues_fp4`).
pub(super) const FP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
/// [`FP4`] plus this is unsigned.
pub(super) const FP4_ZERO_POINT: i32 = 12;

/// A table of unsigned values: with the zero point added.
pub(super) const fn unsigned<const N: usize>(table: &[i8; N], zero_point: i32) -> [u8; N] {
    let mut out = [0; N];
    let mut i = 0;
    while i < N {
        out[i] = (table[i] as i32 + zero_point) as u8;
        i += 1;
    }
    out
}

/// The first 16 entries, four times: a table for `_mm512_shuffle_epi8`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn sixteen(table: &[u8]) -> __m512i {
    // SAFETY: the slice has 16 bytes, or slicing panics.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(table[..16].as_ptr().cast()) })
}

/// The values of `indices`, of which every byte is below 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn look_up(table: &[u8; 16], indices: [__m512i; 8]) -> [__m512i; 8] {
    let table = sixteen(table);
    std::array::from_fn(|r| _mm512_shuffle_epi8(table, indices[r]))
}

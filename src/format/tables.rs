//! 4-bit indices into fixed tables of signed values: IQ4_NL, IQ4_XS, MXFP4, NVFP4.

use std::arch::x86_64::*;

/// The values of IQ4_NL and IQ4_XS (ggml-common.h, `kvalues_iq4nl`).
pub(super) const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The values of MXFP4 and NVFP4: E2M1 numbers, doubled (ggml-common.h, `kvalues_fp4`).
pub(super) const FP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
/// What is added to [`FP4`] for unsigned values.
pub(super) const FP4_ZERO_POINT: i32 = 12;

/// A table with the zero point added.
pub(super) const fn unsigned(table: &[i8; 16], zero_point: i32) -> [u8; 16] {
    let mut out = [0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = (table[i] as i32 + zero_point) as u8;
        i += 1;
    }
    out
}

/// The values of `indices` (every byte below 16).
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn look_up(table: &[u8; 16], indices: [__m512i; 8]) -> [__m512i; 8] {
    // SAFETY: 16 bytes.
    let table = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(table.as_ptr().cast()) });
    std::array::from_fn(|r| _mm512_shuffle_epi8(table, indices[r]))
}

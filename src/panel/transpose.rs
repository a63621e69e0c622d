//! Transposition in registers (AVX-512).

use std::arch::x86_64::*;

/// Transposes 16 x 16 double words.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn transpose(m: [__m512i; 16]) -> [__m512i; 16] {
    // Double words of neighbouring rows, then pairs of them, then whole 128-bit quarters.
    let mut a = m;
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(m[2 * i], m[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(m[2 * i], m[2 * i + 1]);
    }
    let mut b = a;
    for i in 0..4 {
        for j in 0..2 {
            b[4 * i + 2 * j] = _mm512_unpacklo_epi64(a[4 * i + j], a[4 * i + 2 + j]);
            b[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(a[4 * i + j], a[4 * i + 2 + j]);
        }
    }
    // b[4 i + j] has, in quarter q, column 4 q + j of rows 4 i .. 4 i + 4.
    let mut out = b;
    for j in 0..4 {
        let low = (_mm512_shuffle_i32x4::<0x88>(b[j], b[4 + j]), _mm512_shuffle_i32x4::<0x88>(b[8 + j], b[12 + j]));
        let high = (_mm512_shuffle_i32x4::<0xdd>(b[j], b[4 + j]), _mm512_shuffle_i32x4::<0xdd>(b[8 + j], b[12 + j]));
        out[j] = _mm512_shuffle_i32x4::<0x88>(low.0, low.1);
        out[8 + j] = _mm512_shuffle_i32x4::<0xdd>(low.0, low.1);
        out[4 + j] = _mm512_shuffle_i32x4::<0x88>(high.0, high.1);
        out[12 + j] = _mm512_shuffle_i32x4::<0xdd>(high.0, high.1);
    }
    out
}

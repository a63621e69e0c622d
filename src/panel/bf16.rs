//! Floats as BF16, and as the sum of two BF16 numbers (AVX-512 code: every AMX CPU has it).

use std::arch::x86_64::*;

/// 16 BF16 numbers as floats.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn widened(half: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
}

/// 32 floats rounded to BF16, `first` in the lower half.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(crate) fn rounded(first: __m512, second: __m512) -> __m512i {
    // SAFETY: both types are 512 bits of any value.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first)) }
}

/// 32 floats as sums of two BF16 numbers: the floats rounded, and the rest rounded. Both in the order of [`rounded`].
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(crate) fn split(first: __m512, second: __m512) -> [__m512i; 2] {
    let high = rounded(first, second);
    let rest = |v, half| _mm512_sub_ps(v, widened(half));
    let (a, b) = (_mm512_castsi512_si256(high), _mm512_extracti64x4_epi64::<1>(high));
    [high, rounded(rest(first, a), rest(second, b))]
}

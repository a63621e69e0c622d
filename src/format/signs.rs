//! Signs of types with a codebook, whose entries are magnitudes: one bit per weight, 1 for a negative one. Some types
//! store seven of eight signs; the eighth makes the number of negative weights even.

use std::arch::x86_64::*;

use super::Format;
use super::quants::position;

/// Stores an entry as signed quants, from weight `from` of row `lane` on; bit `from + j` of `signs` negates
/// number `j`.
pub(super) fn store_signed<F: Format>(entry: &[u8], signs: u32, lane: usize, from: usize, out: &mut [i8]) {
    for (j, quant) in entry.iter().enumerate() {
        let quant = (i32::from(*quant) - F::ZERO_POINT) as i8;
        out[position(lane, from + j)] = if signs >> (from + j) & 1 == 1 { -quant } else { quant };
    }
}

/// Unsigned quants with those of `mask` negated: `zero point - (q - zero point)`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn negated<F: Format>(quants: __m512i, mask: __mmask64) -> __m512i {
    _mm512_mask_sub_epi8(quants, mask, _mm512_set1_epi8((2 * F::ZERO_POINT) as i8), quants)
}

/// The eight signs of each of four bytes that have seven.
pub(super) fn eight_of_seven(sevens: u32) -> u32 {
    let mut p = sevens;
    p ^= p >> 4 & 0x0f0f_0f0f;
    p ^= p >> 2 & 0x3f3f_3f3f;
    p ^= p >> 1;
    sevens | (p & 0x0101_0101) << 7
}

/// [`eight_of_seven`] in registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn eight_of_seven_avx512(sevens: __m512i) -> __m512i {
    // 0x80 where a nibble has an odd number of ones.
    let (ends, middle) = (0x0080_8000, 0x8000_0080_u32 as i32);
    let odd = _mm512_set4_epi32(ends, middle, middle, ends);
    let low = _mm512_set1_epi8(15);
    let parity = |nibbles| _mm512_shuffle_epi8(odd, _mm512_and_si512(nibbles, low));
    let (a, b) = (parity(sevens), parity(_mm512_srli_epi16::<4>(sevens)));
    // sevens | a ^ b
    _mm512_ternarylogic_epi32::<0xf6>(sevens, a, b)
}

/// The signs of 32 weights from the lower 28 bits of a number, four times seven.
pub(super) fn of_28_bits(bits: u32) -> u32 {
    eight_of_seven((0..4).map(|l| (bits >> (7 * l) & 127) << (8 * l)).sum())
}

/// [`of_28_bits`] in registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn of_28_bits_avx512(bits: __m512i) -> __m512i {
    let field = |v, mask: u32| _mm512_and_si512(v, _mm512_set1_epi32(mask as i32));
    let low = _mm512_or_si512(field(bits, 0x7f), field(_mm512_slli_epi32::<1>(bits), 0x7f00));
    let high = _mm512_or_si512(
        field(_mm512_slli_epi32::<2>(bits), 0x7f_0000),
        field(_mm512_slli_epi32::<3>(bits), 0x7f00_0000),
    );
    eight_of_seven_avx512(_mm512_or_si512(low, high))
}

//! IQ4_NL_R4, IQ4_XS_R8 and IQ4_K_R4.

use std::arch::x86_64::*;

use super::super::LANES;
use super::Blocks;
use super::shuffles::*;

/// IQ4_NL_R4: f16 d of 4 rows, 64 bytes of nibbles (see [`nibbles_of_32`]).
///
/// # Safety
/// Whole blocks, as for [`super::pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn iq4_nl(blocks: &Blocks, out: *mut u8) {
    // SAFETY: whole blocks; the offsets are those of the fields.
    unsafe {
        _mm256_storeu_si256(out.cast(), words_of_4_rows(blocks, 0));
        nibbles_of_32(blocks, 8, out.add(2 * LANES));
    }
}

/// IQ4_XS_R8: f16 d of 8 rows; 16 bytes with the upper two bits of scales, those of even groups first; 32 bytes with
/// the lower four bits, groups 0..4 in low nibbles and 4..8 in high ones; then the quants of each group: weights 0..4
/// in low nibbles and 4..8 in high ones, 8..12 and 12..16, and so on.
///
/// # Safety
/// Whole blocks, as for [`super::pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn iq4_xs(blocks: &Blocks, out: *mut u8) {
    // SAFETY: whole blocks; the offsets are those of the fields.
    unsafe {
        scales_of_eight(blocks, out);
        let (a, b) = (_mm_loadu_si128(blocks[0].add(16).cast()), _mm_loadu_si128(blocks[1].add(16).cast()));
        let (even, odd) = (_mm_unpacklo_epi64(a, b), _mm_unpackhi_epi64(a, b));
        let high = _mm256_or_si256(spread_pairs(even), _mm256_slli_epi16::<2>(spread_pairs(odd)));
        _mm256_storeu_si256(out.add(2 * LANES).cast(), high);
        // Groups 0 and 2 in the lower half, 1 and 3 in the upper.
        let order = _mm512_setr_epi64(0, 4, 2, 6, 1, 5, 3, 7);
        let even = _mm512_permutexvar_epi64(order, of_8_rows(blocks, 32));
        let (low, high) = nibbles(even, _mm512_shuffle_i64x2::<0b01_00_11_10>(even, even));
        _mm256_storeu_si256(out.add(4 * LANES).cast(), _mm512_castsi512_si256(low));
        _mm256_storeu_si256(out.add(6 * LANES).cast(), _mm512_castsi512_si256(high));
        for group in 0..8 {
            let (from, out) = (64 + 128 * group, out.add(8 * LANES + vectors(4 * group)));
            for i in 0..2 {
                let (low, high) = nibbles(of_8_rows(blocks, from + 32 * i), of_8_rows(blocks, from + 64 + 32 * i));
                store(out, vectors(2 * i), low);
                store(out, vectors(2 * i + 1), high);
            }
        }
    }
}

/// Every byte as a 16-bit word with two zeros above each pair of bits: bits `2 i` and `2 i + 1` become `4 i` and `4 i +
/// 1`.
#[inline]
#[target_feature(enable = "avx512f")]
fn spread_pairs(v: __m128i) -> __m256i {
    let v = _mm256_cvtepu8_epi16(v);
    let v = _mm256_and_si256(_mm256_or_si256(v, _mm256_slli_epi16::<4>(v)), _mm256_set1_epi16(0x0f0f));
    _mm256_and_si256(_mm256_or_si256(v, _mm256_slli_epi16::<2>(v)), _mm256_set1_epi16(0x3333))
}

/// Every byte as a 16-bit word with a zero above each bit: bit `i` becomes bit `2 i`.
#[inline]
#[target_feature(enable = "avx512f")]
fn spread_bits(v: __m128i) -> __m256i {
    let v = spread_pairs(v);
    _mm256_and_si256(_mm256_or_si256(v, _mm256_slli_epi16::<1>(v)), _mm256_set1_epi16(0x5555))
}

/// IQ4_K_R4: f16 d of 4 rows; a byte per row that chooses the tables of even groups, then one for odd ones; 16 bytes
/// with the upper two bits of scales (groups 0, 4, 8, 12 in the first byte); 32 bytes with the lower four (groups 0..8
/// in low nibbles, 8..16 in high ones); quants (see [`nibbles_of_32`]).
///
/// # Safety
/// Whole blocks, as for [`super::pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn iq4_k(blocks: &Blocks, out: *mut u8) {
    // SAFETY: whole blocks; the offsets are those of the fields.
    unsafe {
        _mm256_storeu_si256(out.cast(), words_of_4_rows(blocks, 0));
        let tables = _mm256_permutevar8x32_epi32(words_of_4_rows(blocks, 8), _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
        let (even, odd) = (_mm256_castsi256_si128(tables), _mm256_extracti128_si256::<1>(tables));
        let choices = _mm256_or_si256(spread_bits(even), _mm256_slli_epi16::<1>(spread_bits(odd)));
        _mm256_storeu_si256(out.add(2 * LANES).cast(), choices);
        store(out, 4 * LANES, high_bits_of_iq4_k(of_4_rows(blocks, 16)));
        let even = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 16, 20, 24, 28, 18, 22, 26, 30);
        let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
        let (a, b) = (of_4_rows(blocks, 32), of_4_rows(blocks, 48));
        let (low, high) = nibbles(_mm512_permutex2var_epi32(a, even, b), _mm512_permutex2var_epi32(a, odd, b));
        store(out, 8 * LANES, low);
        store(out, 12 * LANES, high);
        for group in 0..8 {
            nibbles_of_32(blocks, 64 + 64 * group, out.add(16 * LANES + vectors(4 * group)));
        }
    }
}

/// Upper bits of scales: byte `i` of a row has the pairs of bits of groups `i`, `i + 4`, `i + 8` and `i + 12`; packed
/// it has those of groups `4 i..4 i + 4`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn high_bits_of_iq4_k(v: __m512i) -> __m512i {
    let four = _mm512_set4_epi32(0x0f0b_0703, 0x0e0a_0602, 0x0d09_0501, 0x0c08_0400);
    let mut v = _mm512_shuffle_epi8(v, four);
    // Every 32-bit lane is a 4 x 4 matrix of pairs of bits: transposes it.
    let t = _mm512_ternarylogic_epi32::<0x28>(v, _mm512_srli_epi32::<6>(v), _mm512_set1_epi32(0x00cc_00cc));
    v = _mm512_xor_si512(v, _mm512_xor_si512(t, _mm512_slli_epi32::<6>(t)));
    let t = _mm512_ternarylogic_epi32::<0x28>(v, _mm512_srli_epi32::<12>(v), _mm512_set1_epi32(0xf0f0));
    v = _mm512_xor_si512(v, _mm512_xor_si512(t, _mm512_slli_epi32::<12>(t)));
    transposed(_mm512_shuffle_epi8(v, four))
}

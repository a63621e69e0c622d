//! Forms of the types that ik_llama.cpp interleaves by rows (`_R4`, `_R8`: what its `-rtr` makes). Blocks of 4 or 8 rows
//! lie as one: first what every row has once, row by row, then quants, 4 bytes of each row in turn. Facts are of its
//! ggml-common.h and iqk_quantize.cpp.
//!
//! Every function here makes one packed block of 16 rows (see [`super`]) of those of four times 4 or of twice 8 rows.

use std::arch::x86_64::*;

use super::{LANES, WeightType};

/// The interleaved blocks that make up one packed block; of 8 rows the first two.
pub type Blocks = [*const u8; 4];

/// Rows that lie together in the interleaved form of a type; 1 if there is none that is read here.
pub const fn interleave(ty: WeightType) -> usize {
    match ty {
        WeightType::Q4_0 | WeightType::Q8_0 | WeightType::IQ4_XS => 8,
        WeightType::IQ4_NL | WeightType::Q4_K | WeightType::Q5_K | WeightType::Q6_K | WeightType::IQ4_K => 4,
        _ => 1,
    }
}

/// Makes the packed block `out` of type `ty`.
///
/// # Safety
/// The blocks must be readable, `out` writable for a packed block; AVX-512 F and BW must be there.
///
/// # Panics
/// If the type has no such form.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn pack(ty: WeightType, blocks: &Blocks, out: *mut u8) {
    // SAFETY: promised by the caller.
    unsafe {
        match ty {
            WeightType::Q4_0 => by_eights::<4>(blocks, out),
            WeightType::Q8_0 => by_eights::<8>(blocks, out),
            WeightType::IQ4_NL => iq4_nl(blocks, out),
            WeightType::IQ4_XS => iq4_xs(blocks, out),
            WeightType::IQ4_K => iq4_k(blocks, out),
            WeightType::Q4_K => q4_k(blocks, out),
            WeightType::Q5_K => q5_k(blocks, out),
            WeightType::Q6_K => q6_k(blocks, out),
            _ => panic!("{ty:?} has no interleaved form"),
        }
    }
}

/// `64 * i`.
const fn at(i: usize) -> usize {
    64 * i
}

/// 16 bytes at `offset` of each of four blocks: 4 of every row.
///
/// # Safety
/// Readable bytes.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn quads(blocks: &Blocks, offset: usize) -> __m512i {
    // SAFETY: promised by the caller.
    let quarter = |i: usize| unsafe { _mm_loadu_si128(blocks[i].add(offset).cast()) };
    let v = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(quarter(0)), quarter(1));
    _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(v, quarter(2)), quarter(3))
}

/// 32 bytes at `offset` of each of two blocks: 4 of every row.
///
/// # Safety
/// Readable bytes.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn eights(blocks: &Blocks, offset: usize) -> __m512i {
    // SAFETY: promised by the caller.
    let half = |i: usize| unsafe { _mm256_loadu_si256(blocks[i].add(offset).cast()) };
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(half(0)), half(1))
}

/// 8 bytes at `offset` of each of four blocks.
///
/// # Safety
/// Readable bytes.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn doubles(blocks: &Blocks, offset: usize) -> __m256i {
    // SAFETY: promised by the caller.
    let one = |i: usize| unsafe { blocks[i].add(offset).cast::<i64>().read_unaligned() };
    _mm256_setr_epi64x(one(0), one(1), one(2), one(3))
}

/// # Safety
/// 64 writable bytes at `out + offset`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(out: *mut u8, offset: usize, v: __m512i) {
    // SAFETY: promised by the caller.
    unsafe { _mm512_storeu_si512(out.add(offset).cast(), v) }
}

/// Four double words of each of four blocks, block by block, double word by double word.
#[inline]
#[target_feature(enable = "avx512f")]
fn by_words(v: __m512i) -> __m512i {
    let across = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_permutexvar_epi32(across, v)
}

/// Bits of `a` where `mask` has ones, of `b` where it has not.
#[inline]
#[target_feature(enable = "avx512f")]
fn select(mask: i8, a: __m512i, b: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi8(mask), a, b)
}

/// The low nibbles of `a` with those of `b` above them, and the high ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn nibbles(a: __m512i, b: __m512i) -> (__m512i, __m512i) {
    (select(15, a, _mm512_slli_epi16::<4>(b)), select(15, _mm512_srli_epi16::<4>(a), b))
}

/// A scale of two bytes per row, then `N` times 4 bytes: in the order of the packed form.
///
/// # Safety
/// As for [`pack`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn by_eights<const N: usize>(blocks: &Blocks, out: *mut u8) {
    // SAFETY: promised by the caller.
    unsafe {
        scales_of_eight(blocks, out);
        for i in 0..N {
            store(out, 2 * LANES + at(i), eights(blocks, 16 + 32 * i));
        }
    }
}

/// Two bytes of each of 8 rows.
///
/// # Safety
/// As for [`pack`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn scales_of_eight(blocks: &Blocks, out: *mut u8) {
    // SAFETY: promised by the caller.
    unsafe {
        _mm_storeu_si128(out.cast(), _mm_loadu_si128(blocks[0].cast()));
        _mm_storeu_si128(out.add(LANES).cast(), _mm_loadu_si128(blocks[1].cast()));
    }
}

/// 32 weights of every row as R4 forms have their nibbles, 16 bytes four times: weights 0..4 below 8..12, 16..20 below
/// 24..28, 4..8 below 12..16, 20..24 below 28..32. To 16 bytes per row whose low nibbles are weights 0..16.
///
/// # Safety
/// 64 readable bytes at `offset` of the blocks, 256 writable ones at `out`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn nibbles_of_32(blocks: &Blocks, offset: usize, out: *mut u8) {
    // SAFETY: promised by the caller.
    unsafe {
        for i in 0..2 {
            let (low, high) = nibbles(quads(blocks, offset + 32 * i), quads(blocks, offset + 32 * i + 16));
            store(out, at(i), low);
            store(out, at(i + 2), high);
        }
    }
}

/// Two times 32 weights stored so, at `a` and `b`: to 32 bytes per row, the low nibbles of `a`.
///
/// # Safety
/// 64 readable bytes at `a` and `b` of the blocks, 512 writable ones at `out`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn nibbles_of_64(blocks: &Blocks, a: usize, b: usize, out: *mut u8) {
    const FIRST: [usize; 4] = [0, 4, 1, 5];
    // SAFETY: promised by the caller.
    unsafe {
        for (i, first) in FIRST.into_iter().enumerate() {
            let (low, high) = nibbles(quads(blocks, a + 16 * i), quads(blocks, b + 16 * i));
            store(out, at(first), low);
            store(out, at(first + 2), high);
        }
    }
}

/// Where words 0..4 of what R4 forms keep in parts of a byte belong: 8..12 come before 4..8.
const HIGH_ORDER: [usize; 4] = [0, 2, 1, 3];

/// Swaps bits `shift..` of `a` under `mask` with those of `b`.
#[inline]
#[target_feature(enable = "avx512f")]
fn swap<const SHIFT: u32>(v: &mut [__m512i], i: usize, j: usize, mask: i8) {
    // (a ^ b) & mask
    let t = _mm512_ternarylogic_epi32::<0x28>(_mm512_srli_epi32::<SHIFT>(v[i]), v[j], _mm512_set1_epi8(mask));
    v[j] = _mm512_xor_si512(v[j], t);
    v[i] = _mm512_xor_si512(v[i], _mm512_slli_epi32::<SHIFT>(t));
}

/// IQ4_NL_R4: f16 d of 4 rows, 64 bytes of nibbles.
///
/// # Safety
/// As for [`pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn iq4_nl(blocks: &Blocks, out: *mut u8) {
    // SAFETY: promised by the caller.
    unsafe {
        _mm256_storeu_si256(out.cast(), doubles(blocks, 0));
        nibbles_of_32(blocks, 8, out.add(2 * LANES));
    }
}

/// IQ4_XS_R8: f16 d of 8 rows; 16 bytes with the upper two bits of scales, of even groups, then of odd ones; 32 with the
/// lower four, groups 0..4 below 4..8; nibbles: of 32 weights 0..4 below 4..8, 8..12 below 12..16, and so on.
///
/// # Safety
/// As for [`pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn iq4_xs(blocks: &Blocks, out: *mut u8) {
    // SAFETY: promised by the caller.
    unsafe {
        scales_of_eight(blocks, out);
        let (a, b) = (_mm_loadu_si128(blocks[0].add(16).cast()), _mm_loadu_si128(blocks[1].add(16).cast()));
        let (even, odd) = (_mm_unpacklo_epi64(a, b), _mm_unpackhi_epi64(a, b));
        let high = _mm256_or_si256(spread_pairs(even), _mm256_slli_epi16::<2>(spread_pairs(odd)));
        _mm256_storeu_si256(out.add(2 * LANES).cast(), high);
        // Groups 0 and 2 in the lower half, 1 and 3 in the upper.
        let order = _mm512_setr_epi64(0, 4, 2, 6, 1, 5, 3, 7);
        let even = _mm512_permutexvar_epi64(order, eights(blocks, 32));
        let (low, high) = nibbles(even, _mm512_shuffle_i64x2::<0b01_00_11_10>(even, even));
        _mm256_storeu_si256(out.add(4 * LANES).cast(), _mm512_castsi512_si256(low));
        _mm256_storeu_si256(out.add(6 * LANES).cast(), _mm512_castsi512_si256(high));
        for group in 0..8 {
            let (from, out) = (64 + 128 * group, out.add(8 * LANES + at(4 * group)));
            for i in 0..2 {
                let (low, high) = nibbles(eights(blocks, from + 32 * i), eights(blocks, from + 64 + 32 * i));
                store(out, at(2 * i), low);
                store(out, at(2 * i + 1), high);
            }
        }
    }
}

/// Every byte as a word whose bits `4 i` and `4 i + 1` are bits `2 i` and `2 i + 1` of it.
#[inline]
#[target_feature(enable = "avx512f")]
fn spread_pairs(v: __m128i) -> __m256i {
    let v = _mm256_cvtepu8_epi16(v);
    let v = _mm256_and_si256(_mm256_or_si256(v, _mm256_slli_epi16::<4>(v)), _mm256_set1_epi16(0x0f0f));
    _mm256_and_si256(_mm256_or_si256(v, _mm256_slli_epi16::<2>(v)), _mm256_set1_epi16(0x3333))
}

/// Every byte as a word whose bit `2 i` is bit `i` of it.
#[inline]
#[target_feature(enable = "avx512f")]
fn spread_bits(v: __m128i) -> __m256i {
    let v = spread_pairs(v);
    _mm256_and_si256(_mm256_or_si256(v, _mm256_slli_epi16::<1>(v)), _mm256_set1_epi16(0x5555))
}

/// IQ4_K_R4: f16 d of 4 rows; a byte per row with the table of even groups, one of odd ones; 16 bytes with the upper two
/// bits of scales (groups 0, 4, 8, 12 in a byte), 32 with the lower four (groups 0..8 below 8..16); nibbles.
///
/// # Safety
/// As for [`pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn iq4_k(blocks: &Blocks, out: *mut u8) {
    // SAFETY: promised by the caller.
    unsafe {
        _mm256_storeu_si256(out.cast(), doubles(blocks, 0));
        let tables = _mm256_permutevar8x32_epi32(doubles(blocks, 8), _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
        let (even, odd) = (_mm256_castsi256_si128(tables), _mm256_extracti128_si256::<1>(tables));
        let choices = _mm256_or_si256(spread_bits(even), _mm256_slli_epi16::<1>(spread_bits(odd)));
        _mm256_storeu_si256(out.add(2 * LANES).cast(), choices);
        store(out, 4 * LANES, high_bits_of_iq4_k(quads(blocks, 16)));
        let even = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 16, 20, 24, 28, 18, 22, 26, 30);
        let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
        let (a, b) = (quads(blocks, 32), quads(blocks, 48));
        let (low, high) = nibbles(_mm512_permutex2var_epi32(a, even, b), _mm512_permutex2var_epi32(a, odd, b));
        store(out, 8 * LANES, low);
        store(out, 12 * LANES, high);
        for group in 0..8 {
            nibbles_of_32(blocks, 64 + 64 * group, out.add(16 * LANES + at(4 * group)));
        }
    }
}

/// Byte `i` of a row has pairs of bits of groups `i`, `i + 4`, `i + 8`, `i + 12`; packed it is groups `4 i..4 i + 4`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn high_bits_of_iq4_k(v: __m512i) -> __m512i {
    let four = _mm512_set4_epi32(0x0f0b_0703, 0x0e0a_0602, 0x0d09_0501, 0x0c08_0400);
    let mut v = _mm512_shuffle_epi8(v, four);
    // Four bytes of four pairs each are transposed in every double word.
    let t = _mm512_ternarylogic_epi32::<0x28>(v, _mm512_srli_epi32::<6>(v), _mm512_set1_epi32(0x00cc_00cc));
    v = _mm512_xor_si512(v, _mm512_xor_si512(t, _mm512_slli_epi32::<6>(t)));
    let t = _mm512_ternarylogic_epi32::<0x28>(v, _mm512_srli_epi32::<12>(v), _mm512_set1_epi32(0xf0f0));
    v = _mm512_xor_si512(v, _mm512_xor_si512(t, _mm512_slli_epi32::<12>(t)));
    by_words(_mm512_shuffle_epi8(v, four))
}

/// What Q4_K_R4 and Q5_K_R4 begin with: f16 d of 4 rows, dmin; 16 bytes with the upper two bits of scales (bits 0 and 1;
/// of groups 4..8, 4 and 5) and of minima; 32 with the lower four of both.
///
/// # Safety
/// As for [`pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn k_scales(blocks: &Blocks, out: *mut u8) {
    // SAFETY: promised by the caller.
    let (both, high, first, second) = unsafe {
        (quads(blocks, 0), by_words(quads(blocks, 16)), by_words(quads(blocks, 32)), by_words(quads(blocks, 48)))
    };
    let left = _mm512_slli_epi16::<2>(high);
    let scales = select(15, first, select(0x30, _mm512_slli_epi16::<4>(high), left));
    let minima = select(15, _mm512_srli_epi16::<4>(first), select(0x30, left, high));
    // SAFETY: promised by the caller.
    unsafe {
        store(out, 0, _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), both));
        store(out, 4 * LANES, scales);
        store(out, 8 * LANES, minima);
        store(out, 12 * LANES, second);
    }
}

/// Q4_K_R4: scales, nibbles.
///
/// # Safety
/// As for [`pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn q4_k(blocks: &Blocks, out: *mut u8) {
    // SAFETY: promised by the caller.
    unsafe {
        k_scales(blocks, out);
        for i in 0..4 {
            nibbles_of_64(blocks, 64 + 128 * i, 128 + 128 * i, out.add(16 * LANES + at(8 * i)));
        }
    }
}

/// Q5_K_R4: scales; 16 bytes of fifth bits for 32 weights, as many weights in a byte as there are groups; nibbles.
///
/// # Safety
/// As for [`pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn q5_k(blocks: &Blocks, out: *mut u8) {
    // SAFETY: promised by the caller.
    unsafe {
        k_scales(blocks, out);
        let mut v: [__m512i; 8] = std::array::from_fn(|group| quads(blocks, 64 + 16 * group));
        for i in [0, 2, 4, 6] {
            swap::<1>(&mut v, i, i + 1, 0x55);
        }
        for i in [0, 1, 4, 5] {
            swap::<2>(&mut v, i, i + 2, 0x33);
        }
        for i in 0..4 {
            swap::<4>(&mut v, i, i + 4, 0x0f);
        }
        for (i, bits) in v.into_iter().enumerate() {
            store(out, 16 * LANES + at(i / 4 * 4 + HIGH_ORDER[i % 4]), bits);
        }
        for i in 0..4 {
            nibbles_of_64(blocks, 192 + 128 * i, 256 + 128 * i, out.add(48 * LANES + at(8 * i)));
        }
    }
}

/// Q6_K_R4: f16 d of 4 rows, 64 signed scales, 256 bytes of upper pairs of bits (16 for 16 weights of a group), nibbles.
///
/// # Safety
/// As for [`pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn q6_k(blocks: &Blocks, out: *mut u8) {
    // SAFETY: promised by the caller.
    unsafe {
        _mm256_storeu_si256(out.add(208 * LANES).cast(), doubles(blocks, 0));
        for i in 0..4 {
            store(out, 192 * LANES + at(i), by_words(quads(blocks, 8 + 16 * i)));
        }
        for half in 0..2 {
            for part in 0..2 {
                // Of the four quarters.
                let mut v: [__m512i; 4] = std::array::from_fn(|i| quads(blocks, 72 + 32 * (4 * half + i) + 16 * part));
                swap::<2>(&mut v, 0, 1, 0x33);
                swap::<2>(&mut v, 2, 3, 0x33);
                swap::<4>(&mut v, 0, 2, 0x0f);
                swap::<4>(&mut v, 1, 3, 0x0f);
                for (i, bits) in v.into_iter().enumerate() {
                    store(out, 128 * LANES + at(8 * half + 4 * part + HIGH_ORDER[i]), bits);
                }
                let from = 328 + 64 * (4 * half + part);
                nibbles_of_64(blocks, from, from + 128, out.add(at(16 * half + 8 * part)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu;

    /// Given all interleaved blocks with one bit set, then one bit of the packed block is, and never the same.
    #[test]
    fn packing_moves_every_bit_to_a_place_of_its_own() {
        if cpu::isa() < cpu::Isa::Avx512 {
            println!("SKIPPED: no AVX-512");
            return;
        }
        let forms: Vec<_> = WeightType::ALL.iter().filter(|ty| interleave(**ty) > 1).collect();
        assert_eq!(forms.len(), 8);
        for ty in forms {
            let size = LANES * ty.info().bytes;
            let (mut from, mut taken) = (vec![0u8; size], vec![0u8; size]);
            for bit in 0..8 * size {
                from[bit / 8] = 1 << (bit % 8);
                let each = interleave(*ty) * ty.info().bytes;
                let blocks = std::array::from_fn(|i| from.as_ptr().wrapping_add(i * each % size));
                let mut packed = vec![0u8; size];
                // SAFETY: the blocks lie in `from`; the packed one has its size.
                unsafe { pack(*ty, &blocks, packed.as_mut_ptr()) };
                assert_eq!(packed.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1, "{ty:?}, bit {bit}");
                for (taken, byte) in taken.iter_mut().zip(&packed) {
                    assert_eq!(*taken & byte, 0, "{ty:?}, bit {bit}");
                    *taken |= byte;
                }
                from[bit / 8] = 0;
            }
        }
    }
}

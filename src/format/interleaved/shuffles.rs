//! What the interleaved forms share: loads that gather the rows of several blocks, and moves of words, nibbles and
//! bits.

use std::arch::x86_64::*;

use super::super::LANES;
use super::Blocks;

/// Bytes of `count` vectors.
pub(super) const fn vectors(count: usize) -> usize {
    64 * count
}

/// 16 bytes at `offset` of each of four blocks: 4 bytes of every row.
///
/// # Safety
/// The blocks must have them.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn of_4_rows(blocks: &Blocks, offset: usize) -> __m512i {
    // SAFETY: the blocks have 16 bytes there.
    let quarter = |i: usize| unsafe { _mm_loadu_si128(blocks[i].add(offset).cast()) };
    let v = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(quarter(0)), quarter(1));
    _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(v, quarter(2)), quarter(3))
}

/// 32 bytes at `offset` of each of two blocks: 4 bytes of every row.
///
/// # Safety
/// The blocks must have them.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn of_8_rows(blocks: &Blocks, offset: usize) -> __m512i {
    // SAFETY: the blocks have 32 bytes there.
    let half = |i: usize| unsafe { _mm256_loadu_si256(blocks[i].add(offset).cast()) };
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(half(0)), half(1))
}

/// 8 bytes at `offset` of each of four blocks: 2 bytes of every row.
///
/// # Safety
/// The blocks must have them.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn words_of_4_rows(blocks: &Blocks, offset: usize) -> __m256i {
    // SAFETY: the blocks have 8 bytes there.
    let one = |i: usize| unsafe { blocks[i].add(offset).cast::<i64>().read_unaligned() };
    _mm256_setr_epi64x(one(0), one(1), one(2), one(3))
}

/// Writes a vector at `offset` of the packed block `out`.
///
/// # Safety
/// The packed block must have 64 bytes there.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn store(out: *mut u8, offset: usize, v: __m512i) {
    // SAFETY: the packed block has 64 bytes there.
    unsafe { _mm512_storeu_si512(out.add(offset).cast(), v) }
}

/// A 4 x 4 matrix of 4-byte numbers, transposed: four numbers of each of four blocks become four blocks' numbers side
/// by side.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transposed(v: __m512i) -> __m512i {
    let across = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_permutexvar_epi32(across, v)
}

/// Bits of `a` where every byte's `mask` has ones, of `b` where it has zeros.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn select(mask: i8, a: __m512i, b: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi8(mask), a, b)
}

/// The low nibbles of `a` and `b` in one vector, those of `b` in the high nibbles; then the same of their high nibbles.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn nibbles(a: __m512i, b: __m512i) -> (__m512i, __m512i) {
    (select(15, a, _mm512_slli_epi16::<4>(b)), select(15, _mm512_srli_epi16::<4>(a), b))
}

/// Forms whose fields are in the order of the packed form: a scale of two bytes per row, then `N` times 4 bytes.
///
/// # Safety
/// Whole blocks, as for [`super::pack`].
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn scale_and_quants_of_8_rows<const N: usize>(blocks: &Blocks, out: *mut u8) {
    // SAFETY: whole blocks; the offsets are those of the fields.
    unsafe {
        scales_of_eight(blocks, out);
        for i in 0..N {
            store(out, 2 * LANES + vectors(i), of_8_rows(blocks, 16 + 32 * i));
        }
    }
}

/// The first two bytes of each row of two blocks of 8.
///
/// # Safety
/// Whole blocks, as for [`super::pack`].
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn scales_of_eight(blocks: &Blocks, out: *mut u8) {
    // SAFETY: whole blocks; the offsets are those of the fields.
    unsafe {
        _mm_storeu_si128(out.cast(), _mm_loadu_si128(blocks[0].cast()));
        _mm_storeu_si128(out.add(LANES).cast(), _mm_loadu_si128(blocks[1].cast()));
    }
}

/// 32 weights of every row, packed to 16 bytes per row whose low nibbles are weights 0..16. R4 forms have them in four
/// times 4 bytes per row, as low and high nibbles: weights 0..4 and 8..12, 16..20 and 24..28, 4..8 and 12..16, 20..24
/// and 28..32.
///
/// # Safety
/// The blocks must have 64 bytes at `offset`, `out` 256 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn nibbles_of_32(blocks: &Blocks, offset: usize, out: *mut u8) {
    // SAFETY: the blocks and `out` have these bytes.
    unsafe {
        for i in 0..2 {
            let (low, high) = nibbles(of_4_rows(blocks, offset + 32 * i), of_4_rows(blocks, offset + 32 * i + 16));
            store(out, vectors(i), low);
            store(out, vectors(i + 2), high);
        }
    }
}

/// Twice 32 weights that are stored as for [`nibbles_of_32`], at `a` and at `b`, packed to 32 bytes per row: those of
/// `a` in the low nibbles, those of `b` in the high ones.
///
/// # Safety
/// The blocks must have 64 bytes at `a` and at `b`, `out` 512 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn nibbles_of_64(blocks: &Blocks, a: usize, b: usize, out: *mut u8) {
    const FIRST: [usize; 4] = [0, 4, 1, 5];
    // SAFETY: the blocks and `out` have these bytes.
    unsafe {
        for (i, first) in FIRST.into_iter().enumerate() {
            let (low, high) = nibbles(of_4_rows(blocks, a + 16 * i), of_4_rows(blocks, b + 16 * i));
            store(out, vectors(first), low);
            store(out, vectors(first + 2), high);
        }
    }
}

/// Where the packed form has each of four vectors of upper bits: R4 forms have those of weights 8..12 before 4..8.
pub(super) const HIGH_ORDER: [usize; 4] = [0, 2, 1, 3];

/// Swaps the bits of `v[j]` that every byte's `mask` has with those of `v[i]` that are `SHIFT` places above them.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn swap<const SHIFT: u32>(v: &mut [__m512i], i: usize, j: usize, mask: i8) {
    // (a ^ b) & mask
    let t = _mm512_ternarylogic_epi32::<0x28>(_mm512_srli_epi32::<SHIFT>(v[i]), v[j], _mm512_set1_epi8(mask));
    v[j] = _mm512_xor_si512(v[j], t);
    v[i] = _mm512_xor_si512(v[i], _mm512_slli_epi32::<SHIFT>(t));
}

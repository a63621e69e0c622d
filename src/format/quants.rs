//! The ways in which several types store quants: bits, bit pairs, nibbles.
//!
//! Quants of a group are in the order of [`Format::quants`]: position `i` belongs to weight `i / 64 * 4 + i % 4` of row
//! `i % 64 / 4`. Fields of 4-byte units are interleaved in that order too, so that byte `i` of such a field belongs to
//! position `i`. In registers, vector `r` holds positions `64 * r..64 * r + 64`.

use std::arch::x86_64::*;

use super::lanes::dword_lanes;
use super::{Format, LANES};

/// Where weight `k` of row `lane` lies among a group's quants.
pub(super) fn position(lane: usize, k: usize) -> usize {
    k / 4 * 64 + lane * 4 + k % 4
}

/// Writes the quants of a group of `F`.
pub(super) fn put<F: Format>(out: &mut [i8], quant: impl Fn(usize) -> i8) {
    for (i, out) in out[..F::GROUP * LANES].iter_mut().enumerate() {
        *out = quant(i);
    }
}

/// Bit `k` of a row's 4 bytes, which belongs to weight `k` of 32, at position `i`.
#[inline]
pub(super) fn bit(field: &[u8], i: usize) -> u8 {
    let (lane, k) = (i % 64 / 4, i / 64 * 4 + i % 4);
    field[4 * lane + k / 8] >> (k % 8) & 1
}

/// [`bit`] of all positions: one mask for every vector.
///
/// # Safety
/// 64 readable bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn masks_avx512(field: *const u8) -> [__mmask64; 8] {
    // SAFETY: 64 bytes are readable.
    masks_of(unsafe { dword_lanes(field) })
}

/// [`masks_avx512`] of the rows' 32 bits in a register.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn masks_of(bits: __m512i) -> [__mmask64; 8] {
    // Byte b of every row, four times, has the bits of vectors 2b and 2b + 1.
    let first = _mm512_set4_epi32(0x0c0c_0c0c, 0x0808_0808, 0x0404_0404, 0);
    let single = [_mm512_set1_epi32(0x0804_0201), _mm512_set1_epi32(0x8040_2010_u32 as i32)];
    std::array::from_fn(|r| {
        let copies = _mm512_shuffle_epi8(bits, _mm512_add_epi8(first, _mm512_set1_epi8(r as i8 / 2)));
        _mm512_test_epi8_mask(copies, single[r % 2])
    })
}

/// The nibbles of a group that are 16 bytes per row, the first half of the weights in the low ones. Calls
/// `store(position, nibble)`.
pub(super) fn both_nibbles(field: &[u8], mut store: impl FnMut(usize, u8)) {
    for (i, byte) in field[..16 * LANES].iter().enumerate() {
        store(i, byte & 15);
        store(i + 16 * LANES, byte >> 4);
    }
}

/// [`both_nibbles`] in registers, of `4 * VECTORS` bytes per row: low nibbles in the first `VECTORS` registers, high
/// ones in the next.
///
/// # Safety
/// `64 * VECTORS` readable bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn both_nibbles_avx512<const VECTORS: usize>(field: *const u8) -> [__m512i; 8] {
    let mask = _mm512_set1_epi8(15);
    let mut rows = [_mm512_setzero_si512(); 8];
    for r in 0..VECTORS {
        // SAFETY: one of the vectors.
        let v = unsafe { dword_lanes(field.add(64 * r)) };
        rows[r] = _mm512_and_si512(v, mask);
        rows[r + VECTORS] = _mm512_and_si512(_mm512_srli_epi16::<4>(v), mask);
    }
    rows
}

/// Fifth bits as [`bit`] has them, and [`both_nibbles`] behind their 4 bytes. Calls `store(position, quant)`.
pub(super) fn five_bits(field: &[u8], mut store: impl FnMut(usize, u8)) {
    both_nibbles(&field[4 * LANES..], |i, q| store(i, q | bit(field, i) << 4));
}

/// [`five_bits`] in registers.
///
/// # Safety
/// 320 readable bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn five_bits_avx512(field: *const u8) -> [__m512i; 8] {
    let sixteen = _mm512_set1_epi8(16);
    // SAFETY: 64 bytes of bits, 256 of nibbles.
    let (fifth, rows) = unsafe { (masks_avx512(field), both_nibbles_avx512::<4>(field.add(4 * LANES))) };
    std::array::from_fn(|r| _mm512_mask_add_epi8(rows[r], fifth[r], rows[r], sixteen))
}

/// Where a group's quants lie in a field with several quants of `BITS` bits in a byte. `RUN` bytes of a row hold `8 /
/// BITS` times `RUN` weights: the lowest bits of all bytes come first, then the next ones, and so on.
#[derive(Clone, Copy)]
pub(super) struct SubBytes<const BITS: usize, const RUN: usize> {
    /// Packed offset of the group's bytes in the field.
    at: usize,
    /// Which quant of each byte: 0 to `8 / BITS - 1`.
    pub(super) nth: usize,
}

/// Nibbles: `2 * RUN` weights in `RUN` bytes, the first half in the low nibbles.
pub(super) type Nibbles<const RUN: usize> = SubBytes<4, RUN>;
/// Bit pairs as in Q2_K: 128 weights in 32 bytes.
pub(super) type Pairs = SubBytes<2, 32>;
/// Bits as in Q3_K: 256 weights in 32 bytes.
pub(super) type Bits = SubBytes<1, 32>;

impl<const BITS: usize, const RUN: usize> SubBytes<BITS, RUN> {
    /// The quants of group `group` of `F`.
    #[inline]
    pub(super) fn of<F: Format>(group: usize) -> Self {
        const { assert!(F::GROUP <= RUN && RUN.is_multiple_of(F::GROUP), "a group is the same quant of each of its bytes") };
        let (per_byte, first) = (8 / BITS, group * F::GROUP);
        Self { at: (first / (per_byte * RUN) * RUN + first % RUN) * LANES, nth: first / RUN % per_byte }
    }

    /// The quant at position `i`.
    #[inline]
    pub(super) fn get(self, field: &[u8], i: usize) -> u8 {
        field[self.at + i] >> (BITS * self.nth) & ((1 << BITS) - 1)
    }

    /// The bytes that have the quants of vector `r`, and other quants.
    ///
    /// # Safety
    /// `field` must be the whole field of a packed block; the group must have a vector `r`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn bytes(self, field: *const u8, r: usize) -> __m512i {
        // SAFETY: the group's vectors are inside the field.
        unsafe { dword_lanes(field.add(self.at + 64 * r)) }
    }

    /// [`SubBytes::get`] in the first `N` registers, `4 * N` weights of every row.
    ///
    /// # Safety
    /// `field` must be the whole field of a packed block; the group must have `4 * N` weights.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn vectors<const N: usize>(self, field: *const u8) -> [__m512i; 8] {
        let mask = _mm512_set1_epi8((1 << BITS) - 1);
        let mut rows = [_mm512_setzero_si512(); 8];
        for (r, row) in rows[..N].iter_mut().enumerate() {
            // SAFETY: the group has so many vectors.
            *row = unsafe { self.bytes(field, r) };
        }
        let shift = _mm512_set1_epi32((BITS * self.nth) as i32);
        match (BITS, self.nth) {
            // Nibbles: a branch costs less than shifts by a register.
            (4, 0) => {}
            (4, _) => {
                for row in &mut rows[..N] {
                    *row = _mm512_srli_epi16::<4>(*row);
                }
            }
            _ => {
                for row in &mut rows[..N] {
                    *row = _mm512_srlv_epi32(*row, shift);
                }
            }
        }
        for row in &mut rows[..N] {
            *row = _mm512_and_si512(*row, mask);
        }
        rows
    }
}

impl Bits {
    /// The bits of vector `r` as a mask.
    ///
    /// # Safety
    /// As for [`SubBytes::bytes`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn mask(self, field: *const u8, r: usize) -> __mmask64 {
        // SAFETY: the whole field, and a vector that the group has.
        let bytes = unsafe { self.bytes(field, r) };
        _mm512_test_epi8_mask(bytes, _mm512_set1_epi8((1u8 << self.nth) as i8))
    }
}

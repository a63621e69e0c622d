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

/// [`both_nibbles`] in registers, of `4 * VECTORS` bytes per row: low nibbles in the first `VECTORS` registers, high ones
/// in the next.
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

/// Where a group's nibbles lie in a field in which `SPAN` weights of a row are `SPAN / 2` bytes, the first half of them
/// in the low nibbles.
#[derive(Clone, Copy)]
pub(super) struct Nibbles<const SPAN: usize> {
    at: usize,
    is_high: bool,
}

impl<const SPAN: usize> Nibbles<SPAN> {
    /// Those of group `group` of `F`.
    #[inline]
    pub(super) fn of<F: Format>(group: usize) -> Self {
        let first = group * F::GROUP;
        Self { at: (first / SPAN * (SPAN / 2) + first % (SPAN / 2)) * LANES, is_high: first % SPAN >= SPAN / 2 }
    }

    /// The nibble at position `i`.
    #[inline]
    pub(super) fn get(self, field: &[u8], i: usize) -> u8 {
        field[self.at + i] >> (4 * u8::from(self.is_high)) & 15
    }

    /// [`Nibbles::get`] in the first `N` registers, `4 * N` weights of every row.
    ///
    /// # Safety
    /// `field` must be the whole field of a packed block, and the group have `4 * N` weights.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn vectors<const N: usize>(self, field: *const u8) -> [__m512i; 8] {
        let mask = _mm512_set1_epi8(15);
        let mut rows = [_mm512_setzero_si512(); 8];
        // SAFETY: the group's vectors are inside the field.
        let load = |r: usize| unsafe { dword_lanes(field.add(self.at + 64 * r)) };
        if self.is_high {
            (0..N).for_each(|r| rows[r] = _mm512_and_si512(_mm512_srli_epi16::<4>(load(r)), mask));
        } else {
            (0..N).for_each(|r| rows[r] = _mm512_and_si512(load(r), mask));
        }
        rows
    }
}

/// Where 16 weights lie in a field of bit pairs: 128 weights of a row are 32 bytes, quarter `q` of them bits `2q` and
/// `2q + 1`.
#[derive(Clone, Copy)]
pub(super) struct Pairs {
    at: usize,
    /// Which bits of a byte: 0 to 3.
    pub(super) quarter: usize,
}

impl Pairs {
    /// Weights `16 * sixteen..` of the block.
    #[inline]
    pub(super) fn of(sixteen: usize) -> Self {
        Self { at: (sixteen / 8 * 32 + sixteen % 2 * 16) * LANES, quarter: sixteen % 8 / 2 }
    }

    /// The pair at position `i`.
    #[inline]
    pub(super) fn get(self, field: &[u8], i: usize) -> u8 {
        field[self.at + i] >> (2 * self.quarter) & 3
    }

    /// The bytes that have the pairs of vector `r`.
    ///
    /// # Safety
    /// `field` must be the whole field of a packed block; `r` below 4, or 8 if the 32 weights of a quarter are read.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn bytes(self, field: *const u8, r: usize) -> __m512i {
        // SAFETY: 32 bytes of every row are 8 vectors, inside the field.
        unsafe { dword_lanes(field.add(self.at + 64 * r)) }
    }

    /// [`Pairs::get`] in the first `N` registers: 4 for 16 weights, 8 for the 32 of a quarter.
    ///
    /// # Safety
    /// `field` must be the whole field of a packed block.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn vectors<const N: usize>(self, field: *const u8) -> [__m512i; 8] {
        let (shift, mask) = (_mm512_set1_epi32(2 * self.quarter as i32), _mm512_set1_epi8(3));
        let mut rows = [_mm512_setzero_si512(); 8];
        for (r, row) in rows[..N].iter_mut().enumerate() {
            // SAFETY: `r` is below 8.
            *row = _mm512_and_si512(_mm512_srlv_epi32(unsafe { self.bytes(field, r) }, shift), mask);
        }
        rows
    }
}

/// Where a group's bits lie in a field of 32 bytes per row: bit `b` of byte `j` belongs to weight `32 * b + j` of 256.
#[derive(Clone, Copy)]
pub(super) struct Bits {
    at: usize,
    /// Which bit of a byte.
    pub(super) bit: usize,
}

impl Bits {
    /// Those of group `group` of `F`.
    #[inline]
    pub(super) fn of<F: Format>(group: usize) -> Self {
        let first = group * F::GROUP;
        Self { at: first % 32 * LANES, bit: first / 32 }
    }

    /// The bit at position `i`.
    #[inline]
    pub(super) fn get(self, field: &[u8], i: usize) -> u8 {
        field[self.at + i] >> self.bit & 1
    }

    /// The bytes that have the bits of vector `r`.
    ///
    /// # Safety
    /// `field` must be the whole field of a packed block; the group must have a vector `r`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn bytes(self, field: *const u8, r: usize) -> __m512i {
        // SAFETY: the group's vectors are inside the field.
        unsafe { dword_lanes(field.add(self.at + 64 * r)) }
    }

    /// The bits of vector `r` as a mask.
    ///
    /// # Safety
    /// As for [`Bits::bytes`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn mask(self, field: *const u8, r: usize) -> __mmask64 {
        // SAFETY: the whole field, and a vector that the group has.
        let bytes = unsafe { self.bytes(field, r) };
        _mm512_test_epi8_mask(bytes, _mm512_set1_epi8((1u8 << self.bit) as i8))
    }
}

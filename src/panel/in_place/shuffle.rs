//! The same bytes of 16 rows, rearranged in registers into the order of a packed block (AVX-512).

use std::arch::x86_64::*;

use crate::format::LANES;

/// The same bytes of 16 rows.
pub trait RowSource: Copy {
    /// The rows from `bytes` bytes further on.
    fn skip(self, bytes: usize) -> Self;
    /// Address of one row's bytes.
    fn row(&self, lane: usize) -> *const u8;
}

/// 16 rows at equal distances. An address for every fourth row: from there an instruction's operand reaches the next
/// three.
#[derive(Clone, Copy)]
pub struct FullRows {
    fours: [*const u8; 4],
    stride: usize,
}

impl FullRows {
    /// Rows from `first` on, `stride` bytes apart.
    #[inline(always)]
    pub fn new(first: *const u8, stride: usize) -> Self {
        let four = 4 * stride;
        let fours = [first, first.wrapping_add(four), first.wrapping_add(2 * four), first.wrapping_add(3 * four)];
        Self { fours, stride }
    }
}

impl RowSource for FullRows {
    #[inline(always)]
    fn skip(self, bytes: usize) -> Self {
        let [a, b, c, d] = self.fours;
        Self {
            fours: [a.wrapping_add(bytes), b.wrapping_add(bytes), c.wrapping_add(bytes), d.wrapping_add(bytes)],
            ..self
        }
    }

    #[inline(always)]
    fn row(&self, lane: usize) -> *const u8 {
        self.fours[lane / 4].wrapping_add(lane % 4 * self.stride)
    }
}

/// Fewer rows than 16: the last stands in for those that are missing.
#[derive(Clone, Copy)]
pub struct TailRows {
    /// First row.
    pub first: *const u8,
    /// Bytes from one row to the next.
    pub stride: usize,
    /// Number of the last row.
    pub last: usize,
}

impl RowSource for TailRows {
    #[inline(always)]
    fn skip(self, bytes: usize) -> Self {
        Self { first: self.first.wrapping_add(bytes), ..self }
    }

    #[inline(always)]
    fn row(&self, lane: usize) -> *const u8 {
        self.first.wrapping_add(lane.min(self.last) * self.stride)
    }
}

/// Copies one unit of each row: 1, 2 or 4 bytes.
///
/// # Safety
/// `unit` bytes of each row must be readable, 16 times as many at `out` writable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn move_unit<R: RowSource>(rows: &R, unit: usize, out: *mut u8) {
    for lane in 0..LANES {
        let from = rows.row(lane);
        // SAFETY: the row has the unit, and `out` room for that of each row.
        unsafe {
            match unit {
                4 => out.cast::<u32>().add(lane).write_unaligned(from.cast::<u32>().read_unaligned()),
                2 => out.cast::<u16>().add(lane).write_unaligned(from.cast::<u16>().read_unaligned()),
                _ => *out.add(lane) = *from,
            }
        }
    }
}

/// Four double words of each row: vector `i` has double word `i` of all rows.
///
/// # Safety
/// 16 bytes of each row must be readable; AVX-512 must be there.
#[inline]
#[target_feature(enable = "avx512f")]
pub unsafe fn transpose_words<R: RowSource>(rows: &R) -> [__m512i; 4] {
    // SAFETY: the row has 16 bytes.
    let quarter = |row: usize| unsafe { _mm_loadu_si128(rows.row(row).cast()) };
    // Quarter `q` of vector `i` has row `4 q + i`.
    let four = |i: usize| {
        let v = _mm512_castsi128_si512(quarter(i));
        let v = _mm512_inserti32x4::<1>(v, quarter(4 + i));
        let v = _mm512_inserti32x4::<2>(v, quarter(8 + i));
        _mm512_inserti32x4::<3>(v, quarter(12 + i))
    };
    let (a, b, c, d) = (four(0), four(1), four(2), four(3));
    let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab, cd),
        _mm512_unpackhi_epi64(ab, cd),
        _mm512_unpacklo_epi64(ab_high, cd_high),
        _mm512_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// The bytes of 16 double words, one of each row, in the order of a packed block: unit by unit, the rows side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub fn by_units(words: __m512i, unit: usize) -> __m512i {
    match unit {
        4 => words,
        2 => by_halves(words),
        _ => by_bytes(words),
    }
}

/// The low halves of all 16 double words, then the high ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub fn by_halves(v: __m512i) -> __m512i {
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = (i % 16 * 2 + i / 16) as u16;
            i += 1;
        }
        order
    };
    // SAFETY: 64 bytes.
    _mm512_permutexvar_epi16(unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) }, v)
}

/// Byte 0 of all 16 double words, then bytes 1, 2 and 3.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn by_bytes(v: __m512i) -> __m512i {
    let within = _mm512_set4_epi32(0x0f0b_0703, 0x0e0a_0602, 0x0d09_0501, 0x0c08_0400);
    let across = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_permutexvar_epi32(across, _mm512_shuffle_epi8(v, within))
}

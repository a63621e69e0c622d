//! Up to 32 rows of K or V, however they are stored, and how they become tiles of BF16. Rows of K are tile rows as they
//! lie; rows of V are transposed. Values that are not finite stay out of the tiles, and are added to the results of
//! those queries that see them.

use std::arch::x86_64::*;

use super::{F32_LANES, LINE, SIDE};
use crate::panel::bf16::{rounded, split, widened};
use crate::panel::precision::STEP_BYTES;
use crate::panel::transpose::transpose;

/// Bytes of a tile.
pub const TILE_BYTES: usize = 1024;
/// Bytes of a row of a tile.
pub const TILE_ROW_BYTES: usize = 64;

/// The exponent of BF16 numbers that are not finite.
const NOT_FINITE: i16 = 0x7f80;

/// Reads rows of numbers that are stored in one way.
pub trait RowReader {
    /// BF16 numbers that a key becomes: two, or one if it is a BF16.
    const KEY_PLANES: usize = 2;

    /// The numbers from `at` on whose bit is set in `mask`; 0 for the others.
    ///
    /// # Safety
    /// The row must have the numbers that are set; AVX-512 needed.
    unsafe fn lanes(row: *const u8, at: usize, mask: u16) -> __m512;
}

/// Floats.
pub struct F32Row;
/// Half floats.
pub struct F16Row;
/// BF16.
pub struct Bf16Row;

impl RowReader for F32Row {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn lanes(row: *const u8, at: usize, mask: u16) -> __m512 {
        // SAFETY: the row has the numbers in `mask`.
        unsafe { _mm512_maskz_loadu_ps(mask, row.cast::<f32>().add(at)) }
    }
}

impl RowReader for F16Row {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn lanes(row: *const u8, at: usize, mask: u16) -> __m512 {
        // SAFETY: the row has the numbers in `mask`.
        _mm512_cvtph_ps(unsafe { _mm256_maskz_loadu_epi16(mask, row.cast::<i16>().add(at)) })
    }
}

impl RowReader for Bf16Row {
    const KEY_PLANES: usize = 1;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn lanes(row: *const u8, at: usize, mask: u16) -> __m512 {
        // SAFETY: the row has the numbers in `mask`.
        widened(unsafe { _mm256_maskz_loadu_epi16(mask, row.cast::<i16>().add(at)) })
    }
}

/// The words of both halves in turn: word `i` of the lower half, then word `i` of the upper one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub fn interleaved(v: __m512i) -> __m512i {
    static ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = (i / 2 + i % 2 * 16) as u16;
            i += 1;
        }
        order
    };
    // SAFETY: the table has 64 bytes.
    _mm512_permutexvar_epi16(unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) }, v)
}

/// Those of 16 lanes that a row of `len` numbers has from `at` on.
#[inline]
pub fn lanes_from(len: usize, at: usize) -> u16 {
    ((1u32 << len.saturating_sub(at).min(F32_LANES)) - 1) as u16
}

/// Up to 32 rows of a head of the cache; of rows and channels that do not exist, zeros are read.
pub struct CacheRows {
    /// The first row.
    pub data: *const u8,
    /// Bytes from one row to the next.
    pub stride: usize,
    /// Rows that exist: up to 32.
    pub count: usize,
    /// Channels.
    pub width: usize,
    /// Cache lines to prefetch of each of the next 32 rows.
    pub prefetched_lines: usize,
}

impl CacheRows {
    /// 16 channels of row `row`, from `at` on.
    ///
    /// # Safety
    /// Operands: `data` must be valid for `count` rows; AVX-512 needed.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn lanes<R: RowReader>(&self, row: usize, at: usize) -> __m512 {
        let mask = if row < self.count { lanes_from(self.width, at) } else { 0 };
        // SAFETY: operands: the mask has only numbers that the row has.
        unsafe { R::lanes(self.data.wrapping_add(row * self.stride), at, mask) }
    }

    /// Prefetches row `row` of the next 32.
    #[inline]
    fn prefetch_next(&self, row: usize) {
        let from = self.data.wrapping_add((SIDE + row) * self.stride);
        for line in 0..self.prefetched_lines {
            // SAFETY: x86-64 has it; an address that is past the end does no harm.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(LINE * line).cast()) };
        }
    }

    /// Rows of keys as tile rows, in [`RowReader::KEY_PLANES`] planes.
    ///
    /// # Safety
    /// Operands; `out` must have room for the planes of `steps` k-steps.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub unsafe fn put_keys<R: RowReader>(&self, steps: usize, out: *mut u8) {
        for row in 0..SIDE {
            self.prefetch_next(row);
            for step in 0..steps {
                // SAFETY: operands; `out` has this row of every k-step and plane.
                unsafe {
                    let at = step * SIDE;
                    let planes = split(self.lanes::<R>(row, at), self.lanes::<R>(row, at + F32_LANES));
                    let out = out.add(step * STEP_BYTES + row / 16 * TILE_BYTES + row % 16 * TILE_ROW_BYTES);
                    for (plane, row) in planes.into_iter().enumerate().take(R::KEY_PLANES) {
                        _mm512_store_si512(out.add(plane * steps * STEP_BYTES).cast(), row);
                    }
                }
            }
        }
    }

    /// Rows of values as tile columns: `out(plane, tile)` is where 16 channels of a plane go. A value that is not
    /// finite in BF16 becomes zero: multiplied by the zero weight of a query that does not see it, it would make that
    /// query's result NaN. Returns the rows that have such values, a bit each.
    ///
    /// # Safety
    /// Operands; the tiles of `channels` channels must be writable, `pairs` have room for a vector for each of 16 pairs
    /// of rows, each plane and each 16 channels.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub unsafe fn put_values<R: RowReader, const TWO_PLANES: bool>(
        &self,
        channels: usize,
        pairs: *mut __m512i,
        out: impl Fn(usize, usize) -> *mut u8,
    ) -> u32 {
        let tiles = channels / F32_LANES;
        let exponent = _mm512_set1_epi16(NOT_FINITE);
        let mut highest = _mm512_setzero_si512();
        // Row by row, as they lie in memory; then tile by tile.
        for pair in 0..16 {
            self.prefetch_next(2 * pair);
            self.prefetch_next(2 * pair + 1);
            for tile in 0..tiles {
                // SAFETY: operands; `pairs` has this pair of every tile and plane.
                unsafe {
                    let a = self.lanes::<R>(2 * pair, tile * F32_LANES);
                    let b = self.lanes::<R>(2 * pair + 1, tile * F32_LANES);
                    let high = if TWO_PLANES {
                        let planes = split(a, b);
                        pairs.add((tiles + tile) * 16 + pair).write(interleaved(planes[1]));
                        planes[0]
                    } else {
                        rounded(a, b)
                    };
                    pairs.add(tile * 16 + pair).write(interleaved(high));
                    highest = _mm512_max_epu16(highest, _mm512_and_si512(high, exponent));
                }
            }
        }
        let mut rows = 0;
        if _mm512_cmpeq_epi16_mask(highest, exponent) != 0 && cfg!(not(mutant = "nan-values")) {
            // SAFETY: all pairs are written.
            rows = unsafe { zero_non_finite::<TWO_PLANES>(pairs, tiles) };
        }
        for plane in 0..1 + usize::from(TWO_PLANES) {
            for tile in 0..tiles {
                // SAFETY: all pairs are written; the tiles are writable.
                unsafe {
                    let rows = pairs.add((plane * tiles + tile) * 16).cast::<[__m512i; 16]>().read();
                    for (channel, row) in transpose(rows).into_iter().enumerate() {
                        _mm512_store_si512(out(plane, tile).add(channel * TILE_ROW_BYTES).cast(), row);
                    }
                }
            }
        }
        rows
    }

    /// Adds the values of row `row` that [`CacheRows::put_values`] left out to the results of 16 queries: `weight`
    /// times the value, for the queries in `sees`. Results of a channel are [`SIDE`] floats behind those of the one
    /// before.
    ///
    /// # Safety
    /// Operands; `results` must be writable for all channels of the row.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub unsafe fn add_non_finite<R: RowReader>(&self, row: usize, weight: __m512, sees: u16, results: *mut f32) {
        for at in (0..self.width).step_by(F32_LANES) {
            // SAFETY: operands; only lanes of channels that exist are not finite.
            unsafe {
                let values = self.lanes::<R>(row, at);
                let lanes = non_finite(rounded(values, _mm512_setzero_ps()));
                let mut numbers = [0.0; F32_LANES];
                _mm512_storeu_ps(numbers.as_mut_ptr(), values);
                for (lane, value) in numbers.into_iter().enumerate().filter(|(lane, _)| lanes >> lane & 1 == 1) {
                    let to = results.add((at + lane) * SIDE);
                    let sum = _mm512_fmadd_ps(weight, _mm512_set1_ps(value), _mm512_load_ps(to));
                    _mm512_mask_store_ps(to, sees, sum);
                }
            }
        }
    }
}

/// Which of 32 words are BF16 numbers that are not finite.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn non_finite(words: __m512i) -> u32 {
    let exponent = _mm512_set1_epi16(NOT_FINITE);
    _mm512_cmpeq_epi16_mask(_mm512_and_si512(words, exponent), exponent)
}

/// Makes zeros of words that are not finite in 16 pairs of rows; returns the rows that had such words, a bit each.
///
/// # Safety
/// The pairs of `tiles` tiles must be written, in two planes if `TWO_PLANES`.
#[cold]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn zero_non_finite<const TWO_PLANES: bool>(pairs: *mut __m512i, tiles: usize) -> u32 {
    let mut rows = 0;
    for (tile, pair) in (0..tiles).flat_map(|tile| (0..16).map(move |pair| (tile, pair))) {
        // SAFETY: this pair of the tile is written.
        unsafe {
            let at = pairs.add(tile * 16 + pair);
            let words = non_finite(at.read());
            // The words of both rows in turn.
            rows |= u32::from(words & 0x5555_5555 != 0) << (2 * pair)
                | u32::from(words & 0xaaaa_aaaa != 0) << (2 * pair + 1);
            at.write(_mm512_maskz_mov_epi16(!words, at.read()));
            if TWO_PLANES {
                let low = at.add(tiles * 16);
                low.write(_mm512_maskz_mov_epi16(!words, low.read()));
            }
        }
    }
    rows
}

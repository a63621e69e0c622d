//! What the tile unit multiplies: queries, keys and values as BF16 tiles.

use std::arch::x86_64::*;

use super::cache_rows::*;
use super::scratch::{Blocking, Scratch};
use super::{Attention, Element, F32_LANES, Heads, LINE, QueryGroup, SIDE, SUB_BLOCKS, SubBlock};
use crate::panel::bf16::split;
use crate::panel::precision::STEP_BYTES;
use crate::panel::transpose::transpose;

/// Runs `$body` with the type alias `$R` bound to the reader of rows of an element; decoded rows are floats by then.
macro_rules! with_reader {
    ($element:expr, $R:ident => $body:expr) => {
        match $element {
            Element::F16 => {
                type $R = F16Row;
                $body
            }
            Element::Bf16 => {
                type $R = Bf16Row;
                $body
            }
            Element::F32 | Element::Decoded(_) => {
                type $R = F32Row;
                $body
            }
        }
    };
}

impl Heads {
    /// BF16 numbers that a key or value can become.
    pub(super) fn planes(&self) -> usize {
        with_reader!(self.element, R => R::KEY_PLANES)
    }

    /// Rows of a sub-block; decoded into `buffer` if they are stored in blocks.
    ///
    /// # Safety
    /// Operands; the sub-block must exist, `buffer` have room for 32 rows.
    unsafe fn rows(&self, at: SubBlock, buffer: *mut f32) -> CacheRows {
        let (count, width) = ((self.ne[1] - at.first_key).min(SIDE), self.ne[0]);
        let (data, stride) = (self.row(at.first_key, at.head, at.sequence), self.nb[0]);
        let Element::Decoded(to_float) = self.element else {
            let bytes = if matches!(self.element, Element::F32) { 4 } else { 2 };
            return CacheRows { data, stride, count, width, prefetched_lines: (bytes * width).div_ceil(LINE) };
        };
        for i in 0..count {
            // SAFETY: operands: the row is one that `to_float` decodes; the buffer has 32 rows.
            unsafe { to_float(data.wrapping_add(i * stride).cast(), buffer.add(i * width), width as i64) };
        }
        CacheRows { data: buffer.cast_const().cast(), stride: 4 * width, count, width, prefetched_lines: 0 }
    }

    /// Keys of a sub-block as tiles.
    ///
    /// # Safety
    /// Operands; the sub-block must exist, `buffer` have room for 32 rows, `out` for both planes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) unsafe fn put_keys(&self, at: SubBlock, blocking: &Blocking, buffer: *mut f32, out: *mut u8) {
        // SAFETY: operands; both buffers are large enough.
        unsafe {
            let rows = self.rows(at, buffer);
            with_reader!(self.element, R => rows.put_keys::<R>(blocking.steps, out))
        }
    }

    /// Values of a sub-block as sub-block `sub` of the scratch's tiles, but for those that are not finite. Returns the
    /// keys that have such values, a bit each.
    ///
    /// # Safety
    /// Operands, scratch; the sub-block must exist.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) unsafe fn put_values<const TWO_PLANES: bool>(
        &self,
        at: SubBlock,
        blocking: &Blocking,
        sub: usize,
        scratch: &Scratch,
    ) -> u32 {
        let channels = blocking.value_blocks * SIDE;
        let out = |plane: usize, tile: usize| {
            let block = plane * blocking.value_blocks + tile / 2;
            scratch.values.wrapping_add((block * SUB_BLOCKS + sub) * STEP_BYTES + tile % 2 * TILE_BYTES)
        };
        // SAFETY: operands; scratch has room for decoded rows, pairs and tiles.
        unsafe {
            let rows = self.rows(at, scratch.rows);
            with_reader!(self.element, R => rows.put_values::<R, TWO_PLANES>(channels, scratch.pairs, out))
        }
    }

    /// Adds the values of key `key` of a sub-block that are not finite to the results of 16 queries, as
    /// [`CacheRows::add_non_finite`] does.
    ///
    /// # Safety
    /// Operands; the sub-block must exist, `buffer` have room for 32 rows, `results` be writable for all channels.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) unsafe fn add_non_finite(
        &self,
        at: SubBlock,
        key: usize,
        (weight, sees): (__m512, u16),
        buffer: *mut f32,
        results: *mut f32,
    ) {
        // SAFETY: operands; the buffer is large enough, all results are there.
        unsafe {
            let rows = self.rows(at, buffer);
            with_reader!(self.element, R => rows.add_non_finite::<R>(key, weight, sees, results))
        }
    }
}

impl Attention {
    /// The queries of query block `index` of a group, scaled, as tile columns; queries that do not exist are zero.
    ///
    /// # Safety
    /// Operands; the query block must exist, `out` have room for both planes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) unsafe fn put_queries(&self, blocking: &Blocking, group: &QueryGroup, index: usize, out: *mut u8) {
        // Scores are exponents of 2. With a soft cap they become so only after it was applied.
        let scale = if self.softcap > 0.0 { self.scale } else { self.scale * std::f32::consts::LOG2_E };
        let scale = _mm512_set1_ps(scale);
        let width = self.q.ne[0];
        for half in 0..2 {
            let rows: [*const u8; 16] = std::array::from_fn(|lane| {
                let query = index * SIDE + half * F32_LANES + lane;
                let (token, head) = self.token_and_head(group, query.min(group.count - 1));
                self.q.row(token, head, group.sequence)
            });
            let there = group.count.saturating_sub(index * SIDE + half * F32_LANES);
            for step in 0..blocking.steps {
                let mut planes = [[_mm512_setzero_si512(); 16]; 2];
                for (lane, row) in rows.into_iter().enumerate().take(there) {
                    let part = |at| {
                        // SAFETY: operands: the query has the channels in the mask.
                        let x = unsafe { F32Row::lanes(row, at, lanes_from(width, at)) };
                        _mm512_mul_ps(x, scale)
                    };
                    [planes[0][lane], planes[1][lane]] = split(part(step * SIDE), part(step * SIDE + F32_LANES));
                }
                for (plane, rows) in planes.iter().enumerate() {
                    let out = out.wrapping_add((plane * blocking.steps + step) * STEP_BYTES + half * TILE_BYTES);
                    for (pair, row) in transpose(*rows).into_iter().enumerate() {
                        // SAFETY: `out` has this tile of both planes.
                        unsafe { _mm512_store_si512(out.add(pair * TILE_ROW_BYTES).cast(), row) };
                    }
                }
            }
        }
    }
}

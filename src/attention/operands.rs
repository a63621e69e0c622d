//! What the tile unit multiplies: queries, keys and values as BF16 tiles, and which keys a tile of queries sees.

use std::arch::x86_64::*;

use super::{Attention, Element, Group, Heads, Plan, SIDE, SUBS, Scratch};
use crate::panel::bf16::{rounded, split, widened};
use crate::panel::precision::STEP_BYTES;
use crate::panel::transpose::transpose;

/// Bytes of a tile and of one of its rows.
pub const TILE: usize = 1024;
pub const ROW: usize = 64;
/// Lanes of a vector of floats.
const LANES: usize = 16;

/// A tile sees nothing of a sub-block.
pub const HIDDEN: u8 = 0;
/// A tile sees all of a sub-block, unchanged.
pub const CLEAR: u8 = 1;
/// The mask decides which keys are seen, and is added to their scores.
pub const MASKED: u8 = 2;

/// The exponent of numbers that are not finite in BF16.
const NOT_FINITE: i16 = 0x7f80;
/// Minus infinity as a half float.
const HIDES: i16 = 0xfc00_u16 as i16;

/// How a row of numbers is read.
trait Load {
    /// Those from `at` on that `mask` has, 0 for the others.
    ///
    /// # Safety
    /// The row must have them; AVX-512 needed.
    unsafe fn lanes(row: *const u8, at: usize, mask: u16) -> __m512;
}

struct Single;
struct Half;
struct Brain;

impl Load for Single {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn lanes(row: *const u8, at: usize, mask: u16) -> __m512 {
        // SAFETY: promised by the caller.
        unsafe { _mm512_maskz_loadu_ps(mask, row.cast::<f32>().add(at)) }
    }
}

impl Load for Half {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn lanes(row: *const u8, at: usize, mask: u16) -> __m512 {
        // SAFETY: promised by the caller.
        _mm512_cvtph_ps(unsafe { _mm256_maskz_loadu_epi16(mask, row.cast::<i16>().add(at)) })
    }
}

impl Load for Brain {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn lanes(row: *const u8, at: usize, mask: u16) -> __m512 {
        // SAFETY: promised by the caller.
        widened(unsafe { _mm256_maskz_loadu_epi16(mask, row.cast::<i16>().add(at)) })
    }
}

/// Word `i` of the lower half beside word `i` of the upper one.
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
    // SAFETY: 64 bytes.
    _mm512_permutexvar_epi16(unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) }, v)
}

/// The lanes of `len` numbers that are there from `at` on.
#[inline]
pub fn lanes_from(len: usize, at: usize) -> u16 {
    ((1u32 << len.saturating_sub(at).min(LANES)) - 1) as u16
}

/// Up to 32 rows of one head; those that are not there are zero.
struct Rows {
    data: *const u8,
    stride: usize,
    count: usize,
    width: usize,
    /// Cache lines of a row to prefetch of those that follow.
    ahead: usize,
}

impl Rows {
    /// # Safety
    /// As for [`Load::lanes`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn lanes<L: Load>(&self, row: usize, at: usize) -> __m512 {
        let mask = if row < self.count { lanes_from(self.width, at) } else { 0 };
        // SAFETY: promised by the caller.
        unsafe { L::lanes(self.data.wrapping_add(row * self.stride), at, mask) }
    }

    /// Prefetches row `row` of the next 32.
    #[inline]
    fn prefetch_next(&self, row: usize) {
        let from = self.data.wrapping_add((SIDE + row) * self.stride);
        for line in 0..self.ahead {
            // One that is past the end is harmless.
            // SAFETY: x86-64 has it.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(64 * line).cast()) };
        }
    }

    /// Rows of keys as tile rows, so many planes.
    ///
    /// # Safety
    /// The rows must be there, `out` have room for the planes of `steps` steps.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn put_keys<L: Load, const PLANES: usize>(&self, steps: usize, out: *mut u8) {
        for row in 0..SIDE {
            self.prefetch_next(row);
            for step in 0..steps {
                // SAFETY: promised by the caller.
                unsafe {
                    let at = step * SIDE;
                    let planes = split(self.lanes::<L>(row, at), self.lanes::<L>(row, at + LANES));
                    let out = out.add(step * STEP_BYTES + row / 16 * TILE + row % 16 * ROW);
                    for (plane, row) in planes.into_iter().enumerate().take(PLANES) {
                        _mm512_store_si512(out.add(plane * steps * STEP_BYTES).cast(), row);
                    }
                }
            }
        }
    }

    /// Rows of values as tile columns: `out(plane, tile)` is where 16 channels of a plane go. What is not finite in BF16
    /// becomes zero, as weights of zero do not make it so; returns the rows that have such values.
    ///
    /// # Safety
    /// The rows must be there, tiles of `channels` channels be writable, `pairs` have room for 64 bytes of each of 16 pairs of
    /// rows, plane and tile.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn put_values<L: Load>(
        &self,
        channels: usize,
        exact: bool,
        pairs: *mut __m512i,
        out: impl Fn(usize, usize) -> *mut u8,
    ) -> u32 {
        let tiles = channels / LANES;
        let exponent = _mm512_set1_epi16(NOT_FINITE);
        let mut highest = _mm512_setzero_si512();
        // Row by row, as they lie in memory; then tile by tile.
        for pair in 0..16 {
            self.prefetch_next(2 * pair);
            self.prefetch_next(2 * pair + 1);
            for tile in 0..tiles {
                // SAFETY: promised by the caller.
                unsafe {
                    let a = self.lanes::<L>(2 * pair, tile * LANES);
                    let b = self.lanes::<L>(2 * pair + 1, tile * LANES);
                    let high = if exact {
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
            rows = unsafe { without_non_finite(pairs, tiles, exact) };
        }
        for plane in 0..1 + usize::from(exact) {
            for tile in 0..tiles {
                // SAFETY: promised by the caller; all pairs are written.
                unsafe {
                    let rows = pairs.add((plane * tiles + tile) * 16).cast::<[__m512i; 16]>().read();
                    for (channel, row) in transpose(rows).into_iter().enumerate() {
                        _mm512_store_si512(out(plane, tile).add(channel * ROW).cast(), row);
                    }
                }
            }
        }
        rows
    }

    /// Adds what [`Rows::put_values`] left out of row `row` to the results of 16 queries: `weight` times it, to those that
    /// `sees` has. Results of a channel are `stride` floats from those of the one before.
    ///
    /// # Safety
    /// The row must be there, and results of all its channels.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn add_non_finite<L: Load>(&self, row: usize, weight: __m512, sees: u16, results: *mut f32, stride: usize) {
        for at in (0..self.width).step_by(LANES) {
            // SAFETY: promised by the caller.
            unsafe {
                let values = self.lanes::<L>(row, at);
                let lanes = non_finite(rounded(values, _mm512_setzero_ps()));
                let mut numbers = [0.0; LANES];
                _mm512_storeu_ps(numbers.as_mut_ptr(), values);
                for (lane, value) in numbers.into_iter().enumerate().filter(|(lane, _)| lanes >> lane & 1 == 1) {
                    let to = results.add((at + lane) * stride);
                    let sum = _mm512_fmadd_ps(weight, _mm512_set1_ps(value), _mm512_load_ps(to));
                    _mm512_mask_store_ps(to, sees, sum);
                }
            }
        }
    }
}

/// Which words are not finite in BF16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn non_finite(words: __m512i) -> u32 {
    let exponent = _mm512_set1_epi16(NOT_FINITE);
    _mm512_cmpeq_epi16_mask(_mm512_and_si512(words, exponent), exponent)
}

/// Makes zeros of what is not finite in 16 pairs of 32 rows, two planes if `exact`; returns the rows that had such words.
///
/// # Safety
/// The pairs must be there.
#[cold]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn without_non_finite(pairs: *mut __m512i, tiles: usize, exact: bool) -> u32 {
    let mut rows = 0;
    for (tile, pair) in (0..tiles).flat_map(|tile| (0..16).map(move |pair| (tile, pair))) {
        // SAFETY: promised by the caller.
        unsafe {
            let at = pairs.add(tile * 16 + pair);
            let words = non_finite(at.read());
            rows |= u32::from(words & 0x5555_5555 != 0) << (2 * pair)
                | u32::from(words & 0xaaaa_aaaa != 0) << (2 * pair + 1);
            at.write(_mm512_maskz_mov_epi16(!words, at.read()));
            if exact {
                let low = at.add(tiles * 16);
                low.write(_mm512_maskz_mov_epi16(!words, low.read()));
            }
        }
    }
    rows
}

impl Heads {
    /// Planes of BF16 that a number of a cache can be.
    pub(super) fn planes(&self) -> usize {
        if matches!(self.element, Element::Bf16) { 1 } else { 2 }
    }

    /// Up to 32 rows from `row` on, decoded into `buffer` if need be.
    ///
    /// # Safety
    /// Row, head and sequence must exist; `buffer` must have room for 32 rows.
    unsafe fn rows(&self, (row, head, sequence): (usize, usize, usize), buffer: *mut f32) -> Rows {
        let (count, width) = ((self.ne[1] - row).min(SIDE), self.ne[0]);
        let (data, stride) = (self.row(row, head, sequence), self.nb[0]);
        let Element::Decoded(to_float) = self.element else {
            let bytes = if matches!(self.element, Element::F32) { 4 } else { 2 };
            return Rows { data, stride, count, width, ahead: (bytes * width).div_ceil(64) };
        };
        for i in 0..count {
            // SAFETY: promised by the caller.
            unsafe { to_float(data.wrapping_add(i * stride).cast(), buffer.add(i * width), width as i64) };
        }
        Rows { data: buffer.cast_const().cast(), stride: 4 * width, count, width, ahead: 0 }
    }

    /// 32 keys from `place` on (row, head, sequence) as tiles.
    ///
    /// # Safety
    /// The place must exist; `buffer` have room for 32 rows, `out` for both planes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) unsafe fn put_keys(&self, place: (usize, usize, usize), plan: &Plan, buffer: *mut f32, out: *mut u8) {
        // SAFETY: promised by the caller.
        unsafe {
            let rows = self.rows(place, buffer);
            match self.element {
                Element::F16 => rows.put_keys::<Half, 2>(plan.steps, out),
                Element::Bf16 => rows.put_keys::<Brain, 1>(plan.steps, out),
                Element::F32 | Element::Decoded(_) => rows.put_keys::<Single, 2>(plan.steps, out),
            }
        }
    }

    /// 32 values from `place` on as sub-block `sub` of the scratch's tiles, two planes if `exact`, but for those that are
    /// not finite. Returns the keys that have such.
    ///
    /// # Safety
    /// The place must exist.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) unsafe fn put_values(
        &self,
        place: (usize, usize, usize),
        plan: &Plan,
        sub: usize,
        exact: bool,
        scratch: &Scratch,
    ) -> u32 {
        let channels = plan.blocks * SIDE;
        let out = |plane: usize, tile: usize| {
            let block = plane * plan.blocks + tile / 2;
            scratch.values.wrapping_add((block * SUBS + sub) * STEP_BYTES + tile % 2 * TILE)
        };
        // SAFETY: promised by the caller.
        unsafe {
            let rows = self.rows(place, scratch.rows);
            match self.element {
                Element::F16 => rows.put_values::<Half>(channels, exact, scratch.pairs, out),
                Element::Bf16 => rows.put_values::<Brain>(channels, exact, scratch.pairs, out),
                Element::F32 | Element::Decoded(_) => rows.put_values::<Single>(channels, exact, scratch.pairs, out),
            }
        }
    }

    /// Adds the values of key `key` of the 32 from `place` on that are not finite to the results of 16 queries, as
    /// [`Rows::add_non_finite`] does.
    ///
    /// # Safety
    /// The place must exist; `buffer` have room for 32 rows, `results` be there for all channels.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) unsafe fn add_non_finite(
        &self,
        place: (usize, usize, usize),
        key: usize,
        (weight, sees): (__m512, u16),
        buffer: *mut f32,
        results: *mut f32,
    ) {
        // SAFETY: promised by the caller.
        unsafe {
            let rows = self.rows(place, buffer);
            match self.element {
                Element::F16 => rows.add_non_finite::<Half>(key, weight, sees, results, SIDE),
                Element::Bf16 => rows.add_non_finite::<Brain>(key, weight, sees, results, SIDE),
                Element::F32 | Element::Decoded(_) => rows.add_non_finite::<Single>(key, weight, sees, results, SIDE),
            }
        }
    }
}

impl Attention {
    /// The queries of tile `index` of a group, scaled, as tile columns; queries that do not exist are zero.
    ///
    /// # Safety
    /// The group must exist, `out` have room for both planes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) unsafe fn put_queries(&self, plan: &Plan, group: &Group, index: usize, out: *mut u8) {
        // Scores are powers of 2, unless something is done to them first.
        let scale = if self.softcap > 0.0 { self.scale } else { self.scale * std::f32::consts::LOG2_E };
        let scale = _mm512_set1_ps(scale);
        let width = self.q.ne[0];
        for half in 0..2 {
            let rows: [*const u8; 16] = std::array::from_fn(|lane| {
                let query = index * SIDE + half * LANES + lane;
                let (token, head) = self.token_and_head(group, query.min(group.count - 1));
                self.q.row(token, head, group.sequence)
            });
            let there = group.count.saturating_sub(index * SIDE + half * LANES);
            for step in 0..plan.steps {
                let mut planes = [[_mm512_setzero_si512(); 16]; 2];
                for (lane, row) in rows.into_iter().enumerate().take(there) {
                    let part = |at| {
                        // SAFETY: the row has the channels of the mask.
                        let x = unsafe { Single::lanes(row, at, lanes_from(width, at)) };
                        _mm512_mul_ps(x, scale)
                    };
                    [planes[0][lane], planes[1][lane]] = split(part(step * SIDE), part(step * SIDE + LANES));
                }
                for (plane, rows) in planes.iter().enumerate() {
                    let out = out.wrapping_add((plane * plan.steps + step) * STEP_BYTES + half * TILE);
                    for (pair, row) in transpose(*rows).into_iter().enumerate() {
                        // SAFETY: promised by the caller.
                        unsafe { _mm512_store_si512(out.add(pair * ROW).cast(), row) };
                    }
                }
            }
        }
    }

    /// Writes down what each of `tiles` tiles sees of the keys from `from` on; whether any sees any.
    ///
    /// # Safety
    /// The mask must have a row for every token; `seen` room for all.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn look(&self, group: &Group, tiles: usize, from: usize, seen: *mut u8) -> bool {
        let keys = self.k.ne[1];
        let mut any = false;
        for tile in 0..tiles {
            let first = tile * SIDE;
            let last = (first + SIDE).min(group.count) - 1;
            let tokens = self.token_and_head(group, first).0..=self.token_and_head(group, last).0;
            for sub in 0..SUBS {
                let key = from + sub * SIDE;
                let there = keys.saturating_sub(key).min(SIDE);
                // SAFETY: promised by the caller; the keys are there.
                let state = unsafe { self.look_at(tokens.clone(), key, there) };
                any |= state != HIDDEN;
                // SAFETY: promised by the caller.
                unsafe { *seen.add(tile * SUBS + sub) = state };
            }
        }
        any
    }

    /// What some tokens see of `there` keys from `key` on.
    ///
    /// # Safety
    /// As for [`Attention::look`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn look_at(&self, tokens: std::ops::RangeInclusive<usize>, key: usize, there: usize) -> u8 {
        if there == 0 {
            return HIDDEN;
        }
        let Some(mask) = self.mask else {
            return if there == SIDE { CLEAR } else { MASKED };
        };
        let (mut hidden, mut clear) = (true, there == SIDE);
        for token in tokens {
            let lanes = ((1u64 << there) - 1) as u32;
            let row = mask.data.wrapping_add(token * mask.stride).cast::<i16>();
            // SAFETY: promised by the caller.
            let v = unsafe { _mm512_mask_loadu_epi16(_mm512_set1_epi16(HIDES), lanes, row.wrapping_add(key)) };
            hidden &= _mm512_cmpneq_epi16_mask(v, _mm512_set1_epi16(HIDES)) == 0;
            // Minus zero is none.
            clear &= _mm512_test_epi16_mask(v, _mm512_set1_epi16(0x7fff)) == 0;
        }
        match (hidden, clear) {
            (true, _) => HIDDEN,
            (_, true) => CLEAR,
            _ => MASKED,
        }
    }

    /// The mask of a tile of queries for 32 keys from `key` on, keys as rows; keys that do not exist are hidden.
    ///
    /// # Safety
    /// As for [`Attention::look`]; `out` must have room for 32 rows of 32 floats.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn put_mask(&self, group: &Group, index: usize, key: usize, out: *mut f32) {
        let there = self.k.ne[1].saturating_sub(key).min(SIDE);
        for half in 0..2 {
            for part in 0..2 {
                let mut rows = [_mm512_setzero_si512(); 16];
                for (lane, row) in rows.iter_mut().enumerate() {
                    let query = (index * SIDE + half * LANES + lane).min(group.count - 1);
                    let (token, _) = self.token_and_head(group, query);
                    let lanes = lanes_from(there, part * LANES);
                    let hides = _mm256_set1_epi16(HIDES);
                    let v = match self.mask {
                        None => _mm256_mask_mov_epi16(hides, lanes, _mm256_setzero_si256()),
                        Some(mask) => {
                            let at = mask.data.wrapping_add(token * mask.stride + 2 * (key + part * LANES));
                            // SAFETY: promised by the caller.
                            unsafe { _mm256_mask_loadu_epi16(hides, lanes, at.cast()) }
                        }
                    };
                    *row = _mm512_castps_si512(_mm512_cvtph_ps(v));
                }
                for (i, row) in transpose(rows).into_iter().enumerate() {
                    // SAFETY: promised by the caller.
                    unsafe { _mm512_storeu_si512(out.add((part * LANES + i) * SIDE + half * LANES).cast(), row) };
                }
            }
        }
    }
}

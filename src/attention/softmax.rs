//! One query block, 32 queries, meets one key block, 128 keys:
//!
//! ```text
//! for every sub-block of 32 keys that the query block sees:
//!     scores = K Q^T                    (exponents of 2: the scale has log2(e) in it)
//!     scores = softcap * tanh(scores), scores += mask, where there are such
//! for each half of the query block (16 queries, the lanes of a vector):
//!     largest = the largest score so far, if it is 2^8 above the one that weights are relative to
//!     results, totals *= 2^(largest before - largest)
//!     weights = 2^(scores - largest), as BF16 tiles
//!     totals += weights
//! for every 32 channels of V:
//!     results += V^T weights^T
//! ```
//!
//! After the last key block results are divided by the totals. A row of scores, weights or results is one key or
//! channel for 32 queries.

use std::arch::x86_64::*;

use super::cache_rows::{TILE_BYTES, TILE_ROW_BYTES, interleaved, lanes_from};
use super::mask::{Visible, apply_mask, sees};
use super::scratch::{Blocking, QueryBlock, Scratch};
use super::{Attention, F32_LANES, MAX_WIDTH, QueryGroup, SIDE, SUB_BLOCKS};
use crate::kernel::glu::exp16;
use crate::kernel::tile_gemm::{SAME, accumulate};
use crate::panel::bf16::{rounded, split};
use crate::panel::precision::STEP_BYTES;
use crate::panel::transpose::transpose;

/// By how many powers of 2 a score must be above the one that weights are relative to before results are scaled anew.
const RESCALE_ABOVE: f32 = 8.0;

/// Offsets of the tiles of keys and queries whose products add up to scores.
pub struct ScoreSteps {
    all: [[u32; 2]; 3 * MAX_WIDTH / SIDE],
    count: usize,
}

impl ScoreSteps {
    /// For `steps` k-steps. Queries have two planes, high and low; keys have `key_planes`, two or one. For every
    /// k-step: low key x high query (if keys have two planes), high x high, high key x low query.
    pub fn new(steps: usize, key_planes: usize) -> Self {
        let mut all = [[0; 2]; 3 * MAX_WIDTH / SIDE];
        let mut count = 0;
        for step in 0..steps {
            let (high, low) = ((step * STEP_BYTES) as u32, ((steps + step) * STEP_BYTES) as u32);
            let products: &[_] =
                if key_planes == 2 { &[[low, high], [high, SAME], [SAME, low]] } else { &[[high, high], [SAME, low]] };
            let products = if cfg!(mutant = "coarse-queries") { &products[..products.len() - 1] } else { products };
            all[count..][..products.len()].copy_from_slice(products);
            count += products.len();
        }
        Self { all, count }
    }
}

/// Multiplies the results of 16 queries.
///
/// # Safety
/// Scratch; AVX-512 needed.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn rescale(block: &QueryBlock, blocking: &Blocking, half: usize, factor: __m512) {
    for channel in 0..blocking.value_blocks * SIDE {
        let at = block.result(channel, half);
        // SAFETY: scratch: the query block has all these channels.
        unsafe { _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), factor)) };
    }
}

/// 2^x, with a relative error of at most 4e-6.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn exp2(x: __m512) -> __m512 {
    /// 2^f for 0 <= f < 1, near the best polynomial of degree 4 that is exact at 0; highest power first.
    const POLYNOMIAL: [f32; 5] = [0.013_678_497, 0.051_799_6, 0.241_508_98, 0.693_012_9, 1.0];
    // x - floor(x)
    let f = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF }>(x);
    let mut p = _mm512_set1_ps(POLYNOMIAL[0]);
    for c in &POLYNOMIAL[1..] {
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(*c));
    }
    _mm512_scalef_ps(p, x)
}

impl Attention {
    /// Takes the key block in the scratch, keys from `first_key` on, into query block `index` of a group.
    ///
    /// # Safety
    /// Operands, scratch, full tiles; the query block must exist.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn query_block<const TWO_PLANES: bool>(
        &self,
        blocking: &Blocking,
        group: &QueryGroup,
        index: usize,
        first_key: usize,
        steps: &ScoreSteps,
        scratch: &Scratch,
    ) {
        let block = QueryBlock::new(blocking, scratch, index);
        let mut seen = [0; SUB_BLOCKS];
        let mut count = 0;
        // SAFETY: operands and full tiles; scratch: tiles of queries and keys, scores and a mask.
        unsafe {
            for sub in 0..SUB_BLOCKS {
                let visible = *scratch.visible.add(index * SUB_BLOCKS + sub);
                if visible == Visible::Nothing {
                    continue;
                }
                seen[count] = sub;
                count += 1;
                let scores = scratch.scores.add(sub * SIDE * SIDE);
                let keys = scratch.keys.add(sub * blocking.query_bytes());
                accumulate::<true>(scores.cast(), keys, block.queries, &steps.all[..steps.count]);
                if self.softcap > 0.0 {
                    self.cap(scores);
                }
                if visible == Visible::Masked {
                    self.put_mask(group, index, first_key + sub * SIDE, scratch.mask);
                    apply_mask(scores, scratch.mask);
                }
            }
        }
        let seen = &seen[..count];
        if seen.is_empty() {
            return;
        }
        // SAFETY: operands, scratch and full tiles; the scores of the sub-blocks in `seen` are there.
        unsafe {
            for half in 0..2 {
                self.weights::<TWO_PLANES>(blocking, &block, half, seen, scratch);
            }
            self.add_values::<TWO_PLANES>(blocking, &block, seen, scratch);
            for &sub in seen {
                if *scratch.non_finite.add(sub) != 0 {
                    self.add_non_finite::<TWO_PLANES>(blocking, group, index, (first_key, sub), scratch);
                }
            }
        }
    }

    /// Adds the values of the sub-blocks in `seen`, multiplied by their weights, to the results.
    ///
    /// # Safety
    /// Scratch, full tiles; weights and values of these sub-blocks must be there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn add_values<const TWO_PLANES: bool>(
        &self,
        blocking: &Blocking,
        block: &QueryBlock,
        seen: &[usize],
        scratch: &Scratch,
    ) {
        let mut products = [[0; 2]; 3 * SUB_BLOCKS];
        for value_block in 0..blocking.value_blocks {
            let mut used = 0;
            for &sub in seen {
                let value = |plane: usize| {
                    (((plane * blocking.value_blocks + value_block) * SUB_BLOCKS + sub) * STEP_BYTES) as u32
                };
                let weight = |plane: usize| ((plane * SUB_BLOCKS + sub) * STEP_BYTES) as u32;
                // High x high, high value x low weight, low value x high weight.
                let all = [[value(0), weight(0)], [SAME, weight(1)], [value(1), weight(0)]];
                let count = if TWO_PLANES { 1 + self.v.planes() } else { 1 };
                products[used..used + count].copy_from_slice(&all[..count]);
                used += count;
            }
            let results = block.result(value_block * SIDE, 0).cast();
            // SAFETY: scratch: the tiles that the products name, and 32 channels of results. Full tiles.
            unsafe { accumulate::<false>(results, scratch.values, scratch.weights, &products[..used]) };
        }
    }

    /// Adds the values of sub-block `sub` that are not finite to the results of the queries that see them. Results of
    /// other queries stay as they are.
    ///
    /// # Safety
    /// Operands, scratch; the weights of the query block must be there.
    #[cold]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn add_non_finite<const TWO_PLANES: bool>(
        &self,
        blocking: &Blocking,
        group: &QueryGroup,
        index: usize,
        (first_key, sub): (usize, usize),
        scratch: &Scratch,
    ) {
        let block = QueryBlock::new(blocking, scratch, index);
        let at = self.sub_block(group, first_key + sub * SIDE);
        // SAFETY: operands: the sub-block exists; scratch: its mask, weights and results.
        unsafe {
            self.put_mask(group, index, at.first_key, scratch.mask);
            let keys = *scratch.non_finite.add(sub);
            for key in (0..SIDE).filter(|key| keys >> key & 1 == 1) {
                for half in 0..2 {
                    let mask = _mm512_load_ps(scratch.mask.add(key * SIDE + half * F32_LANES));
                    let pairs = scratch.weights.add(sub * STEP_BYTES + half * TILE_BYTES + key / 2 * TILE_ROW_BYTES);
                    let words = |plane: usize| {
                        let pair = _mm512_load_si512(pairs.add(plane * SUB_BLOCKS * STEP_BYTES).cast());
                        let upper = if key % 2 == 0 { _mm512_slli_epi32::<16>(pair) } else { pair };
                        _mm512_castsi512_ps(_mm512_and_si512(upper, _mm512_set1_epi32(-0x1_0000)))
                    };
                    let weight = if TWO_PLANES { _mm512_add_ps(words(0), words(1)) } else { words(0) };
                    self.v.add_non_finite(at, key, (weight, sees(mask)), scratch.rows, block.result(0, half));
                }
            }
        }
    }

    /// Bounds scores by the soft cap, and makes them exponents of 2.
    ///
    /// # Safety
    /// 32 rows of 32 scores, from the beginning of a cache line on; AVX-512 needed.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn cap(&self, scores: *mut f32) {
        let bound = _mm512_set1_ps(self.softcap * std::f32::consts::LOG2_E);
        let (one, two) = (_mm512_set1_ps(1.0), _mm512_set1_ps(2.0));
        for i in 0..SIDE * SIDE / F32_LANES {
            // SAFETY: `i` is below the number of vectors.
            unsafe {
                let at = scores.add(i * F32_LANES);
                // tanh(x) = 1 - 2 / (1 + e^2x)
                let e = exp16(_mm512_mul_ps(two, _mm512_load_ps(at)));
                let tanh = _mm512_sub_ps(one, _mm512_div_ps(two, _mm512_add_ps(one, e)));
                _mm512_store_ps(at, _mm512_mul_ps(bound, tanh));
            }
        }
    }

    /// Turns the scores of 16 queries into weights, and adds them up; results so far are scaled to a new largest score.
    ///
    /// # Safety
    /// Scratch; the scores of the sub-blocks in `seen` must be there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn weights<const TWO_PLANES: bool>(
        &self,
        blocking: &Blocking,
        block: &QueryBlock,
        half: usize,
        seen: &[usize],
        scratch: &Scratch,
    ) {
        // SAFETY: scratch: scores, weights, and what is kept of the query block.
        unsafe {
            let scores = |sub: usize, key: usize| {
                _mm512_load_ps(scratch.scores.add((sub * SIDE + key) * SIDE + half * F32_LANES))
            };
            let largest = block.largest.add(half * F32_LANES);
            let before = _mm512_load_ps(largest);
            let mut maxima = [before; 4];
            for &sub in seen {
                for key in (0..SIDE).step_by(4) {
                    for (i, max) in maxima.iter_mut().enumerate() {
                        *max = _mm512_max_ps(*max, scores(sub, key + i));
                    }
                }
            }
            let [a, b, c, d] = maxima;
            let max = _mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d));
            let grown = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(max, _mm512_add_ps(before, _mm512_set1_ps(RESCALE_ABOVE)));
            let grown = if cfg!(mutant = "shared-largest") && grown != 0 { u16::MAX } else { grown };
            let max = _mm512_mask_mov_ps(before, grown, max);
            _mm512_store_ps(largest, max);
            let factor = exp2(_mm512_sub_ps(before, max));
            let totals = block.totals.add(half * F32_LANES);
            let mut total = [_mm512_mul_ps(_mm512_load_ps(totals), factor), _mm512_setzero_ps()];
            for &sub in seen {
                for pair in 0..SIDE / 2 {
                    let weight = |key| exp2(_mm512_sub_ps(scores(sub, key), max));
                    let (a, b) = (weight(2 * pair), weight(2 * pair + 1));
                    let to = scratch.weights.add(sub * STEP_BYTES + half * TILE_BYTES + pair * TILE_ROW_BYTES);
                    let summands = if TWO_PLANES {
                        let planes = split(a, b);
                        _mm512_store_si512(to.cast(), interleaved(planes[0]));
                        _mm512_store_si512(to.add(SUB_BLOCKS * STEP_BYTES).cast(), interleaved(planes[1]));
                        [a, b]
                    } else {
                        let both = interleaved(rounded(a, b));
                        _mm512_store_si512(to.cast(), both);
                        let high = _mm512_and_si512(both, _mm512_set1_epi32(-0x1_0000));
                        [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(both)), _mm512_castsi512_ps(high)]
                    };
                    total[0] = _mm512_add_ps(total[0], summands[0]);
                    total[1] = _mm512_add_ps(total[1], summands[1]);
                }
            }
            _mm512_store_ps(totals, _mm512_add_ps(total[0], total[1]));
            if _mm512_cmpneq_ps_mask(factor, _mm512_set1_ps(1.0)) != 0 {
                rescale(block, blocking, half, factor);
            }
        }
    }

    /// Divides by the sums of weights, and writes the results of query block `index` of a group.
    ///
    /// # Safety
    /// Operands, scratch; the query block must exist, and no other thread write its results.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn finish(&self, group: &QueryGroup, index: usize, block: &QueryBlock) {
        let width = self.v.ne[0];
        for half in 0..2 {
            let first = index * SIDE + half * F32_LANES;
            // SAFETY: scratch; operands: the output has these channels of the queries that exist.
            unsafe {
                let factor = self.last_factor(group, first, block, half);
                for channel in (0..width).step_by(F32_LANES) {
                    let rows = std::array::from_fn(|i| {
                        let result = _mm512_load_ps(block.result(channel + i, half));
                        _mm512_castps_si512(_mm512_mul_ps(result, factor))
                    });
                    let there = group.count.saturating_sub(first);
                    for (lane, row) in transpose(rows).into_iter().enumerate().take(there) {
                        let (token, head) = self.token_and_head(group, first + lane);
                        let nb = self.output.nb;
                        let offset = head * nb[0] + token * nb[1] + group.sequence * nb[2] + 4 * channel;
                        let to = self.output.data.add(offset).cast();
                        _mm512_mask_storeu_epi32(to, lanes_from(width, channel), row);
                    }
                }
            }
        }
    }

    /// What the results of 16 queries from `first` on are multiplied by in the end: 1 over the sum of weights (with
    /// that of the sink), or 0 for queries that saw no key.
    ///
    /// # Safety
    /// Operands, scratch.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq")]
    unsafe fn last_factor(&self, group: &QueryGroup, first: usize, block: &QueryBlock, half: usize) -> __m512 {
        // SAFETY: scratch: what is kept of the query block; operands: a sink for every head.
        unsafe {
            let total = _mm512_load_ps(block.totals.add(half * F32_LANES));
            let one = _mm512_set1_ps(1.0);
            if self.sinks.is_null() {
                let seen = _mm512_cmpneq_ps_mask(total, _mm512_setzero_ps());
                return _mm512_maskz_div_ps(seen, one, total);
            }
            let sinks: [f32; F32_LANES] = std::array::from_fn(|lane| {
                let (_, head) = self.token_and_head(group, (first + lane).min(group.count - 1));
                *self.sinks.add(head) * std::f32::consts::LOG2_E
            });
            let sinks = _mm512_loadu_ps(sinks.as_ptr());
            let largest = _mm512_load_ps(block.largest.add(half * F32_LANES));
            let max = _mm512_max_ps(largest, sinks);
            let factor = exp2(_mm512_sub_ps(largest, max));
            let total = _mm512_fmadd_ps(total, factor, exp2(_mm512_sub_ps(sinks, max)));
            _mm512_maskz_div_ps(_mm512_cmpneq_ps_mask(total, _mm512_setzero_ps()), factor, total)
        }
    }
}

//! One tile of 32 queries: scores, softmax as it goes along, results.

use std::arch::x86_64::*;

use super::operands::{HIDDEN, MASKED, ROW, TILE, interleaved, lanes_from};
use super::{Attention, Group, MAX_WIDTH, Plan, SIDE, SUBS, Scratch};
use crate::kernel::glu::exp16;
use crate::kernel::tile_gemm::{SAME, accumulate};
use crate::panel::bf16::{rounded, split};
use crate::panel::precision::STEP_BYTES;
use crate::panel::transpose::transpose;

/// Lanes of a vector of floats: half the queries.
const LANES: usize = 16;
/// By how many powers of 2 scores may be above the one that weights are relative to, before results are scaled anew.
const SLACK: f32 = 8.0;
/// No score is less: no key was seen.
const NONE: f32 = f32::MIN;

/// Offsets of the tiles of keys and queries whose products are scores.
pub struct Steps {
    all: [[u32; 2]; 3 * MAX_WIDTH / SIDE],
    count: usize,
}

impl Steps {
    /// For `steps` steps of queries with two planes and keys with as many or one: low x high, if there is a low one,
    /// high x high and high x low of each.
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

/// Where a tile's state is.
pub struct TileState {
    pub queries: *mut u8,
    results: *mut f32,
    largest: *mut f32,
    totals: *mut f32,
}

impl TileState {
    pub fn new(plan: &Plan, scratch: &Scratch, index: usize) -> Self {
        Self {
            queries: scratch.queries.wrapping_add(index * plan.query_bytes()),
            results: scratch.results.wrapping_add(index * plan.result_floats()),
            largest: scratch.largest.wrapping_add(index * SIDE),
            totals: scratch.totals.wrapping_add(index * SIDE),
        }
    }

    /// # Safety
    /// The tile must be in the scratch.
    pub unsafe fn begin(&self, plan: &Plan) {
        // SAFETY: promised by the caller.
        unsafe {
            std::slice::from_raw_parts_mut(self.results, plan.result_floats()).fill(0.0);
            std::slice::from_raw_parts_mut(self.largest, SIDE).fill(NONE);
            std::slice::from_raw_parts_mut(self.totals, SIDE).fill(0.0);
        }
    }

    /// Multiplies the results of 16 queries.
    ///
    /// # Safety
    /// The tile must be in the scratch; AVX-512 needed.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn rescale(&self, plan: &Plan, half: usize, factor: __m512) {
        for row in 0..plan.blocks * SIDE {
            let at = self.results.wrapping_add(row * SIDE + half * LANES);
            // SAFETY: promised by the caller.
            unsafe { _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), factor)) };
        }
    }
}

/// 2^x, to 4e-6 of it.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn exp2(x: __m512) -> __m512 {
    /// Near the best of degree 4 for 2^f, 0 <= f < 1, that is exact at 0; highest power first.
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
    /// Takes the scratch's keys and values, those from `from` on, into tile `index` of a group.
    ///
    /// # Safety
    /// The tile must exist, the keys be there; full tiles configured.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn tile<const EXACT: bool>(
        &self,
        plan: &Plan,
        group: &Group,
        index: usize,
        from: usize,
        steps: &Steps,
        scratch: &Scratch,
    ) {
        let tile = TileState::new(plan, scratch, index);
        let mut visible = [0; SUBS];
        let mut count = 0;
        // SAFETY: promised by the caller.
        unsafe {
            for sub in 0..SUBS {
                let state = *scratch.seen.add(index * SUBS + sub);
                if state == HIDDEN {
                    continue;
                }
                visible[count] = sub;
                count += 1;
                let scores = scratch.scores.add(sub * SIDE * SIDE);
                let keys = scratch.keys.add(sub * plan.query_bytes());
                accumulate::<true>(scores.cast(), keys, tile.queries, &steps.all[..steps.count]);
                if self.softcap > 0.0 {
                    self.cap(scores);
                }
                if state == MASKED {
                    self.put_mask(group, index, from + sub * SIDE, scratch.mask);
                    apply_mask(scores, scratch.mask);
                }
            }
            if count == 0 {
                return;
            }
            for half in 0..2 {
                self.exp_and_sum::<EXACT>(plan, &tile, half, &visible[..count], scratch);
            }
            let mut products = [[0; 2]; 3 * SUBS];
            for block in 0..plan.blocks {
                let mut used = 0;
                for &sub in &visible[..count] {
                    let value = |plane: usize| (((plane * plan.blocks + block) * SUBS + sub) * STEP_BYTES) as u32;
                    let weight = |plane: usize| ((plane * SUBS + sub) * STEP_BYTES) as u32;
                    let all = [[value(0), weight(0)], [SAME, weight(1)], [value(1), weight(0)]];
                    let planes = if EXACT { 1 + self.v.planes() } else { 1 };
                    products[used..used + planes].copy_from_slice(&all[..planes]);
                    used += planes;
                }
                let results = tile.results.add(block * SIDE * SIDE).cast();
                accumulate::<false>(results, scratch.values, scratch.weights, &products[..used]);
            }
            for &sub in &visible[..count] {
                if *scratch.non_finite.add(sub) != 0 {
                    self.add_non_finite::<EXACT>(plan, group, index, (from, sub), scratch);
                }
            }
        }
    }

    /// Adds the values of sub-block `sub` that are not finite to the results of the queries that see them: those of others
    /// stay as they are.
    ///
    /// # Safety
    /// As for [`Attention::tile`], whose weights must be in the scratch.
    #[cold]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn add_non_finite<const EXACT: bool>(
        &self,
        plan: &Plan,
        group: &Group,
        index: usize,
        (from, sub): (usize, usize),
        scratch: &Scratch,
    ) {
        let tile = TileState::new(plan, scratch, index);
        let place = (from + sub * SIDE, group.head, self.cache_sequence(group));
        // SAFETY: promised by the caller.
        unsafe {
            self.put_mask(group, index, place.0, scratch.mask);
            let keys = *scratch.non_finite.add(sub);
            for key in (0..SIDE).filter(|key| keys >> key & 1 == 1) {
                for half in 0..2 {
                    let mask = _mm512_load_ps(scratch.mask.add(key * SIDE + half * LANES));
                    let pairs = scratch.weights.add(sub * STEP_BYTES + half * TILE + key / 2 * ROW);
                    let words = |plane: usize| {
                        let pair = _mm512_load_si512(pairs.add(plane * SUBS * STEP_BYTES).cast());
                        let upper = if key % 2 == 0 { _mm512_slli_epi32::<16>(pair) } else { pair };
                        _mm512_castsi512_ps(_mm512_and_si512(upper, _mm512_set1_epi32(-0x1_0000)))
                    };
                    let weight = if EXACT { _mm512_add_ps(words(0), words(1)) } else { words(0) };
                    let results = tile.results.add(half * LANES);
                    self.v.add_non_finite(place, key, (weight, seen(mask)), scratch.rows, results);
                }
            }
        }
    }

    /// Scores bounded by the soft cap, as powers of 2.
    ///
    /// # Safety
    /// 32 rows of 32 scores; AVX-512 needed.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn cap(&self, scores: *mut f32) {
        let bound = _mm512_set1_ps(self.softcap * std::f32::consts::LOG2_E);
        let (one, two) = (_mm512_set1_ps(1.0), _mm512_set1_ps(2.0));
        for i in 0..SIDE * SIDE / LANES {
            // SAFETY: promised by the caller.
            unsafe {
                let at = scores.add(i * LANES);
                // tanh(x) = 1 - 2 / (1 + e^2x)
                let e = exp16(_mm512_mul_ps(two, _mm512_load_ps(at)));
                let tanh = _mm512_sub_ps(one, _mm512_div_ps(two, _mm512_add_ps(one, e)));
                _mm512_store_ps(at, _mm512_mul_ps(bound, tanh));
            }
        }
    }

    /// From the scores of 16 queries to weights; results so far are scaled to the new largest score.
    ///
    /// # Safety
    /// As for [`Attention::tile`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn exp_and_sum<const EXACT: bool>(
        &self,
        plan: &Plan,
        tile: &TileState,
        half: usize,
        visible: &[usize],
        scratch: &Scratch,
    ) {
        // SAFETY: promised by the caller.
        unsafe {
            let scores =
                |sub: usize, row: usize| _mm512_load_ps(scratch.scores.add((sub * SIDE + row) * SIDE + half * LANES));
            let largest = tile.largest.add(half * LANES);
            let before = _mm512_load_ps(largest);
            let mut maxima = [before; 4];
            for &sub in visible {
                for row in (0..SIDE).step_by(4) {
                    for (i, max) in maxima.iter_mut().enumerate() {
                        *max = _mm512_max_ps(*max, scores(sub, row + i));
                    }
                }
            }
            let [a, b, c, d] = maxima;
            let max = _mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d));
            let grown = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(max, _mm512_add_ps(before, _mm512_set1_ps(SLACK)));
            let grown = if cfg!(mutant = "shared-largest") && grown != 0 { u16::MAX } else { grown };
            let max = _mm512_mask_mov_ps(before, grown, max);
            _mm512_store_ps(largest, max);
            let factor = exp2(_mm512_sub_ps(before, max));
            let totals = tile.totals.add(half * LANES);
            let mut total = [_mm512_mul_ps(_mm512_load_ps(totals), factor), _mm512_setzero_ps()];
            for &sub in visible {
                for pair in 0..SIDE / 2 {
                    let weight = |row| exp2(_mm512_sub_ps(scores(sub, row), max));
                    let (a, b) = (weight(2 * pair), weight(2 * pair + 1));
                    let to = scratch.weights.add(sub * STEP_BYTES + half * TILE + pair * ROW);
                    let summands = if EXACT {
                        let planes = split(a, b);
                        _mm512_store_si512(to.cast(), interleaved(planes[0]));
                        _mm512_store_si512(to.add(SUBS * STEP_BYTES).cast(), interleaved(planes[1]));
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
                tile.rescale(plan, half, factor);
            }
        }
    }

    /// Divides by the sums of weights, and writes the results of tile `index` of a group.
    ///
    /// # Safety
    /// As for [`Attention::tile`]; nobody else may write these results.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn finish(&self, group: &Group, index: usize, tile: &TileState) {
        let width = self.v.ne[0];
        for half in 0..2 {
            let first = index * SIDE + half * LANES;
            // SAFETY: promised by the caller.
            unsafe {
                let factor = self.last_factor(group, first, tile, half);
                for channel in (0..width).step_by(LANES) {
                    let rows = std::array::from_fn(|i| {
                        let at = tile.results.wrapping_add((channel + i) * SIDE + half * LANES);
                        _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(at), factor))
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

    /// What results of 16 queries from `first` on are multiplied with in the end: 0 for those that saw no key.
    ///
    /// # Safety
    /// As for [`Attention::finish`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq")]
    unsafe fn last_factor(&self, group: &Group, first: usize, tile: &TileState, half: usize) -> __m512 {
        // SAFETY: promised by the caller.
        unsafe {
            let total = _mm512_load_ps(tile.totals.add(half * LANES));
            let one = _mm512_set1_ps(1.0);
            if self.sinks.is_null() {
                let seen = _mm512_cmpneq_ps_mask(total, _mm512_setzero_ps());
                return _mm512_maskz_div_ps(seen, one, total);
            }
            let sinks: [f32; LANES] = std::array::from_fn(|lane| {
                let (_, head) = self.token_and_head(group, (first + lane).min(group.count - 1));
                *self.sinks.add(head) * std::f32::consts::LOG2_E
            });
            let sinks = _mm512_loadu_ps(sinks.as_ptr());
            let largest = _mm512_load_ps(tile.largest.add(half * LANES));
            let max = _mm512_max_ps(largest, sinks);
            let factor = exp2(_mm512_sub_ps(largest, max));
            let total = _mm512_fmadd_ps(total, factor, exp2(_mm512_sub_ps(sinks, max)));
            _mm512_maskz_div_ps(_mm512_cmpneq_ps_mask(total, _mm512_setzero_ps()), factor, total)
        }
    }
}

/// The lanes whose mask lets them see; NaN does.
#[inline]
#[target_feature(enable = "avx512f")]
fn seen(mask: __m512) -> u16 {
    _mm512_cmpneq_ps_mask(mask, _mm512_set1_ps(f32::NEG_INFINITY))
}

/// Adds the mask to the scores of keys that are seen. Those of others are minus infinity, whatever they were: NaN or
/// infinity plus minus infinity would not be.
///
/// # Safety
/// 32 rows of 32 scores and of mask; AVX-512 needed.
#[target_feature(enable = "avx512f")]
unsafe fn apply_mask(scores: *mut f32, mask: *const f32) {
    let unit = _mm512_set1_ps(std::f32::consts::LOG2_E);
    for i in 0..SIDE * SIDE / LANES {
        // SAFETY: promised by the caller.
        unsafe {
            let (at, mask) = (scores.add(i * LANES), _mm512_load_ps(mask.add(i * LANES)));
            let sum = _mm512_fmadd_ps(mask, unit, _mm512_load_ps(at));
            // Where it is not seen, the mask is minus infinity.
            let sees = if cfg!(mutant = "mask-added") { u16::MAX } else { seen(mask) };
            _mm512_store_ps(at, _mm512_mask_mov_ps(mask, sees, sum));
        }
    }
}

//! What the mask lets queries see. It is looked at before keys and values are read: a sub-block that nobody in a query
//! block sees is not multiplied, and a key block that nobody in the group sees is not read.

use std::arch::x86_64::*;
use std::ops::RangeInclusive;

use super::cache_rows::lanes_from;
use super::{Attention, F32_LANES, QueryGroup, SIDE, SUB_BLOCKS};
use crate::panel::transpose::transpose;

/// What a query block sees of a sub-block.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visible {
    /// No query sees any key.
    Nothing,
    /// All queries see all keys, and the mask adds nothing to their scores.
    All,
    /// The mask must be added to the scores.
    Masked,
}

/// Minus infinity as a half float: hides a key.
const HIDES: i16 = 0xfc00_u16 as i16;

impl Attention {
    /// Writes down what each query block of a group sees of the key block from `first_key` on; whether any sees any
    /// key.
    ///
    /// # Safety
    /// Operands; `visible` must have room for all query blocks.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn look_at_mask(&self, group: &QueryGroup, first_key: usize, visible: *mut Visible) -> bool {
        let keys = self.k.ne[1];
        let mut any = false;
        for index in 0..group.query_blocks() {
            let first = index * SIDE;
            let last = (first + SIDE).min(group.count) - 1;
            let tokens = self.token_and_head(group, first).0..=self.token_and_head(group, last).0;
            for sub in 0..SUB_BLOCKS {
                let key = first_key + sub * SIDE;
                let there = keys.saturating_sub(key).min(SIDE);
                // SAFETY: operands: the group's tokens, and keys that are there; there is room for all query blocks.
                unsafe {
                    let seen = self.visible(tokens.clone(), key, there);
                    any |= seen != Visible::Nothing;
                    visible.add(index * SUB_BLOCKS + sub).write(seen);
                }
            }
        }
        any
    }

    /// What these tokens see of `there` keys from `key` on.
    ///
    /// # Safety
    /// Operands; the tokens and keys must exist.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn visible(&self, tokens: RangeInclusive<usize>, key: usize, there: usize) -> Visible {
        if there == 0 {
            return Visible::Nothing;
        }
        let Some(mask) = self.mask else {
            return if there == SIDE { Visible::All } else { Visible::Masked };
        };
        let (mut nothing, mut all) = (true, there == SIDE);
        for token in tokens {
            let lanes = ((1u64 << there) - 1) as u32;
            let row = mask.data.wrapping_add(token * mask.stride).cast::<i16>();
            // SAFETY: operands: the mask has these keys of this token.
            let v = unsafe { _mm512_mask_loadu_epi16(_mm512_set1_epi16(HIDES), lanes, row.wrapping_add(key)) };
            nothing &= _mm512_cmpneq_epi16_mask(v, _mm512_set1_epi16(HIDES)) == 0;
            // Minus zero adds nothing either.
            all &= _mm512_test_epi16_mask(v, _mm512_set1_epi16(0x7fff)) == 0;
        }
        match (nothing, all) {
            (true, _) => Visible::Nothing,
            (_, true) => Visible::All,
            _ => Visible::Masked,
        }
    }

    /// The mask of a query block for 32 keys from `key` on, keys as rows; keys that do not exist are hidden.
    ///
    /// # Safety
    /// Operands; the query block must exist, `out` have room for 32 rows of 32 floats.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn put_mask(&self, group: &QueryGroup, index: usize, key: usize, out: *mut f32) {
        let there = self.k.ne[1].saturating_sub(key).min(SIDE);
        for half in 0..2 {
            for part in 0..2 {
                let mut rows = [_mm512_setzero_si512(); 16];
                for (lane, row) in rows.iter_mut().enumerate() {
                    let query = (index * SIDE + half * F32_LANES + lane).min(group.count - 1);
                    let (token, _) = self.token_and_head(group, query);
                    let lanes = lanes_from(there, part * F32_LANES);
                    let hides = _mm256_set1_epi16(HIDES);
                    let v = match self.mask {
                        None => _mm256_mask_mov_epi16(hides, lanes, _mm256_setzero_si256()),
                        Some(mask) => {
                            let at = mask.data.wrapping_add(token * mask.stride + 2 * (key + part * F32_LANES));
                            // SAFETY: operands: the mask has the keys in `lanes` of this token.
                            unsafe { _mm256_mask_loadu_epi16(hides, lanes, at.cast()) }
                        }
                    };
                    *row = _mm512_castps_si512(_mm512_cvtph_ps(v));
                }
                for (i, row) in transpose(rows).into_iter().enumerate() {
                    let offset = (part * F32_LANES + i) * SIDE + half * F32_LANES;
                    // SAFETY: 32 rows of 32 floats.
                    unsafe { _mm512_storeu_si512(out.add(offset).cast(), row) };
                }
            }
        }
    }
}

/// The queries whose mask lets them see a key; NaN does.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn sees(mask: __m512) -> u16 {
    _mm512_cmpneq_ps_mask(mask, _mm512_set1_ps(f32::NEG_INFINITY))
}

/// Adds the mask to the scores of keys that are seen. Those of hidden keys become minus infinity, whatever they were:
/// NaN or infinity plus minus infinity would not be.
///
/// # Safety
/// 32 rows of 32 scores and of mask, each from the beginning of a cache line on; AVX-512 needed.
#[target_feature(enable = "avx512f")]
pub unsafe fn apply_mask(scores: *mut f32, mask: *const f32) {
    let unit = _mm512_set1_ps(std::f32::consts::LOG2_E);
    for i in 0..SIDE * SIDE / F32_LANES {
        // SAFETY: `i` is below the number of vectors.
        unsafe {
            let (at, mask) = (scores.add(i * F32_LANES), _mm512_load_ps(mask.add(i * F32_LANES)));
            let sum = _mm512_fmadd_ps(mask, unit, _mm512_load_ps(at));
            let seen = if cfg!(mutant = "mask-added") { u16::MAX } else { sees(mask) };
            // The mask of a hidden key is minus infinity.
            _mm512_store_ps(at, _mm512_mask_mov_ps(mask, seen, sum));
        }
    }
}

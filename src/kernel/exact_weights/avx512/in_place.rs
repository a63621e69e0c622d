//! Weights in place, up to 8 rows of activations. Rows of the host are packed into scratch that stays in the
//! first-level cache, and multiplied from there:
//!
//! ```text
//! for every 16 rows of weights:
//!     for every KC block of 256 channels:
//!         prefetch the KC block after the next
//!         pack the KC block into scratch
//!         add it times all rows of activations to the sums in registers      (micro)
//! ```

use std::arch::x86_64::*;

use super::super::operands::Operands;
use super::micro::{Direct, micro, with_row_count};
use crate::cpu::Avx512;
use crate::format::{Format, LANES};
use crate::panel::in_place::WeightRows;
use crate::panel::weight_source::PackedPanels;

/// Channels that are packed at a time.
pub const KC_IN_PLACE: usize = 256;
const _: () = assert!(KC_IN_PLACE.is_multiple_of(256), "whole blocks of any type");

/// KC blocks ahead of the packing that weights are prefetched (1 is as good, 4 is worse).
const BLOCKS_AHEAD: usize = 2;

/// # Safety
/// As for [`run`](super::super::run), with 1 to 8 rows.
pub unsafe fn run<F: Format>(_proof: Avx512, operands: &Operands<'_, WeightRows>, scratch: *mut u8) {
    for panel in 0..operands.task.panel_count() {
        // SAFETY: the proof stands for the features; the task has the panel.
        unsafe { with_row_count!(operands.task.rows.len(), MR => pack_and_multiply::<F, MR>(operands, panel, scratch)) }
    }
}

/// Panel `panel` times `MR` rows of activations.
///
/// # Safety
/// As for [`run`]; the task must have the panel and `MR` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn pack_and_multiply<F: Format, const MR: usize>(
    operands: &Operands<'_, WeightRows>,
    panel: usize,
    scratch: *mut u8,
) {
    let Operands { task, act, weights } = operands;
    let row = task.rows.start;
    let tile = act.tile(row / LANES);
    let mut source = Direct::<1, 0>::new(PackedPanels { data: scratch, stride: 0 });
    let k = task.k;
    let mut acc = [[_mm512_setzero_ps(); MR]; 1];
    for start in (0..k).step_by(KC_IN_PLACE) {
        let channels = (k - start).min(KC_IN_PLACE);
        prefetch::<F>(weights, k, panel, start + BLOCKS_AHEAD * KC_IN_PLACE);
        // SAFETY: the rows have these whole blocks; the scratch has room for a packed KC block.
        unsafe {
            weights.pack::<F>(panel, start / F::BLOCK, channels / F::BLOCK, scratch);
            micro::<F, _, 1, MR>(&mut source, channels / F::BLOCK, start, &tile, row % LANES, &mut acc);
        }
    }
    for (m, acc) in acc[0].iter().enumerate() {
        // SAFETY: a valid task has the columns of the mask in each of its rows.
        unsafe { _mm512_mask_storeu_ps(task.dst_row(row + m).add(panel * LANES), task.mask(panel), *acc) };
    }
}

/// Prefetches the KC block that begins with `channel`, of the panel's 16 rows; past their end, of the next 16 rows.
#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch<F: Format>(weights: &WeightRows, k: usize, panel: usize, channel: usize) {
    let (panel, channel) =
        if channel < k { (panel, channel) } else { (panel + 1, (channel - k) / KC_IN_PLACE * KC_IN_PLACE) };
    let from = weights.data.wrapping_add(panel * LANES * weights.stride);
    let (block, bytes) = (channel / F::BLOCK, const { KC_IN_PLACE / F::BLOCK * F::BYTES });
    // The KC blocks of interleaved rows are contiguous.
    let interleave = weights.interleave;
    for lane in 0..LANES {
        let (first, within) = (lane & !(interleave - 1), lane & (interleave - 1));
        let from = from.wrapping_add(first * weights.stride + block * interleave * F::BYTES + within * bytes);
        for line in 0..bytes.div_ceil(64) {
            // A prefetch past the end of the weights is harmless.
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(line * 64).cast());
        }
    }
}

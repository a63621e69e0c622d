//! AVX-512 VNNI. Few rows read the packed panels directly: this is token generation, bound by memory bandwidth. More
//! rows read panels that were unpacked into scratch once.
//!
//! ```text
//! in registers:  for every 4, 2 or 1 panels (so that their memory latencies overlap):
//!                    for every 8 rows:
//!                        result = micro-kernel over all of K
//! in scratch:    for every panel:
//!                    for every KC block of 16,384 channels:
//!                        unpack it into scratch
//!                        for every 8 rows:
//!                            result += micro-kernel over the KC block
//! ```

mod in_place;
mod micro;

use std::arch::x86_64::*;

use super::operands::{Operands, Unpacked, kc_blocks};
use crate::cpu::Avx512;
use crate::format::{Format, LANES};
use crate::panel::weight_source::PackedPanels;
pub use in_place::{KC_IN_PLACE, run as run_in_place};
use micro::{Direct, micro, with_row_count};

/// Bytes ahead of the reads that packed weights are prefetched, per panel.
const PREFETCH: usize = 2048;

/// For few rows: weights are unpacked in registers.
///
/// # Safety
/// As for [`super::run`].
pub unsafe fn in_registers<F: Format>(_proof: Avx512, operands: &Operands<'_, PackedPanels>) {
    // SAFETY: the proof stands for the features; the task is valid.
    unsafe { few_rows::<F>(operands) }
}

/// For many rows: weights are unpacked into scratch, once for all rows.
///
/// # Safety
/// As for [`super::run`].
pub unsafe fn in_scratch<F: Format>(_proof: Avx512, operands: &Operands<'_, PackedPanels>, scratch: *mut u8) {
    // SAFETY: the proof stands for the features; the task is valid.
    unsafe { many_rows::<F>(operands, scratch) }
}

/// All panels, as many at once as leave registers for the sums of the rows. More than 8 rows read them again, from
/// cache.
///
/// # Safety
/// As for [`super::run`], on a CPU with AVX-512 VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn few_rows<F: Format>(operands: &Operands<'_, PackedPanels>) {
    let task = operands.task;
    let panels = task.panel_count();
    let at_once = if task.rows.len() <= 4 { 4 } else { 2 };
    let mut panel = 0;
    while panel < panels {
        let np = if panel + at_once <= panels { at_once } else { 1 };
        for row in task.rows.clone().step_by(8) {
            // SAFETY: the task has the panels and rows; 8 rows from a multiple of 8 on lie in one tile of 16.
            unsafe {
                match (np, (task.rows.end - row).min(8)) {
                    (4, 1) => direct::<F, 4, 1>(operands, panel, row),
                    (4, 2) => direct::<F, 4, 2>(operands, panel, row),
                    (4, 3) => direct::<F, 4, 3>(operands, panel, row),
                    (4, _) => direct::<F, 4, 4>(operands, panel, row),
                    (2, rows) => with_row_count!(rows, MR => direct::<F, 2, MR>(operands, panel, row)),
                    (_, rows) => with_row_count!(rows, MR => direct::<F, 1, MR>(operands, panel, row)),
                }
            }
        }
        panel += np;
    }
}

/// `NP` panels from `panel` on times `MR` rows from `row` on.
///
/// # Safety
/// As for [`super::run`]; the task must have the panels and rows, and the rows must lie in one tile of activations.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn direct<F: Format, const NP: usize, const MR: usize>(
    operands: &Operands<'_, PackedPanels>,
    panel: usize,
    row: usize,
) {
    let Operands { task, act, weights } = operands;
    let mut acc = [[_mm512_setzero_ps(); MR]; NP];
    let mut source = Direct::<NP, PREFETCH>::new(PackedPanels { data: weights.panel(panel), ..*weights });
    let tile = act.tile(row / LANES);
    // SAFETY: the panels have all of K, the tile the rows, and a valid task the columns of the masks in each row.
    unsafe {
        micro::<F, _, NP, MR>(&mut source, task.k / F::BLOCK, 0, &tile, row % LANES, &mut acc);
        for (p, acc) in acc.iter().enumerate() {
            for (m, acc) in acc.iter().enumerate() {
                let out = task.dst_row(row + m).add((panel + p) * LANES);
                _mm512_mask_storeu_ps(out, task.mask(panel + p), *acc);
            }
        }
    }
}

/// # Safety
/// As for [`super::run`], on a CPU with AVX-512 VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn many_rows<F: Format>(operands: &Operands<'_, PackedPanels>, scratch: *mut u8) {
    let task = operands.task;
    for panel in 0..task.panel_count() {
        for (start, len) in kc_blocks(task.k) {
            let mut unpacked = Unpacked { base: scratch, groups: len / F::GROUP, group: F::GROUP };
            // SAFETY: the task has the panel. Every step stays inside one tile of 16 rows: rows start at a multiple of
            // 32, and steps are 8 except at the very end.
            unsafe {
                unpack::<F, false>(operands.weights.panel(panel), start, &unpacked, 0);
                let mut row = task.rows.start;
                while row < task.rows.end {
                    let step = match task.rows.end - row {
                        8.. => 8,
                        4.. => 4,
                        2.. => 2,
                        _ => 1,
                    };
                    match step {
                        8 => add_unpacked::<F, 8>(operands, &mut unpacked, start, panel, row),
                        4 => add_unpacked::<F, 4>(operands, &mut unpacked, start, panel, row),
                        2 => add_unpacked::<F, 2>(operands, &mut unpacked, start, panel, row),
                        _ => add_unpacked::<F, 1>(operands, &mut unpacked, start, panel, row),
                    }
                    row += step;
                }
            }
        }
    }
}

/// The KC block of panel `panel` that begins with channel `start`, times `MR` rows from `row` on; added to the result,
/// unless it is the first KC block. The panel was unpacked as number 0 of `source`.
///
/// # Safety
/// As for [`direct`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn add_unpacked<F: Format, const MR: usize>(
    operands: &Operands<'_, PackedPanels>,
    source: &mut Unpacked,
    start: usize,
    panel: usize,
    row: usize,
) {
    let task = operands.task;
    let tile = operands.act.tile(row / LANES);
    let mask = task.mask(panel);
    let mut acc = [[_mm512_setzero_ps(); MR]; 1];
    // SAFETY: the KC block was unpacked, the tile has the rows, and a valid task the columns of the mask in each row.
    unsafe {
        let out = |m: usize| task.dst_row(row + m).add(panel * LANES);
        if start > 0 {
            for (m, acc) in acc[0].iter_mut().enumerate() {
                *acc = _mm512_maskz_loadu_ps(mask, out(m));
            }
        }
        let blocks = source.groups * F::GROUP / F::BLOCK;
        micro::<F, _, 1, MR>(source, blocks, start, &tile, row % LANES, &mut acc);
        for (m, acc) in acc[0].iter().enumerate() {
            _mm512_mask_storeu_ps(out(m), mask, *acc);
        }
    }
}

/// Unpacks the KC block of a packed panel that begins with channel `start` as number `p` of `out`; quants are signed
/// for tiles, unsigned for VNNI.
///
/// # Safety
/// `panel` must be a whole packed panel that has the KC block; `out` be writable for it; AVX-512 must be there.
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn unpack<F: Format, const SIGNED: bool>(panel: *const u8, start: usize, out: &Unpacked, p: usize) {
    let groups = F::BLOCK / F::GROUP;
    let zero_point = _mm512_set1_epi8(F::ZERO_POINT as i8);
    for g in 0..out.groups {
        let at = start / F::GROUP + g;
        // SAFETY: the panel and `out` have the group.
        unsafe {
            let block = panel.add(at / groups * (LANES * F::BYTES));
            let rows = F::quants_avx512(block, at % groups);
            for (r, row) in rows[..F::GROUP / 4].iter().enumerate() {
                let row = if SIGNED { _mm512_sub_epi8(*row, zero_point) } else { *row };
                _mm512_store_si512(out.quants(p, g).add(64 * r).cast(), row);
            }
            let (scale, min) = F::scales_avx512(block, at % groups);
            _mm512_store_ps(out.scales(p, g), scale);
            _mm512_store_ps(out.mins(p, g), min);
        }
    }
}

//! AMX-INT8: C tiles of 32x32 results, one group of K per round.
//!
//! ```text
//! for every two panels (NR = 32 columns):
//!     for every KC block of 16,384 channels:
//!         unpack both panels into scratch
//!         for every 32 rows (MR):
//!             for every two groups:
//!                 dots of both groups = 4 TDPBSSD each                  (int32, stored)
//!                 meanwhile: scale the dots of the two groups before, add them to the f32 sums
//!             write the sums to the result
//! ```

use std::arch::asm;
use std::arch::x86_64::*;

use super::operands::{Operands, Unpacked, kc_blocks};
use super::{avx512, sums};
use crate::cpu::Amx;
use crate::cpu::tile::{TILE_ROWS, TileUnit};
use crate::format::{ACT_BLOCK, Format, LANES};
use crate::kernel::{TILE_NR, Task};
use crate::panel::activations::Tile;
use crate::panel::weight_source::PackedPanels;

/// Rows of a C tile.
const MR: usize = 2 * TILE_ROWS;
/// Bytes of the int32 dots of one group: 32 rows of 32 columns.
const DOTS_BYTES: usize = MR * TILE_NR * 4;
/// Groups that are scaled at once: halves the loads and stores of the sums.
const GROUPS_AT_ONCE: usize = 2;
/// Scratch for a C tile: two sets of dots (one is filled while the other is read), and the f32 sums.
pub const SCRATCH_BYTES: usize = 2 * GROUPS_AT_ONCE * DOTS_BYTES + MR * TILE_NR * 4;

/// # Safety
/// As for [`super::run`].
pub unsafe fn run<F: Format>(proof: Amx, operands: &Operands<'_, PackedPanels>, scratch: *mut u8) {
    let mut unit = TileUnit::enter(proof, F::GROUP);
    // SAFETY: an AMX CPU has the vector features; the task is valid, and the scratch is large enough.
    unsafe { all_panels::<F>(&mut unit, operands, scratch) }
}

/// # Safety
/// As for [`super::run`], on a CPU with AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn all_panels<F: Format>(unit: &mut TileUnit, operands: &Operands<'_, PackedPanels>, scratch: *mut u8) {
    let Operands { task, act, weights } = operands;
    let panels = task.panel_count();
    for pair in (0..panels).step_by(2) {
        for (start, len) in kc_blocks(task.k) {
            let unpacked =
                Unpacked { base: scratch.wrapping_add(SCRATCH_BYTES), groups: len / F::GROUP, group: F::GROUP };
            for p in 0..2 {
                // An odd last panel is multiplied twice and stored once.
                let panel = (pair + p).min(panels - 1);
                // SAFETY: the task has the panel, and the scratch two unpacked ones.
                unsafe { avx512::unpack::<F, true>(weights.panel(panel), start, &unpacked, p) };
            }
            for row in task.rows.clone().step_by(MR) {
                let rows = (task.rows.end - row).min(MR);
                unit.set_rows(rows);
                let mut pass = KcPass {
                    upper: act.tile(row / TILE_ROWS),
                    lower: if rows > TILE_ROWS { Some(act.tile(row / TILE_ROWS + 1)) } else { None },
                    rows,
                    first_group: start / F::GROUP,
                    unpacked,
                    dots: scratch,
                    sums: scratch.wrapping_add(2 * GROUPS_AT_ONCE * DOTS_BYTES).cast(),
                };
                // SAFETY: the task has the rows and the panel; the tile unit is configured for them.
                unsafe {
                    pass.start_sums(task, row, pair);
                    pass.multiply::<F>();
                    sums::store(task, row, rows, pair, pass.sums);
                }
            }
        }
    }
}

/// One C tile (up to 32 rows times two panels) and its operands in one KC block.
///
/// It is *ready* if its pointers are valid and the tile unit is configured for `rows` rows and the group. All its
/// functions need that.
struct KcPass {
    /// Rows 0 to 15.
    upper: Tile,
    /// Rows 16 to 31, if there are so many.
    lower: Option<Tile>,
    rows: usize,
    /// Number of the KC block's first group among the groups of the activations.
    first_group: usize,
    unpacked: Unpacked,
    dots: *mut u8,
    sums: *mut f32,
}

impl KcPass {
    /// Adds the products of all groups of the KC block to the sums.
    ///
    /// # Safety
    /// The pass must be ready; AVX-512 must be there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn multiply<F: Format>(&mut self) {
        let groups = self.unpacked.groups;
        let rounds = groups / GROUPS_AT_ONCE;
        // The products of round i run while the dots of round i - 1 are scaled.
        // SAFETY: the pass is ready; groups stay below `groups`.
        unsafe {
            for round in 0..=rounds {
                let set = round % 2 * GROUPS_AT_ONCE;
                if round < rounds {
                    for r in 0..GROUPS_AT_ONCE {
                        self.dot::<F>(round * GROUPS_AT_ONCE + r, set + r);
                    }
                }
                if round > 0 {
                    self.scale::<F, GROUPS_AT_ONCE>((round - 1) * GROUPS_AT_ONCE, GROUPS_AT_ONCE - set);
                }
            }
            for g in rounds * GROUPS_AT_ONCE..groups {
                self.dot::<F>(g, 0);
                self.scale::<F, 1>(g, 0);
            }
        }
    }

    /// Multiplies group `g` of the KC block; the dots go to slot `slot`.
    ///
    /// # Safety
    /// As for [`KcPass::multiply`]; the KC block must have the group.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn dot<F: Format>(&self, g: usize, slot: usize) {
        let ga = self.first_group + g;
        let (b, within) = (ga * F::GROUP / ACT_BLOCK, ga * F::GROUP % ACT_BLOCK);
        let activations = |t: &Tile| t.quants.wrapping_add(b * t.rows * ACT_BLOCK + within);
        let (w0, w1) = (self.unpacked.quants(0, g), self.unpacked.quants(1, g));
        let out = self.dots.wrapping_add(slot * DOTS_BYTES);
        let upper = activations(&self.upper);
        // SAFETY: the pass is ready. Each asm block loads, multiplies and stores; it expects no tile state but the
        // configuration, and leaves none that is needed. Compilers never use tile registers.
        unsafe {
            match &self.lower {
                Some(lower) => asm!(
                    "tilezero tmm0",
                    "tileloadd tmm4, [{upper} + {act}*1]",
                    "tileloadd tmm6, [{w0} + {row}*1]",
                    "tilezero tmm1",
                    "tdpbssd tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{w1} + {row}*1]",
                    "tilezero tmm2",
                    "tdpbssd tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{lower} + {act}*1]",
                    "tilezero tmm3",
                    "tdpbssd tmm2, tmm5, tmm6",
                    "tdpbssd tmm3, tmm5, tmm7",
                    "tilestored [{out} + {result}*1], tmm0",
                    "tilestored [{out} + {result}*1 + 64], tmm1",
                    "tilestored [{out} + {result}*1 + 2048], tmm2",
                    "tilestored [{out} + {result}*1 + 2112], tmm3",
                    upper = in(reg) upper, lower = in(reg) activations(lower), w0 = in(reg) w0, w1 = in(reg) w1,
                    out = in(reg) out, act = in(reg) ACT_BLOCK, row = in(reg) 64usize, result = in(reg) TILE_NR * 4,
                    options(nostack, preserves_flags)
                ),
                None => asm!(
                    "tilezero tmm0",
                    "tileloadd tmm4, [{upper} + {act}*1]",
                    "tileloadd tmm6, [{w0} + {row}*1]",
                    "tilezero tmm1",
                    "tdpbssd tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{w1} + {row}*1]",
                    "tdpbssd tmm1, tmm4, tmm7",
                    "tilestored [{out} + {result}*1], tmm0",
                    "tilestored [{out} + {result}*1 + 64], tmm1",
                    upper = in(reg) upper, w0 = in(reg) w0, w1 = in(reg) w1,
                    out = in(reg) out, act = in(reg) ACT_BLOCK, row = in(reg) 64usize, result = in(reg) TILE_NR * 4,
                    options(nostack, preserves_flags)
                ),
            }
        }
    }

    /// Adds the dots of groups `g..g + R`, in slots `slot..slot + R`, to the sums.
    ///
    /// # Safety
    /// As for [`KcPass::multiply`]; the KC block must have the groups.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scale<F: Format, const R: usize>(&mut self, g: usize, slot: usize) {
        // SAFETY: the KC block has the groups.
        let (scales, mins): ([[__m512; 2]; R], [[__m512; 2]; R]) = unsafe {
            (
                std::array::from_fn(|r| std::array::from_fn(|p| _mm512_load_ps(self.unpacked.scales(p, g + r)))),
                std::array::from_fn(|r| std::array::from_fn(|p| _mm512_load_ps(self.unpacked.mins(p, g + r)))),
            )
        };
        for (base, tile) in [(0, Some(&self.upper)), (TILE_ROWS, self.lower.as_ref())] {
            let Some(tile) = tile else { continue };
            for i in 0..tile.rows {
                let row = base + i;
                // SAFETY: the pass is ready: `sums` and `dots` have 32 rows, the activations row i and the groups.
                unsafe {
                    let sums = self.sums.add(row * TILE_NR);
                    let mut acc = [_mm512_load_ps(sums), _mm512_load_ps(sums.add(LANES))];
                    for r in 0..R {
                        let ga = self.first_group + g + r;
                        let d = *tile.scales.add(ga * F::GROUP / ACT_BLOCK * tile.rows + i);
                        let dots = self.dots.add((slot + r) * DOTS_BYTES).cast::<i32>().add(row * TILE_NR);
                        let ds = if F::HAS_MIN { d * *tile.sums.add(ga * tile.rows + i) as f32 } else { 0.0 };
                        for p in 0..2 {
                            let dot = _mm512_cvtepi32_ps(_mm512_load_si512(dots.add(p * LANES).cast()));
                            acc[p] = _mm512_fmadd_ps(dot, _mm512_mul_ps(scales[r][p], _mm512_set1_ps(d)), acc[p]);
                            if F::HAS_MIN {
                                acc[p] = _mm512_fmadd_ps(mins[r][p], _mm512_set1_ps(ds), acc[p]);
                            }
                        }
                    }
                    _mm512_store_ps(sums, acc[0]);
                    _mm512_store_ps(sums.add(LANES), acc[1]);
                }
            }
        }
    }

    /// Starts the sums at zero, or at what the KC blocks before left in the result.
    ///
    /// # Safety
    /// As for [`KcPass::multiply`]; the task must have the rows from `row` on and panel `panel`.
    #[target_feature(enable = "avx512f")]
    unsafe fn start_sums(&mut self, task: &Task, row: usize, panel: usize) {
        // SAFETY: the pass is ready, so `sums` has 32 rows of 32 floats; the task has the rows and the panel.
        unsafe {
            if self.first_group == 0 {
                std::ptr::write_bytes(self.sums, 0, self.rows * TILE_NR);
            } else {
                sums::load(task, row, self.rows, panel, self.sums);
            }
        }
    }
}

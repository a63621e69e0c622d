//! AMX-INT8: 32x32 blocks of results, one group of K per round. A round is four TDPBSSD; their
//! int32 results are stored, scaled and added to f32 sums while the next round's products run.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{TILE_NR, Task, Unpacked, avx512, kc_blocks, sums};
use crate::cpu::Amx;
use crate::cpu::tile::{TILE_ROWS, TileUnit};
use crate::format::{ACT_BLOCK, Format, LANES};
use crate::panel::activations::Tile;

/// Rows of a block.
const ROWS: usize = 2 * TILE_ROWS;
/// Bytes of one round's int32 results: 32 rows of 32 columns.
const DOTS: usize = ROWS * TILE_NR * 4;
/// Rounds scaled together: halves the loads and stores of the sums.
const ROUNDS: usize = 2;
/// Scratch per block: two sets of results (one filled while the other is read), and the f32 sums.
pub(super) const BLOCK_BYTES: usize = 2 * ROUNDS * DOTS + ROWS * TILE_NR * 4;

/// # Safety
/// As for [`super::run`].
pub(super) unsafe fn run<F: Format>(proof: Amx, task: &Task, scratch: *mut u8) {
    let mut tiles = TileUnit::enter(proof, F::GROUP);
    // SAFETY: an AMX CPU has the vector features; the rest is the caller's promise.
    unsafe { panels::<F>(&mut tiles, task, scratch) }
}

/// # Safety
/// As for [`super::run`], on a CPU with AVX-512 whose tile unit is configured by `tiles`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn panels<F: Format>(tiles: &mut TileUnit, task: &Task, scratch: *mut u8) {
    let panels = task.panel_count();
    for pair in (0..panels).step_by(2) {
        for (start, len) in kc_blocks(task.act.k) {
            let unpacked =
                Unpacked { base: scratch.wrapping_add(BLOCK_BYTES), groups: len / F::GROUP, group: F::GROUP };
            for p in 0..2 {
                // An odd last panel is multiplied twice and stored once.
                let panel = (pair + p).min(panels - 1);
                // SAFETY: the panel exists.
                unsafe { avx512::unpack::<F, true>(task.panels.add(panel * task.panel_bytes), start, &unpacked, p) };
            }
            for row in task.rows.clone().step_by(ROWS) {
                let rows = (task.rows.end - row).min(ROWS);
                tiles.set_rows(rows);
                let mut block = Block {
                    upper: task.act.tile(row / TILE_ROWS),
                    lower: if rows > TILE_ROWS { Some(task.act.tile(row / TILE_ROWS + 1)) } else { None },
                    rows,
                    first: start / F::GROUP,
                    unpacked,
                    dots: scratch,
                    sums: scratch.wrapping_add(2 * ROUNDS * DOTS).cast(),
                };
                // SAFETY: rows and columns exist; the scratch is ours.
                unsafe {
                    block.start_sums(task, row, pair);
                    block.multiply::<F>();
                    sums::store(task, row, rows, pair, block.sums);
                }
            }
        }
    }
}

/// A block of up to 32 rows and two panels, for one chunk of K.
struct Block {
    upper: Tile,
    lower: Option<Tile>,
    rows: usize,
    /// Number of the chunk's first group in the activations.
    first: usize,
    unpacked: Unpacked,
    dots: *mut u8,
    sums: *mut f32,
}

impl Block {
    /// # Safety
    /// Tiles must be configured for `rows` and the group; pointers valid.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn multiply<F: Format>(&mut self) {
        let groups = self.unpacked.groups;
        let rounds = groups / ROUNDS;
        // The products of step i run while the results of step i - 1 are scaled.
        // SAFETY: promised by the caller; groups stay below `groups`.
        unsafe {
            for step in 0..=rounds {
                let half = step % 2 * ROUNDS;
                if step < rounds {
                    for r in 0..ROUNDS {
                        self.dot::<F>(step * ROUNDS + r, half + r);
                    }
                }
                if step > 0 {
                    self.scale::<F, ROUNDS>((step - 1) * ROUNDS, ROUNDS - half);
                }
            }
            for g in rounds * ROUNDS..groups {
                self.dot::<F>(g, 0);
                self.scale::<F, 1>(g, 0);
            }
        }
    }

    /// Integer products of group `g` of the chunk into set `slot` of the results.
    ///
    /// # Safety
    /// As for [`Block::multiply`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn dot<F: Format>(&self, g: usize, slot: usize) {
        let ga = self.first + g;
        let (b, within) = (ga * F::GROUP / ACT_BLOCK, ga * F::GROUP % ACT_BLOCK);
        let activations = |t: &Tile| t.quants.wrapping_add(b * t.rows * ACT_BLOCK + within);
        let (w0, w1) = (self.unpacked.quants(0, g), self.unpacked.quants(1, g));
        let out = self.dots.wrapping_add(slot * DOTS);
        let upper = activations(&self.upper);
        // SAFETY: one asm block each, which loads, multiplies and stores; no tile state is expected
        // from before except the configuration, and none is left. Compilers never use tile registers.
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

    /// Adds the results in sets `slot..slot + R`, groups `g..g + R`, to the sums.
    ///
    /// # Safety
    /// As for [`Block::multiply`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scale<F: Format, const R: usize>(&mut self, g: usize, slot: usize) {
        // SAFETY: the groups exist in the chunk.
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
                // SAFETY: row < 32; the tile has row i and the groups.
                unsafe {
                    let sums = self.sums.add(row * TILE_NR);
                    let mut acc = [_mm512_load_ps(sums), _mm512_load_ps(sums.add(LANES))];
                    for r in 0..R {
                        let ga = self.first + g + r;
                        let d = *tile.scales.add(ga * F::GROUP / ACT_BLOCK * tile.rows + i);
                        let dots = self.dots.add((slot + r) * DOTS).cast::<i32>().add(row * TILE_NR);
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

    /// Starts the sums at zero, or at the result of the chunks before.
    ///
    /// # Safety
    /// As for [`Block::multiply`]; `row` and the panels from `panel` on must exist in `task`.
    #[target_feature(enable = "avx512f")]
    unsafe fn start_sums(&mut self, task: &Task, row: usize, panel: usize) {
        // SAFETY: promised by the caller; the sums of a block are 32 rows of 32.
        unsafe {
            if self.first == 0 {
                std::ptr::write_bytes(self.sums, 0, self.rows * TILE_NR);
            } else {
                sums::load(task, row, self.rows, panel, self.sums);
            }
        }
    }
}

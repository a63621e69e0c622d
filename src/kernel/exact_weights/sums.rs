//! f32 sums of a block of rows and a pair of panels, between scratch (rows of 32) and the result.

use std::arch::x86_64::*;

use super::{TILE_NR, Task};
use crate::format::LANES;

/// Continues `rows` rows of sums from the result: from row `row`, panels `panel` and `panel + 1`.
///
/// # Safety
/// Rows and the first panel must exist in the job, `sums` be aligned and writable; AVX-512 needed.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn load(task: &Task, row: usize, rows: usize, panel: usize, sums: *mut f32) {
    for i in 0..rows {
        for p in 0..2 {
            // SAFETY: masked to the columns that exist.
            unsafe {
                let from = task.dst_row(row + i).wrapping_add((panel + p) * LANES);
                let v = _mm512_maskz_loadu_ps(task.mask(panel + p), from);
                _mm512_store_ps(sums.add(i * TILE_NR + p * LANES), v);
            }
        }
    }
}

/// Writes them to the result.
///
/// # Safety
/// As for [`load`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn store(task: &Task, row: usize, rows: usize, panel: usize, sums: *const f32) {
    for i in 0..rows {
        for p in 0..2 {
            // SAFETY: masked to the columns that exist.
            unsafe {
                let to = task.dst_row(row + i).wrapping_add((panel + p) * LANES);
                let v = _mm512_load_ps(sums.add(i * TILE_NR + p * LANES));
                _mm512_mask_storeu_ps(to, task.mask(panel + p), v);
            }
        }
    }
}

//! The f32 sums of some rows and two panels: from the result to scratch (rows of 32 floats) and back.

use std::arch::x86_64::*;

use crate::format::LANES;
use crate::kernel::{TILE_NR, Task};

/// Reads the results of `rows` rows from `row` on, panels `panel` and `panel + 1`, into `sums`. Columns that do not
/// exist read as 0.
///
/// # Safety
/// The task must be valid and have the rows and the first panel; `sums` be writable for the rows and 64-byte aligned;
/// AVX-512 must be there.
#[target_feature(enable = "avx512f")]
pub unsafe fn load(task: &Task, row: usize, rows: usize, panel: usize, sums: *mut f32) {
    for i in 0..rows {
        for p in 0..2 {
            // SAFETY: a valid task has the columns of the mask in each of its rows.
            unsafe {
                let from = task.dst_row(row + i).wrapping_add((panel + p) * LANES);
                let v = _mm512_maskz_loadu_ps(task.mask(panel + p), from);
                _mm512_store_ps(sums.add(i * TILE_NR + p * LANES), v);
            }
        }
    }
}

/// Writes `sums` to the same results.
///
/// # Safety
/// As for [`load`], with `sums` readable.
#[target_feature(enable = "avx512f")]
pub unsafe fn store(task: &Task, row: usize, rows: usize, panel: usize, sums: *const f32) {
    for i in 0..rows {
        for p in 0..2 {
            // SAFETY: a valid task has the columns of the mask in each of its rows.
            unsafe {
                let to = task.dst_row(row + i).wrapping_add((panel + p) * LANES);
                let v = _mm512_load_ps(sums.add(i * TILE_NR + p * LANES));
                _mm512_mask_storeu_ps(to, task.mask(panel + p), v);
            }
        }
    }
}

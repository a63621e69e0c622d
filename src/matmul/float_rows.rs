//! Flagged rows: those that would break their bound on tiles. They are flagged while they are quantised, go through the
//! tile GEMM like all others, and are computed again behind it, in f32, from the weights as they are.
//!
//! ```text
//! for up to 32 flagged rows of a task:
//!     for every panel of its columns:
//!         for every 1,024 channels:
//!             the panel's weights as floats, in scratch
//!             for every 8 rows: sums += weights * activations
//!         the sums take the place of what tiles made
//! ```

use std::arch::x86_64::*;

use crate::format::LANES;
use crate::kernel::Task;
use crate::panel::rows::{InputRow, InputRows};
use crate::panel::weight_sums::{KC_ERROR, SCRATCH_BYTES};

/// Rows that are computed with the same floats.
const MAX_ROWS: usize = 32;
/// Rows of them whose sums are in registers at once.
const MR: usize = 8;

/// The rows of an operation, or of an expert, and which of them are flagged.
#[derive(Clone, Copy)]
pub(super) struct FloatRows {
    /// A byte per row: 1 if it is flagged, else 0.
    pub flags: *const u8,
    /// The activations.
    pub x: InputRows,
}

impl FloatRows {
    /// Computes the flagged ones among the task's rows, on its columns.
    ///
    /// # Safety
    /// The task must be valid, and have flags and activations for all its rows; `scratch` be as for
    /// [`crate::kernel::tile_gemm::run`]; AVX-512 needed.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn run(&self, task: &Task, scratch: *mut u8) {
        let mut rows = [0; MAX_ROWS];
        let mut count = 0;
        for row in task.rows.clone() {
            // SAFETY: every row of the task has a flag.
            unsafe {
                if *self.flags.add(row) == 0 {
                    continue;
                }
                rows[count] = row;
                count += 1;
                if count == MAX_ROWS {
                    self.compute(&rows, task, scratch);
                    count = 0;
                }
            }
        }
        if count > 0 {
            // SAFETY: these are rows of the task.
            unsafe { self.compute(&rows[..count], task, scratch) };
        }
    }

    /// Computes at most [`MAX_ROWS`] rows of the task.
    ///
    /// # Safety
    /// As for [`FloatRows::run`]; the task must have the rows.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn compute(&self, rows: &[usize], task: &Task, scratch: *mut u8) {
        let (k, weights) = (task.k, scratch.cast::<f32>());
        // SAFETY: the task is valid; the scratch has room for the floats, and behind them for what decoding takes.
        unsafe {
            for panel in 0..task.panel_count() {
                let mut sums = [_mm512_setzero_ps(); MAX_ROWS];
                for from in (0..k).step_by(KC_ERROR) {
                    let len = KC_ERROR.min(k - from);
                    task.weights.floats(panel, from, len, weights, scratch.wrapping_add(SCRATCH_BYTES));
                    for (rows, sums) in rows.chunks(MR).zip(sums.chunks_mut(MR)) {
                        let x: [InputRow; MR] = std::array::from_fn(|i| self.x.row(rows[i.min(rows.len() - 1)]));
                        let mut sum: [__m512; MR] = std::array::from_fn(|i| sums[i]);
                        for c in 0..len {
                            let w = _mm512_load_ps(weights.add(c * LANES));
                            for (sum, x) in sum.iter_mut().zip(&x) {
                                *sum = _mm512_fmadd_ps(w, _mm512_set1_ps(x.value(from + c)), *sum);
                            }
                        }
                        sums.copy_from_slice(&sum);
                    }
                }
                for (row, sum) in rows.iter().zip(sums) {
                    let to = task.dst_row(*row).wrapping_add(panel * LANES);
                    _mm512_mask_storeu_ps(to, task.mask(panel), sum);
                }
            }
        }
    }
}

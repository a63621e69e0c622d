//! Rows that would break their bound on tiles: flagged as they are quantised, left to the tile GEMM as they are, and
//! computed again behind it, by floats, from the weights as they are.

use std::arch::x86_64::*;

use crate::format::LANES;
use crate::kernel::Task;
use crate::panel::rows::{InputRow, InputRows};
use crate::panel::weight_sums::{KC_ERROR, SCRATCH_BYTES};

/// Rows that are computed while weights are there as floats.
const TOGETHER: usize = 32;
/// Rows whose sums are in registers.
const IN_REGISTERS: usize = 8;

/// Which rows of an operation, or of an expert.
#[derive(Clone, Copy)]
pub(super) struct FloatRows {
    /// A byte per row: 0, or 1 for those that are meant.
    pub flags: *const u8,
    /// The activations.
    pub x: InputRows,
}

impl FloatRows {
    /// Computes those among the job's rows, on its columns.
    ///
    /// # Safety
    /// As for [`crate::kernel::tile_gemm::run`], the weights being the job's panels or rows; flags and activations must be
    /// there for all its rows; AVX-512 needed.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn run(&self, task: &Task, scratch: *mut u8) {
        let mut rows = [0; TOGETHER];
        let mut count = 0;
        for row in task.rows.clone() {
            // SAFETY: promised by the caller.
            unsafe {
                if *self.flags.add(row) == 0 {
                    continue;
                }
                rows[count] = row;
                count += 1;
                if count == TOGETHER {
                    self.some(&rows, task, scratch);
                    count = 0;
                }
            }
        }
        if count > 0 {
            // SAFETY: promised by the caller.
            unsafe { self.some(&rows[..count], task, scratch) };
        }
    }

    /// # Safety
    /// As for [`FloatRows::run`].
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn some(&self, rows: &[usize], task: &Task, scratch: *mut u8) {
        let (k, weights) = (task.k, scratch.cast::<f32>());
        // SAFETY: promised by the caller; what decoders need lies behind, where the tile GEMM has it too.
        unsafe {
            for panel in 0..task.panel_count() {
                let mut sums = [_mm512_setzero_ps(); TOGETHER];
                for from in (0..k).step_by(KC_ERROR) {
                    let len = KC_ERROR.min(k - from);
                    task.weights.floats(panel, from, len, weights, scratch.wrapping_add(SCRATCH_BYTES));
                    for (rows, sums) in rows.chunks(IN_REGISTERS).zip(sums.chunks_mut(IN_REGISTERS)) {
                        let x: [InputRow; IN_REGISTERS] =
                            std::array::from_fn(|i| self.x.row(rows[i.min(rows.len() - 1)]));
                        let mut sum: [__m512; IN_REGISTERS] = std::array::from_fn(|i| sums[i]);
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

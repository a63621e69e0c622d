//! One piece of a product, as matmul hands it to a kernel.

use std::ops::Range;

use crate::format::LANES;
use crate::panel::activations::Activations;
use crate::panel::rows::RowOffsets;

/// Columns that a tile kernel handles at once: two panels.
pub const TILE_NR: usize = 2 * LANES;

/// A piece of one product: some panels of one weight matrix times some rows of activations.
#[derive(Clone, Debug)]
pub struct Task {
    /// First packed panel.
    pub panels: *const u8,
    /// Bytes from one panel to the next.
    pub panel_bytes: usize,
    /// Columns of the result; the last panel may be partly used.
    pub cols: usize,
    /// The other operand.
    pub act: Activations,
    /// Its rows to compute; starts at a multiple of 32.
    pub rows: Range<usize>,
    /// Where the rows of the result count from, in the first of our columns.
    pub dst: *mut f32,
    /// Its rows: row 0 belongs to row 0 of the activations.
    pub dst_rows: RowOffsets,
}

impl Task {
    /// Panels that have its columns.
    pub fn panel_count(&self) -> usize {
        self.cols.div_ceil(LANES)
    }

    /// The columns of panel `panel` that exist, as a mask; none past the last panel.
    #[inline]
    pub fn mask(&self, panel: usize) -> u16 {
        let lanes = self.cols.saturating_sub(panel * LANES).min(LANES);
        ((1u32 << lanes) - 1) as u16
    }

    /// Result of `row`, first of our columns.
    ///
    /// # Safety
    /// The row must be one of the job's.
    #[inline]
    pub unsafe fn dst_row(&self, row: usize) -> *mut f32 {
        // SAFETY: promised by the caller.
        self.dst.wrapping_byte_add(unsafe { self.dst_rows.offset(row) })
    }
}

//! One piece of a product, as `matmul` hands it to a kernel.

use std::ops::Range;

use crate::format::LANES;
use crate::panel::rows::RowOffsets;
use crate::panel::weight_source::WeightSource;

/// Columns that a tile kernel computes at once (NR): two panels.
pub const TILE_NR: usize = 2 * LANES;

/// A piece of one product: some rows of activations times some rows of one weight matrix, which are the columns of the
/// result. The activations come beside it, in the form that the kernel takes.
///
/// A task is *valid* if its weights are readable and have a row of `k` weights for every column, and if `cols` floats
/// of every result row in `rows` are writable and used by no other thread. Kernels take no other.
#[derive(Clone, Debug)]
pub struct Task {
    /// The weights of its columns.
    pub weights: WeightSource,
    /// Channels, a multiple of 32.
    pub k: usize,
    /// Columns of the result; the last panel may be partly used.
    pub cols: usize,
    /// Rows of activations and of the result; starts at a multiple of 32.
    pub rows: Range<usize>,
    /// Address that the result rows' offsets count from, in the first column.
    pub dst: *mut f32,
    /// Offsets of the result rows; row 0 belongs to row 0 of the activations.
    pub dst_rows: RowOffsets,
}

impl Task {
    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() || self.cols == 0
    }

    /// Panels that have its columns.
    pub fn panel_count(&self) -> usize {
        self.cols.div_ceil(LANES)
    }

    /// The columns of panel `panel` that exist, as a mask; 0 past the last panel.
    #[inline]
    pub fn mask(&self, panel: usize) -> u16 {
        let lanes = self.cols.saturating_sub(panel * LANES).min(LANES);
        ((1u32 << lanes) - 1) as u16
    }

    /// Address of the result of `row` in the first column.
    ///
    /// # Safety
    /// The task must be valid and have the row.
    #[inline]
    pub unsafe fn dst_row(&self, row: usize) -> *mut f32 {
        // SAFETY: a valid task has an offset for each of its rows.
        self.dst.wrapping_byte_add(unsafe { self.dst_rows.offset(row) })
    }
}

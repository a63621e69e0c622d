//! A piece of one product for the tile unit.

use super::microkernel::CTile;
use crate::format::LANES;
use crate::kernel::{TILE_NR, Task};
use crate::panel::activation_tiles::ActivationTiles;
use crate::panel::precision::{OutlierChannels, Precision, TILE_MR};

/// A task whose activations are tiles.
///
/// It is *valid* if the task is, and `tiles` hold its rows in `precision`, which is one that its weights are multiplied
/// in: BF16 for decoded weights, that of the type for plain ones, int8 or BF16 for others.
pub struct TileTask<'a> {
    /// Columns, rows, weights and results.
    pub task: &'a Task,
    /// The activations.
    pub tiles: ActivationTiles,
    /// What the tiles are made of.
    pub precision: Precision,
    /// Number of the row block in `tiles` that row 0 of the task belongs to.
    pub row_block: usize,
    /// Number of the outlier set in `tiles` that row 0 of the task belongs to.
    pub outlier_set: usize,
    /// Rows per outlier set.
    pub outlier_set_rows: usize,
    /// Write results past the caches: there are too many for them to be found there when they are read, and their rows
    /// are multiples of 64 bytes apart.
    pub stream: bool,
}

impl TileTask<'_> {
    /// Number of the row block that begins with row `row` of the task.
    pub(super) fn row_block(&self, row: usize) -> usize {
        self.row_block + row / TILE_MR
    }

    /// Number of the outlier set that row `row` belongs to, counted from the task's first.
    pub(super) fn outlier_set(&self, row: usize) -> usize {
        row / self.outlier_set_rows
    }

    /// Outlier sets of the task's rows, from that of row 0 on.
    pub(super) fn outlier_sets(&self) -> usize {
        self.outlier_set(self.task.rows.end - 1) + 1
    }

    /// The outlier channels of set `set`, counted from the task's first.
    ///
    /// # Safety
    /// The task must be valid and have the set.
    pub(super) unsafe fn channels(&self, set: usize) -> &OutlierChannels {
        // SAFETY: the tiles of a valid task hold the channels of each of its sets.
        unsafe { &*self.tiles.channels(self.outlier_set + set) }
    }

    /// The results of 32 rows from `row` on, in panels `panel` and `panel + 1`.
    pub(super) fn result(&self, row: usize, panel: usize) -> CTile {
        let (offset, rows) = self.task.dst_rows.skip(row);
        CTile {
            at: self.task.dst.wrapping_byte_add(offset).wrapping_add(panel * LANES),
            rows,
            masks: [self.task.mask(panel), self.task.mask(panel + 1)],
        }
    }

    /// Whether results at `to` may be written past the caches: whole, aligned cache lines.
    pub(super) fn may_stream(&self, to: &CTile) -> bool {
        self.stream && to.masks == [u16::MAX; 2] && (to.at as usize).is_multiple_of(64)
    }

    /// Pairs of panels, 32 columns each.
    pub(super) fn pairs(&self) -> usize {
        self.task.cols.div_ceil(TILE_NR)
    }
}

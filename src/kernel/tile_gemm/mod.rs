//! The tile GEMM: activations and weights are requantised into compact tiles, in cache, and one loop
//! multiplies them, whatever the weight type ([`columns`]).

mod macrokernel;
mod microkernel;

use std::arch::x86_64::_mm_sfence;

use microkernel::CTile;

use super::{TILE_NR, Task};
use crate::cpu::Amx;
use crate::cpu::tile::TileUnit;
use crate::format::{Format, LANES};
use crate::panel::activation_tiles::ActivationTiles;
use crate::panel::decoded::DecodedRows;
use crate::panel::pack::WeightRows;
use crate::panel::plain::PlainRows;
use crate::panel::precision::{OutlierChannels, Precision, TILE_MR};

/// Bytes of scratch per thread for rows with `outlier_sets` sets of outlier channels, a multiple of 64.
pub fn scratch_bytes(outlier_sets: usize) -> usize {
    macrokernel::scratch_bytes(outlier_sets)
}

pub use macrokernel::{PACK_BYTES, decoded_bytes};
pub use microkernel::{SAME, accumulate};

/// A piece of one product on the tile unit.
pub struct TileTask<'a> {
    /// Columns, rows, weights and destination; its vector activations are not used.
    pub task: &'a Task,
    /// The quantised activations.
    pub tiles: ActivationTiles,
    /// What they are.
    pub precision: Precision,
    /// Their block that has row 0 of the job.
    pub block: usize,
    /// The job's first set of outlier channels.
    pub outlier_set: usize,
    /// Rows per set.
    pub outlier_set_rows: usize,
    /// Results past the caches: they are too many to be found there by whoever reads them, and their rows
    /// are multiples of 64 bytes apart.
    pub stream: bool,
}

/// Computes `task` with AMX.
///
/// # Safety
/// As for [`super::run`]; the tiles must hold the job's activations in `precision`, `scratch` be
/// writable for [`scratch_bytes`].
pub unsafe fn run<F: Format>(proof: Amx, task: &TileTask<'_>, scratch: *mut u8) {
    if task.task.rows.is_empty() || task.task.cols == 0 {
        return;
    }
    let _unit = TileUnit::enter_full(proof);
    // SAFETY: an AMX CPU has the vector features; the rest is the caller's promise.
    unsafe {
        match task.precision {
            Precision::Int8 { .. } => macrokernel::packed::<F, false>(task, scratch),
            Precision::Bf16 => macrokernel::packed::<F, true>(task, scratch),
            Precision::Bf16Twice => unreachable!("packed weights have 8 bits"),
        }
        // Stores past the caches are not ordered by the barrier that follows.
        _mm_sfence();
    }
}

/// Computes `task` on plain rows of a packed type; its panels are not used.
///
/// # Safety
/// As for [`run`], the scratch with [`PACK_BYTES`] more; the rows must be the job's columns.
pub unsafe fn run_rows<F: Format>(proof: Amx, task: &TileTask<'_>, rows: &WeightRows, scratch: *mut u8) {
    if task.task.rows.is_empty() || task.task.cols == 0 {
        return;
    }
    let _unit = TileUnit::enter_full(proof);
    // SAFETY: an AMX CPU has the vector features; the rest is the caller's promise.
    unsafe {
        match task.precision {
            Precision::Int8 { .. } => macrokernel::on_the_way::<F, false>(task, rows, scratch),
            Precision::Bf16 => macrokernel::on_the_way::<F, true>(task, rows, scratch),
            Precision::Bf16Twice => unreachable!("weights of packed types have 8 bits"),
        }
        _mm_sfence();
    }
}

/// Computes `task` on weights that are stored plain; its panels are not used.
///
/// # Safety
/// As for [`run`], in the precision of the rows' type; the rows must be the job's columns.
pub unsafe fn run_plain(proof: Amx, task: &TileTask<'_>, rows: &PlainRows, scratch: *mut u8) {
    if task.task.rows.is_empty() || task.task.cols == 0 {
        return;
    }
    let _unit = TileUnit::enter_full(proof);
    // SAFETY: an AMX CPU has the vector features; the rest is the caller's promise.
    unsafe {
        macrokernel::plain(task, rows, scratch);
        _mm_sfence();
    }
}

/// Computes `task` on rows that the host decodes, in BF16; its panels are not used.
///
/// # Safety
/// As for [`run`], with BF16 tiles, the scratch with [`decoded_bytes`] more; the rows must be the job's columns.
pub unsafe fn run_decoded(proof: Amx, task: &TileTask<'_>, rows: &DecodedRows, scratch: *mut u8) {
    if task.task.rows.is_empty() || task.task.cols == 0 {
        return;
    }
    let _unit = TileUnit::enter_full(proof);
    // SAFETY: an AMX CPU has the vector features; the rest is the caller's promise.
    unsafe {
        macrokernel::decoded(task, rows, scratch);
        _mm_sfence();
    }
}

/// The results of 32 rows from `row` on and of panels `panel` and `panel + 1`.
fn result(task: &Task, row: usize, panel: usize) -> CTile {
    let (offset, rows) = task.dst_rows.skip(row);
    CTile {
        at: task.dst.wrapping_byte_add(offset).wrapping_add(panel * LANES),
        rows,
        masks: [task.mask(panel), task.mask(panel + 1)],
    }
}

impl TileTask<'_> {
    /// Packed panel `panel`. An odd last one stands in for its missing neighbour, whose results are
    /// not stored.
    fn panel(&self, panel: usize) -> *const u8 {
        self.task.panels.wrapping_add(panel.min(self.task.panel_count() - 1) * self.task.panel_bytes)
    }

    /// The block of tiles that starts with row `row`.
    fn block(&self, row: usize) -> usize {
        self.block + row / TILE_MR
    }

    /// Which set of outlier channels row `row` has, counted from the job's first.
    fn outlier_set(&self, row: usize) -> usize {
        row / self.outlier_set_rows
    }

    /// How many sets the job's rows have.
    fn outlier_sets(&self) -> usize {
        (self.task.rows.end - 1) / self.outlier_set_rows + 1
    }

    /// Those channels.
    ///
    /// # Safety
    /// The tiles must hold them.
    unsafe fn channels(&self, outlier_set: usize) -> &OutlierChannels {
        // SAFETY: promised by the caller.
        unsafe { &*self.tiles.channels(self.outlier_set + outlier_set) }
    }

    /// Whether results at `to` may be written past the caches, whole lines at a time.
    fn may_stream(&self, to: &CTile) -> bool {
        self.stream && to.masks == [u16::MAX; 2] && (to.at as usize).is_multiple_of(64)
    }

    /// Pairs of panels, 32 columns each.
    fn pairs(&self) -> usize {
        self.task.cols.div_ceil(TILE_NR)
    }
}

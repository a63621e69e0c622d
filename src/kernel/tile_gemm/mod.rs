//! The tile GEMM: activations and weights are requantised into compact tiles, in cache, and one loop
//! multiplies them, whatever the weight type ([`columns`]).

mod macrokernel;
mod microkernel;

use std::arch::x86_64::_mm_sfence;

use microkernel::CTile;

use super::{Job, TILE_COLS};
use crate::cpu::Amx;
use crate::cpu::tile::Tiles as TileUnit;
use crate::format::{Format, LANES};
use crate::panel::decoded::DecodedRows;
use crate::panel::outliers::Channels;
use crate::panel::pack::WeightRows;
use crate::panel::plain::PlainRows;
use crate::panel::tiles::{Precision, ROWS, Tiles};

/// Bytes of scratch per thread for rows with `chunks` sets of outlier channels, a multiple of 64.
pub fn scratch_bytes(chunks: usize) -> usize {
    macrokernel::scratch_bytes(chunks)
}

pub use macrokernel::{PACK_BYTES, decoded_bytes};
pub use microkernel::{SAME, accumulate};

/// A piece of one product on the tile unit.
pub struct TileJob<'a> {
    /// Columns, rows, weights and destination; its vector activations are not used.
    pub job: &'a Job,
    /// The quantised activations.
    pub tiles: Tiles,
    /// What they are.
    pub precision: Precision,
    /// Their block that has row 0 of the job.
    pub block: usize,
    /// The job's first set of outlier channels.
    pub chunk: usize,
    /// Rows per set.
    pub chunk_rows: usize,
    /// Results past the caches: they are too many to be found there by whoever reads them, and their rows
    /// are multiples of 64 bytes apart.
    pub stream: bool,
}

/// Computes `job` with AMX.
///
/// # Safety
/// As for [`super::run`]; the tiles must hold the job's activations in `precision`, `scratch` be
/// writable for [`scratch_bytes`].
pub unsafe fn run<F: Format>(proof: Amx, job: &TileJob<'_>, scratch: *mut u8) {
    if job.job.rows.is_empty() || job.job.cols == 0 {
        return;
    }
    let _unit = TileUnit::enter_full(proof);
    // SAFETY: an AMX CPU has the vector features; the rest is the caller's promise.
    unsafe {
        match job.precision {
            Precision::Int8 { .. } => macrokernel::packed::<F, false>(job, scratch),
            Precision::Bf16 => macrokernel::packed::<F, true>(job, scratch),
            Precision::Bf16Twice => unreachable!("packed weights have 8 bits"),
        }
        // Stores past the caches are not ordered by the barrier that follows.
        _mm_sfence();
    }
}

/// Computes `job` on plain rows of a packed type; its panels are not used.
///
/// # Safety
/// As for [`run`], the scratch with [`PACK_BYTES`] more; the rows must be the job's columns.
pub unsafe fn run_rows<F: Format>(proof: Amx, job: &TileJob<'_>, rows: &WeightRows, scratch: *mut u8) {
    if job.job.rows.is_empty() || job.job.cols == 0 {
        return;
    }
    let _unit = TileUnit::enter_full(proof);
    // SAFETY: an AMX CPU has the vector features; the rest is the caller's promise.
    unsafe {
        match job.precision {
            Precision::Int8 { .. } => macrokernel::on_the_way::<F, false>(job, rows, scratch),
            Precision::Bf16 => macrokernel::on_the_way::<F, true>(job, rows, scratch),
            Precision::Bf16Twice => unreachable!("weights of packed types have 8 bits"),
        }
        _mm_sfence();
    }
}

/// Computes `job` on weights that are stored plain; its panels are not used.
///
/// # Safety
/// As for [`run`], in the precision of the rows' type; the rows must be the job's columns.
pub unsafe fn run_plain(proof: Amx, job: &TileJob<'_>, rows: &PlainRows, scratch: *mut u8) {
    if job.job.rows.is_empty() || job.job.cols == 0 {
        return;
    }
    let _unit = TileUnit::enter_full(proof);
    // SAFETY: an AMX CPU has the vector features; the rest is the caller's promise.
    unsafe {
        macrokernel::plain(job, rows, scratch);
        _mm_sfence();
    }
}

/// Computes `job` on rows that the host decodes, in BF16; its panels are not used.
///
/// # Safety
/// As for [`run`], with BF16 tiles, the scratch with [`decoded_bytes`] more; the rows must be the job's columns.
pub unsafe fn run_decoded(proof: Amx, job: &TileJob<'_>, rows: &DecodedRows, scratch: *mut u8) {
    if job.job.rows.is_empty() || job.job.cols == 0 {
        return;
    }
    let _unit = TileUnit::enter_full(proof);
    // SAFETY: an AMX CPU has the vector features; the rest is the caller's promise.
    unsafe {
        macrokernel::decoded(job, rows, scratch);
        _mm_sfence();
    }
}

/// The results of 32 rows from `row` on and of panels `panel` and `panel + 1`.
fn result(job: &Job, row: usize, panel: usize) -> CTile {
    let (offset, rows) = job.dst_rows.skip(row);
    CTile {
        at: job.dst.wrapping_byte_add(offset).wrapping_add(panel * LANES),
        rows,
        masks: [job.mask(panel), job.mask(panel + 1)],
    }
}

impl TileJob<'_> {
    /// Packed panel `panel`. An odd last one stands in for its missing neighbour, whose results are
    /// not stored.
    fn panel(&self, panel: usize) -> *const u8 {
        self.job.panels.wrapping_add(panel.min(self.job.panel_count() - 1) * self.job.panel_bytes)
    }

    /// The block of tiles that starts with row `row`.
    fn block(&self, row: usize) -> usize {
        self.block + row / ROWS
    }

    /// Which set of outlier channels row `row` has, counted from the job's first.
    fn chunk(&self, row: usize) -> usize {
        row / self.chunk_rows
    }

    /// How many sets the job's rows have.
    fn chunks(&self) -> usize {
        (self.job.rows.end - 1) / self.chunk_rows + 1
    }

    /// Those channels.
    ///
    /// # Safety
    /// The tiles must hold them.
    unsafe fn channels(&self, chunk: usize) -> &Channels {
        // SAFETY: promised by the caller.
        unsafe { &*self.tiles.channels(self.chunk + chunk) }
    }

    /// Whether results at `to` may be written past the caches, whole lines at a time.
    fn may_stream(&self, to: &CTile) -> bool {
        self.stream && to.masks == [u16::MAX; 2] && (to.at as usize).is_multiple_of(64)
    }

    /// Pairs of panels, 32 columns each.
    fn pairs(&self) -> usize {
        self.job.cols.div_ceil(TILE_COLS)
    }
}

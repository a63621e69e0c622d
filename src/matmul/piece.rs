//! What one thread computes at a time: some rows of activations times some columns of weights.

use std::ops::Range;

use super::float_rows::FloatRows;
use super::work::Scratch;
use super::{Gate, Weights, gate};
use crate::cpu::{Amx, Isa};
use crate::diag::counters::Kernel;
use crate::dispatch;
use crate::kernel::tile_gemm::{self, TileTask};
use crate::kernel::{Task, exact_weights};
use crate::panel::activation_tiles::ActivationTiles;
use crate::panel::activations::Activations;
use crate::panel::precision::Precision;
use crate::panel::rows::RowOffsets;

/// What the activations were made into.
#[derive(Clone, Copy)]
pub(super) enum Operand {
    /// Blocks of 32, for exact weights, by this instruction set.
    Blocks(Isa),
    /// Tiles.
    Tiles(Precision),
}

impl Operand {
    /// The highest instruction set that may be used with it.
    fn isa(self) -> Isa {
        match self {
            Operand::Blocks(isa) => isa,
            Operand::Tiles(_) => Isa::Amx,
        }
    }

    /// As what a product of it is counted.
    pub fn kernel(self) -> Kernel {
        match self {
            Operand::Blocks(Isa::Portable) => Kernel::Portable,
            Operand::Blocks(_) => Kernel::Vectors,
            Operand::Tiles(Precision::Int8 { .. }) => Kernel::Int8,
            Operand::Tiles(_) => Kernel::Bf16,
        }
    }

    /// Whether weights in place must be packed, panel by panel, before `m` rows of it are multiplied with them.
    fn needs_panels(self, m: usize) -> bool {
        matches!(self, Operand::Blocks(isa) if !dispatch::reads_in_place(isa, m))
    }
}

/// Some rows of activations, to be multiplied with columns of one matrix.
pub(super) struct PieceTask {
    /// What they were made into.
    pub operand: Operand,
    /// The rows in blocks, if they were made into those.
    pub act: Activations,
    /// The rows in tiles, if they were made into those.
    pub tiles: ActivationTiles,
    /// As in [`TileTask`].
    pub row_block: usize,
    pub outlier_set: usize,
    pub outlier_set_rows: usize,
    /// Which matrix of the weights: its indices in dimensions 2 and 3.
    pub slice: (usize, usize),
    pub rows: Range<usize>,
    pub scratch: Scratch,
    /// Whether results are written past the caches.
    pub stream: bool,
    /// Rows that tiles are not good enough for.
    pub flagged: FloatRows,
}

/// Where results go: the address that offsets of rows count from, in the first column; and those offsets.
type Results = (*mut f32, RowOffsets);

impl PieceTask {
    /// Computes columns `cols` of the result, whose column 0 is at `dst`. With a gate, the results of `up` wait in
    /// scratch.
    ///
    /// # Safety
    /// **The piece is valid**: the operation is ([`super::MatMul::run`]), rows and columns are some of its own, nobody
    /// else computes them, and their activations were made into the operand.
    pub unsafe fn run(&self, weights: &Weights, gate: Option<&Gate>, cols: Range<usize>, (dst, dst_rows): Results) {
        // SAFETY: the piece is valid.
        unsafe {
            let Some(gate) = gate else {
                let dst = (dst.wrapping_add(cols.start), dst_rows);
                return self.multiply(weights, self.rows.clone(), cols, dst, self.stream);
            };
            for (cols, rows) in gate::blocks(cols, self.rows.clone()) {
                let stride = cols.len() * 4;
                // Row 0 would lie there.
                let up = self.scratch.up.wrapping_byte_sub(rows.start * stride);
                let dst = dst.wrapping_add(cols.start);
                self.multiply(weights, rows.clone(), cols.clone(), (up, RowOffsets::Strided(stride)), false);
                self.multiply(&gate.weights, rows.clone(), cols.clone(), (dst, dst_rows), false);
                let expert = self.slice.0;
                gate.combine(
                    self.operand.isa(),
                    &gate::GatedBlock { cols, rows, expert, up: self.scratch.up, dst, dst_rows },
                );
            }
        }
    }

    /// Columns `cols` of some of the rows, whose first column is at `dst`.
    ///
    /// # Safety
    /// The piece must be valid ([`PieceTask::run`]).
    unsafe fn multiply(
        &self,
        weights: &Weights,
        rows: Range<usize>,
        cols: Range<usize>,
        (dst, dst_rows): Results,
        stream: bool,
    ) {
        let (first, panels) = (cols.start, self.operand.needs_panels(rows.len()));
        // SAFETY: the piece is valid; the scratch has room behind what kernels use.
        unsafe {
            weights.each_run(self.slice, cols, panels, self.scratch.gathered, |source, cols| {
                let task = Task {
                    weights: source,
                    k: weights.ne[0],
                    cols: cols.len(),
                    rows: rows.clone(),
                    dst: dst.wrapping_add(cols.start - first),
                    dst_rows,
                };
                let precision = match self.operand {
                    Operand::Blocks(isa) => return exact_weights::run(isa, &task, &self.act, self.scratch.kernel),
                    Operand::Tiles(precision) => precision,
                };
                let tile_task = TileTask {
                    task: &task,
                    tiles: self.tiles,
                    precision,
                    row_block: self.row_block,
                    outlier_set: self.outlier_set,
                    outlier_set_rows: self.outlier_set_rows,
                    stream,
                };
                tile_gemm::run(Amx::new().expect("AMX was found usable"), &tile_task, self.scratch.kernel);
                self.flagged.run(&task, self.scratch.kernel);
            });
        }
    }
}

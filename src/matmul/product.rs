//! What one thread computes at a time: some rows of activations times some columns of weights.

use std::ops::Range;

use super::exact_rows::ExactRows;
use super::{Gate, Stored, Weights, gate};
use crate::cpu::{Amx, Isa};
use crate::diag::counters::Kernel;
use crate::kernel::tile_gemm::{self, TileTask};
use crate::kernel::{Task, exact_weights};
use crate::panel::activation_tiles::ActivationTiles;
use crate::panel::activations::Activations;
use crate::panel::decoded::DecodedRows;
use crate::panel::pack::WeightRows;
use crate::panel::plain::PlainRows;
use crate::panel::precision::Precision;
use crate::panel::rows::RowOffsets;
use crate::with_format;

/// Scratch that the tile GEMM needs besides its own to make panels: a matrix and its gate may be stored in different ways.
pub(super) fn pack_bytes(weights: &Weights, gate: Option<&Gate>) -> usize {
    let of = |weights: &Weights| weights.stored.pack_bytes(weights.ne[0]);
    of(weights).max(gate.map_or(0, |gate| of(&gate.weights)))
}

/// What a thread needs besides the kernels' scratch.
#[derive(Clone, Copy)]
pub(super) struct Extra {
    /// To gather weights.
    pub gathered: usize,
    /// For results that are to be combined with others.
    pub up_rows: usize,
}

impl Extra {
    /// Where pieces have up to `rows` rows; `None` if that does not fit.
    pub fn new(weights: &Weights, gate: Option<&Gate>, rows: usize) -> Option<Self> {
        let of_gate = gate.map_or(0, |g| g.weights.gather_bytes());
        let up_rows = if gate.is_some() { gate::up_bytes(rows) } else { 0 };
        Some(Self { gathered: weights.gather_bytes().max(of_gate), up_rows })
    }

    pub fn bytes(self) -> Option<usize> {
        self.gathered.checked_add(self.up_rows)
    }

    /// Both parts at the end of a thread's memory.
    pub fn at(self, end: *mut u8) -> (*mut u8, *mut f32) {
        let up_rows = end.wrapping_sub(self.up_rows);
        (up_rows.wrapping_sub(self.gathered), up_rows.cast())
    }
}

/// Some rows of activations times some columns of weights.
pub(super) struct Product {
    pub operand: Operand,
    pub act: Activations,
    pub tiles: ActivationTiles,
    /// As in [`TileTask`].
    pub block: usize,
    pub outlier_set: usize,
    pub outlier_set_rows: usize,
    /// Which matrix of the weights.
    pub slice: (usize, usize),
    pub rows: Range<usize>,
    pub scratch: *mut u8,
    /// Scratch to gather weights in.
    pub gathered: *mut u8,
    pub stream: bool,
    /// Rows that tiles are not good enough for.
    pub exact: Option<ExactRows>,
}

impl Product {
    /// Columns `cols` of the result whose rows count from `dst`, with a gate by way of `up_rows`.
    ///
    /// # Safety
    /// As for [`MatMul::run`]; the parts must be as large as planned.
    pub unsafe fn run(
        &self,
        weights: &Weights,
        gate: Option<&Gate>,
        cols: Range<usize>,
        (dst, dst_rows): (*mut f32, RowOffsets),
        up_rows: *mut f32,
    ) {
        // SAFETY: promised by the caller.
        unsafe {
            let Some(gate) = gate else {
                let (rows, dst) = (self.rows.clone(), dst.wrapping_add(cols.start));
                return self.multiply(weights, rows, cols, dst, dst_rows, self.stream);
            };
            for (cols, rows) in gate::blocks(cols, self.rows.clone()) {
                let stride = cols.len() * 4;
                let up = up_rows.wrapping_byte_sub(rows.start * stride);
                let dst = dst.wrapping_add(cols.start);
                self.multiply(weights, rows.clone(), cols.clone(), up, RowOffsets::Strided(stride), false);
                self.multiply(&gate.weights, rows.clone(), cols.clone(), dst, dst_rows, false);
                let block = gate::Block { cols, rows, expert: self.slice.0, up: up_rows, dst, dst_rows };
                gate.combine(self.operand.isa(), &block);
            }
        }
    }

    /// Columns `cols` of some of the rows, the first of them at `dst`.
    ///
    /// # Safety
    /// As for [`Product::run`].
    unsafe fn multiply(
        &self,
        weights: &Weights,
        rows: Range<usize>,
        cols: Range<usize>,
        dst: *mut f32,
        dst_rows: RowOffsets,
        stream: bool,
    ) {
        let panels = matches!(self.operand, Operand::Vectors(_)) && !self.operand.reads_rows(rows.len());
        let first = cols.start;
        // SAFETY: promised by the caller; the scratch has room behind what kernels use.
        unsafe {
            weights.each_run(self.slice, cols, panels, self.gathered, |panels, panel_bytes, cols| {
                let task = Task {
                    panels,
                    panel_bytes,
                    cols: cols.len(),
                    act: self.act,
                    rows: rows.clone(),
                    dst: dst.wrapping_add(cols.start - first),
                    dst_rows,
                };
                self.operand.multiply(&weights.stored, &task, self.scratch, |precision| TileTask {
                    task: &task,
                    tiles: self.tiles,
                    precision,
                    block: self.block,
                    outlier_set: self.outlier_set,
                    outlier_set_rows: self.outlier_set_rows,
                    stream,
                });
                if let (Operand::Tiles(_), Some(exact)) = (self.operand, self.exact) {
                    exact.run(&weights.stored, &task, self.scratch);
                }
            });
        }
    }
}

/// What the activations were made into.
#[derive(Clone, Copy)]
pub(super) enum Operand {
    /// Blocks of 32, for the kernels of this instruction set.
    Vectors(Isa),
    /// Tiles.
    Tiles(Precision),
}

impl Operand {
    /// The highest instruction set it may be used with.
    fn isa(self) -> Isa {
        match self {
            Operand::Vectors(isa) => isa,
            Operand::Tiles(_) => Isa::Amx,
        }
    }

    /// As what it is counted.
    pub fn kernel(self) -> Kernel {
        match self {
            Operand::Vectors(Isa::Portable) => Kernel::Portable,
            Operand::Vectors(_) => Kernel::Vectors,
            Operand::Tiles(Precision::Int8 { .. }) => Kernel::Int8,
            Operand::Tiles(_) => Kernel::Bf16,
        }
    }

    /// Whether so many rows of activations are multiplied with weights in place without making panels of them first.
    fn reads_rows(self, rows: usize) -> bool {
        matches!(self, Operand::Vectors(isa) if isa >= Isa::Avx512) && rows <= exact_weights::DIRECT_ROWS_IN_PLACE
    }

    /// Computes `task` on weights stored like this, on the tile unit as `tiles` says.
    ///
    /// # Safety
    /// As for [`exact_weights::run`] or [`tile_gemm::run`].
    unsafe fn multiply<'a>(
        self,
        stored: &Stored,
        task: &'a Task,
        scratch: *mut u8,
        tiles: impl Fn(Precision) -> TileTask<'a>,
    ) {
        let proof = || Amx::new().expect("AMX was found usable");
        let in_place = |task: &Task, interleave| WeightRows {
            data: task.panels,
            stride: task.panel_bytes,
            rows: task.cols,
            interleave,
        };
        // SAFETY: promised by the caller; an instruction set is used only with its proof.
        unsafe {
            match (self, stored) {
                (Operand::Tiles(precision), Stored::Packed(shape)) => {
                    with_format!(shape.ty, F => tile_gemm::run::<F>(proof(), &tiles(precision), scratch))
                }
                (Operand::Tiles(precision), Stored::InPlace { shape, interleave }) => {
                    let rows = in_place(task, *interleave);
                    with_format!(shape.ty, F => tile_gemm::run_rows::<F>(proof(), &tiles(precision), &rows, scratch))
                }
                (Operand::Tiles(precision), Stored::Decoded(ty)) => {
                    let tiles = tiles(precision);
                    let (data, stride, k) = (task.panels, task.panel_bytes, tiles.tiles.layout.k);
                    let rows = DecodedRows { ty, data, stride, rows: task.cols, k };
                    tile_gemm::run_decoded(proof(), &tiles, &rows, scratch);
                }
                (Operand::Tiles(precision), Stored::Plain(ty)) => {
                    let (data, stride) = (task.panels, task.panel_bytes);
                    let rows = PlainRows { ty, data, stride, rows: task.cols };
                    tile_gemm::run_plain(proof(), &tiles(precision), &rows, scratch);
                }
                (Operand::Vectors(_), Stored::InPlace { shape, interleave }) if self.reads_rows(task.rows.len()) => {
                    let rows = in_place(task, *interleave);
                    with_format!(shape.ty, F => exact_weights::run_rows::<F>(task, &rows, scratch))
                }
                (Operand::Vectors(isa), Stored::Packed(shape) | Stored::InPlace { shape, .. }) => {
                    with_format!(shape.ty, F => exact_weights::run::<F>(isa, task, scratch))
                }
                (Operand::Vectors(_), Stored::Plain(_) | Stored::Decoded(_)) => {
                    unreachable!("plain weights are for tiles only")
                }
            }
        }
    }
}

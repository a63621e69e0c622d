//! MUL_MAT: which pieces, on which thread, in which scratch.
//!
//! ```text
//! every thread:
//!     facts -> choice: exact weights, or tiles; perhaps a look at some rows first    (two barriers)
//!     quantise a share of the rows: blocks of 8 bits, or rows of tiles
//!     barrier
//!     multiply the pieces of the result that are this thread's
//! ```

use super::float_rows::FloatRows;
use super::known_errors::{KnownErrors, SharedErrors};
use super::piece::{Operand, PieceTask};
use super::split::{self, Piece, Split};
use super::to_tiles::{self, Sample, TileWriter};
use super::work::{self, Parts, Scratch, ScratchLayout};
use super::{Gate, Input, Output, Settings, Thread, Weights};
use crate::cpu::Isa;
use crate::debug;
use crate::diag::{counters, log};
use crate::dispatch::{self, Choice, Facts};
use crate::format::ACT_BLOCK;
use crate::panel::activation_tiles::{ActivationTiles, TileLayout};
use crate::panel::activations::{ActivationLayout, Activations};
use crate::panel::outliers::{ERROR_SAMPLE_ROWS, ErrorStats, OUTLIER_SET_ROWS, OutlierSet};
use crate::panel::rows::{InputRows, RowOffsets};

/// One operation: `dst[n, m, i2, i3] = sum_k w[k, n, i2 / r2, i3 / r3] * src1[k, m, i2, i3]`, ggml's MUL_MAT with its
/// broadcast of weights over batches.
#[derive(Clone, Copy, Debug)]
pub struct MatMul {
    /// src0.
    pub weights: Weights,
    /// A second matrix, whose product is made into one result with the first one's.
    pub gate: Option<Gate>,
    /// src1.
    pub input: Input,
    /// dst.
    pub output: Output,
}

/// Where things lie in the work buffer: offsets from its start.
struct WorkLayout {
    act: ActivationLayout,
    tiles: TileLayout,
    /// What rows show that are looked at.
    stats: usize,
    /// The activations of all batches, in blocks or in tiles, each in so many bytes.
    batches: usize,
    batch_bytes: usize,
    /// A byte per row of all batches.
    flags: usize,
    parts: Parts,
    scratch: ScratchLayout,
}

/// The work buffer, as one thread sees it.
struct WorkBuffer<'a> {
    layout: &'a WorkLayout,
    /// What is known of the weights, from one thread for all.
    known: SharedErrors,
    stats: *mut ErrorStats,
    batches: *mut u8,
    /// 1 for rows that tiles are not good enough for, else 0.
    flags: *mut u8,
    scratch: Scratch,
}

impl WorkBuffer<'_> {
    /// The activations of a batch in blocks of 32.
    ///
    /// # Safety
    /// The batch must exist.
    unsafe fn blocks(&self, batch: usize) -> Activations {
        // SAFETY: every batch has room for them.
        unsafe { self.layout.act.at(self.batches.add(batch * self.layout.batch_bytes)) }
    }

    /// The same in tiles.
    ///
    /// # Safety
    /// The batch must exist.
    unsafe fn tiles(&self, batch: usize) -> ActivationTiles {
        // SAFETY: every batch has room for them.
        unsafe { self.layout.tiles.at(self.batches.add(batch * self.layout.batch_bytes)) }
    }
}

impl WorkLayout {
    fn at(&self, work: *mut u8, thread: &Thread<'_>) -> WorkBuffer<'_> {
        let work = work::aligned(work);
        WorkBuffer {
            layout: self,
            known: SharedErrors::at(work),
            stats: work.wrapping_add(self.stats).cast(),
            batches: work.wrapping_add(self.batches),
            flags: work.wrapping_add(self.flags),
            scratch: self.parts.scratch(work, self.scratch, thread.index),
        }
    }
}

impl MatMul {
    /// Whether shapes fit each other as ggml demands; `Err` names what does not.
    pub fn check(&self) -> Result<(), String> {
        let (w, x) = (&self.weights.ne, &self.input.ne);
        if w[0] != x[0] {
            return Err(format!("K differs: {} weights, {} activations", w[0], x[0]));
        }
        if w[2] == 0 || w[3] == 0 || x[2] % w[2] != 0 || x[3] % w[3] != 0 {
            return Err(format!("batches {:?} of weights do not divide {:?} of activations", &w[2..], &x[2..]));
        }
        self.gate.as_ref().map_or(Ok(()), |gate| gate.check(&self.weights))?;
        self.layout().map(|_| ()).ok_or_else(|| "the work buffer does not fit the address space".to_string())
    }

    fn layout(&self) -> Option<WorkLayout> {
        let stored = self.weights.stored.info();
        let [k, m, b2, b3] = self.input.ne;
        let (batches, outlier_sets) = (b2.checked_mul(b3)?, m.div_ceil(OUTLIER_SET_ROWS));
        let act = ActivationLayout::new(m, k, stored.group)?;
        let tiles = TileLayout::new(m, k, stored.planes, outlier_sets)?;
        let batch_bytes = act.bytes.max(tiles.bytes);
        let mut parts = Parts::default();
        parts.add(SharedErrors::BYTES)?;
        Some(WorkLayout {
            act,
            tiles,
            stats: parts.add(to_tiles::slot_bytes(outlier_sets.checked_mul(ERROR_SAMPLE_ROWS)?)?)?,
            batches: parts.add(batch_bytes.checked_mul(batches)?)?,
            batch_bytes,
            flags: parts.add(batches.checked_mul(m)?)?,
            parts,
            scratch: ScratchLayout::new(&self.weights, self.gate.as_ref(), m, outlier_sets)?,
        })
    }

    /// Bytes of work buffer that `threads` threads need; `None` if that does not fit.
    pub fn work_size(&self, threads: usize) -> Option<usize> {
        let layout = self.layout()?;
        layout.parts.work_size(layout.scratch, threads)
    }

    fn batches(&self) -> usize {
        self.input.ne[2] * self.input.ne[3]
    }

    /// Computes this thread's part. All threads of the operation must call it with equal settings.
    ///
    /// # Safety
    /// **The operation is valid**: shapes have passed [`MatMul::check`]; all pointers are valid for them; `work` is
    /// writable for [`MatMul::work_size`] of the thread count and shared by these threads alone; the instruction set is
    /// usable on all of them.
    pub unsafe fn run(&self, settings: Settings, thread: &Thread<'_>, work: *mut u8) {
        let Some(layout) = self.layout() else { return };
        if self.weights.ne.contains(&0) || self.input.ne.contains(&0) {
            // SAFETY: the operation is valid.
            unsafe { self.empty_sums(thread) };
            return;
        }
        let buffer = layout.at(work, thread);
        let facts = Facts {
            storage: self.weights.stored.info().storage,
            isa: settings.isa,
            m: self.input.ne[1],
            batches: self.batches(),
            demand: settings.demand,
        };
        let choice = facts.choice();
        // SAFETY: the operation is valid. Each row of activations and each piece of the result belongs to one thread
        // between barriers.
        unsafe {
            let operand = match choice {
                Choice::ExactWeights => Operand::Blocks(settings.isa),
                _ => self.make_tiles(&facts, choice, &buffer, thread),
            };
            if let Operand::Blocks(isa) = operand {
                self.make_blocks(isa, &buffer, thread);
            }
            if thread.index == 0 {
                let op = if self.gate.is_some() { counters::Op::FusedUpGate } else { counters::Op::MulMat };
                counters::count(op, operand.kernel());
            }
            thread.wait();
            if choice != Choice::ExactWeights && thread.index == 0 {
                buffer.known.free();
            }
            let split = Split::new(self.weights.ne[1], facts.m, facts.batches, thread.count);
            for piece in split.pieces(thread.index) {
                self.multiply(operand, &buffer, &piece);
            }
        }
    }

    /// A product over no channels (or of nothing): every result that there is, is 0.
    ///
    /// # Safety
    /// The operation must be valid ([`MatMul::run`]).
    unsafe fn empty_sums(&self, thread: &Thread<'_>) {
        let (n, [_, m, b2, b3], nb) = (self.weights.ne[1], self.input.ne, self.output.nb);
        for i in split::share(m * b2 * b3, thread.index, thread.count) {
            let (row, i2, i3) = (i % m, i / m % b2, i / m / b2);
            // SAFETY: the row exists and belongs to this thread.
            unsafe {
                std::ptr::write_bytes(self.output.data.add(row * nb[0] + i2 * nb[1] + i3 * nb[2]).cast::<f32>(), 0, n)
            };
        }
    }

    /// The f32 rows of a batch.
    fn rows_of(&self, batch: usize) -> InputRows {
        let ([_, _, b2, _], nb) = (self.input.ne, self.input.nb);
        InputRows {
            data: self.input.data.wrapping_add(batch % b2 * nb[2] + batch / b2 * nb[3]),
            rows: RowOffsets::Strided(nb[1]),
            channel: nb[0],
        }
    }

    /// Outlier set `index` of the only batch.
    fn outlier_set(&self, tiles: &ActivationTiles, index: usize) -> OutlierSet {
        let [k, m, ..] = self.input.ne;
        let first = index * OUTLIER_SET_ROWS;
        let rows = first..m.min(first + OUTLIER_SET_ROWS);
        OutlierSet { x: self.rows_of(0), rows, k, maxima: tiles.maxima(index) }
    }

    /// Which matrix of the weights batch `batch` is multiplied with: its indices in dimensions 2 and 3.
    fn matrix(&self, batch: usize) -> (usize, usize) {
        let (x, w) = (self.input.ne, self.weights.ne);
        (batch % x[2] / (x[2] / w[2]), batch / x[2] / (x[3] / w[3]))
    }

    /// Makes activation tiles together with the other threads, and flags the rows that break their bound. All threads
    /// get the same answer: [`Operand::Blocks`] if the activations turn out to be too bad for tiles; then none were
    /// made.
    ///
    /// # Safety
    /// The operation must be valid ([`MatMul::run`]).
    unsafe fn make_tiles(
        &self,
        facts: &Facts,
        mut choice: Choice,
        buffer: &WorkBuffer<'_>,
        thread: &Thread<'_>,
    ) -> Operand {
        let k = self.input.ne[0];
        // SAFETY: the operation is valid; all threads come here, for they made the same choice.
        unsafe {
            if thread.index == 0 {
                let matrices = 0..self.weights.ne[2] * self.weights.ne[3];
                buffer.known.set(KnownErrors::new(&self.weights, self.gate.as_ref(), matrices));
            }
            let tiles = buffer.tiles(0);
            let sets = facts.m.div_ceil(OUTLIER_SET_ROWS);
            if choice == Choice::Look {
                to_tiles::find_maxima(thread, k, sets, (0..sets).map(|i| self.outlier_set(&tiles, i)));
            }
            thread.wait();
            let known = buffer.known.get();
            known.measure(thread, buffer.scratch);
            if choice == Choice::Look {
                let sample = |i| Sample { set: self.outlier_set(&tiles, i), most: ERROR_SAMPLE_ROWS, matrix: 0 };
                let samples = (0..sets).map(sample);
                let seen = to_tiles::look(facts, known, samples, thread, buffer.stats, buffer.scratch);
                choice = facts.after_looking(&seen);
                if thread.index == 0 && log::enabled(log::Level::Debug) {
                    let ([_, n, ..], name) = (self.weights.ne, self.weights.stored.info().name);
                    debug!("{name} K {k} N {n} M {}: {choice}; {seen}", facts.m);
                }
            }
            let Choice::Tiles(precision) = choice else {
                // The maxima lie where blocks come to lie.
                thread.wait();
                return Operand::Blocks(Isa::Amx);
            };
            let mut writer = TileWriter::new(facts, known, precision, k, buffer.scratch);
            for i in split::share(facts.batches * facts.m, thread.index, thread.count) {
                let (batch, row) = (i / facts.m, i % facts.m);
                let (tiles, x) = (buffer.tiles(batch), self.rows_of(batch).row(row));
                let set = row / OUTLIER_SET_ROWS;
                writer.enter(set, || self.outlier_set(&tiles, set));
                if row.is_multiple_of(OUTLIER_SET_ROWS) {
                    writer.write_channels(&tiles, set);
                }
                writer.put(&tiles, &x, &[row]);
                let (i2, i3) = self.matrix(batch);
                let is_kept = writer.keeps_bound(&tiles, &x, row, i2 + i3 * self.weights.ne[2]);
                *buffer.flags.add(i) = u8::from(!is_kept);
            }
            Operand::Tiles(precision)
        }
    }

    /// Quantises this thread's share of the blocks of all rows of all batches.
    ///
    /// # Safety
    /// The operation must be valid ([`MatMul::run`]).
    unsafe fn make_blocks(&self, isa: Isa, buffer: &WorkBuffer<'_>, thread: &Thread<'_>) {
        let (m, blocks) = (self.input.ne[1], self.input.ne[0] / ACT_BLOCK);
        let mine = split::share(self.batches() * m * blocks, thread.index, thread.count);
        let mut at = mine.start;
        while at < mine.end {
            let (batch, row) = (at / (m * blocks), at / blocks % m);
            let first = at % blocks;
            let last = (first + mine.end - at).min(blocks);
            // SAFETY: batch, row and blocks exist, and are this thread's.
            unsafe {
                let (act, x) = (buffer.blocks(batch), self.rows_of(batch).row(row));
                for block in first..last {
                    act.quantise(isa, row, block, x.data.add(block * ACT_BLOCK * x.channel), x.channel);
                }
            }
            at += last - first;
        }
    }

    /// Computes one piece of the result from the activations of its batch.
    ///
    /// # Safety
    /// The operation must be valid ([`MatMul::run`]), its activations made into `operand`.
    unsafe fn multiply(&self, operand: Operand, buffer: &WorkBuffer<'_>, piece: &Piece) {
        let (i2, i3) = (piece.batch % self.input.ne[2], piece.batch / self.input.ne[2]);
        let stride = self.output.nb[0];
        let is_aligned = stride.is_multiple_of(work::ALIGN);
        // SAFETY: the piece is one of the operation's.
        unsafe {
            let task = PieceTask {
                operand,
                act: buffer.blocks(piece.batch),
                tiles: buffer.tiles(piece.batch),
                row_block: 0,
                outlier_set: 0,
                outlier_set_rows: OUTLIER_SET_ROWS,
                slice: self.matrix(piece.batch),
                rows: piece.rows.clone(),
                scratch: buffer.scratch,
                stream: dispatch::bypasses_caches(piece.rows.len() * stride, is_aligned),
                flagged: FloatRows {
                    flags: buffer.flags.wrapping_add(piece.batch * self.input.ne[1]),
                    x: self.rows_of(piece.batch),
                },
            };
            let dst = self.output.data.wrapping_add(i2 * self.output.nb[1] + i3 * self.output.nb[2]).cast();
            task.run(&self.weights, self.gate.as_ref(), piece.cols.clone(), (dst, RowOffsets::Strided(stride)));
        }
    }
}

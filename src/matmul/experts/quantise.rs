//! Rows of activations, quantised for the experts that get them.

use super::routing::{Expert, RoutedRow};
use super::work::WorkBuffer;
use super::{ExpertMul, KernelChoice};
use crate::cpu::Isa;
use crate::dispatch::Facts;
use crate::format::ACT_BLOCK;
use crate::matmul::piece::Operand;
use crate::matmul::to_tiles::TileWriter;
use crate::matmul::{Thread, split};
use crate::panel::precision::{Precision, TILE_MR};
use crate::panel::rows::InputRow;

/// Rows of tiles that one row of activations is written to at a time.
const ROWS_AT_ONCE: usize = 8;

impl ExpertMul {
    /// Quantises this thread's share of the rows.
    ///
    /// # Safety
    /// The operation must be valid ([`ExpertMul::run`]), the choices sorted; the outlier channels' maxima found, if
    /// tiles are int8.
    pub(super) unsafe fn quantise(
        &self,
        facts: &Facts,
        choice: KernelChoice,
        buffer: &WorkBuffer<'_>,
        thread: &Thread<'_>,
    ) {
        // SAFETY: the operation is valid, and what quantising reads of the work buffer was filled before (`# Safety`).
        unsafe {
            let writer = choice.tiles.map(|(_, precision)| {
                let known = buffer.known.get();
                TileWriter::new(facts, known, precision, self.weights.ne[0], buffer.scratch)
            });
            let mut quantiser = Quantiser { op: self, choice, buffer, writer };
            match self.shares_rows() {
                true => quantiser.shared_rows(thread),
                false => quantiser.own_rows(thread),
            }
        }
    }
}

/// What one thread quantises with.
struct Quantiser<'a> {
    op: &'a ExpertMul,
    choice: KernelChoice,
    buffer: &'a WorkBuffer<'a>,
    /// If some experts are multiplied on tiles.
    writer: Option<TileWriter<'a>>,
}

impl Quantiser<'_> {
    /// This thread's share of rows that several experts get: each is quantised once and copied.
    ///
    /// # Safety
    /// As for [`ExpertMul::quantise`].
    unsafe fn shared_rows(&mut self, thread: &Thread<'_>) {
        let (per_token, used) = (self.op.input.ne[1], self.op.choices.used);
        let routing = &self.buffer.routing;
        // SAFETY: rows are shared out by where they come from, so that one thread writes each of their copies.
        unsafe {
            if let Some(writer) = &mut self.writer {
                writer.enter(0, || self.op.outlier_set(self.buffer, &routing.experts()[0]));
                if thread.index == 0 {
                    writer.write_channels(&self.buffer.tiles, 0);
                }
            }
            for i in split::share(self.op.choices.tokens * per_token, thread.index, thread.count) {
                let (token, row) = (i / per_token, i % per_token);
                let x = self.row(token, row);
                let (mut to, mut count) = ([RoutedRow::NONE; ROWS_AT_ONCE], 0);
                for slot in (row..used).step_by(per_token) {
                    let Some(routed) = routing.routed(token * used + slot) else { continue };
                    let expert = &routing.experts()[routed.expert as usize];
                    if let Operand::Blocks(isa) = self.choice.of(expert) {
                        self.put_blocks(isa, &x, expert, routed.row);
                        continue;
                    }
                    to[count] = routed;
                    count += 1;
                    if count == to.len() {
                        self.put_tiles(&x, &to);
                        count = 0;
                    }
                }
                if count > 0 {
                    self.put_tiles(&x, &to[..count]);
                }
            }
        }
    }

    /// This thread's share of rows that one expert each gets.
    ///
    /// # Safety
    /// As for [`ExpertMul::quantise`].
    unsafe fn own_rows(&mut self, thread: &Thread<'_>) {
        let routing = &self.buffer.routing;
        let mine = split::share(routing.rows(), thread.index, thread.count);
        for expert in routing.experts() {
            let first = expert.first as usize;
            let rows = mine.start.max(first)..mine.end.min(first + expert.rows as usize);
            if rows.is_empty() {
                continue;
            }
            let (all, operand) = (self.op.rows_of(routing, expert), self.choice.of(expert));
            // SAFETY: every row of the sorted order is one thread's.
            unsafe {
                if let (Operand::Tiles(Precision::Int8 { .. }), Some(writer)) = (operand, &mut self.writer) {
                    writer.enter(expert.index as usize, || self.op.outlier_set(self.buffer, expert));
                    if rows.start == first {
                        writer.write_channels(&self.buffer.tiles, expert.outlier_set as usize);
                    }
                }
                for row in rows {
                    let (row, x) = ((row - first) as u32, all.row(row - first));
                    match operand {
                        Operand::Tiles(_) => self.put_tiles(&x, &[RoutedRow { expert: expert.index, row }]),
                        Operand::Blocks(isa) => self.put_blocks(isa, &x, expert, row),
                    }
                }
            }
        }
    }

    /// Row `row` of activations of `token`.
    fn row(&self, token: usize, row: usize) -> InputRow {
        let input = &self.op.input;
        InputRow { data: input.data.wrapping_add(self.op.input_offset(token, row)), channel: input.nb[0] }
    }

    /// Makes a row up to [`ROWS_AT_ONCE`] rows of tiles, and flags those where it breaks its bound.
    ///
    /// # Safety
    /// As for [`ExpertMul::quantise`]; the rows must be this thread's.
    unsafe fn put_tiles(&self, x: &InputRow, to: &[RoutedRow]) {
        let (tiles, routing) = (&self.buffer.tiles, &self.buffer.routing);
        let writer = self.writer.as_ref().expect("somebody has tiles");
        let expert = |routed: &RoutedRow| &routing.experts()[routed.expert as usize];
        let mut tile_rows = [0; ROWS_AT_ONCE];
        for (tile_row, routed) in tile_rows.iter_mut().zip(to) {
            *tile_row = expert(routed).block as usize * TILE_MR + routed.row as usize;
        }
        let tile_rows = &tile_rows[..to.len()];
        // SAFETY: the rows exist and are this thread's, and so are their flags.
        unsafe {
            writer.put(tiles, x, tile_rows);
            for (routed, tile_row) in to.iter().zip(tile_rows) {
                let expert = expert(routed);
                let is_kept = writer.keeps_bound(tiles, x, *tile_row, expert.number as usize);
                *self.buffer.flags.add((expert.first + routed.row) as usize) = u8::from(!is_kept);
            }
        }
    }

    /// Makes a row blocks of 8 bits, for an expert on exact weights.
    ///
    /// # Safety
    /// The row must exist and be this thread's.
    unsafe fn put_blocks(&self, isa: Isa, x: &InputRow, expert: &Expert, row: u32) {
        // SAFETY: the row has these blocks.
        unsafe {
            let act = self.buffer.blocks(expert);
            for block in 0..self.op.weights.ne[0] / ACT_BLOCK {
                act.quantise(isa, row as usize, block, x.data.add(block * ACT_BLOCK * x.channel), x.channel);
            }
        }
    }
}

//! MUL_MAT_ID: every row of activations times the matrices of the experts that its token chose.
//!
//! ```text
//! one thread:    sort the choices by expert (routing)
//! barrier
//! every thread:  from how many rows on are experts multiplied on tiles, and how?  (perhaps a look: two barriers)
//!                quantise a share of the rows, for all experts that get them
//! barrier
//!                take parts of the work until nothing is left: an expert with few rows on exact weights,
//!                one with more on tiles
//! ```

mod choices;
mod quantise;
mod routing;
mod work;

use super::float_rows::FloatRows;
use super::known_errors::KnownErrors;
use super::piece::{Operand, PieceTask};
use super::to_tiles::{self, Sample};
use super::work::ALIGN;
use super::{Gate, Input, Output, Settings, Thread, Weights, split};
use crate::cpu::Isa;
use crate::debug;
use crate::diag::{counters, log};
use crate::dispatch::{self, Choice, Facts};
use crate::panel::outliers::{ERROR_SAMPLE_ROWS, OutlierSet};
use crate::panel::precision::Precision;
use crate::panel::rows::{InputRows, RowOffsets};
pub use choices::Choices;
use routing::{Expert, ExpertPiece, Routing};
use work::{WorkBuffer, WorkLayout};

/// The most experts whose rows are looked at to choose the precision, about evenly spaced among those with tiles.
const SAMPLED_EXPERTS: usize = 16;
/// Rows of each of these experts that are looked at, per 256.
const SAMPLED_ROWS: usize = 2;

/// One operation: `dst[n, slot, token] = sum_k w[k, n, ids[slot, token]] * src1[k, slot % ne11, token]`, ggml's
/// MUL_MAT_ID.
#[derive(Clone, Copy, Debug)]
pub struct ExpertMul {
    /// src0: K, N, experts, 1.
    pub weights: Weights,
    /// A second tensor, whose products are made into one result with the first one's.
    pub gate: Option<Gate>,
    /// src1: K, rows per token (one for all choices, or one each), tokens, 1.
    pub input: Input,
    /// src2.
    pub choices: Choices,
    /// dst: N, choices per token, tokens, 1.
    pub output: Output,
}

/// How experts are multiplied.
#[derive(Clone, Copy)]
struct KernelChoice {
    isa: Isa,
    /// Rows from which on an expert is multiplied on tiles, and their precision.
    tiles: Option<(usize, Precision)>,
}

impl KernelChoice {
    fn of(self, expert: &Expert) -> Operand {
        match self.tiles {
            Some((min_m, precision)) if expert.rows as usize >= min_m => Operand::Tiles(precision),
            _ => Operand::Blocks(self.isa),
        }
    }

    fn on_tiles(self, expert: &Expert) -> bool {
        matches!(self.of(expert), Operand::Tiles(_))
    }
}

impl ExpertMul {
    /// Whether shapes fit each other as ggml demands; `Err` names what does not.
    pub fn check(&self) -> Result<(), String> {
        let (w, x, ids) = (&self.weights.ne, &self.input.ne, &self.choices);
        if w[0] != x[0] {
            return Err(format!("K differs: {} weights, {} activations", w[0], x[0]));
        }
        if w[3] != 1 || x[3] != 1 {
            return Err(format!("weights and activations have {} and {} batches, not 1", w[3], x[3]));
        }
        if x[2] != ids.tokens {
            return Err(format!("activations of {} tokens, choices of {}", x[2], ids.tokens));
        }
        if x[1] == 0 || !ids.used.is_multiple_of(x[1]) {
            return Err(format!("{} rows of activations per token for {} choices", x[1], ids.used));
        }
        self.gate.as_ref().map_or(Ok(()), |gate| gate.check(&self.weights))?;
        WorkLayout::new(self).map(|_| ()).ok_or_else(|| "the work buffer does not fit the address space".to_string())
    }

    /// Whether there are no results.
    pub fn is_empty(&self) -> bool {
        self.weights.ne[1] == 0 || self.choices.used == 0 || self.choices.tokens == 0
    }

    fn facts(&self, settings: Settings) -> Facts {
        Facts {
            storage: self.weights.stored.info().storage,
            isa: settings.isa,
            // All experts together have enough rows; each is held against `Facts::min_tile_m`.
            m: usize::MAX,
            batches: 1,
            demand: settings.demand,
        }
    }

    /// Whether a row of activations goes to several experts.
    fn shares_rows(&self) -> bool {
        self.input.ne[1] < self.choices.used
    }

    /// Bytes of work buffer that `threads` threads need; `None` if that does not fit.
    pub fn work_size(&self, threads: usize) -> Option<usize> {
        WorkLayout::new(self)?.work_size(threads)
    }

    /// Computes this thread's part. All threads of the operation must call it with equal settings.
    ///
    /// # Safety
    /// **The operation is valid**: shapes have passed [`ExpertMul::check`], the choices [`Choices::find_bad`]; all
    /// pointers are valid for them; `work` is writable for [`ExpertMul::work_size`] of the thread count and shared by
    /// these threads alone; the instruction set is usable on all of them.
    pub unsafe fn run(&self, settings: Settings, thread: &Thread<'_>, work: *mut u8) {
        let Some(layout) = WorkLayout::new(self) else { return };
        if self.is_empty() {
            return;
        }
        // SAFETY: the operation is valid. Between barriers every row and every piece of the result belongs to one
        // thread.
        unsafe {
            if self.weights.ne[0] == 0 {
                return self.empty_sums(thread);
            }
            let buffer = layout.at(work, thread);
            let facts = self.facts(settings);
            if thread.index == 0 {
                self.sort(&facts, &buffer.routing);
                if settings.isa == Isa::Amx && buffer.routing.outlier_sets() > 0 {
                    let with_tiles = with_tiles(&buffer.routing, facts.min_tile_m()).map(|e| e.number as usize);
                    buffer.known.set(KnownErrors::new(&self.weights, self.gate.as_ref(), with_tiles));
                }
            }
            thread.wait();
            let has_tiles = settings.isa == Isa::Amx && buffer.routing.outlier_sets() > 0;
            let mut tiles = None;
            if has_tiles {
                buffer.known.get().measure(thread, buffer.scratch);
                tiles = self.choose_tiles(&facts, &buffer, thread);
            }
            let choice = KernelChoice { isa: settings.isa, tiles };
            if thread.index == 0 {
                let op = if self.gate.is_some() { counters::Op::MoeFusedUpGate } else { counters::Op::MulMatId };
                // Where experts with few rows and experts with many are multiplied differently, the latter count.
                let most = buffer.routing.experts().iter().max_by_key(|e| e.rows);
                let operand = most.map_or(Operand::Blocks(choice.isa), |e| choice.of(e));
                counters::count(op, operand.kernel());
            }
            self.quantise(&facts, choice, &buffer, thread);
            thread.wait();
            if thread.index == 0 && has_tiles {
                buffer.known.free();
            }
            let on_tiles = |e: &Expert| choice.on_tiles(e);
            buffer.routing.each_piece(self.weights.ne[1], thread.count, on_tiles, |piece| {
                self.multiply(choice, &buffer, &piece, thread.count);
            });
        }
    }

    /// Bytes from the first row of the result to row `slot` of `token`.
    fn result_offset(&self, token: usize, slot: usize) -> usize {
        slot * self.output.nb[0] + token * self.output.nb[1]
    }

    /// Bytes from the first row of activations to the one for choice `slot` of `token`.
    fn input_offset(&self, token: usize, slot: usize) -> usize {
        slot % self.input.ne[1] * self.input.nb[1] + token * self.input.nb[2]
    }

    /// A product over no channels: every result is 0.
    ///
    /// # Safety
    /// The operation must be valid ([`ExpertMul::run`]).
    unsafe fn empty_sums(&self, thread: &Thread<'_>) {
        for i in split::share(self.choices.used * self.choices.tokens, thread.index, thread.count) {
            let offset = self.result_offset(i / self.choices.used, i % self.choices.used);
            // SAFETY: the row exists and belongs to this thread.
            unsafe { std::ptr::write_bytes(self.output.data.add(offset).cast::<f32>(), 0, self.weights.ne[1]) };
        }
    }

    /// # Safety
    /// As for [`Routing::sort`].
    unsafe fn sort(&self, facts: &Facts, routing: &Routing) {
        let input = |token, slot| self.input_offset(token, slot);
        let result = |token, slot| self.result_offset(token, slot);
        // SAFETY: as promised for `sort`: all choices are experts, and the tables are this thread's.
        unsafe { routing.sort(&self.choices, facts.min_tile_m(), input, result) };
    }

    /// The f32 rows of an expert.
    fn rows_of(&self, routing: &Routing, expert: &Expert) -> InputRows {
        self.rows(RowOffsets::Listed(routing.inputs(expert)))
    }

    fn rows(&self, rows: RowOffsets) -> InputRows {
        InputRows { data: self.input.data, rows, channel: self.input.nb[0] }
    }

    /// The rows whose outlier channels are chosen together: those of the expert, or all if experts share rows.
    fn outlier_set(&self, buffer: &WorkBuffer<'_>, expert: &Expert) -> OutlierSet {
        let (routing, tiles) = (&buffer.routing, &buffer.tiles);
        let set =
            |x, count, index| OutlierSet { x, rows: 0..count, k: self.weights.ne[0], maxima: tiles.maxima(index) };
        if !self.shares_rows() {
            set(self.rows_of(routing, expert), expert.rows as usize, expert.outlier_set as usize)
        } else if self.input.ne[1] == 1 {
            set(self.rows(RowOffsets::Strided(self.input.nb[2])), self.choices.tokens, 0)
        } else {
            set(self.rows_of(routing, &routing.experts()[0]), routing.rows(), 0)
        }
    }

    /// Rows from which on tiles are used, and their precision. All threads get the same answer.
    ///
    /// # Safety
    /// The operation must be valid ([`ExpertMul::run`]), the choices sorted, the errors of the weights known.
    unsafe fn choose_tiles(
        &self,
        facts: &Facts,
        buffer: &WorkBuffer<'_>,
        thread: &Thread<'_>,
    ) -> Option<(usize, Precision)> {
        let min_m = facts.min_tile_m();
        match facts.choice() {
            Choice::Tiles(precision) => return Some((min_m, precision)),
            Choice::ExactWeights => return None,
            Choice::Look => {}
        }
        let (k, sets) = (self.weights.ne[0], buffer.routing.outlier_sets());
        // Rows that experts share are looked at with the weights of one of them; of others, a few of some experts.
        let (sets, step, most) = match self.shares_rows() {
            true => (1, usize::MAX, ERROR_SAMPLE_ROWS),
            false => (sets, sets.div_ceil(SAMPLED_EXPERTS), SAMPLED_ROWS),
        };
        let with_tiles = || with_tiles(&buffer.routing, min_m);
        let samples = with_tiles().step_by(step).map(|expert| Sample {
            set: self.outlier_set(buffer, expert),
            most,
            matrix: expert.number as usize,
        });
        // SAFETY: the operation is valid; all threads come here with the same sets.
        let seen = unsafe {
            let sets_of_all = with_tiles().take(sets).map(|expert| self.outlier_set(buffer, expert));
            to_tiles::find_maxima(thread, k, sets, sets_of_all);
            thread.wait();
            to_tiles::look(facts, buffer.known.get(), samples, thread, buffer.stats, buffer.scratch)
        };
        let tiles = facts.experts_after_looking(&seen);
        if thread.index == 0 && log::enabled(log::Level::Debug) {
            let ([_, n, all, _], name) = (self.weights.ne, self.weights.stored.info().name);
            let (chosen, on_tiles) = (buffer.routing.experts().len(), buffer.routing.outlier_sets());
            let choice = facts.after_looking(&seen);
            debug!("{name} K {k} N {n}, {chosen} of {all} experts, {on_tiles} on tiles: {choice}; {seen}");
        }
        tiles
    }

    /// Computes one piece of the result.
    ///
    /// # Safety
    /// The operation must be valid ([`ExpertMul::run`]), its activations quantised.
    unsafe fn multiply(&self, choice: KernelChoice, buffer: &WorkBuffer<'_>, piece: &ExpertPiece, threads: usize) {
        let expert = &buffer.routing.experts()[piece.expert];
        let (out, n) = (&self.output, self.weights.ne[1]);
        let bytes = n * 4 * self.choices.used * self.choices.tokens / threads;
        let is_aligned = (out.nb[0] | out.nb[1]).is_multiple_of(ALIGN);
        // SAFETY: the piece is one of the operation's.
        unsafe {
            let task = PieceTask {
                operand: choice.of(expert),
                act: buffer.blocks(expert),
                tiles: buffer.tiles,
                row_block: expert.block as usize,
                outlier_set: if self.shares_rows() { 0 } else { expert.outlier_set as usize },
                outlier_set_rows: usize::MAX,
                slice: (expert.number as usize, 0),
                rows: piece.rows.clone(),
                scratch: buffer.scratch,
                stream: dispatch::bypasses_caches(bytes, is_aligned),
                flagged: FloatRows {
                    flags: buffer.flags.wrapping_add(expert.first as usize),
                    x: self.rows_of(&buffer.routing, expert),
                },
            };
            let dst = (out.data.cast(), RowOffsets::Listed(buffer.routing.results(expert)));
            task.run(&self.weights, self.gate.as_ref(), piece.cols.clone(), dst);
        }
    }
}

/// The experts with enough rows for tiles, in the order of their outlier sets.
fn with_tiles(routing: &Routing, min_m: usize) -> impl Iterator<Item = &Expert> + Clone {
    routing.experts().iter().filter(move |e| e.rows as usize >= min_m)
}

//! MUL_MAT, and MUL_MAT_ID ([`experts`]): which pieces, on which thread, in which scratch.
//!
//! Every thread of the host calls [`MatMul::run`] with its number. First they quantise the
//! activations together into the shared work buffer, then (behind one barrier) each computes its own
//! part of the result. Nothing is allocated, locked or asked of the kernel meanwhile.

mod choice;
mod exact_rows;
mod experts;
mod gate;
mod looks;
pub mod measured;
mod product;
mod routing;
mod split;
#[cfg(test)]
mod tests;
mod weights;

use crate::cpu::Isa;
use crate::debug;
use crate::diag::env::env;
use crate::diag::{counters, log};
use crate::format::ACT_BLOCK;
use crate::kernel::{exact_weights, tile_gemm};
use crate::panel::activation_tiles::{self, ActivationTiles};
use crate::panel::activations::{ActivationLayout, Activations};
use crate::panel::outliers::{ERROR_SAMPLE_ROWS, ErrorStats, OUTLIER_SET_ROWS, OutlierSet, keep_mask};
use crate::panel::precision::{OUTLIERS, OutlierChannels, Precision};
use crate::panel::row_error::Bound;
use crate::panel::rows::{InputRows, RowOffsets};
use choice::{Choice, Facts};
use exact_rows::ExactRows;
pub use experts::{Choices, ExpertMul};
pub use gate::{Biases, Gate};
use measured::Known;
use product::{Extra, Operand, Product};
use split::{Piece, Split};
pub use weights::{Stored, Weights};

/// Alignment of everything in the work buffer: a cache line.
const ALIGN: usize = 64;
/// Bytes of results of one thread from which on they bypass the caches.
const STREAM_BYTES: usize = 1 << 20;

/// The f32 operand, src1: `ne` elements, `nb` bytes apart; any strides.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    /// Address of element 0.
    pub data: *const u8,
    /// Elements per dimension: K, M, batches.
    pub ne: [usize; 4],
    /// Bytes from one element to the next per dimension.
    pub nb: [usize; 4],
}

/// The f32 result: rows of contiguous floats, `nb` bytes apart in dimensions 1..3.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Address of element 0.
    pub data: *mut u8,
    /// Bytes per step of dimensions 1 (rows), 2 and 3 (batches).
    pub nb: [usize; 3],
}

impl Output {
    /// Whether one of `n` floats of a row is NaN or infinite, `counts` rows and batches.
    ///
    /// # Safety
    /// They must be there.
    pub unsafe fn has_nan(&self, n: usize, counts: [usize; 3]) -> bool {
        let [m, b2, b3] = counts;
        (0..m * b2 * b3).any(|i| {
            let offset = i % m * self.nb[0] + i / m % b2 * self.nb[1] + i / m / b2 * self.nb[2];
            // SAFETY: promised by the caller.
            (0..n).any(|col| unsafe { !self.data.add(offset + 4 * col).cast::<f32>().read_unaligned().is_finite() })
        })
    }
}

/// One operation: `dst[n, m, i2, i3] = sum_k w[k, n, i2 / r2, i3 / r3] * src1[k, m, i2, i3]`, ggml's
/// MUL_MAT with its broadcast of weights over batches.
#[derive(Clone, Copy, Debug)]
pub struct MatMul {
    /// src0.
    pub weights: Weights,
    /// A second matrix whose product is made into one result with the first one's.
    pub gate: Option<Gate>,
    /// src1.
    pub input: Input,
    /// dst.
    pub output: Output,
}

/// A product of either kind.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// MUL_MAT.
    Dense(MatMul),
    /// MUL_MAT_ID.
    Experts(ExpertMul),
}

impl Op {
    /// Whether shapes fit each other as ggml demands; `Err` names what does not.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Op::Dense(p) => p.check(),
            Op::Experts(p) => p.check(),
        }
    }

    /// Bytes of work buffer that `threads` threads need; `None` if that does not fit.
    pub fn work_size(&self, threads: usize) -> Option<usize> {
        match self {
            Op::Dense(p) => p.work_size(threads),
            Op::Experts(p) => p.work_size(threads),
        }
    }

    /// Whether there are no results.
    pub fn is_empty(&self) -> bool {
        match self {
            Op::Dense(p) => p.weights.ne[1] == 0 || p.input.ne[1..].contains(&0),
            Op::Experts(p) => p.is_empty(),
        }
    }

    /// Whether a tensor that is read or written has no data yet.
    pub fn lacks_data(&self) -> bool {
        let (w, x, y, ids) = match self {
            Op::Dense(p) => (&p.weights, &p.input, &p.output, false),
            Op::Experts(p) => (&p.weights, &p.input, &p.output, p.choices.data.is_null()),
        };
        y.data.is_null() || ids || x.ne[0] > 0 && (w.base.is_null() || x.data.is_null())
    }

    /// Whether weights have more digits than BF16.
    pub fn has_fine_weights(&self) -> bool {
        match self {
            Op::Dense(p) => p.weights.stored.planes() > 1,
            Op::Experts(p) => p.weights.stored.planes() > 1,
        }
    }

    /// Whether a result is NaN or infinite.
    ///
    /// # Safety
    /// The results must be there.
    pub unsafe fn has_nan(&self) -> bool {
        let (output, n, [m, b2, b3]) = match self {
            Op::Dense(p) => (&p.output, p.weights.ne[1], [p.input.ne[1], p.input.ne[2], p.input.ne[3]]),
            Op::Experts(p) => (&p.output, p.weights.ne[1], [p.choices.used, p.choices.tokens, 1]),
        };
        // SAFETY: promised by the caller.
        unsafe { output.has_nan(n, [m, b2, b3]) }
    }

    /// Computes this thread's part. All threads of the operation must call it with equal settings.
    ///
    /// # Safety
    /// As for [`MatMul::run`] or [`ExpertMul::run`].
    pub unsafe fn run(&self, settings: Settings, thread: &Thread<'_>, work: *mut u8) {
        // SAFETY: passed on.
        unsafe {
            match self {
                Op::Dense(p) => p.run(settings, thread, work),
                Op::Experts(p) => p.run(settings, thread, work),
            }
        }
    }
}

/// How the result may be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Highest instruction set.
    pub isa: Isa,
    /// What the results are wanted for.
    pub wish: Wish,
}

/// How many digits results shall have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    /// As many as the bound of rows asks for.
    Auto,
    /// Those of BF16, for any number of rows: then a row's bits do not depend on the other rows.
    Exact,
    /// Those of floats: the graph says that activations must not be rounded.
    Floats,
}

impl Wish {
    /// What the environment says: `GGML_AMX_PRECISION`.
    pub fn of_user() -> Self {
        if env().exact { Wish::Exact } else { Wish::Auto }
    }
}

/// This thread's place in the operation.
pub struct Thread<'a> {
    /// Number of this thread.
    pub index: usize,
    /// How many there are.
    pub count: usize,
    /// Waits for all of them.
    pub barrier: &'a dyn Fn(),
}

/// Sizes of the parts of the work buffer.
struct Plan {
    act: ActivationLayout,
    tiles: activation_tiles::TileLayout,
    batches: usize,
    /// Bytes per batch, enough for both kinds of activations.
    per_batch: usize,
    /// Bytes of what rows show that are looked at.
    looks: usize,
    /// Bytes of what threads share: a pointer, these, the batches, a byte per row.
    shared: usize,
    /// Per thread: the kernels' scratch, and behind it these.
    extra: Extra,
    per_thread: usize,
}

/// The parts, as one thread sees them.
struct Parts {
    /// What is known of the weights, from one thread for all.
    known: *mut *mut Known,
    /// What rows show that are looked at.
    looks: *mut ErrorStats,
    batches: *mut u8,
    /// A byte per row of all batches: 1 for those that tiles are not good enough for.
    flags: *mut u8,
    scratch: *mut u8,
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
        self.plan().map(|_| ()).ok_or_else(|| "the work buffer does not fit the address space".to_string())
    }

    fn plan(&self) -> Option<Plan> {
        let group = self.weights.stored.group();
        let [k, m, b2, b3] = self.input.ne;
        let gemm = tile_gemm::scratch_bytes(m.div_ceil(OUTLIER_SET_ROWS))
            .checked_add(product::pack_bytes(&self.weights, self.gate.as_ref()))?;
        let scratch = exact_weights::scratch_bytes(k, group).max(gemm).max(k).checked_next_multiple_of(ALIGN)?;
        let extra = Extra::new(&self.weights, self.gate.as_ref(), m)?;
        let act = ActivationLayout::new(m, k, group)?;
        let tiles =
            activation_tiles::TileLayout::new(m, k, self.weights.stored.planes(), m.div_ceil(OUTLIER_SET_ROWS))?;
        let batches = b2.checked_mul(b3)?;
        let per_batch = act.bytes.max(tiles.bytes);
        let flags = batches.checked_mul(m)?.checked_next_multiple_of(ALIGN)?;
        let looks = looks::bytes(m.div_ceil(OUTLIER_SET_ROWS).checked_mul(ERROR_SAMPLE_ROWS)?)?;
        let rows = flags.checked_add(looks)?.checked_add(ALIGN)?;
        let shared = per_batch.checked_mul(batches)?.checked_add(rows)?;
        let per_thread = scratch.checked_add(extra.bytes()?)?;
        Some(Plan { act, tiles, batches, per_batch, looks, shared, extra, per_thread })
    }

    /// Bytes of work buffer that `threads` threads need; `None` if that does not fit.
    pub fn work_size(&self, threads: usize) -> Option<usize> {
        let plan = self.plan()?;
        plan.per_thread.checked_mul(threads)?.checked_add(plan.shared)?.checked_add(ALIGN)
    }

    /// Computes this thread's part. All threads of the operation must call it with equal settings.
    ///
    /// # Safety
    /// Shapes must have passed [`MatMul::check`]; all pointers must be valid for them; `work` must
    /// be writable for [`MatMul::work_size`] of the thread count and shared by these threads alone;
    /// the instruction set must be usable on all of them.
    pub unsafe fn run(&self, settings: Settings, thread: &Thread<'_>, work: *mut u8) {
        let Some(plan) = self.plan() else { return };
        if self.weights.ne.contains(&0) || self.input.ne.contains(&0) {
            // SAFETY: as promised by the caller.
            unsafe { self.empty_sums(thread) };
            return;
        }
        let work = work.wrapping_add(work.align_offset(ALIGN));
        let parts = Parts {
            known: work.cast(),
            looks: work.wrapping_add(ALIGN).cast(),
            batches: work.wrapping_add(ALIGN + plan.looks),
            flags: work.wrapping_add(ALIGN + plan.looks + plan.per_batch * plan.batches),
            scratch: work.wrapping_add(plan.shared + thread.index * plan.per_thread),
        };
        let facts = Facts {
            storage: self.weights.stored.storage(),
            quant_nmse: self.weights.stored.quant_nmse(),
            rows: self.input.ne[1],
            tile_rows: self.weights.stored.tile_rows(),
            batches: plan.batches,
            wish: settings.wish,
        };
        let choice = if settings.isa == Isa::Amx { facts.choice() } else { Choice::Vectors };
        // SAFETY: the parts lie one behind the other in the work buffer; each batch of activations and
        // each piece of the result belongs to one thread between barriers.
        unsafe {
            let operand = match choice {
                Choice::Vectors => Operand::Vectors(settings.isa),
                _ => self.make_tiles(&facts, choice, &plan, &parts, thread),
            };
            if let Operand::Vectors(isa) = operand {
                self.quantise(isa, &plan, thread, parts.batches);
            }
            if thread.index == 0 {
                let op = if self.gate.is_some() { counters::Op::FusedUpGate } else { counters::Op::MulMat };
                counters::count(op, operand.kernel());
            }
            thread.wait();
            if choice != Choice::Vectors && thread.index == 0 {
                drop(Box::from_raw(*parts.known));
            }
            let split = Split::new(self.weights.ne[1], self.input.ne[1], plan.batches, thread.count);
            for piece in split.pieces(thread.index) {
                self.compute(operand, &plan, &parts, &piece);
            }
        }
    }

    /// A product over no channels (or of nothing): every result that there is, is 0.
    ///
    /// # Safety
    /// As for [`MatMul::run`].
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
    fn source(&self, batch: usize) -> InputRows {
        let ([_, _, b2, _], nb) = (self.input.ne, self.input.nb);
        InputRows {
            data: self.input.data.wrapping_add(batch % b2 * nb[2] + batch / b2 * nb[3]),
            rows: RowOffsets::Strided(nb[1]),
            channel: nb[0],
        }
    }

    /// Rows of the only batch that share their outlier channels.
    fn outlier_set(&self, tiles: &ActivationTiles, outlier_set: usize) -> OutlierSet {
        let [k, m, ..] = self.input.ne;
        OutlierSet {
            x: self.source(0),
            rows: outlier_set * OUTLIER_SET_ROWS..m.min((outlier_set + 1) * OUTLIER_SET_ROWS),
            k,
            maxima: tiles.maxima(outlier_set),
        }
    }

    /// Which matrix of the weights batch `batch` is multiplied with.
    fn matrix(&self, batch: usize) -> (usize, usize) {
        let (x, w) = (self.input.ne, self.weights.ne);
        (batch % x[2] / (x[2] / w[2]), batch / x[2] / (x[3] / w[3]))
    }

    /// Makes activation tiles together with the other threads, and flags the rows that break their bound. All threads
    /// get the same answer; [`Operand::Vectors`] if those are the better choice, with no tiles made.
    ///
    /// # Safety
    /// As for [`MatMul::run`].
    unsafe fn make_tiles(
        &self,
        facts: &Facts,
        mut choice: Choice,
        plan: &Plan,
        parts: &Parts,
        thread: &Thread<'_>,
    ) -> Operand {
        let [k, m, ..] = self.input.ne;
        let (outlier_sets, per_set) = (m.div_ceil(OUTLIER_SET_ROWS), k / ACT_BLOCK);
        // SAFETY: shares are disjoint; the first k / 16 words of scratch are ours.
        unsafe {
            if thread.index == 0 {
                let matrices = 0..self.weights.ne[2] * self.weights.ne[3];
                *parts.known = Box::into_raw(Box::new(Known::new(&self.weights, self.gate.as_ref(), matrices)));
            }
            let first = plan.tiles.at(parts.batches);
            if choice == Choice::Look {
                for i in split::share(outlier_sets * per_set, thread.index, thread.count) {
                    self.outlier_set(&first, i / per_set).find_maxima(i % per_set * ACT_BLOCK);
                }
            }
            thread.wait();
            let known = &**parts.known;
            known.measure(thread, parts.scratch, plan.extra.at(parts.scratch.wrapping_add(plan.per_thread)).0);
            let mask = std::slice::from_raw_parts_mut(parts.scratch.cast::<u16>(), k / 16);
            if choice == Choice::Look {
                let rows = (0..outlier_sets)
                    .flat_map(|c| self.outlier_set(&first, c).error_sample(ERROR_SAMPLE_ROWS).map(move |row| (c, row)));
                let mut at: (usize, OutlierChannels) = (usize::MAX, [0; OUTLIERS]);
                let seen = looks::together(thread, parts.looks, rows, |(index, row), seen| {
                    let outlier_set = self.outlier_set(&first, index);
                    if at.0 != index {
                        at = (index, outlier_set.choose_channels());
                        keep_mask(&at.1, mask);
                    }
                    for weights in known.of(0) {
                        seen.add(&outlier_set.look(row, &at.1, mask, weights, &Bound::new(facts.quant_nmse, weights)));
                    }
                });
                choice = facts.after_looking(&seen);
                if thread.index == 0 && log::enabled(log::Level::Debug) {
                    let ([_, n, ..], name) = (self.weights.ne, self.weights.stored.name());
                    debug!("{name} K {k} N {n} M {m}: {choice:?}; {seen}");
                }
            }
            let Choice::Tiles(precision) = choice else {
                // The search for outliers used the same memory.
                thread.wait();
                return Operand::Vectors(Isa::Amx);
            };
            let mut at: (usize, OutlierChannels) = (usize::MAX, [0; OUTLIERS]);
            for i in split::share(plan.batches * m, thread.index, thread.count) {
                let (batch, row) = (i / m, i % m);
                let tiles = plan.tiles.at(parts.batches.add(batch * plan.per_batch));
                let x = self.source(batch).row(row);
                if let Precision::Int8 { pass } = precision {
                    if at.0 != row / OUTLIER_SET_ROWS {
                        at = (
                            row / OUTLIER_SET_ROWS,
                            self.outlier_set(&tiles, row / OUTLIER_SET_ROWS).choose_channels(),
                        );
                        keep_mask(&at.1, mask);
                    }
                    if row % OUTLIER_SET_ROWS == 0 {
                        *tiles.channels(row / OUTLIER_SET_ROWS) = at.1;
                    }
                    tiles.put_int8(pass, &x, &[row], &at.1, mask);
                } else {
                    tiles.put_bf16(precision, &x, &[row]);
                }
                let (i2, i3) = self.matrix(batch);
                let holds = |weights| {
                    tiles.holds(precision, &Bound::new(facts.quant_nmse, weights), weights, &x, row, &at.1, mask)
                };
                let by_tiles = facts.wish < Wish::Floats && known.of(i2 + i3 * self.weights.ne[2]).all(holds);
                *parts.flags.add(i) = u8::from(!by_tiles);
            }
            Operand::Tiles(precision)
        }
    }

    /// Quantises this thread's share of the blocks of all rows of all batches.
    ///
    /// # Safety
    /// As for [`MatMul::run`].
    unsafe fn quantise(&self, isa: Isa, plan: &Plan, thread: &Thread<'_>, work: *mut u8) {
        let (m, blocks) = (plan.act.m, plan.act.k / ACT_BLOCK);
        let nb = self.input.nb;
        let total = plan.batches * m * blocks;
        let mine = split::share(total, thread.index, thread.count);
        let mut at = mine.start;
        while at < mine.end {
            let (batch, row) = (at / (m * blocks), at / blocks % m);
            let first = at % blocks;
            let last = (first + mine.end - at).min(blocks);
            let (i2, i3) = (batch % self.input.ne[2], batch / self.input.ne[2]);
            // SAFETY: batch, row and blocks exist in both layouts.
            unsafe {
                let act: Activations = plan.act.at(work.add(batch * plan.per_batch));
                let x = self.input.data.add(row * nb[1] + i2 * nb[2] + i3 * nb[3]);
                for block in first..last {
                    act.quantise(isa, row, block, x.add(block * ACT_BLOCK * nb[0]), nb[0]);
                }
            }
            at += last - first;
        }
    }

    /// Computes one piece of the result from the activations of its batch.
    ///
    /// # Safety
    /// As for [`MatMul::run`].
    unsafe fn compute(&self, operand: Operand, plan: &Plan, parts: &Parts, piece: &Piece) {
        let (i2, i3) = (piece.batch % self.input.ne[2], piece.batch / self.input.ne[2]);
        let (work, scratch) = (parts.batches.wrapping_add(piece.batch * plan.per_batch), parts.scratch);
        // SAFETY: the batch's part of the work buffer.
        let (act, tiles) = unsafe { (plan.act.at(work), plan.tiles.at(work)) };
        let (gathered, up_rows) = plan.extra.at(scratch.wrapping_add(plan.per_thread));
        let stride = self.output.nb[0];
        let product = Product {
            operand,
            act,
            tiles,
            block: 0,
            outlier_set: 0,
            outlier_set_rows: OUTLIER_SET_ROWS,
            slice: self.matrix(piece.batch),
            rows: piece.rows.clone(),
            scratch,
            gathered,
            stream: piece.rows.len() * stride >= STREAM_BYTES && stride.is_multiple_of(ALIGN),
            exact: Some(ExactRows {
                flags: parts.flags.wrapping_add(piece.batch * self.input.ne[1]),
                x: self.source(piece.batch),
            }),
        };
        let dst = self.output.data.wrapping_add(i2 * self.output.nb[1] + i3 * self.output.nb[2]).cast();
        // SAFETY: promised by the caller.
        unsafe {
            product.run(
                &self.weights,
                self.gate.as_ref(),
                piece.cols.clone(),
                (dst, RowOffsets::Strided(stride)),
                up_rows,
            )
        };
    }
}

impl Thread<'_> {
    /// Waits for the other threads, if any.
    fn wait(&self) {
        if self.count > 1 {
            (self.barrier)();
        }
    }
}

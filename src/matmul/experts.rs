//! MUL_MAT_ID: every row of activations times the matrices of the experts that its token chose.
//!
//! One thread sorts the choices by expert; then all quantise the rows into the sorted order (a row that
//! several experts get is quantised once and written to all of them), and behind a barrier take parts of the work. An
//! expert with few rows takes the vector kernels, one with more the tile GEMM.

use super::choice::{self, Choice, Facts};
use super::exact_rows::ExactRows;
use super::measured::Known;
use super::routing::{self, Expert, Piece, Place, Routing};
use super::{
    ALIGN, Extra, Gate, Input, Operand, Output, Product, STREAM_BYTES, Settings, Thread, Weights, Wish, looks, product,
    split,
};
use crate::cpu::Isa;
use crate::debug;
use crate::diag::{counters, log};
use crate::format::ACT_BLOCK;
use crate::kernel::{exact_weights, tile_gemm};
use crate::panel::activation_tiles::{self, ActivationTiles};
use crate::panel::activations;
use crate::panel::outliers::{ERROR_SAMPLE_ROWS, ErrorStats, OUTLIER_SET_ROWS, OutlierSet, keep_mask};
use crate::panel::precision::{OUTLIERS, OutlierChannels, Precision, TILE_MR};
use crate::panel::row_error::Bound;
use crate::panel::rows::{InputRow, InputRows, RowOffsets};

/// Parts of a layout for the vector kernels that are rounded up to whole lines.
const LINES_ROUNDED: usize = 3;
/// Rows of tiles that one row of activations is written to at a time.
const PLACES_TOGETHER: usize = 8;
/// Experts whose rows are looked at to choose the precision, and of how many rows of each.
const EXPERTS_LOOKED_AT: usize = 16;
const ROWS_OF_EXPERT: usize = 2;

/// The experts that tokens chose: int32, any strides.
#[derive(Clone, Copy, Debug)]
pub struct Choices {
    /// Address of the first.
    pub data: *const u8,
    /// Experts per token.
    pub used: usize,
    /// Tokens.
    pub tokens: usize,
    /// Bytes from one choice of a token to the next, and from one token to the next.
    pub nb: [usize; 2],
    /// Whether there may be numbers that are no experts: their results are left alone.
    pub skip_others: bool,
}

impl Choices {
    /// Calls `f(token, slot, expert)` for all of them that are among `experts` experts.
    ///
    /// # Safety
    /// The memory must be readable; the numbers be experts, unless others are to be skipped.
    pub unsafe fn each(&self, experts: usize, mut f: impl FnMut(usize, usize, usize)) {
        for token in 0..self.tokens {
            for slot in 0..self.used {
                // SAFETY: promised by the caller.
                let expert = unsafe { self.at(token, slot) } as usize;
                if !self.skip_others || expert < experts {
                    f(token, slot, expert);
                }
            }
        }
    }

    /// The lowest and the highest expert that was chosen, of `experts` experts.
    ///
    /// # Safety
    /// As for [`Choices::each`].
    pub unsafe fn ends(&self, experts: usize) -> Option<(usize, usize)> {
        let mut ends: Option<(usize, usize)> = None;
        // SAFETY: promised by the caller.
        unsafe {
            self.each(experts, |_, _, expert| {
                ends = Some(ends.map_or((expert, expert), |(low, high)| (low.min(expert), high.max(expert))));
            });
        }
        ends
    }

    /// How many of `experts` experts were chosen, and the highest of them (0: none).
    ///
    /// # Safety
    /// As for [`Choices::each`].
    pub unsafe fn active(&self, experts: usize) -> (usize, usize) {
        let mut chosen = vec![false; experts];
        // SAFETY: promised by the caller.
        unsafe { self.each(experts, |_, _, expert| chosen[expert] = true) };
        (chosen.iter().filter(|is| **is).count(), chosen.iter().rposition(|is| *is).unwrap_or(0))
    }

    /// # Safety
    /// The memory must be readable.
    unsafe fn at(&self, token: usize, slot: usize) -> i32 {
        // SAFETY: promised by the caller.
        unsafe { self.data.add(token * self.nb[1] + slot * self.nb[0]).cast::<i32>().read_unaligned() }
    }

    /// The first choice that is none of `experts` experts: token, slot, number.
    ///
    /// # Safety
    /// The memory must be readable.
    pub unsafe fn find_bad(&self, experts: usize) -> Option<(usize, usize, i32)> {
        let all = (0..self.tokens).flat_map(|token| (0..self.used).map(move |slot| (token, slot)));
        // SAFETY: promised by the caller.
        let mut numbers = all.map(|(token, slot)| (token, slot, unsafe { self.at(token, slot) }));
        numbers.find(|(_, _, number)| usize::try_from(*number).map_or(true, |n| n >= experts))
    }
}

/// One operation: `dst[n, slot, token] = sum_k w[k, n, ids[slot, token]] * src1[k, slot % ne11, token]`,
/// ggml's MUL_MAT_ID.
#[derive(Clone, Copy, Debug)]
pub struct ExpertMul {
    /// src0: K, N, experts, 1.
    pub weights: Weights,
    /// A second tensor whose products are made into one result with the first one's.
    pub gate: Option<Gate>,
    /// src1: K, rows per token (one for all choices, or one each), tokens, 1.
    pub input: Input,
    /// src2.
    pub choices: Choices,
    /// dst: N, choices per token, tokens, 1.
    pub output: Output,
}

/// Sizes of the parts of the work buffer, in the order they lie there.
struct Plan {
    routing: routing::Layout,
    /// For the vector kernels: a layout per expert, one behind the other, in this many bytes.
    vectors: usize,
    tiles: activation_tiles::TileLayout,
    /// A byte per row.
    flags: usize,
    /// Bytes of what rows show that are looked at.
    looks: usize,
    /// Per thread: the kernels' scratch, and behind it these.
    extra: Extra,
    per_thread: usize,
}

/// The parts.
struct Parts {
    /// What is known of the weights, from one thread for all; null if nobody takes tiles.
    known: *mut *mut Known,
    routing: Routing,
    vectors: *mut u8,
    tiles: ActivationTiles,
    /// A byte per row in the sorted order: 1 for those that tiles are not good enough for.
    flags: *mut u8,
    /// What rows show that are looked at.
    looks: *mut ErrorStats,
    scratch: *mut u8,
}

/// How rows are multiplied.
#[derive(Clone, Copy)]
struct KernelChoice {
    isa: Isa,
    wish: Wish,
    /// From how many rows on an expert is multiplied on tiles, and how.
    tiles: Option<(usize, Precision)>,
}

impl KernelChoice {
    fn of(self, expert: &Expert) -> Operand {
        match self.tiles {
            Some((rows, precision)) if expert.rows as usize >= rows => Operand::Tiles(precision),
            _ => Operand::Vectors(self.isa),
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
        self.plan().map(|_| ()).ok_or_else(|| "the work buffer does not fit the address space".to_string())
    }

    /// Whether results are nothing at all.
    pub fn is_empty(&self) -> bool {
        self.weights.ne[1] == 0 || self.choices.used == 0 || self.choices.tokens == 0
    }

    /// What is known before the activations are looked at; an expert takes tiles from `tile_rows` rows on.
    fn facts(&self, settings: Settings) -> Facts {
        let stored = &self.weights.stored;
        Facts {
            storage: stored.storage(),
            quant_nmse: stored.quant_nmse(),
            // Together they are enough.
            rows: usize::MAX,
            tile_rows: if settings.wish >= Wish::Exact { 1 } else { stored.tile_rows() },
            batches: 1,
            wish: settings.wish,
        }
    }

    /// Whether a row of activations goes to several experts.
    fn shares_rows(&self) -> bool {
        self.input.ne[1] < self.choices.used
    }

    fn plan(&self) -> Option<Plan> {
        let (k, group, experts) = (self.weights.ne[0], self.weights.stored.group(), self.weights.ne[2]);
        let choices = self.choices.used.checked_mul(self.choices.tokens)?;
        // As many as there may be where tiles are used for any number of rows.
        let with_tiles = experts.min(choices);
        let blocks = if with_tiles == 0 { 0 } else { choices / TILE_MR + with_tiles };
        let outlier_sets = if self.shares_rows() { with_tiles.min(1) } else { with_tiles };
        let tiles = activation_tiles::TileLayout::new(
            blocks.checked_mul(TILE_MR)?,
            k,
            self.weights.stored.planes(),
            outlier_sets,
        )?;
        let gemm = tile_gemm::scratch_bytes(1) + product::pack_bytes(&self.weights, self.gate.as_ref());
        let scratch = exact_weights::scratch_bytes(k, group).max(gemm).max(k).next_multiple_of(ALIGN);
        let extra = Extra::new(&self.weights, self.gate.as_ref(), choices)?;
        let per_thread = scratch.checked_add(extra.bytes()?)?;
        let vectors = Self::vector_bytes(choices, k, group)?
            .checked_add(experts.min(choices).checked_mul(LINES_ROUNDED * ALIGN)?)?;
        let (routing, flags) = (routing::Layout::new(experts, choices)?, choices.checked_next_multiple_of(ALIGN)?);
        // An expert may have all choices.
        let outlier_sets = choices.div_ceil(OUTLIER_SET_ROWS).checked_add(EXPERTS_LOOKED_AT)?;
        let looks = looks::bytes(outlier_sets.checked_mul(ERROR_SAMPLE_ROWS)?)?;
        let plan = Plan { routing, vectors, tiles, flags, looks, extra, per_thread };
        plan.shared()?;
        Some(plan)
    }

    /// Bytes of `rows` quantised rows for the vector kernels, rounded up.
    fn vector_bytes(rows: usize, k: usize, group: usize) -> Option<usize> {
        activations::ActivationLayout::new(rows, k, group).map(|l| l.bytes)
    }

    /// Bytes of work buffer that `threads` threads need; `None` if that does not fit.
    pub fn work_size(&self, threads: usize) -> Option<usize> {
        let plan = self.plan()?;
        plan.per_thread.checked_mul(threads)?.checked_add(plan.shared()?)?.checked_add(ALIGN)
    }

    /// Computes this thread's part. All threads of the operation must call it with equal settings.
    ///
    /// # Safety
    /// Shapes must have passed [`ExpertMul::check`], the choices [`Choices::find_bad`]; all pointers must
    /// be valid for them; `work` must be writable for [`ExpertMul::work_size`] of the thread count and
    /// shared by these threads alone; the instruction set must be usable on all of them.
    pub unsafe fn run(&self, settings: Settings, thread: &Thread<'_>, work: *mut u8) {
        let Some(plan) = self.plan() else { return };
        if self.is_empty() {
            return;
        }
        // SAFETY: the parts lie one behind the other in the work buffer; between barriers every row and
        // every piece of the result belongs to one thread.
        unsafe {
            if self.weights.ne[0] == 0 {
                return self.empty_sums(thread);
            }
            let parts = plan.parts(work.wrapping_add(work.align_offset(ALIGN)), thread.index);
            let facts = self.facts(settings);
            if thread.index == 0 {
                self.sort(&facts, &parts.routing);
                let experts = parts.routing.experts().iter();
                let on_tiles = experts.filter(|e| e.rows as usize >= facts.tile_rows).map(|e| e.number as usize);
                *parts.known = if settings.isa == Isa::Amx && parts.routing.outlier_sets() > 0 {
                    Box::into_raw(Box::new(Known::new(&self.weights, self.gate.as_ref(), on_tiles)))
                } else {
                    std::ptr::null_mut()
                };
            }
            thread.wait();
            if let Some(known) = (*parts.known).as_ref() {
                let gathered = plan.extra.at(parts.scratch.wrapping_add(plan.per_thread)).0;
                known.measure(thread, parts.scratch, gathered);
            }
            let ways = KernelChoice {
                isa: settings.isa,
                wish: settings.wish,
                tiles: self.tiles(&facts, settings.isa, &parts, thread),
            };
            if thread.index == 0 {
                let op = if self.gate.is_some() { counters::Op::MoeFusedUpGate } else { counters::Op::MulMatId };
                // Of experts with few rows and experts with many: by those with many.
                let most = parts.routing.experts().iter().max_by_key(|e| e.rows);
                let operand = most.map_or(Operand::Vectors(ways.isa), |e| ways.of(e));
                counters::count(op, operand.kernel());
            }
            if self.shares_rows() {
                self.quantise_shared(ways, &parts, thread);
            } else {
                self.quantise_own(ways, &parts, thread);
            }
            thread.wait();
            if thread.index == 0 && !(*parts.known).is_null() {
                drop(Box::from_raw(*parts.known));
            }
            let on_tiles = |e: &Expert| ways.on_tiles(e);
            parts.routing.each_piece(self.weights.ne[1], thread.count, on_tiles, |piece| {
                self.compute(ways, &plan, &parts, &piece, thread.count);
            });
        }
    }

    /// Bytes from row `slot` of `token` in the result to its first.
    fn result_offset(&self, token: usize, slot: usize) -> usize {
        slot * self.output.nb[0] + token * self.output.nb[1]
    }

    fn source_offset(&self, token: usize, slot: usize) -> usize {
        slot % self.input.ne[1] * self.input.nb[1] + token * self.input.nb[2]
    }

    /// A product over no channels: every result is 0.
    ///
    /// # Safety
    /// As for [`ExpertMul::run`].
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
        let source = |token, slot| self.source_offset(token, slot);
        let result = |token, slot| self.result_offset(token, slot);
        // SAFETY: promised by the caller.
        unsafe { routing.sort(&self.choices, facts.tile_rows, source, result) };
    }

    /// The rows whose outlier channels are chosen together: all, or those of expert `expert`.
    fn outlier_set(&self, parts: &Parts, expert: Option<&Expert>) -> OutlierSet {
        let (routing, tiles) = (&parts.routing, &parts.tiles);
        let outlier_set = |rows, count, index| OutlierSet {
            x: InputRows { data: self.input.data, rows, channel: self.input.nb[0] },
            rows: 0..count,
            k: self.weights.ne[0],
            maxima: tiles.maxima(index),
        };
        match expert {
            Some(e) => outlier_set(RowOffsets::Listed(routing.sources(e)), e.rows as usize, e.outlier_set as usize),
            None if self.input.ne[1] == 1 => outlier_set(RowOffsets::Strided(self.input.nb[2]), self.choices.tokens, 0),
            None => {
                let all = routing.sources(&routing.experts()[0]);
                outlier_set(RowOffsets::Listed(all), routing.rows(), 0)
            }
        }
    }

    /// From how many rows on tiles are used, and their precision. All threads get the same answer (one
    /// barrier inside).
    ///
    /// # Safety
    /// As for [`ExpertMul::run`].
    unsafe fn tiles(&self, facts: &Facts, isa: Isa, parts: &Parts, thread: &Thread<'_>) -> Option<(usize, Precision)> {
        let least = facts.tile_rows;
        let experts = parts.routing.experts();
        let with_tiles = || experts.iter().filter(|e| e.rows as usize >= least);
        if isa != Isa::Amx || parts.routing.outlier_sets() == 0 {
            return None;
        }
        match facts.choice() {
            Choice::Tiles(precision) => return Some((least, precision)),
            Choice::Vectors => return None,
            Choice::Look => {}
        }
        let per_set = self.weights.ne[0] / ACT_BLOCK;
        // SAFETY: shares are disjoint; the scratch is this thread's.
        let (choice, seen) = unsafe {
            if self.shares_rows() {
                let outlier_set = self.outlier_set(parts, None);
                for i in split::share(per_set, thread.index, thread.count) {
                    outlier_set.find_maxima(i * ACT_BLOCK);
                }
            } else {
                let mine = split::share(parts.routing.outlier_sets() * per_set, thread.index, thread.count);
                for (index, expert) in with_tiles().enumerate() {
                    let all = index * per_set..(index + 1) * per_set;
                    let outlier_set = self.outlier_set(parts, Some(expert));
                    for i in mine.start.max(all.start)..mine.end.min(all.end) {
                        outlier_set.find_maxima(i % per_set * ACT_BLOCK);
                    }
                }
            }
            thread.wait();
            let (mask, known) = (self.mask(parts), &**parts.known);
            let of = |expert: &Expert| if self.shares_rows() { None } else { Some(*expert) };
            // Rows that experts share are looked at with the weights of one; of others a few of some experts.
            let (step, most) = match self.shares_rows() {
                true => (usize::MAX, ERROR_SAMPLE_ROWS),
                false => (parts.routing.outlier_sets().div_ceil(EXPERTS_LOOKED_AT), ROWS_OF_EXPERT),
            };
            let rows = with_tiles()
                .step_by(step)
                .flat_map(|e| self.outlier_set(parts, of(e).as_ref()).error_sample(most).map(move |row| (e, row)));
            let mut at: (u32, OutlierChannels) = (u32::MAX, [0; OUTLIERS]);
            let seen = looks::together(thread, parts.looks, rows, |(expert, row), seen| {
                let outlier_set = self.outlier_set(parts, of(expert).as_ref());
                if at.0 != expert.number {
                    at = (expert.number, outlier_set.choose_channels());
                    keep_mask(&at.1, mask);
                }
                for weights in known.of(expert.number as usize) {
                    seen.add(&outlier_set.look(row, &at.1, mask, weights, &Bound::new(facts.quant_nmse, weights)));
                }
            });
            (facts.after_looking(&seen), seen)
        };
        if thread.index == 0 && log::enabled(log::Level::Debug) {
            let ([k, n, all, _], name) = (self.weights.ne, self.weights.stored.name());
            debug!(
                "{name} K {k} N {n}, {} of {all} experts, {} on tiles: {choice:?}; {seen}",
                experts.len(),
                parts.routing.outlier_sets()
            );
        }
        match choice {
            Choice::Tiles(Precision::Bf16) => Some((least.max(choice::MIN_BF16_ROWS), Precision::Bf16)),
            Choice::Tiles(precision) => Some((least, precision)),
            Choice::Vectors | Choice::Look => None,
        }
    }

    /// # Safety
    /// The scratch must not be in use otherwise.
    #[allow(clippy::mut_from_ref)] // the scratch is this thread's
    unsafe fn mask<'a>(&self, parts: &'a Parts) -> &'a mut [u16] {
        // SAFETY: the scratch has at least a byte per channel.
        unsafe { std::slice::from_raw_parts_mut(parts.scratch.cast(), self.weights.ne[0] / 16) }
    }

    /// Quantised rows of an expert for the vector kernels.
    ///
    /// # Safety
    /// The parts must be the operation's.
    unsafe fn vectors(&self, parts: &Parts, expert: &Expert) -> activations::Activations {
        let (k, group) = (self.weights.ne[0], self.weights.stored.group());
        // Every layout before this one rounded its three parts up to whole lines.
        let before = Self::vector_bytes(expert.first as usize, k, group).expect("was planned");
        let before = before + expert.index as usize * LINES_ROUNDED * ALIGN;
        // SAFETY: `Plan::vectors` has room for all rows and the rounding of all experts.
        unsafe {
            let layout = activations::ActivationLayout::new(expert.rows as usize, k, group).expect("was planned");
            layout.at(parts.vectors.add(before))
        }
    }

    /// Quantises this thread's share of rows that several experts get: once, then copies.
    ///
    /// # Safety
    /// As for [`ExpertMul::run`].
    unsafe fn quantise_shared(&self, ways: KernelChoice, parts: &Parts, thread: &Thread<'_>) {
        let (per_token, used) = (self.input.ne[1], self.choices.used);
        // SAFETY: rows are shared out by where they come from, so every place is written by one thread.
        unsafe {
            let (mask, mut channels) = (self.mask(parts), [0; OUTLIERS]);
            if let Some((_, Precision::Int8 { .. })) = ways.tiles {
                channels = self.outlier_set(parts, None).choose_channels();
                keep_mask(&channels, mask);
                if thread.index == 0 {
                    *parts.tiles.channels(0) = channels;
                }
            }
            for i in split::share(self.choices.tokens * per_token, thread.index, thread.count) {
                let (token, row) = (i / per_token, i % per_token);
                let x = self.row(token, row);
                // Places in tiles, as many as are filled together.
                let (mut to, mut count) = ([Place::NONE; PLACES_TOGETHER], 0);
                for slot in (row..used).step_by(per_token) {
                    let Some(place) = parts.routing.place(token * used + slot) else { continue };
                    let expert = &parts.routing.experts()[place.expert as usize];
                    if let Operand::Vectors(isa) = ways.of(expert) {
                        self.put_vectors(isa, parts, &x, expert, place.row);
                        continue;
                    }
                    to[count] = place;
                    count += 1;
                    if count == to.len() {
                        self.put(ways, parts, &x, &to, &channels, mask);
                        count = 0;
                    }
                }
                if count > 0 {
                    self.put(ways, parts, &x, &to[..count], &channels, mask);
                }
            }
        }
    }

    /// Quantises this thread's share of rows that one expert each gets.
    ///
    /// # Safety
    /// As for [`ExpertMul::run`].
    unsafe fn quantise_own(&self, ways: KernelChoice, parts: &Parts, thread: &Thread<'_>) {
        let mine = split::share(parts.routing.rows(), thread.index, thread.count);
        for expert in parts.routing.experts() {
            let first = expert.first as usize;
            let rows = mine.start.max(first)..mine.end.min(first + expert.rows as usize);
            if rows.is_empty() {
                continue;
            }
            let x = InputRows {
                data: self.input.data,
                rows: RowOffsets::Listed(parts.routing.sources(expert)),
                channel: self.input.nb[0],
            };
            // SAFETY: every row of the sorted order is one thread's.
            unsafe {
                let (mask, mut channels) = (self.mask(parts), [0; OUTLIERS]);
                if let Operand::Tiles(Precision::Int8 { .. }) = ways.of(expert) {
                    channels = self.outlier_set(parts, Some(expert)).choose_channels();
                    keep_mask(&channels, mask);
                    if rows.start == first {
                        *parts.tiles.channels(expert.outlier_set as usize) = channels;
                    }
                }
                for row in rows {
                    let (row, x) = ((row - first) as u32, x.row(row - first));
                    let place = Place { expert: expert.index, row };
                    match ways.of(expert) {
                        Operand::Tiles(_) => self.put(ways, parts, &x, &[place], &channels, mask),
                        Operand::Vectors(isa) => self.put_vectors(isa, parts, &x, expert, row),
                    }
                }
            }
        }
    }

    /// The row of activations number `row` of `token`.
    fn row(&self, token: usize, row: usize) -> InputRow {
        InputRow { data: self.input.data.wrapping_add(self.source_offset(token, row)), channel: self.input.nb[0] }
    }

    /// Quantises a row for up to [`PLACES_TOGETHER`] places in tiles, and flags those where it breaks its bound.
    ///
    /// # Safety
    /// As for [`ActivationTiles::put_int8`].
    unsafe fn put(
        &self,
        ways: KernelChoice,
        parts: &Parts,
        x: &InputRow,
        places: &[Place],
        channels: &OutlierChannels,
        mask: &[u16],
    ) {
        let expert = |place: &Place| &parts.routing.experts()[place.expert as usize];
        let mut to = [0; PLACES_TOGETHER];
        to.iter_mut().zip(places).for_each(|(to, place)| *to = expert(place).tile_row(place.row));
        let to = &to[..places.len()];
        let (_, precision) = ways.tiles.expect("somebody has tiles");
        // SAFETY: promised by the caller; the flags of a row are written by the thread that has it.
        unsafe {
            match precision {
                Precision::Int8 { pass } => parts.tiles.put_int8(pass, x, to, channels, mask),
                _ => parts.tiles.put_bf16(precision, x, to),
            }
            let quant_nmse = self.weights.stored.quant_nmse();
            for (place, row) in places.iter().zip(to) {
                let expert = expert(place);
                let holds = |weights| {
                    let bound = Bound::new(quant_nmse, weights);
                    parts.tiles.holds(precision, &bound, weights, x, *row, channels, mask)
                };
                let flag = parts.flags.add(expert.first as usize + place.row as usize);
                let by_tiles = ways.wish < Wish::Floats && (**parts.known).of(expert.number as usize).all(holds);
                *flag = u8::from(!by_tiles);
            }
        }
    }

    /// # Safety
    /// The row must exist and be this thread's.
    unsafe fn put_vectors(&self, isa: Isa, parts: &Parts, x: &InputRow, expert: &Expert, row: u32) {
        // SAFETY: promised by the caller.
        unsafe {
            let act = self.vectors(parts, expert);
            for block in 0..self.weights.ne[0] / ACT_BLOCK {
                act.quantise(isa, row as usize, block, x.data.add(block * ACT_BLOCK * x.channel), x.channel);
            }
        }
    }

    /// Computes one piece of the result.
    ///
    /// # Safety
    /// As for [`ExpertMul::run`].
    unsafe fn compute(&self, ways: KernelChoice, plan: &Plan, parts: &Parts, piece: &Piece, threads: usize) {
        let expert = &parts.routing.experts()[piece.expert];
        let (out, n) = (&self.output, self.weights.ne[1]);
        let bytes = n * 4 * self.choices.used * self.choices.tokens;
        let aligned = (out.nb[0] | out.nb[1]).is_multiple_of(ALIGN);
        let (gathered, up_rows) = plan.extra.at(parts.scratch.wrapping_add(plan.per_thread));
        let product = Product {
            operand: ways.of(expert),
            // SAFETY: promised by the caller.
            act: unsafe { self.vectors(parts, expert) },
            tiles: parts.tiles,
            block: expert.block as usize,
            outlier_set: if self.shares_rows() { 0 } else { expert.outlier_set as usize },
            outlier_set_rows: usize::MAX,
            slice: (expert.number as usize, 0),
            rows: piece.rows.clone(),
            scratch: parts.scratch,
            gathered,
            stream: bytes / threads >= STREAM_BYTES && aligned,
            exact: Some(ExactRows {
                flags: parts.flags.wrapping_add(expert.first as usize),
                x: InputRows {
                    data: self.input.data,
                    rows: RowOffsets::Listed(parts.routing.sources(expert)),
                    channel: self.input.nb[0],
                },
            }),
        };
        let dst = (out.data.cast(), RowOffsets::Listed(parts.routing.results(expert)));
        // SAFETY: promised by the caller.
        unsafe { product.run(&self.weights, self.gate.as_ref(), piece.cols.clone(), dst, up_rows) };
    }
}

impl Expert {
    /// Its row `row` among those of the tiles.
    fn tile_row(&self, row: u32) -> usize {
        self.block as usize * TILE_MR + row as usize
    }
}

impl Plan {
    /// Bytes of what threads share.
    fn shared(&self) -> Option<usize> {
        let rows = self.vectors.checked_add(self.tiles.bytes)?.checked_add(self.flags)?.checked_add(self.looks)?;
        self.routing.bytes.checked_add(rows)?.checked_add(ALIGN)
    }

    /// # Safety
    /// `work` must be aligned and valid for the work size.
    unsafe fn parts(&self, work: *mut u8, thread: usize) -> Parts {
        let routing = work.wrapping_add(ALIGN);
        let vectors = routing.wrapping_add(self.routing.bytes);
        let tiles = vectors.wrapping_add(self.vectors);
        let flags = tiles.wrapping_add(self.tiles.bytes);
        // SAFETY: promised by the caller.
        unsafe {
            Parts {
                known: work.cast(),
                routing: self.routing.at(routing),
                vectors,
                tiles: self.tiles.at(tiles),
                flags,
                looks: flags.wrapping_add(self.flags).cast(),
                scratch: flags.wrapping_add(self.flags + self.looks + thread * self.per_thread),
            }
        }
    }
}

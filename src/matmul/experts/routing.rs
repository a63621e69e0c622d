//! Which rows of activations go to which expert: the tokens' choices, sorted by expert, in tables that one thread makes
//! in the work buffer and all read; and which parts of the work threads take.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Choices;
use crate::dispatch;
use crate::kernel::TILE_NR;
use crate::matmul::split;
use crate::panel::precision::TILE_MR;

/// An expert that was chosen.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Expert {
    /// Its number.
    pub number: u32,
    /// Its first row in the sorted order.
    pub first: u32,
    /// How many it has.
    pub rows: u32,
    /// Its first row block of tiles.
    pub block: u32,
    /// Its index among the experts with tiles, each of which is an outlier set.
    pub outlier_set: u32,
    /// Its index in the list of chosen experts.
    pub index: u32,
}

/// One row in the sorted order.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RoutedRow {
    /// Index into the list of chosen experts.
    pub expert: u32,
    /// Row of that expert.
    pub row: u32,
}

impl RoutedRow {
    /// For a choice of no expert.
    pub const NONE: Self = Self { expert: u32::MAX, row: 0 };
}

/// Sizes of the tables.
#[derive(Clone, Copy, Debug)]
pub struct RoutingLayout {
    /// All experts.
    experts: usize,
    /// Tokens x experts per token.
    choices: usize,
    /// Bytes of everything, a multiple of 64.
    pub bytes: usize,
}

/// Bytes in front of the tables.
const HEADER: usize = 64;

impl RoutingLayout {
    /// For this many experts and choices; `None` if they do not fit.
    pub fn new(experts: usize, choices: usize) -> Option<Self> {
        let active = experts.min(choices);
        let list = active.checked_mul(size_of::<Expert>())?;
        let per_choice = 2 * size_of::<usize>() + size_of::<RoutedRow>();
        let bytes = choices.checked_mul(per_choice)?.checked_add(list)?.checked_add(experts.checked_mul(4)?)?;
        // Numbers in the tables have 32 bits.
        let fits = u32::try_from(choices).is_ok() && u32::try_from(experts).is_ok();
        let bytes = bytes.checked_add(HEADER)?.checked_next_multiple_of(64)?;
        fits.then_some(Self { experts, choices, bytes })
    }

    /// The tables at `base`.
    ///
    /// # Safety
    /// `base` must be 64-byte aligned and valid for `self.bytes` as long as the result is used.
    pub unsafe fn at(&self, base: *mut u8) -> Routing {
        let inputs = base.wrapping_add(HEADER);
        let results = inputs.wrapping_add(self.choices * size_of::<usize>());
        let routed_rows = results.wrapping_add(self.choices * size_of::<usize>());
        let experts = routed_rows.wrapping_add(self.choices * size_of::<RoutedRow>());
        let counts = experts.wrapping_add(self.experts.min(self.choices) * size_of::<Expert>());
        Routing {
            layout: *self,
            header: base.cast(),
            inputs: inputs.cast(),
            results: results.cast(),
            routed_rows: routed_rows.cast(),
            experts: experts.cast(),
            counts: counts.cast(),
        }
    }
}

/// Numbers in front of the tables.
#[repr(C)]
struct Header {
    /// Experts that were chosen.
    active: usize,
    /// Rows of all of them.
    rows: usize,
    /// Blocks of tiles, and experts that have some.
    blocks: usize,
    outlier_sets: usize,
    /// The part that is taken next.
    next: AtomicUsize,
}

/// The tables. Copies share them.
#[derive(Clone, Copy)]
pub struct Routing {
    layout: RoutingLayout,
    header: *mut Header,
    /// In the sorted order: byte offsets of the rows of activations, and of the results.
    inputs: *mut usize,
    results: *mut usize,
    /// Where choice `token * used + slot` came to be.
    routed_rows: *mut RoutedRow,
    experts: *mut Expert,
    counts: *mut u32,
}

/// What one kernel call computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertPiece {
    /// Index into the list of chosen experts.
    pub expert: usize,
    /// Columns of the result; starts at a multiple of 32.
    pub cols: Range<usize>,
    /// Rows of the expert; starts at a multiple of 32.
    pub rows: Range<usize>,
}

impl Routing {
    /// Sorts the choices. An expert gets tiles from `min_tile_m` rows on.
    ///
    /// # Safety
    /// All choices must be experts; the tables must be this thread's until the others may read them.
    pub unsafe fn sort(
        &self,
        choices: &Choices,
        min_tile_m: usize,
        input: impl Fn(usize, usize) -> usize,
        result: impl Fn(usize, usize) -> usize,
    ) {
        // SAFETY: the tables have room for all experts and choices.
        unsafe {
            let counts = std::slice::from_raw_parts_mut(self.counts, self.layout.experts);
            counts.fill(0);
            choices.each(counts.len(), |_, _, expert| counts[expert] += 1);
            let mut header = Header { active: 0, rows: 0, blocks: 0, outlier_sets: 0, next: AtomicUsize::new(0) };
            if choices.skip_others {
                (0..self.layout.choices).for_each(|i| self.routed_rows.add(i).write(RoutedRow::NONE));
            }
            let mut first = 0;
            for (number, count) in counts.iter_mut().enumerate().filter(|(_, count)| **count > 0) {
                let rows = *count;
                self.experts.add(header.active).write(Expert {
                    number: number as u32,
                    first,
                    // Counted again below.
                    rows: 0,
                    block: header.blocks as u32,
                    outlier_set: header.outlier_sets as u32,
                    index: header.active as u32,
                });
                if rows as usize >= min_tile_m {
                    header.blocks += (rows as usize).div_ceil(TILE_MR);
                    header.outlier_sets += 1;
                }
                // From here on: the expert's place in the list.
                *count = header.active as u32;
                header.active += 1;
                first += rows;
            }
            let experts = std::slice::from_raw_parts_mut(self.experts, header.active);
            header.rows = first as usize;
            choices.each(counts.len(), |token, slot, expert| {
                let expert = &mut experts[counts[expert] as usize];
                let (at, row) = ((expert.first + expert.rows) as usize, expert.rows);
                expert.rows += 1;
                let slot_of_input = if cfg!(mutant = "routing-slot") { 0 } else { slot };
                self.inputs.add(at).write(input(token, slot_of_input));
                self.results.add(at).write(result(token, slot));
                self.routed_rows.add(token * choices.used + slot).write(RoutedRow { expert: expert.index, row });
            });
            self.header.write(header);
        }
    }

    fn header(&self) -> &Header {
        // SAFETY: written by `sort`, behind a barrier; the counter is atomic.
        unsafe { &*self.header }
    }

    /// The experts that were chosen, ascending.
    pub fn experts(&self) -> &[Expert] {
        // SAFETY: as in `header`.
        unsafe { std::slice::from_raw_parts(self.experts, self.header().active) }
    }

    /// How many of them have tiles.
    pub fn outlier_sets(&self) -> usize {
        self.header().outlier_sets
    }

    /// Byte offsets of an expert's rows of activations.
    pub fn inputs(&self, expert: &Expert) -> *const usize {
        self.inputs.wrapping_add(expert.first as usize)
    }

    /// Byte offsets of its rows of the result.
    pub fn results(&self, expert: &Expert) -> *const usize {
        self.results.wrapping_add(expert.first as usize)
    }

    /// Rows of all experts.
    pub fn rows(&self) -> usize {
        self.header().rows
    }

    /// Where the row of a choice is; `None` if the choice is no expert's.
    ///
    /// # Safety
    /// The choice must exist.
    pub unsafe fn routed(&self, choice: usize) -> Option<RoutedRow> {
        // SAFETY: there is one for every choice.
        Some(unsafe { *self.routed_rows.add(choice) }).filter(|p| p.expert != u32::MAX)
    }

    /// Takes parts of the work until nothing is left, and hands their pieces to `run`: `n` columns per
    /// expert, shared by `threads` threads; `on_tiles` says how an expert's rows are multiplied.
    pub fn each_piece(
        &self,
        n: usize,
        threads: usize,
        on_tiles: impl Fn(&Expert) -> bool,
        mut run: impl FnMut(ExpertPiece),
    ) {
        let work = Work::new(self.experts(), n, threads, on_tiles);
        let parts = dispatch::parts(threads);
        loop {
            let part = self.header().next.fetch_add(1, Ordering::Relaxed);
            if part >= parts {
                return;
            }
            work.pieces(part, parts, &mut run);
        }
    }
}

/// All there is to do, in units of 32 columns and some rows of one expert, each with its cost.
struct Work<'a, F> {
    experts: &'a [Expert],
    n: usize,
    on_tiles: F,
    /// In how many parts an expert's rows are cut.
    cuts: usize,
    cost: usize,
}

impl<'a, F: Fn(&Expert) -> bool> Work<'a, F> {
    fn new(experts: &'a [Expert], n: usize, threads: usize, on_tiles: F) -> Self {
        let units = experts.len() * n.div_ceil(TILE_NR);
        let want = dispatch::parts(threads);
        let mut work = Self { experts, n, on_tiles, cuts: want.div_ceil(units.max(1)), cost: 0 };
        work.cost = experts.iter().map(|e| work.units(e) * work.unit_cost(e)).sum();
        work
    }

    /// Rows of a unit.
    fn rows(&self, expert: &Expert) -> usize {
        (expert.rows as usize).div_ceil(self.cuts).next_multiple_of(TILE_MR)
    }

    fn units(&self, expert: &Expert) -> usize {
        self.n.div_ceil(TILE_NR) * (expert.rows as usize).div_ceil(self.rows(expert))
    }

    fn unit_cost(&self, expert: &Expert) -> usize {
        let rows = self.rows(expert).min(expert.rows as usize);
        dispatch::unit_cost(rows, (self.on_tiles)(expert))
    }

    /// The pieces of one part: the units whose costs, laid end to end, begin in its share of the sum.
    fn pieces(&self, part: usize, parts: usize, run: &mut impl FnMut(ExpertPiece)) {
        let share = split::share(self.cost, part, parts);
        let col_units = self.n.div_ceil(TILE_NR);
        let mut start = 0;
        for (index, expert) in self.experts.iter().enumerate() {
            let (units, cost) = (self.units(expert), self.unit_cost(expert));
            let at = |limit: usize| limit.saturating_sub(start).div_ceil(cost).min(units);
            let (mut unit, end) = (at(share.start), at(share.end));
            while unit < end {
                // Units of the same rows are neighbours: one piece.
                let (cut, col) = (unit / col_units, unit % col_units);
                let cols = (end - unit).min(col_units - col);
                let rows = self.rows(expert);
                run(ExpertPiece {
                    expert: index,
                    cols: col * TILE_NR..((col + cols) * TILE_NR).min(self.n),
                    rows: cut * rows..((cut + 1) * rows).min(expert.rows as usize),
                });
                unit += cols;
            }
            start += units * cost;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::thresholds;

    #[test]
    fn pieces_cover_every_expert_exactly_once_for_any_shape_and_thread_count() {
        for (n, counts) in [(33, vec![1, 70, 3]), (768, vec![2048, 2048]), (5, vec![1]), (64, vec![4; 128])] {
            let mut experts = Vec::new();
            for rows in counts {
                experts.push(Expert { number: 0, first: 0, rows, block: 0, outlier_set: 0, index: 0 });
            }
            for threads in [1, 2, 7, 64] {
                let work = Work::new(&experts, n, threads, |e| e.rows >= 10);
                let parts = threads * thresholds::PARTS_PER_THREAD;
                let mut seen: Vec<Vec<u8>> = experts.iter().map(|e| vec![0; n * e.rows as usize]).collect();
                let mut busy = 0;
                for part in 0..parts {
                    let mut any = false;
                    work.pieces(part, parts, &mut |p: ExpertPiece| {
                        any = true;
                        assert!(p.cols.start.is_multiple_of(32) && p.rows.start.is_multiple_of(32));
                        for row in p.rows {
                            p.cols.clone().for_each(|col| seen[p.expert][row * n + col] += 1);
                        }
                    });
                    busy += usize::from(any);
                }
                assert!(seen.iter().flatten().all(|c| *c == 1), "n {n} threads {threads}");
                // Where there is enough to do, every part has some.
                assert!(n < 768 || busy == parts, "n {n} threads {threads}: {busy} of {parts} parts");
            }
        }
    }
}

//! From activations to tiles, for MUL_MAT and MUL_MAT_ID alike: a look at some rows, to choose the precision; then
//! every row becomes a row of tiles, and is flagged if tiles would break its bound.
//!
//! ```text
//! find_maxima     all threads: the largest magnitude of every channel, per outlier set
//! barrier
//! look            all threads: what some rows' errors would be; added up in one order, so that all threads choose
//!                 the same precision, however many they are (a barrier inside)
//! TileWriter      every row: its outlier channels apart, the rest int8 or BF16; is its bound kept?
//! ```

use super::work::{ALIGN, Scratch};
use super::{KnownErrors, Thread, split};
use crate::dispatch::Demand;
use crate::dispatch::Facts;
use crate::format::ACT_BLOCK;
use crate::panel::activation_tiles::ActivationTiles;
use crate::panel::outliers::{ErrorStats, OutlierSet, keep_mask};
use crate::panel::precision::{OUTLIERS, OutlierChannels, Precision};
use crate::panel::row_error::Bound;
use crate::panel::rows::InputRow;

/// Bytes of the slots that [`look`] needs for so many rows; `None` if they do not fit.
pub fn slot_bytes(rows: usize) -> Option<usize> {
    rows.checked_mul(size_of::<ErrorStats>())?.checked_next_multiple_of(ALIGN)
}

/// Finds the maxima of all channels of `count` outlier sets of `k` channels each, together with the other threads.
///
/// # Safety
/// As for [`OutlierSet::find_maxima`], of all sets; all threads must come with the same sets, and meet at a barrier
/// before the maxima are read.
pub unsafe fn find_maxima(thread: &Thread<'_>, k: usize, count: usize, sets: impl Iterator<Item = OutlierSet>) {
    let per_set = k / ACT_BLOCK;
    let mine = split::share(count * per_set, thread.index, thread.count);
    for (index, set) in sets.enumerate() {
        let first = index * per_set;
        for i in mine.start.max(first)..mine.end.min(first + per_set) {
            // SAFETY: shares are disjoint, so nobody else writes these maxima.
            unsafe { set.find_maxima((i - first) * ACT_BLOCK) };
        }
    }
}

/// Rows that a precision is judged by.
#[derive(Clone)]
pub struct Sample {
    /// Rows that share their outlier channels.
    pub set: OutlierSet,
    /// Most rows of them that are looked at, per 256.
    pub most: usize,
    /// The matrix that they are multiplied with.
    pub matrix: usize,
}

/// What the rows of all samples show. A barrier inside.
///
/// # Safety
/// The maxima of all sets must have been found. `slots` must be shared by the threads, aligned, and have [`slot_bytes`]
/// for all rows; all threads must come with the same samples; the matrices must be known; the scratch be this thread's;
/// AVX-512 BF16 needed.
pub unsafe fn look(
    facts: &Facts,
    known: &KnownErrors,
    samples: impl Iterator<Item = Sample> + Clone,
    thread: &Thread<'_>,
    slots: *mut ErrorStats,
    scratch: Scratch,
) -> ErrorStats {
    let rows = samples.enumerate().flat_map(|(index, sample)| {
        let rows = sample.set.error_sample(sample.most);
        rows.map(move |row| (index, row, sample.clone()))
    });
    let count = rows.clone().count();
    let mine = split::share(count, thread.index, thread.count);
    let (mut entered, mut channels) = (usize::MAX, [0; OUTLIERS]);
    for (slot, (index, row, Sample { set, matrix, .. })) in rows.enumerate().skip(mine.start).take(mine.len()) {
        let mut seen = ErrorStats::default();
        // SAFETY: the row is one of the set's; shares are disjoint, so the slot and the mask are this thread's.
        unsafe {
            let mask = scratch.mask(set.k);
            if entered != index {
                (entered, channels) = (index, set.choose_channels());
                keep_mask(&channels, mask);
            }
            for weights in known.of(matrix) {
                let bound = Bound::new(facts.storage.quant_nmse(), weights);
                seen.add(&set.look(row, &channels, mask, weights, &bound));
            }
            slots.add(slot).write(seen);
        }
    }
    thread.wait();
    let mut all = ErrorStats::default();
    for i in 0..count {
        // SAFETY: every thread has written its share.
        all.add(unsafe { &*slots.add(i) });
    }
    all
}

/// Makes rows of activations rows of tiles.
pub struct TileWriter<'a> {
    facts: &'a Facts,
    known: &'a KnownErrors,
    precision: Precision,
    /// The outlier channels of the set that was entered last, and which channels they leave.
    channels: OutlierChannels,
    mask: &'a mut [u16],
    entered: usize,
}

impl<'a> TileWriter<'a> {
    /// For rows of `k` channels in `precision`.
    ///
    /// # Safety
    /// The scratch must be this thread's, and not be used otherwise as long as the result lives.
    pub unsafe fn new(
        facts: &'a Facts,
        known: &'a KnownErrors,
        precision: Precision,
        k: usize,
        scratch: Scratch,
    ) -> Self {
        // SAFETY: nobody else has the scratch.
        let mask = unsafe { scratch.mask(k) };
        Self { facts, known, precision, channels: [0; OUTLIERS], mask, entered: usize::MAX }
    }

    /// The rows that follow are of outlier set number `index`.
    ///
    /// # Safety
    /// The set's maxima must have been found, if the precision is int8; AVX-512 needed.
    pub unsafe fn enter(&mut self, index: usize, set: impl FnOnce() -> OutlierSet) {
        if self.entered != index && matches!(self.precision, Precision::Int8 { .. }) {
            self.entered = index;
            // SAFETY: the maxima are there.
            self.channels = unsafe { set().choose_channels() };
            keep_mask(&self.channels, self.mask);
        }
    }

    /// Writes the outlier channels of the set that was entered, for whoever multiplies: one thread must.
    ///
    /// # Safety
    /// The tiles must have the set; nobody else may write or read its channels meanwhile.
    pub unsafe fn write_channels(&self, tiles: &ActivationTiles, index: usize) {
        if let Precision::Int8 { .. } = self.precision {
            // SAFETY: the tiles have the set, and nobody else is there.
            unsafe { *tiles.channels(index) = self.channels };
        }
    }

    /// Makes rows `rows` of `tiles`, all of them of `x`.
    ///
    /// # Safety
    /// As for [`ActivationTiles::put_int8`]; the row's set must have been entered.
    pub unsafe fn put(&self, tiles: &ActivationTiles, x: &InputRow, rows: &[usize]) {
        // SAFETY: the rows are this thread's, and their set was entered.
        unsafe {
            match self.precision {
                Precision::Int8 { pass } => tiles.put_int8(pass, x, rows, &self.channels, self.mask),
                precision => tiles.put_bf16(precision, x, rows),
            }
        }
    }

    /// Whether row `row` of `tiles`, which was put there from `x`, keeps its bound with matrix `matrix`.
    ///
    /// # Safety
    /// As for [`ActivationTiles::holds`]; the matrix must be known.
    pub unsafe fn keeps_bound(&self, tiles: &ActivationTiles, x: &InputRow, row: usize, matrix: usize) -> bool {
        let quant_nmse = self.facts.storage.quant_nmse();
        self.facts.demand < Demand::F32
            && self.known.of(matrix).all(|weights| {
                let bound = Bound::new(quant_nmse, weights);
                // SAFETY: this thread has put the row there.
                unsafe { tiles.holds(self.precision, &bound, weights, x, row, &self.channels, self.mask) }
            })
    }
}

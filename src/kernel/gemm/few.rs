//! Up to 32 rows: weights are read from memory once and multiplied as soon as they are requantised,
//! so nothing is kept but a ring of two passes. While pass `p` is requantised, the tile unit multiplies
//! pass `p - 1` and the results of pass `p - 2` are scaled; results stay in tiles for a whole pass.
//!
//! What limits this is memory and the requantising, hardly the number of rows.

use super::block::{BLOCK, Pending, Place, outlier_product, product, start, store_dots};
use super::{TileJob, result};
use crate::format::{Format, LANES};
use crate::panel::requant;
use crate::panel::tiles::{FINEST, Precision, ROWS, STEP_BYTES, STEP_INT8};

const PASS: usize = FINEST;
const PASS_STEPS: usize = PASS / STEP_INT8;
/// Weight scales of a pass, in floats; those of three passes are in use at a time.
const SCALES: usize = 2 * LANES;

/// Offsets into scratch.
const DOTS: usize = 0;
const SUMS: usize = 2 * BLOCK;
const RING: usize = SUMS + BLOCK;
const OUTLIERS: usize = RING + 2 * PASS_STEPS * STEP_BYTES;
const WEIGHT_SCALES: usize = OUTLIERS + STEP_BYTES;
/// Bytes of scratch.
pub const SCRATCH_BYTES: usize = WEIGHT_SCALES + 4 * SCALES * size_of::<f32>();

/// What is done between the groups of the pass that is being requantised: one tile product and a few
/// rows at a time, for products that stand close together hold up the vector code. `TWO`: for two
/// tiles of rows.
struct Between<const TWO: bool> {
    /// Products of the pass that is multiplied, and one less than the groups from one to the next.
    products: usize,
    mask: usize,
    act: *const u8,
    weights: *const u8,
    dots: *mut u8,
    pending: Option<Pending>,
    /// Rows that are scaled after every group.
    rows_each: usize,
    product: usize,
    row: usize,
}

impl<const TWO: bool> Between<TWO> {
    /// Products per k-step.
    const PER_STEP: usize = if TWO { 4 } else { 2 };

    /// What is due after group `group`.
    ///
    /// # Safety
    /// Pointers valid, full tiles configured and used by nobody else until the last group.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn after(&mut self, group: usize) {
        // SAFETY: promised by the caller.
        unsafe {
            if group & self.mask == 0 && self.product < self.products {
                self.multiply();
            }
            if let Some(pending) = &self.pending {
                let due = (self.row + self.rows_each).min(pending.rows);
                pending.some::<false>(self.row..due);
                self.row = due;
            }
        }
    }

    /// # Safety
    /// As for [`Between::after`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn multiply(&mut self) {
        // SAFETY: promised by the caller.
        unsafe {
            if self.product == 0 {
                start::<TWO>(self.act, self.weights);
            }
            let next = self.product / Self::PER_STEP * STEP_BYTES + STEP_BYTES;
            product::<TWO>(self.product % Self::PER_STEP, self.act.add(next), self.weights.add(next));
            self.product += 1;
            if self.product == self.products {
                store_dots::<TWO>(self.dots);
            }
        }
    }

    /// What is left.
    ///
    /// # Safety
    /// As for [`Between::after`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn finish(mut self) {
        // SAFETY: promised by the caller.
        unsafe {
            while self.product < self.products {
                self.multiply();
            }
            if let Some(pending) = &self.pending {
                pending.some::<false>(self.row..pending.rows);
            }
        }
    }
}

/// # Safety
/// As for [`super::run`], with int8 activations in passes of [`FINEST`] and at most 32 rows.
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn columns<F: Format>(job: &TileJob<'_>, scratch: *mut u8) {
    for pair in 0..job.pairs() {
        // SAFETY: promised by the caller.
        unsafe {
            if job.job.rows.len() > ROWS / 2 {
                columns_of_pair::<F, true>(job, pair, scratch);
            } else {
                columns_of_pair::<F, false>(job, pair, scratch);
            }
        }
    }
}

/// # Safety
/// As for [`columns`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn columns_of_pair<F: Format, const TWO: bool>(job: &TileJob<'_>, pair: usize, scratch: *mut u8) {
    let (row, rows, k) = (job.job.rows.start, job.job.rows.len(), job.tiles.layout.k);
    let (block, passes) = (job.block(row), k.div_ceil(PASS));
    let panels = [job.panel(2 * pair), job.panel(2 * pair + 1)];
    let next_panels = [job.panel(2 * pair + 2), job.panel(2 * pair + 3)];
    let sums = Place::sums(scratch.wrapping_add(SUMS).cast());
    let dots = |pass: usize| scratch.wrapping_add(DOTS + pass % 2 * BLOCK);
    let ring = |pass: usize| scratch.wrapping_add(RING + pass % 2 * PASS_STEPS * STEP_BYTES);
    let scales = |pass: usize| scratch.wrapping_add(WEIGHT_SCALES).cast::<f32>().wrapping_add(pass % 4 * SCALES);
    let channels = |pass: usize| (pass * PASS).min(k)..((pass + 1) * PASS).min(k);
    // SAFETY: promised by the caller; all places are inside the scratch, the tiles and the panels.
    unsafe {
        let outliers = scratch.add(OUTLIERS);
        for (half, panel) in panels.into_iter().enumerate() {
            let to = outliers.add(half * STEP_BYTES / 2);
            requant::outliers::<F>(panel, job.channels(job.chunk(row)), to);
        }
        outlier_product(job.tiles.outliers(block), outliers, rows, sums.at);
        for now in 0..passes + 2 {
            let groups = channels(now).len() / F::GROUP;
            let mut between = Between::<TWO> {
                products: 0,
                mask: (2 * groups / (Between::<TWO>::PER_STEP * PASS_STEPS)).saturating_sub(1),
                rows_each: rows.div_ceil(2 * groups.max(1)),
                act: std::ptr::null(),
                weights: std::ptr::null(),
                dots: std::ptr::null_mut(),
                pending: None,
                product: 0,
                row: 0,
            };
            if let Some(pass) = now.checked_sub(1).filter(|pass| *pass < passes) {
                between.products = Between::<TWO>::PER_STEP * channels(pass).len().div_ceil(STEP_INT8);
                between.act = job.tiles.tiles(Precision::Int8 { pass: PASS }, block, pass * PASS);
                (between.weights, between.dots) = (ring(pass), dots(pass));
            }
            if let Some(pass) = now.checked_sub(2) {
                let to = if pass + 1 < passes { sums } else { result(job.job, row, 2 * pair) };
                between.pending = Some(Pending {
                    dots: dots(pass),
                    act: job.tiles.scales(PASS, block, pass * PASS),
                    weights: scales(pass),
                    rows,
                    from: sums,
                    to,
                    stream: pass + 1 == passes && job.may_stream(&to),
                });
            }
            if now < passes {
                for half in 0..2 {
                    let (to, scales) = (ring(now).add(half * STEP_BYTES / 2), scales(now).add(half * LANES));
                    let next = if now + 1 < passes { (panels[half], (now + 1) * PASS) } else { (next_panels[half], 0) };
                    let next = requant::group_at::<F>(next.0, next.1);
                    requant::int8::<F>(panels[half], channels(now), to, scales, next, |group| {
                        between.after(half * groups + group)
                    });
                }
            }
            between.finish();
        }
    }
}

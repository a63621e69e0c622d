//! The tile GEMM, for many rows of activations: everything is requantised into cache-sized panels, and
//! one tile loop multiplies them, whatever the weight type.
//!
//! For every block of [`COLS`] columns and every stretch of [`Blocking::k`] channels: make the weight
//! panels once (they fill half of the second-level cache), then run all rows over them in blocks of
//! 32x32. A block takes passes of 16 k-steps, so that its activations (32 KB) stay in the first-level
//! cache while it walks the columns; weight tiles are loaded with a hint that keeps them out of it.
//! While one pass multiplies, the results of the one before are scaled and added, and the activations
//! and weights that come next are prefetched.

mod block;

use std::arch::x86_64::_mm_sfence;

use block::{BLOCK, PREFETCH_ACT, Pending, Place, Product, multiply, outlier_product};

use super::{Job, TILE_COLS};
use crate::cpu::Amx;
use crate::cpu::tile::Tiles as TileUnit;
use crate::format::{Format, LANES};
use crate::panel::requant;
use crate::panel::tiles::{CHUNK, PASS_INT8, Precision, ROWS, STEP_BYTES, Tiles};

/// Pairs of panels (32 columns) whose requantised weights are kept at a time.
const PAIRS: usize = 8;
/// k-steps of a pass.
const PASS_STEPS: usize = 16;
/// k-steps of a stretch: 8 pairs x 64 steps x 2 KB = 1 MB of weight panels.
const STRETCH_STEPS: usize = 64;
/// Bytes of results of one thread from which on they bypass the caches.
const STREAM_BYTES: usize = 1 << 20;

/// Offsets into a thread's scratch.
struct Scratch;

impl Scratch {
    /// Two blocks of raw results, used in turn.
    const DOTS: usize = 0;
    /// f32 sums of one block of rows and all pairs.
    const SUMS: usize = 2 * BLOCK;
    /// Weight scales: per pair and pass, 32.
    const SCALES: usize = Self::SUMS + PAIRS * BLOCK;
    /// Weight panels.
    const PANELS: usize = Self::SCALES + PAIRS * (STRETCH_STEPS / PASS_STEPS) * TILE_COLS * 4;
    /// Outlier tiles: per pair and chunk of rows.
    const OUTLIERS: usize = Self::PANELS + PAIRS * STRETCH_STEPS * STEP_BYTES;
}

/// Bytes of scratch per thread for `m` rows, a multiple of 64.
pub const fn scratch_bytes(m: usize) -> usize {
    Scratch::OUTLIERS + m.div_ceil(CHUNK) * PAIRS * STEP_BYTES
}

/// A piece of one product on the tile unit.
pub struct TileJob<'a> {
    /// Columns, rows, weights and destination; its vector activations are not used.
    pub job: &'a Job,
    /// The quantised activations.
    pub tiles: Tiles,
    /// What they are.
    pub precision: Precision,
}

/// Computes `job` with AMX.
///
/// # Safety
/// As for [`super::run`]; the tiles must hold the job's activations in `precision`, `scratch` be
/// writable for [`scratch_bytes`].
pub unsafe fn run<F: Format>(proof: Amx, job: &TileJob<'_>, scratch: *mut u8) {
    let _unit = TileUnit::enter_full(proof);
    // SAFETY: an AMX CPU has the vector features; the rest is the caller's promise.
    unsafe {
        match job.precision {
            Precision::Int8 => columns::<F, false>(job, scratch),
            Precision::Bf16 => columns::<F, true>(job, scratch),
        }
        // Stores past the caches are not ordered by the barrier that follows.
        _mm_sfence();
    }
}

/// One block of columns and one stretch of channels.
struct Panels {
    /// First pair of the job, and how many.
    pair: usize,
    pairs: usize,
    /// First channel, and k-steps.
    from: usize,
    steps: usize,
    /// Whether these are the first channels: sums start, otherwise they go on from the result.
    first: bool,
    /// Whether these are the last channels.
    last: bool,
}

/// # Safety
/// As for [`run`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn columns<F: Format, const BF16: bool>(job: &TileJob<'_>, scratch: *mut u8) {
    let k = job.tiles.layout.k;
    let stretch = STRETCH_STEPS * job.precision.step();
    let all = job.job.cols.div_ceil(TILE_COLS);
    for pair in (0..all).step_by(PAIRS) {
        for from in (0..k).step_by(stretch) {
            let len = stretch.min(k - from);
            let part = Panels {
                pair,
                pairs: PAIRS.min(all - pair),
                from,
                steps: len.div_ceil(job.precision.step()),
                first: from == 0,
                last: from + len == k,
            };
            // SAFETY: promised by the caller.
            unsafe {
                make_panels::<F, BF16>(job, &part, len, scratch);
                for row in job.job.rows.clone().step_by(ROWS) {
                    rows_of_panels::<BF16>(job, &part, row, scratch);
                }
            }
        }
    }
}

/// # Safety
/// As for [`run`].
#[target_feature(enable = "avx512f,avx512bw")]
#[inline(never)]
unsafe fn make_panels<F: Format, const BF16: bool>(job: &TileJob<'_>, part: &Panels, len: usize, scratch: *mut u8) {
    let last = job.job.panel_count() - 1;
    let passes = part.steps.div_ceil(PASS_STEPS);
    for i in 0..2 * part.pairs {
        let (pair, half) = (i / 2, i % 2);
        // An odd last panel stands in for its missing neighbour, whose results are not stored.
        let panel = job.job.panels.wrapping_add((2 * part.pair + i).min(last) * job.job.panel_bytes);
        let out = scratch.wrapping_add(Scratch::PANELS + pair * part.steps * STEP_BYTES + half * STEP_BYTES / 2);
        let next_panel = panel.wrapping_add(job.job.panel_bytes);
        // SAFETY: promised by the caller; the scratch has room for 8 pairs.
        unsafe {
            if BF16 {
                requant::bf16::<F>(panel, part.from, len, out, next_panel);
                continue;
            }
            for pass in 0..passes {
                let at = pass * PASS_INT8;
                let scales = weight_scales(scratch, pair * passes + pass).add(half * LANES);
                let to = out.add(pass * PASS_STEPS * STEP_BYTES);
                let next =
                    if pass + 1 < passes { (panel, part.from + at + PASS_INT8) } else { (next_panel, part.from) };
                let next = requant::group_at::<F>(next.0, next.1);
                requant::int8::<F>(panel, part.from + at, PASS_INT8.min(len - at), to, scales, next);
            }
            if part.first {
                let chunks = job.job.rows.start / CHUNK..job.job.rows.end.div_ceil(CHUNK);
                for chunk in chunks {
                    let to = outlier_tiles(scratch, chunk, pair).add(half * STEP_BYTES / 2);
                    requant::outliers::<F>(panel, &*job.tiles.channels(chunk), to);
                }
            }
        }
    }
}

fn weight_scales(scratch: *mut u8, index: usize) -> *mut f32 {
    scratch.wrapping_add(Scratch::SCALES).cast::<f32>().wrapping_add(index * TILE_COLS)
}

fn outlier_tiles(scratch: *mut u8, chunk: usize, pair: usize) -> *mut u8 {
    scratch.wrapping_add(Scratch::OUTLIERS + (chunk * PAIRS + pair) * STEP_BYTES)
}

/// One block of up to 32 rows times all panels of `part`.
///
/// # Safety
/// As for [`run`]; the panels must be made.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline(never)]
unsafe fn rows_of_panels<const BF16: bool>(job: &TileJob<'_>, part: &Panels, row: usize, scratch: *mut u8) {
    let (block, rows) = (row / ROWS, (job.job.rows.end - row).min(ROWS));
    let passes = part.steps.div_ceil(PASS_STEPS);
    let act = job.tiles.tiles(job.precision, block, part.from);
    let sums_of = |pair: usize| scratch.wrapping_add(Scratch::SUMS + pair * BLOCK).cast::<f32>();
    let result_of = |pair: usize| result(job.job, row, 2 * (part.pair + pair));
    // SAFETY: promised by the caller; all places are inside the scratch, the tiles and the panels.
    unsafe {
        if part.first && !BF16 {
            for pair in 0..part.pairs {
                let weights = outlier_tiles(scratch, row / CHUNK, pair);
                outlier_product(job.tiles.outliers(block), weights, rows, sums_of(pair));
            }
        }
        let mut pending: Option<Pending> = None;
        let mut round = 0;
        for pass in 0..passes {
            let steps = PASS_STEPS.min(part.steps - pass * PASS_STEPS);
            for pair in 0..part.pairs {
                let dots = scratch.add(Scratch::DOTS + round % 2 * BLOCK);
                let step = pair * part.steps + pass * PASS_STEPS;
                let next_act =
                    act.wrapping_add((part.steps + pass * PASS_STEPS) * STEP_BYTES + pair * steps * PREFETCH_ACT * 64);
                let product = Product {
                    act: act.add(pass * PASS_STEPS * STEP_BYTES),
                    weights: scratch.add(Scratch::PANELS + step * STEP_BYTES),
                    steps,
                    dots,
                    next_act,
                };
                if rows > ROWS / 2 {
                    multiply::<BF16, true>(&product, pending.as_ref());
                } else {
                    multiply::<BF16, false>(&product, pending.as_ref());
                }
                let to = if pass + 1 < passes { Place::sums(sums_of(pair)) } else { result_of(pair) };
                pending = Some(Pending {
                    dots,
                    act: job.tiles.scales(block, part.from / PASS_INT8 + pass),
                    weights: weight_scales(scratch, pair * passes + pass),
                    rows,
                    from: match (pass, part.first) {
                        (0, true) if BF16 => Place::zeros(),
                        (0, false) => result_of(pair),
                        _ => Place::sums(sums_of(pair)),
                    },
                    to,
                    stream: part.last && pass + 1 == passes && may_stream(job, &to),
                });
                round += 1;
            }
        }
        if let Some(last) = &pending {
            last.finish::<BF16>(0);
        }
    }
}

/// The results of 32 rows from `row` on and of panels `panel` and `panel + 1`.
fn result(job: &Job, row: usize, panel: usize) -> Place {
    Place {
        at: job.dst_row(row).wrapping_add(panel * LANES),
        stride: job.dst_stride,
        masks: [job.mask(panel), job.mask(panel + 1)],
    }
}

/// Whether results may be written past the caches, whole lines at a time: worth it where they are too
/// many to be found there by whoever reads them.
fn may_stream(job: &TileJob<'_>, to: &Place) -> bool {
    let bytes = job.job.rows.len() * job.job.dst_stride;
    bytes >= STREAM_BYTES && to.masks == [u16::MAX; 2] && (to.at as usize | to.stride).is_multiple_of(64)
}

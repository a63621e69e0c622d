//! The tile GEMM, for many rows of activations: everything is requantised into cache-sized panels, and
//! one tile loop multiplies them, whatever the weight type.
//!
//! For every block of [`COLS`] columns and every stretch of [`Blocking::k`] channels: make the weight
//! panels once (they fill half of the second-level cache), then run all rows over them in blocks of
//! 32x32. A block takes passes of 16 k-steps, so that its activations (32 KB) stay in the first-level
//! cache while it walks the columns; weight tiles are loaded with a hint that keeps them out of it.
//! While one pass multiplies, the results of the one before are scaled and added, and the activations
//! and weights that come next are prefetched.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{Job, TILE_COLS, sums};
use crate::cpu::Amx;
use crate::cpu::tile::Tiles as TileUnit;
use crate::format::{Format, LANES};
use crate::panel::requant;
use crate::panel::tiles::{CHUNK, OUTLIERS, PASS_INT8, Precision, ROWS, STEP_BYTES, Tiles};

/// Pairs of panels (32 columns) whose requantised weights are kept at a time.
const PAIRS: usize = 8;
/// k-steps of a pass.
const PASS_STEPS: usize = 16;
/// k-steps of a stretch: 8 pairs x 64 steps x 2 KB = 1 MB of weight panels.
const STRETCH_STEPS: usize = 64;
/// Bytes of one block of results, 32x32 of 4 bytes.
const BLOCK: usize = ROWS * TILE_COLS * 4;
/// Rows of results that are scaled per k-step of the next pass: all 32 in 16 steps.
const ROWS_PER_STEP: usize = ROWS / PASS_STEPS;
/// Cache lines of activations prefetched per k-step.
const PREFETCH_ACT: usize = 4;

/// The packed weights that are unpacked next, prefetched a few lines per k-step: parts of `len` bytes,
/// `stride` apart.
struct Ahead {
    at: *const u8,
    left: usize,
    parts: usize,
    len: usize,
    stride: usize,
    lines_per_step: usize,
}

impl Ahead {
    /// The channels from `from` on of `parts` panels, spread over `steps` k-steps.
    fn new<F: Format>(panels: *const u8, stride: usize, parts: usize, from: usize, len: usize, steps: usize) -> Self {
        let bytes = |channels: usize| channels / F::BLOCK * F::BYTES * LANES;
        let len = bytes(len);
        let lines_per_step = (parts * len.div_ceil(64)).div_ceil(steps.max(1)).min(4);
        Self { at: panels.wrapping_add(bytes(from)), left: len, parts, len, stride, lines_per_step }
    }

    #[inline]
    fn step(&mut self) {
        if self.parts == 0 {
            return;
        }
        for _ in 0..self.lines_per_step {
            // SAFETY: a prefetch of any address is harmless.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(self.at.cast()) };
            self.at = self.at.wrapping_add(64);
            self.left = self.left.saturating_sub(64);
        }
        if self.left == 0 {
            self.parts -= 1;
            self.at = self.at.wrapping_add(self.stride - self.len.next_multiple_of(64).min(self.stride));
            self.left = self.len;
        }
    }
}

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

/// Results of a pass that wait to be scaled and added to the sums.
struct Pending {
    dots: *const u8,
    sums: *mut f32,
    /// 32 activation scales, 32 weight scales; unused for BF16.
    act: *const f32,
    weights: *const f32,
    rows: usize,
    /// Whether the sums start here.
    first: bool,
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
            };
            // SAFETY: promised by the caller.
            unsafe {
                make_panels::<F, BF16>(job, &part, len, scratch);
                let mut ahead = next_panels::<F>(job, &part, len, stretch);
                for row in job.job.rows.clone().step_by(ROWS) {
                    rows_of_panels::<BF16>(job, &part, row, scratch, &mut ahead);
                }
            }
        }
    }
}

/// What [`make_panels`] reads after `part`: the same panels' next channels, or the next panels.
fn next_panels<F: Format>(job: &TileJob<'_>, part: &Panels, len: usize, stretch: usize) -> Ahead {
    let (k, count) = (job.tiles.layout.k, job.job.panel_count());
    let more = part.from + len < k;
    let (first, from) = if more { (2 * part.pair, part.from + len) } else { (2 * (part.pair + part.pairs), 0) };
    let panels = (2 * PAIRS).min(count.saturating_sub(first));
    let steps = job.job.rows.len().div_ceil(ROWS) * part.pairs * part.steps;
    let base = job.job.panels.wrapping_add(first * job.job.panel_bytes);
    Ahead::new::<F>(base, job.job.panel_bytes, panels, from, stretch.min(k - from), steps)
}

/// # Safety
/// As for [`run`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn make_panels<F: Format, const BF16: bool>(job: &TileJob<'_>, part: &Panels, len: usize, scratch: *mut u8) {
    let last = job.job.panel_count() - 1;
    let passes = part.steps.div_ceil(PASS_STEPS);
    for i in 0..2 * part.pairs {
        let (pair, half) = (i / 2, i % 2);
        // An odd last panel stands in for its missing neighbour, whose results are not stored.
        let panel = job.job.panels.wrapping_add((2 * part.pair + i).min(last) * job.job.panel_bytes);
        let out = scratch.wrapping_add(Scratch::PANELS + pair * part.steps * STEP_BYTES + half * STEP_BYTES / 2);
        // SAFETY: promised by the caller; the scratch has room for 8 pairs.
        unsafe {
            if BF16 {
                requant::bf16::<F>(panel, part.from, len, out);
                continue;
            }
            for pass in 0..passes {
                let at = pass * PASS_INT8;
                let scales = weight_scales(scratch, pair * passes + pass).add(half * LANES);
                let to = out.add(pass * PASS_STEPS * STEP_BYTES);
                requant::int8::<F>(panel, part.from + at, PASS_INT8.min(len - at), to, scales);
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
unsafe fn rows_of_panels<const BF16: bool>(
    job: &TileJob<'_>,
    part: &Panels,
    row: usize,
    scratch: *mut u8,
    ahead: &mut Ahead,
) {
    let (block, rows) = (row / ROWS, (job.job.rows.end - row).min(ROWS));
    let passes = part.steps.div_ceil(PASS_STEPS);
    let act = job.tiles.tiles(job.precision, block, part.from);
    let sums_of = |pair: usize| scratch.wrapping_add(Scratch::SUMS + pair * BLOCK).cast::<f32>();
    // SAFETY: promised by the caller; all places are inside the scratch, the tiles and the panels.
    unsafe {
        for pair in 0..part.pairs {
            if !part.first {
                sums::load(job.job, row, rows, 2 * (part.pair + pair), sums_of(pair));
            } else if !BF16 {
                outlier_product(
                    job.tiles.outliers(block),
                    outlier_tiles(scratch, row / CHUNK, pair),
                    rows,
                    sums_of(pair),
                );
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
                    multiply::<BF16, true>(&product, pending.as_ref(), ahead);
                } else {
                    multiply::<BF16, false>(&product, pending.as_ref(), ahead);
                }
                pending = Some(Pending {
                    dots,
                    sums: sums_of(pair),
                    act: job.tiles.scales(block, part.from / PASS_INT8 + pass),
                    weights: weight_scales(scratch, pair * passes + pass),
                    rows,
                    first: BF16 && part.first && pass == 0,
                });
                round += 1;
            }
        }
        if let Some(last) = &pending {
            last.finish::<BF16>(0);
        }
        for pair in 0..part.pairs {
            sums::store(job.job, row, rows, 2 * (part.pair + pair), sums_of(pair));
        }
    }
}

/// Operands of one pass of one block.
struct Product {
    act: *const u8,
    weights: *const u8,
    steps: usize,
    dots: *mut u8,
    /// Activations to prefetch, a part of the next block of rows.
    next_act: *const u8,
}

impl Pending {
    /// # Safety
    /// The pointers must be valid; AVX-512 needed.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn row<const BF16: bool>(&self, row: usize, weights: [__m512; 2]) {
        // SAFETY: promised by the caller.
        unsafe {
            let sums = self.sums.add(row * TILE_COLS);
            let dots = self.dots.add(row * TILE_COLS * 4);
            for (p, weights) in weights.into_iter().enumerate() {
                let before = if self.first { _mm512_setzero_ps() } else { _mm512_load_ps(sums.add(p * LANES)) };
                let after = if BF16 {
                    _mm512_add_ps(_mm512_load_ps(dots.add(64 * p).cast()), before)
                } else {
                    let dots = _mm512_cvtepi32_ps(_mm512_load_si512(dots.add(64 * p).cast()));
                    _mm512_fmadd_ps(dots, _mm512_mul_ps(weights, _mm512_set1_ps(*self.act.add(row))), before)
                };
                _mm512_store_ps(sums.add(p * LANES), after);
            }
        }
    }

    /// # Safety
    /// As for [`Pending::row`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales<const BF16: bool>(&self) -> [__m512; 2] {
        if BF16 {
            return [_mm512_setzero_ps(); 2];
        }
        // SAFETY: promised by the caller.
        unsafe { [_mm512_load_ps(self.weights), _mm512_load_ps(self.weights.add(LANES))] }
    }

    /// Rows from `from` on.
    ///
    /// # Safety
    /// As for [`Pending::row`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn finish<const BF16: bool>(&self, from: usize) {
        // SAFETY: promised by the caller.
        unsafe {
            let weights = self.scales::<BF16>();
            for row in from..self.rows {
                self.row::<BF16>(row, weights);
            }
        }
    }
}

/// One k-step: tmm0-3 += (tmm4 above tmm5) x (tmm6 beside tmm7).
macro_rules! step {
    ($tdp:literal, true, $act:expr, $weights:expr) => {
        asm!(
            "tileloadd tmm4, [{a} + {row}*1]",
            "tileloaddt1 tmm6, [{w} + {row}*1]",
            concat!($tdp, " tmm0, tmm4, tmm6"),
            "tileloaddt1 tmm7, [{w} + {row}*1 + 1024]",
            concat!($tdp, " tmm1, tmm4, tmm7"),
            "tileloadd tmm5, [{a} + {row}*1 + 1024]",
            concat!($tdp, " tmm3, tmm5, tmm7"),
            concat!($tdp, " tmm2, tmm5, tmm6"),
            a = in(reg) $act, w = in(reg) $weights, row = in(reg) 64usize,
            options(nostack, preserves_flags, readonly)
        )
    };
    ($tdp:literal, false, $act:expr, $weights:expr) => {
        asm!(
            "tileloadd tmm4, [{a} + {row}*1]",
            "tileloaddt1 tmm6, [{w} + {row}*1]",
            concat!($tdp, " tmm0, tmm4, tmm6"),
            "tileloaddt1 tmm7, [{w} + {row}*1 + 1024]",
            concat!($tdp, " tmm1, tmm4, tmm7"),
            a = in(reg) $act, w = in(reg) $weights, row = in(reg) 64usize,
            options(nostack, preserves_flags, readonly)
        )
    };
}

/// Multiplies one pass into `product.dots` and works off `pending` meanwhile. `TWO`: both tiles of
/// rows, or only the upper one.
///
/// # Safety
/// Pointers valid, full tiles configured, AVX-512 there. Tile state lives across the asm blocks of
/// this function, which makes no calls that could touch it: compilers never use tile registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn multiply<const BF16: bool, const TWO: bool>(product: &Product, pending: Option<&Pending>, ahead: &mut Ahead) {
    // SAFETY: promised by the caller.
    unsafe {
        asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, preserves_flags));
        let rows = pending.map_or(0, |p| p.rows / ROWS_PER_STEP * ROWS_PER_STEP);
        let scales = pending.map_or([_mm512_setzero_ps(); 2], |p| p.scales::<BF16>());
        let mut row = 0;
        for step in 0..product.steps {
            let (act, weights) = (product.act.add(step * STEP_BYTES), product.weights.add(step * STEP_BYTES));
            match (BF16, TWO) {
                (true, true) => step!("tdpbf16ps", true, act, weights),
                (true, false) => step!("tdpbf16ps", false, act, weights),
                (false, true) => step!("tdpbssd", true, act, weights),
                (false, false) => step!("tdpbssd", false, act, weights),
            }
            for line in 0..PREFETCH_ACT {
                let at = product.next_act.wrapping_add((step * PREFETCH_ACT + line) * 64);
                _mm_prefetch::<_MM_HINT_T1>(at.cast());
            }
            ahead.step();
            if row < rows
                && let Some(p) = pending
            {
                for i in 0..ROWS_PER_STEP {
                    p.row::<BF16>(row + i, scales);
                }
                row += ROWS_PER_STEP;
            }
        }
        store_dots::<TWO>(product.dots);
        if let Some(p) = pending {
            p.finish::<BF16>(row);
        }
    }
}

/// # Safety
/// As for [`multiply`].
#[inline]
unsafe fn store_dots<const TWO: bool>(to: *mut u8) {
    // SAFETY: promised by the caller.
    unsafe {
        asm!("tilestored [{to} + {row}*1], tmm0", "tilestored [{to} + {row}*1 + 64], tmm1",
            to = in(reg) to, row = in(reg) TILE_COLS * 4, options(nostack, preserves_flags));
        if TWO {
            asm!("tilestored [{to} + {row}*1 + 2048], tmm2", "tilestored [{to} + {row}*1 + 2112], tmm3",
                to = in(reg) to, row = in(reg) TILE_COLS * 4, options(nostack, preserves_flags));
        }
    }
}

/// Starts the sums with the product of the outliers: one k-step in BF16.
///
/// # Safety
/// As for [`multiply`].
#[inline]
unsafe fn outlier_product(act: *const u8, weights: *const u8, rows: usize, sums: *mut f32) {
    debug_assert_eq!(OUTLIERS, 32);
    // SAFETY: promised by the caller; sums are laid out as results are.
    unsafe {
        asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, preserves_flags));
        if rows > ROWS / 2 {
            step!("tdpbf16ps", true, act, weights);
            store_dots::<true>(sums.cast());
        } else {
            step!("tdpbf16ps", false, act, weights);
            store_dots::<false>(sums.cast());
        }
    }
}

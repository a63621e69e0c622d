//! For every block of columns and every stretch of channels, make the weight panels once
//! (they fill most of the second-level cache), then run all rows over them in blocks of 32x32.
//!
//! A block takes passes of up to 16 k-steps, so that its activations (32 KB) stay in the first-level
//! cache while it walks the columns; weight tiles are loaded with a hint that keeps them out of it.
//! While one pass multiplies, the results of the one before are scaled and added, and the next block's
//! activations are prefetched. Nothing more is prefetched: the cache is full.

use super::microkernel::{BLOCK, CTile, Epilogue, KPass, PREFETCH_ACT, multiply, outlier_product};
use super::{TILE_NR, TileTask, result};
use crate::cpu::cache;
use crate::format::{Format, LANES};
use crate::panel::decoded::{self, DecodedRows};
use crate::panel::pack::{self, WeightRows};
use crate::panel::plain::PlainRows;
use crate::panel::precision::{FINEST_PASS, Precision, STEP_BF16, STEP_BYTES, STEP_INT8, TILE_MR};
use crate::panel::requant::{self, OutlierTile};

/// Sets of outlier channels that are picked out while panels are made.
const ON_THE_WAY: usize = 2;
/// k-steps of a stretch.
const STRETCH_STEPS: usize = 64;
/// Pairs of panels (32 columns) kept at a time, by least size of the second-level cache: their
/// requantised weights, 128 KB per pair, take five eighths of it (measured: 8 and 12 are slower).
const NC_PAIRS: [(usize, usize); 3] = [(2 << 20, 10), (1 << 20, 5), (0, 2)];

/// How much is kept, and where in a thread's scratch.
#[derive(Clone, Copy)]
struct Blocking {
    pairs: usize,
    /// k-steps of a stretch, of one plane.
    steps: usize,
}

impl Blocking {
    fn new() -> Self {
        let l2 = cache::l2_bytes();
        let pairs = NC_PAIRS.iter().find(|(least, _)| l2 >= *least).map_or(1, |(_, pairs)| *pairs);
        Self { pairs, steps: STRETCH_STEPS }
    }

    /// For `task`: several planes share the room. In BF16, where it spares the sums a second round through the
    /// result, half the columns and twice the channels in the same room (measured: 10 % faster at K = 4096,
    /// slower above).
    fn of(task: &TileTask<'_>) -> Self {
        let Self { pairs, steps } = Self::new();
        let (k, steps) = (task.tiles.layout.k, steps / task.precision.planes());
        let stretch = steps * task.precision.step();
        let halve = task.precision.step() == STEP_BF16 && k > stretch && k <= 2 * stretch && pairs > 1;
        if halve { Self { pairs: pairs / 2, steps: 2 * steps } } else { Self { pairs, steps } }
    }

    /// Two blocks of raw results, used in turn.
    const DOTS: usize = 0;
    /// f32 sums of one block of rows and all pairs.
    const SUMS: usize = 2 * BLOCK;

    /// Weight scales: per pair and pass, 32.
    fn scales(self) -> usize {
        Self::SUMS + self.pairs * BLOCK
    }

    /// Weight panels.
    fn panels(self) -> usize {
        self.scales() + self.pairs * (self.steps * STEP_INT8 / FINEST_PASS) * TILE_NR * 4
    }

    /// Outlier tiles: per chunk of rows and pair.
    fn outliers(self) -> usize {
        self.panels() + self.pairs * self.steps * STEP_BYTES
    }
}

/// Bytes of scratch for rows with `outlier_sets` sets of outlier channels, a multiple of 64; more than there can be for shapes
/// that fit no memory.
pub fn scratch_bytes(outlier_sets: usize) -> usize {
    let blocking = Blocking::new();
    outlier_sets.saturating_mul(blocking.pairs * STEP_BYTES).saturating_add(blocking.outliers())
}

/// Bytes more that [`on_the_way`] needs behind [`scratch_bytes`]: a packed stretch, and one packed block.
pub const PACK_BYTES: usize = pack::packed_bytes(STRETCH_STEPS * STEP_INT8) + pack::packed_bytes(1);

/// The same for [`decoded`] and rows of `k` channels.
pub fn decoded_bytes(k: usize) -> usize {
    // In BF16 a stretch has up to twice as many k-steps, of half as many channels.
    decoded::up_bytes(k, STRETCH_STEPS * STEP_INT8)
}

/// Where packed weights come from.
trait Source {
    /// Panel `panel` of the job, good for channels `from..from + len`; and the address behind which what is read
    /// next begins in the same way, to prefetch it.
    ///
    /// # Safety
    /// The panel must be one of the job's, or its missing neighbour.
    unsafe fn stretch<F: Format>(&self, panel: usize, from: usize, len: usize) -> (*const u8, *const u8);

    /// The same panel, good for channel `channel`, which need not be in the stretch that was asked for last.
    ///
    /// # Safety
    /// As for [`Source::stretch`].
    unsafe fn channel<F: Format>(&self, panel: usize, channel: usize) -> *const u8;
}

/// In the weight tensor.
struct InTensor<'a>(&'a TileTask<'a>);

impl Source for InTensor<'_> {
    unsafe fn stretch<F: Format>(&self, panel: usize, _: usize, _: usize) -> (*const u8, *const u8) {
        let panel = self.0.panel(panel);
        (panel, panel.wrapping_add(self.0.task.panel_bytes))
    }

    unsafe fn channel<F: Format>(&self, panel: usize, _: usize) -> *const u8 {
        self.0.panel(panel)
    }
}

/// In scratch, from plain rows: the last stretch, and behind it one block.
struct OnTheWay<'a> {
    rows: &'a WeightRows,
    room: *mut u8,
}

impl OnTheWay<'_> {
    /// What `packed`, whose first block is number `first`, looks like as a whole panel.
    fn as_panel<F: Format>(packed: *mut u8, first: usize) -> *const u8 {
        packed.wrapping_sub(first * LANES * F::BYTES).cast_const()
    }
}

impl Source for OnTheWay<'_> {
    unsafe fn stretch<F: Format>(&self, panel: usize, from: usize, len: usize) -> (*const u8, *const u8) {
        let (first, count) = (from / F::BLOCK, len.div_ceil(F::BLOCK));
        // SAFETY: promised by the caller; AVX-512 is there wherever tiles are.
        unsafe { self.rows.pack::<F>(panel, first, count, self.room) };
        let panel = Self::as_panel::<F>(self.room, first);
        (panel, panel)
    }

    unsafe fn channel<F: Format>(&self, panel: usize, channel: usize) -> *const u8 {
        let (first, room) = (channel / F::BLOCK, self.room.wrapping_add(PACK_BYTES - pack::packed_bytes(1)));
        // SAFETY: as above.
        unsafe { self.rows.pack::<F>(panel, first, 1, room) };
        Self::as_panel::<F>(room, first)
    }
}

/// One block of columns and one stretch of channels.
struct Panels {
    scratch: *mut u8,
    blocking: Blocking,
    /// First pair of the job, and how many.
    pair: usize,
    pairs: usize,
    /// First channel, k-steps, and planes.
    from: usize,
    steps: usize,
    planes: usize,
    /// Whether these are the first channels: sums start, otherwise they go on from the result.
    first: bool,
    /// Whether these are the last channels.
    last: bool,
}

/// Packed weights.
///
/// # Safety
/// As for [`super::run`].
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn packed<F: Format, const BF16: bool>(task: &TileTask<'_>, scratch: *mut u8) {
    // SAFETY: passed on.
    unsafe { each_block::<BF16>(task, scratch, |part, len| make_panels::<F, BF16>(task, part, len, &InTensor(task))) }
}

/// Plain rows, packed on the way.
///
/// # Safety
/// As for [`super::run_rows`].
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn on_the_way<F: Format, const BF16: bool>(task: &TileTask<'_>, rows: &WeightRows, scratch: *mut u8) {
    let source = OnTheWay { rows, room: scratch.wrapping_add(scratch_bytes(task.outlier_sets())) };
    // SAFETY: passed on.
    unsafe { each_block::<BF16>(task, scratch, |part, len| make_panels::<F, BF16>(task, part, len, &source)) }
}

/// Weights stored plain, in BF16.
///
/// # Safety
/// As for [`super::run_plain`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn plain(task: &TileTask<'_>, rows: &PlainRows, scratch: *mut u8) {
    // SAFETY: passed on; the scratch has room for all pairs.
    unsafe {
        each_block::<true>(task, scratch, |part, len| {
            for i in 0..2 * part.pairs {
                let out = part.weights(i / 2, 0, 0).wrapping_add(i % 2 * STEP_BYTES / 2);
                rows.bf16(2 * part.pair + i, part.from, len, out, part.steps * STEP_BYTES);
            }
        });
    }
}

/// Rows that the host decodes, in BF16.
///
/// # Safety
/// As for [`super::run_decoded`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn decoded(task: &TileTask<'_>, rows: &DecodedRows, scratch: *mut u8) {
    let room = scratch.wrapping_add(scratch_bytes(task.outlier_sets())).cast();
    // SAFETY: passed on; the scratch has room for all pairs.
    unsafe {
        each_block::<true>(task, scratch, |part, len| {
            for i in 0..2 * part.pairs {
                let out = part.weights(i / 2, 0, 0).wrapping_add(i % 2 * STEP_BYTES / 2);
                rows.bf16(2 * part.pair + i, part.from, len, out, room);
            }
        });
    }
}

/// Every block of columns and stretch of channels: `make` makes its panels, given how many channels.
///
/// # Safety
/// As for [`super::run`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn each_block<const BF16: bool>(task: &TileTask<'_>, scratch: *mut u8, make: impl Fn(&Panels, usize)) {
    let k = task.tiles.layout.k;
    let blocking = Blocking::of(task);
    let stretch = blocking.steps * task.precision.step();
    let all = task.pairs();
    for pair in (0..all).step_by(blocking.pairs) {
        for from in (0..k).step_by(stretch) {
            let len = stretch.min(k - from);
            let part = Panels {
                scratch,
                blocking,
                pair,
                pairs: blocking.pairs.min(all - pair),
                from,
                steps: len.div_ceil(task.precision.step()),
                planes: task.precision.planes(),
                first: from == 0,
                last: from + len == k,
            };
            // SAFETY: promised by the caller.
            unsafe {
                make(&part, len);
                for row in task.task.rows.clone().step_by(TILE_MR) {
                    rows_of_panels::<BF16>(task, &part, row);
                }
            }
        }
    }
}

/// # Safety
/// As for [`super::run`].
#[target_feature(enable = "avx512f,avx512bw")]
#[inline(never)]
unsafe fn make_panels<F: Format, const BF16: bool>(
    task: &TileTask<'_>,
    part: &Panels,
    len: usize,
    source: &impl Source,
) {
    let pass_len = task.precision.pass_steps() * task.precision.step();
    let passes = len.div_ceil(pass_len);
    for i in 0..2 * part.pairs {
        let (pair, half) = (i / 2, i % 2);
        let number = 2 * part.pair + i;
        let out = part.weights(pair, 0, 0).wrapping_add(half * STEP_BYTES / 2);
        // SAFETY: promised by the caller; the scratch has room for all pairs.
        unsafe {
            let (panel, next_panel) = source.stretch::<F>(number, part.from, len);
            if BF16 {
                requant::bf16::<F>(panel, part.from, len, out, next_panel);
                continue;
            }
            // The first sets of outlier channels are picked out on the way, what is left of them afterwards.
            let outlier_sets = task.outlier_set(task.task.rows.start)..task.outlier_sets();
            let tile = |outlier_set: usize| {
                OutlierTile::new(
                    task.channels(outlier_set),
                    part.outliers(outlier_set, pair).add(half * STEP_BYTES / 2),
                )
            };
            let mut first: [_; ON_THE_WAY] =
                std::array::from_fn(|i| tile((outlier_sets.start + i).min(outlier_sets.end - 1)));
            let first = &mut first[..if part.first { outlier_sets.len().min(ON_THE_WAY) } else { 0 }];
            for pass in 0..passes {
                let at = pass * pass_len;
                let channels = part.from + at..part.from + (at + pass_len).min(len);
                let scales = part.scales(pair * passes + pass).add(half * LANES);
                let to = out.add(pass * task.precision.pass_steps() * STEP_BYTES);
                let next = if pass + 1 < passes { (panel, channels.end) } else { (next_panel, part.from) };
                let next = requant::group_at::<F>(next.0, next.1);
                requant::int8::<F>(panel, channels, to, scales, next, first);
            }
            if part.first {
                let rest = |channel: usize| {
                    if channel < part.from + len { panel } else { source.channel::<F>(number, channel) }
                };
                first.iter().for_each(|tile| tile.finish::<F>(rest));
                outlier_sets.skip(ON_THE_WAY).for_each(|outlier_set| tile(outlier_set).finish::<F>(rest));
            }
        }
    }
}

impl Panels {
    fn sums(&self, pair: usize) -> *mut f32 {
        self.scratch.wrapping_add(Blocking::SUMS + pair * BLOCK).cast()
    }

    fn scales(&self, index: usize) -> *mut f32 {
        self.scratch.wrapping_add(self.blocking.scales()).cast::<f32>().wrapping_add(index * TILE_NR)
    }

    /// Weight tiles of a plane of a pair from k-step `step` of the stretch on.
    fn weights(&self, pair: usize, plane: usize, step: usize) -> *mut u8 {
        let step = (pair * self.planes + plane) * self.steps + step;
        self.scratch.wrapping_add(self.blocking.panels() + step * STEP_BYTES)
    }

    fn outliers(&self, outlier_set: usize, pair: usize) -> *mut u8 {
        self.scratch.wrapping_add(self.blocking.outliers() + (outlier_set * self.blocking.pairs + pair) * STEP_BYTES)
    }
}

/// One block of up to 32 rows times all panels of `part`.
///
/// # Safety
/// As for [`super::run`]; the panels must be made.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline(never)]
unsafe fn rows_of_panels<const BF16: bool>(task: &TileTask<'_>, part: &Panels, row: usize) {
    let (block, rows) = (task.block(row), (task.task.rows.end - row).min(TILE_MR));
    let (step, pass_steps, products) = (task.precision.step(), task.precision.pass_steps(), task.precision.products());
    let passes = part.steps.div_ceil(pass_steps) * products.len();
    let result_of = |pair: usize| result(task.task, row, 2 * (part.pair + pair));
    // SAFETY: promised by the caller; all places are inside the scratch, the tiles and the panels.
    unsafe {
        if part.first && !BF16 {
            for pair in 0..part.pairs {
                outlier_product(
                    task.tiles.outliers(block),
                    part.outliers(task.outlier_set(row), pair),
                    rows,
                    part.sums(pair),
                );
            }
        }
        let mut epilogue: Option<Epilogue> = None;
        let mut round = 0;
        for pass in 0..passes {
            let first_step = pass / products.len() * pass_steps;
            let steps = pass_steps.min(part.steps - first_step);
            let (act_plane, weight_plane) = products[pass % products.len()];
            let act = |block| task.tiles.tiles(task.precision, block, act_plane, part.from + first_step * step);
            let (act, next_act) = (act(block), act(block + 1));
            let act_scales = match task.precision {
                Precision::Int8 { pass: len } => task.tiles.scales(len, block, part.from + pass * len),
                Precision::Bf16 | Precision::Bf16Twice => std::ptr::null_mut(),
            };
            for pair in 0..part.pairs {
                let dots = part.scratch.add(Blocking::DOTS + round % 2 * BLOCK);
                let next_act = next_act.wrapping_add(pair * steps * PREFETCH_ACT * 64);
                let weights = part.weights(pair, weight_plane, first_step);
                let kpass = KPass { act, weights, steps, dots, next_act };
                match (rows > TILE_MR / 2, pass_steps) {
                    (true, 16) => multiply::<BF16, true, 2>(&kpass, epilogue.as_ref()),
                    (true, 8) => multiply::<BF16, true, 4>(&kpass, epilogue.as_ref()),
                    (true, _) => multiply::<BF16, true, 8>(&kpass, epilogue.as_ref()),
                    (false, _) => multiply::<BF16, false, 4>(&kpass, epilogue.as_ref()),
                }
                let to = if pass + 1 < passes { CTile::sums(part.sums(pair)) } else { result_of(pair) };
                epilogue = Some(Epilogue {
                    dots,
                    act: act_scales,
                    weights: part.scales(pair * passes + pass),
                    rows,
                    from: match (pass, part.first) {
                        (0, true) if BF16 => CTile::zeros(),
                        (0, false) => result_of(pair),
                        _ => CTile::sums(part.sums(pair)),
                    },
                    to,
                    stream: part.last && pass + 1 == passes && task.may_stream(&to),
                });
                round += 1;
            }
        }
        if let Some(last) = &epilogue {
            last.some::<BF16>(0..last.rows);
        }
    }
}

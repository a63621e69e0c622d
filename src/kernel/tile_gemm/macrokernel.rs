//! The loops around the micro-kernel.
//!
//! ```text
//! for every NC columns:                               (320 with 2 MB of second-level cache)
//!     for every KC channels:                          (4,096 in int8, 2,048 in BF16)
//!         make the weight panels of NC x KC           (they fill most of the second-level cache)
//!         for every MR = 32 rows:
//!             for every pass of the KC channels:      (up to 16 k-steps: activations of 32 KB)
//!                 for every NR = 32 columns:
//!                     C tile = pass on the tile unit  (microkernel)
//!                     meanwhile: scale the C tile before and add it to its sums, or to the result
//! ```
//!
//! The activations of a pass stay in the first-level cache while it walks the columns; weight tiles are loaded with a
//! hint that keeps them out of it. The next row block's activations are prefetched, and nothing else: the cache is
//! full.

use super::blocking::{Blocking, KcBlock, scratch_bytes};
use super::microkernel::{CTile, Epilogue, KPass, PREFETCH_ACT, multiply, outlier_product};
use super::panel_source::{InTensor, PackedInPlace, PanelSource};
use super::task::TileTask;
use crate::format::{Format, LANES};
use crate::panel::decoded::DecodedRows;
use crate::panel::plain::PlainRows;
use crate::panel::precision::{Precision, STEP_BYTES, TILE_MR};
use crate::panel::requant::{self, OutlierTile};
use crate::panel::weight_source::WeightSource;
use crate::with_format;

/// Outlier sets whose weights are picked out while panels are made.
const SETS_AT_ONCE: usize = 2;

/// Computes `task`, which is not empty.
///
/// # Safety
/// As for [`super::run`]; the tile unit must be configured with full tiles, AVX-512 and its BF16 be there.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn run(task: &TileTask<'_>, scratch: *mut u8) {
    let behind = scratch.wrapping_add(scratch_bytes(task.outlier_sets()));
    // SAFETY: the task is valid; behind `scratch_bytes` of the scratch lies what making panels takes.
    unsafe {
        match &task.task.weights {
            WeightSource::Packed(ty, panels) => {
                let source = InTensor { panels: *panels, count: task.task.panel_count() };
                with_format!(*ty, F => quantised::<F, _>(task, scratch, &source));
            }
            WeightSource::InPlace(ty, rows) => {
                let source = PackedInPlace { rows: *rows, scratch: behind };
                with_format!(*ty, F => quantised::<F, _>(task, scratch, &source));
            }
            WeightSource::Plain(rows) => plain(task, rows, scratch),
            WeightSource::Decoded(rows) => decoded(task, rows, scratch, behind.cast()),
        }
    }
}

/// Weights of a packed type.
///
/// # Safety
/// As for [`run`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn quantised<F: Format, S: PanelSource>(task: &TileTask<'_>, scratch: *mut u8, source: &S) {
    // SAFETY: the task is valid, and `source` has its panels.
    unsafe {
        match task.precision {
            Precision::Int8 { .. } => {
                each_kc_block::<false>(task, scratch, |block| make_panels::<F, false>(task, block, source))
            }
            Precision::Bf16 => {
                each_kc_block::<true>(task, scratch, |block| make_panels::<F, true>(task, block, source))
            }
            Precision::Bf16Twice => unreachable!("weights of packed types have 8 bits"),
        }
    }
}

/// Weights of BF16 or F16.
///
/// # Safety
/// As for [`run`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn plain(task: &TileTask<'_>, rows: &PlainRows, scratch: *mut u8) {
    // SAFETY: the rows have the channels of each KC block, the scratch room for its panels.
    unsafe {
        each_kc_block::<true>(task, scratch, |block| {
            for i in 0..2 * block.pairs {
                let out = block.panel(i);
                let channels = &block.channels;
                rows.bf16(2 * block.pair + i, channels.start, channels.len(), out, block.steps * STEP_BYTES);
            }
        });
    }
}

/// Weights that the host decodes.
///
/// # Safety
/// As for [`run`]; `decoding` is the scratch for making panels.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn decoded(task: &TileTask<'_>, rows: &DecodedRows, scratch: *mut u8, decoding: *mut f32) {
    // SAFETY: the rows have the channels of each KC block, the scratch room for its panels and for decoding.
    unsafe {
        each_kc_block::<true>(task, scratch, |block| {
            for i in 0..2 * block.pairs {
                let (out, channels) = (block.panel(i), &block.channels);
                rows.bf16(2 * block.pair + i, channels.start, channels.len(), out, decoding);
            }
        });
    }
}

/// The two outer loops: `make` makes the panels of a KC block, all row blocks are multiplied with them.
///
/// # Safety
/// As for [`run`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn each_kc_block<const BF16: bool>(task: &TileTask<'_>, scratch: *mut u8, make: impl Fn(&KcBlock)) {
    let k = task.task.k;
    let blocking = Blocking::of(task);
    let kc = blocking.steps * task.precision.step();
    for pair in (0..task.pairs()).step_by(blocking.pairs) {
        for from in (0..k).step_by(kc) {
            let block = KcBlock::new(task, blocking, pair, from..k.min(from + kc), scratch);
            make(&block);
            for row in task.task.rows.clone().step_by(TILE_MR) {
                // SAFETY: the task has the row, and the panels are made.
                unsafe { multiply_row_block::<BF16>(task, &block, row) };
            }
        }
    }
}

/// Makes the tiles of a KC block from packed panels, and in int8 picks out the weights of the outlier channels.
///
/// # Safety
/// As for [`run`].
#[target_feature(enable = "avx512f,avx512bw")]
#[inline(never)]
unsafe fn make_panels<F: Format, const BF16: bool>(task: &TileTask<'_>, block: &KcBlock, source: &impl PanelSource) {
    let (from, len) = (block.channels.start, block.channels.len());
    let pass_len = task.precision.pass_steps() * task.precision.step();
    let passes = len.div_ceil(pass_len);
    for i in 0..2 * block.pairs {
        let (pair, half) = (i / 2, i % 2);
        let number = 2 * block.pair + i;
        let out = block.panel(i);
        // SAFETY: the task has the panel or the one before; the scratch has room for the tiles of all pairs.
        unsafe {
            let (panel, next_panel) = source.kc_block::<F>(number, block.channels.clone());
            if BF16 {
                requant::bf16::<F>(panel, from, len, out, next_panel);
                continue;
            }
            // The outliers of the first sets are picked out while their channels are requantised, those of later sets,
            // and those in later KC blocks, afterwards.
            let sets = task.outlier_set(task.task.rows.start)..task.outlier_sets();
            let tile =
                |set: usize| OutlierTile::new(task.channels(set), block.outliers(set, pair).add(half * STEP_BYTES / 2));
            let mut first: [_; SETS_AT_ONCE] = std::array::from_fn(|i| tile((sets.start + i).min(sets.end - 1)));
            let first = &mut first[..if block.first { sets.len().min(SETS_AT_ONCE) } else { 0 }];
            for pass in 0..passes {
                let at = pass * pass_len;
                let channels = from + at..from + (at + pass_len).min(len);
                let scales = block.scales(pair * passes + pass).add(half * LANES);
                let to = out.add(pass * task.precision.pass_steps() * STEP_BYTES);
                let next = if pass + 1 < passes { (panel, channels.end) } else { (next_panel, from) };
                let next = requant::block_at::<F>(next.0, next.1);
                requant::int8::<F>(panel, channels, to, scales, next, first);
            }
            if block.first {
                let rest = |channel: usize| {
                    if channel < from + len { panel } else { source.block_of::<F>(number, channel) }
                };
                first.iter().for_each(|tile| tile.finish::<F>(rest));
                sets.skip(SETS_AT_ONCE).for_each(|set| tile(set).finish::<F>(rest));
            }
        }
    }
}

/// Multiplies the row block that begins with row `row` with all panels of `block`.
///
/// # Safety
/// As for [`run`]; the panels must be made.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline(never)]
unsafe fn multiply_row_block<const BF16: bool>(task: &TileTask<'_>, block: &KcBlock, row: usize) {
    let (row_block, rows) = (task.row_block(row), (task.task.rows.end - row).min(TILE_MR));
    let (step, pass_steps, products) = (task.precision.step(), task.precision.pass_steps(), task.precision.products());
    let passes = block.steps.div_ceil(pass_steps) * products.len();
    let result_of = |pair: usize| task.result(row, 2 * (block.pair + pair));
    // SAFETY: the row block is one of the tiles', all other addresses are inside the scratch or the result of the task.
    unsafe {
        if block.first && !BF16 {
            let (act, set) = (task.tiles.outliers(row_block), task.outlier_set(row));
            for pair in 0..block.pairs {
                outlier_product(act, block.outliers(set, pair), rows, block.sums(pair));
            }
        }
        // The C tile that was multiplied last: its dots are scaled while the next is multiplied.
        let mut epilogue: Option<Epilogue> = None;
        let mut round = 0;
        for pass in 0..passes {
            let first_step = pass / products.len() * pass_steps;
            let steps = pass_steps.min(block.steps - first_step);
            let (act_plane, weight_plane) = products[pass % products.len()];
            let channel = block.channels.start + first_step * step;
            let act = |row_block| task.tiles.tiles(task.precision, row_block, act_plane, channel);
            let (act, next_act) = (act(row_block), act(row_block + 1));
            let act_scales = match task.precision {
                Precision::Int8 { pass: len } => task.tiles.scales(len, row_block, block.channels.start + pass * len),
                Precision::Bf16 | Precision::Bf16Twice => std::ptr::null_mut(),
            };
            for pair in 0..block.pairs {
                let dots = block.dots(round % 2);
                let next_act = next_act.wrapping_add(pair * steps * PREFETCH_ACT * 64);
                let weights = block.weights(pair, weight_plane, first_step);
                let kpass = KPass { act, weights, steps, dots, next_act };
                match (rows > TILE_MR / 2, pass_steps) {
                    (true, 16) => multiply::<BF16, true, 2>(&kpass, epilogue.as_ref()),
                    (true, 8) => multiply::<BF16, true, 4>(&kpass, epilogue.as_ref()),
                    (true, _) => multiply::<BF16, true, 8>(&kpass, epilogue.as_ref()),
                    (false, _) => multiply::<BF16, false, 4>(&kpass, epilogue.as_ref()),
                }
                let to = if pass + 1 < passes { CTile::sums(block.sums(pair)) } else { result_of(pair) };
                epilogue = Some(Epilogue {
                    dots,
                    act: act_scales,
                    weights: block.scales(pair * passes + pass),
                    rows,
                    from: match (pass, block.first) {
                        (0, true) if BF16 => CTile::zeros(),
                        (0, false) => result_of(pair),
                        _ => CTile::sums(block.sums(pair)),
                    },
                    to,
                    stream: block.last && pass + 1 == passes && task.may_stream(&to),
                });
                round += 1;
            }
        }
        if let Some(last) = &epilogue {
            last.some::<BF16>(0..last.rows);
        }
    }
}

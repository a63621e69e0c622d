//! AVX-512 VNNI. Few rows of activations ([`in_registers`]) read the packed weights directly, several
//! panels at once so that memory latency overlaps (this is token generation, bound by memory
//! bandwidth); more rows read panels unpacked once into scratch.

use std::arch::x86_64::*;

use super::{KC_IN_PLACE, Task, Unpacked, kc_blocks};
use crate::cpu::Avx512;
use crate::format::{ACT_BLOCK, BlockScales, Format, LANES};
use crate::panel::activations::Tile;
use crate::panel::pack::WeightRows;

/// Bytes ahead of the reads that packed weights are prefetched, per panel.
const PREFETCH: usize = 2048;

/// Stretches ahead of the packing that weights in place are prefetched (1 is as good, 4 is worse).
const STRETCHES_AHEAD: usize = 2;

/// What a micro kernel needs of one group of weights.
struct Group {
    /// Unsigned; in the lanes of `second` they lack the type's `STEP`.
    quants: [__m512i; 8],
    second: __mmask16,
    scale: __m512,
    min: __m512,
}

/// Where a micro kernel takes its weights from.
trait Source<F: Format> {
    /// Goes to block `block` of all panels.
    ///
    /// # Safety
    /// The block must exist; AVX-512 must be there.
    unsafe fn enter(&mut self, block: usize);

    /// Group `g` (counted in its block) of block `block` of panel `p`.
    ///
    /// # Safety
    /// Panel and group must exist, the block be the one that was entered; AVX-512 must be there.
    unsafe fn load(&self, p: usize, block: usize, g: usize) -> Group;
}

/// `NP` packed panels, unpacked in registers; the bytes `AHEAD` of the reads are prefetched, if that is not 0.
struct Direct<const NP: usize, const AHEAD: usize> {
    panels: *const u8,
    panel_bytes: usize,
    /// Of the block that was entered, if it has [`many_groups`].
    scales: [BlockScales; NP],
}

impl<const NP: usize, const AHEAD: usize> Direct<NP, AHEAD> {
    fn new(panels: *const u8, panel_bytes: usize) -> Self {
        Self { panels, panel_bytes, scales: [const { BlockScales::new() }; NP] }
    }

    /// Block `block` of panel `p`.
    #[inline]
    fn block<F: Format>(&self, p: usize, block: usize) -> *const u8 {
        self.panels.wrapping_add(p * self.panel_bytes + block * (LANES * F::BYTES))
    }
}

/// Whether blocks have so many groups that their scales are read all at once.
const fn many_groups<F: Format>() -> bool {
    F::BLOCK / F::GROUP >= 8
}

/// [`Format::block_scales_avx512`], once per type and not in every kernel.
///
/// # Safety
/// `block` must point to a packed block; AVX-512 must be there.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn block_scales<F: Format>(block: *const u8, out: &mut BlockScales) {
    // SAFETY: promised by the caller.
    unsafe { F::block_scales_avx512(block, out) };
}

impl<F: Format, const NP: usize, const AHEAD: usize> Source<F> for Direct<NP, AHEAD> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn enter(&mut self, block: usize) {
        if many_groups::<F>() {
            for p in 0..NP {
                let block = self.block::<F>(p, block);
                // SAFETY: promised by the caller.
                unsafe { block_scales::<F>(block, &mut self.scales[p]) };
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn load(&self, p: usize, block: usize, g: usize) -> Group {
        let block = self.block::<F>(p, block);
        // Several groups of one block of activations count as one.
        let together = ACT_BLOCK / F::GROUP;
        let bytes = LANES * F::BYTES * ACT_BLOCK / F::BLOCK;
        let lines = if AHEAD > 0 && g.is_multiple_of(together) { bytes.div_ceil(64) } else { 0 };
        for line in 0..lines {
            // A prefetch past the end of the panel is harmless.
            let ahead = block.wrapping_add(g / together * bytes + line * 64 + AHEAD);
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
        }
        // SAFETY: the group exists, and was entered.
        unsafe {
            let (scale, min) = if many_groups::<F>() { self.scales[p].get::<F>(g) } else { F::scales_avx512(block, g) };
            let (quants, second) = F::first_quants_avx512(block, g);
            Group { quants, second, scale, min }
        }
    }
}

/// Panels in scratch, quants unsigned.
impl<F: Format> Source<F> for Unpacked {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn enter(&mut self, _block: usize) {}

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn load(&self, p: usize, block: usize, g: usize) -> Group {
        let g = block * (F::BLOCK / F::GROUP) + g;
        let mut quants = [_mm512_setzero_si512(); 8];
        // SAFETY: panel and group exist.
        unsafe {
            for (r, row) in quants[..F::GROUP / 4].iter_mut().enumerate() {
                *row = _mm512_load_si512(self.quants(p, g).add(64 * r).cast());
            }
            Group { quants, second: 0, scale: _mm512_load_ps(self.scales(p, g)), min: _mm512_load_ps(self.mins(p, g)) }
        }
    }
}

/// Adds `blocks` blocks (whose weights meet the activations from `channel` on) of `NP` panels times `MR` rows, rows
/// `lane..lane + MR` of `tile`, to `acc`.
///
/// # Safety
/// Panels, blocks and rows must exist; AVX-512 VNNI must be there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn micro<F: Format, S: Source<F>, const NP: usize, const MR: usize>(
    source: &mut S,
    blocks: usize,
    channel: usize,
    tile: &Tile,
    lane: usize,
    acc: &mut [[__m512; MR]; NP],
) {
    // Groups that meet one block of activations.
    let together = ACT_BLOCK / F::GROUP;
    for block in 0..blocks {
        // SAFETY: promised by the caller.
        unsafe { source.enter(block) };
        for within in 0..F::BLOCK / ACT_BLOCK {
            let b = (channel + block * F::BLOCK) / ACT_BLOCK + within;
            for (p, acc) in acc.iter_mut().enumerate() {
                for i in 0..together {
                    // SAFETY: promised by the caller; rows lane.. of this tile exist, and have this group.
                    unsafe {
                        let group = source.load(p, block, within * together + i);
                        multiply::<F, MR>(&group, tile, b, i, lane, acc);
                    }
                }
            }
        }
    }
}

/// Adds the products of one group of weights with group `i` of block `b` of the activations to `acc`, rows as in
/// [`micro`].
///
/// # Safety
/// Block, group and rows must exist; AVX-512 VNNI must be there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn multiply<F: Format, const MR: usize>(
    group: &Group,
    tile: &Tile,
    b: usize,
    i: usize,
    lane: usize,
    acc: &mut [__m512; MR],
) {
    for (m, acc) in acc.iter_mut().enumerate() {
        // SAFETY: promised by the caller.
        let (q, d, sum) = unsafe {
            (
                tile.quants.add((b * tile.rows + lane + m) * ACT_BLOCK + i * F::GROUP).cast::<i32>(),
                *tile.scales.add(b * tile.rows + lane + m),
                *tile.sums.add((b * (ACT_BLOCK / F::GROUP) + i) * tile.rows + lane + m),
            )
        };
        // Two chains of a group of 32 hide the latency of VPDPBUSD; integer sums do not mind the order.
        let mut even = _mm512_set1_epi32(-F::ZERO_POINT * sum);
        if F::STEP != 0 {
            even = _mm512_mask_mov_epi32(even, group.second, _mm512_set1_epi32((F::STEP - F::ZERO_POINT) * sum));
        }
        let mut odd = _mm512_setzero_si512();
        for (r, w) in group.quants[..F::GROUP / 4].iter().enumerate() {
            // SAFETY: the group has GROUP / 4 dwords.
            let x = unsafe { q.add(r).read_unaligned() };
            let sum = if F::GROUP == 32 && r % 2 == 1 { &mut odd } else { &mut even };
            *sum = _mm512_dpbusd_epi32(*sum, *w, _mm512_set1_epi32(x));
        }
        let dot = _mm512_cvtepi32_ps(_mm512_add_epi32(even, odd));
        *acc = _mm512_fmadd_ps(dot, _mm512_mul_ps(group.scale, _mm512_set1_ps(d)), *acc);
        if F::HAS_MIN {
            *acc = _mm512_fmadd_ps(group.min, _mm512_set1_ps(d * sum as f32), *acc);
        }
    }
}

/// `NP` panels from `panel` on times `MR` rows from `row` on.
///
/// # Safety
/// As for [`run`]; panels and rows must exist and lie in one tile of activations.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn direct<F: Format, const NP: usize, const MR: usize>(task: &Task, panel: usize, row: usize) {
    let mut acc = [[_mm512_setzero_ps(); MR]; NP];
    let panels = task.panels.wrapping_add(panel * task.panel_bytes);
    let mut source = Direct::<NP, PREFETCH>::new(panels, task.panel_bytes);
    let tile = task.act.tile(row / LANES);
    // SAFETY: promised by the caller.
    unsafe {
        micro::<F, _, NP, MR>(&mut source, task.act.k / F::BLOCK, 0, &tile, row % LANES, &mut acc);
        for (p, acc) in acc.iter().enumerate() {
            for (m, acc) in acc.iter().enumerate() {
                let out = task.dst_row(row + m).add((panel + p) * LANES);
                _mm512_mask_storeu_ps(out, task.mask(panel + p), *acc);
            }
        }
    }
}

/// One unpacked chunk of panel `panel` (number `p` in scratch) times `MR` rows from `row` on, added
/// to the result unless it is the first chunk.
///
/// # Safety
/// As for [`direct`]; the chunk starts at channel `start`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn chunk<F: Format, const MR: usize>(
    task: &Task,
    source: &mut Unpacked,
    start: usize,
    panel: usize,
    row: usize,
) {
    let tile = task.act.tile(row / LANES);
    let mask = task.mask(panel);
    let mut acc = [[_mm512_setzero_ps(); MR]; 1];
    // SAFETY: promised by the caller.
    unsafe {
        let out = |m: usize| task.dst_row(row + m).add(panel * LANES);
        if start > 0 {
            for (m, acc) in acc[0].iter_mut().enumerate() {
                *acc = _mm512_maskz_loadu_ps(mask, out(m));
            }
        }
        let blocks = source.groups * F::GROUP / F::BLOCK;
        micro::<F, _, 1, MR>(source, blocks, start, &tile, row % LANES, &mut acc);
        for (m, acc) in acc[0].iter().enumerate() {
            _mm512_mask_storeu_ps(out(m), mask, *acc);
        }
    }
}

/// Unpacks chunk `start..start + len` of one panel into number `p` of `out`; signed quants for tiles,
/// unsigned ones for VNNI.
///
/// # Safety
/// `panel` must be a whole packed panel, `out` large enough.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn unpack<F: Format, const SIGNED: bool>(panel: *const u8, start: usize, out: &Unpacked, p: usize) {
    let groups = F::BLOCK / F::GROUP;
    let zero_point = _mm512_set1_epi8(F::ZERO_POINT as i8);
    for g in 0..out.groups {
        let at = start / F::GROUP + g;
        // SAFETY: the group is inside the panel, and inside the scratch.
        unsafe {
            let block = panel.add(at / groups * (LANES * F::BYTES));
            let rows = F::quants_avx512(block, at % groups);
            for (r, row) in rows[..F::GROUP / 4].iter().enumerate() {
                let row = if SIGNED { _mm512_sub_epi8(*row, zero_point) } else { *row };
                _mm512_store_si512(out.quants(p, g).add(64 * r).cast(), row);
            }
            let (scale, min) = F::scales_avx512(block, at % groups);
            _mm512_store_ps(out.scales(p, g), scale);
            _mm512_store_ps(out.mins(p, g), min);
        }
    }
}

/// A few rows: the weights become integers in registers.
///
/// # Safety
/// As for [`super::run`].
pub(super) unsafe fn in_registers<F: Format>(_proof: Avx512, task: &Task) {
    // SAFETY: the proof stands for the features; the task is valid.
    unsafe { few_rows::<F>(task) }
}

/// Many rows: the weights become integers in scratch, once for all of them.
///
/// # Safety
/// As for [`super::run`].
pub(super) unsafe fn in_scratch<F: Format>(_proof: Avx512, task: &Task, scratch: *mut u8) {
    // SAFETY: as above, and the scratch is large enough.
    unsafe { many_rows::<F>(task, scratch) }
}

/// All panels, as many at once as leave room for the sums of the rows in registers; more than 8 rows
/// read them again, from cache.
///
/// # Safety
/// As for [`super::run`], on a CPU with AVX-512 VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn few_rows<F: Format>(task: &Task) {
    let panels = task.panel_count();
    let at_once = if task.rows.len() <= 4 { 4 } else { 2 };
    let mut panel = 0;
    while panel < panels {
        let np = if panel + at_once <= panels { at_once } else { 1 };
        for row in task.rows.clone().step_by(8) {
            // SAFETY: panels and rows exist; 8 rows from a multiple of 8 lie in one tile of 16.
            unsafe {
                match (np, (task.rows.end - row).min(8)) {
                    (4, 1) => direct::<F, 4, 1>(task, panel, row),
                    (4, 2) => direct::<F, 4, 2>(task, panel, row),
                    (4, 3) => direct::<F, 4, 3>(task, panel, row),
                    (4, _) => direct::<F, 4, 4>(task, panel, row),
                    (2, rows) => direct_rows::<F, 2>(task, panel, row, rows),
                    (_, rows) => direct_rows::<F, 1>(task, panel, row, rows),
                }
            }
        }
        panel += np;
    }
}

/// 1 to 8 rows.
///
/// # Safety
/// As for [`direct`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn direct_rows<F: Format, const NP: usize>(task: &Task, panel: usize, row: usize, rows: usize) {
    // SAFETY: promised by the caller.
    unsafe {
        match rows {
            1 => direct::<F, NP, 1>(task, panel, row),
            2 => direct::<F, NP, 2>(task, panel, row),
            3 => direct::<F, NP, 3>(task, panel, row),
            4 => direct::<F, NP, 4>(task, panel, row),
            5 => direct::<F, NP, 5>(task, panel, row),
            6 => direct::<F, NP, 6>(task, panel, row),
            7 => direct::<F, NP, 7>(task, panel, row),
            _ => direct::<F, NP, 8>(task, panel, row),
        }
    }
}

/// Weights in place, few rows of activations.
///
/// # Safety
/// As for [`super::run_rows`].
pub(super) unsafe fn run_rows<F: Format>(_proof: Avx512, task: &Task, weights: &WeightRows, scratch: *mut u8) {
    for panel in 0..task.panel_count() {
        // SAFETY: the proof stands for the features; the rest is the caller's promise.
        unsafe {
            match task.rows.len() {
                1 => packed_on_the_way::<F, 1>(task, weights, panel, scratch),
                2 => packed_on_the_way::<F, 2>(task, weights, panel, scratch),
                3 => packed_on_the_way::<F, 3>(task, weights, panel, scratch),
                4 => packed_on_the_way::<F, 4>(task, weights, panel, scratch),
                5 => packed_on_the_way::<F, 5>(task, weights, panel, scratch),
                6 => packed_on_the_way::<F, 6>(task, weights, panel, scratch),
                7 => packed_on_the_way::<F, 7>(task, weights, panel, scratch),
                _ => packed_on_the_way::<F, 8>(task, weights, panel, scratch),
            }
        }
    }
}

/// 16 rows of weights times `MR` rows of activations: a stretch of channels at a time is packed into `scratch`, which
/// stays in the first-level cache, and multiplied from there.
///
/// # Safety
/// As for [`run_rows`]; the panel must exist.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn packed_on_the_way<F: Format, const MR: usize>(
    task: &Task,
    weights: &WeightRows,
    panel: usize,
    scratch: *mut u8,
) {
    let row = task.rows.start;
    let tile = task.act.tile(row / LANES);
    let mut source = Direct::<1, 0>::new(scratch, 0);
    let k = task.act.k;
    let mut acc = [[_mm512_setzero_ps(); MR]; 1];
    for start in (0..k).step_by(KC_IN_PLACE) {
        let channels = (k - start).min(KC_IN_PLACE);
        prefetch::<F>(weights, k, panel, start + STRETCHES_AHEAD * KC_IN_PLACE);
        // SAFETY: promised by the caller; whole blocks of the rows, and the scratch has room for a stretch.
        unsafe {
            weights.pack::<F>(panel, start / F::BLOCK, channels / F::BLOCK, scratch);
            micro::<F, _, 1, MR>(&mut source, channels / F::BLOCK, start, &tile, row % LANES, &mut acc);
        }
    }
    for (m, acc) in acc[0].iter().enumerate() {
        // SAFETY: the row and the columns of the mask exist.
        unsafe { _mm512_mask_storeu_ps(task.dst_row(row + m).add(panel * LANES), task.mask(panel), *acc) };
    }
}

/// Prefetches the stretch of 16 rows that begins with `channel`; past their end, of the next 16 rows.
#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch<F: Format>(weights: &WeightRows, k: usize, panel: usize, channel: usize) {
    let (panel, channel) =
        if channel < k { (panel, channel) } else { (panel + 1, (channel - k) / KC_IN_PLACE * KC_IN_PLACE) };
    let from = weights.data.wrapping_add(panel * LANES * weights.stride);
    let (block, bytes) = (channel / F::BLOCK, const { KC_IN_PLACE / F::BLOCK * F::BYTES });
    // Of interleaved rows, the stretches of those that lie together are one piece.
    let together = weights.interleave;
    for lane in 0..LANES {
        let (first, within) = (lane & !(together - 1), lane & (together - 1));
        let from = from.wrapping_add(first * weights.stride + block * together * F::BYTES + within * bytes);
        for line in 0..bytes.div_ceil(64) {
            // One that is past the end of the weights is harmless.
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(line * 64).cast());
        }
    }
}

/// # Safety
/// As for [`super::run`], on a CPU with AVX-512 VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn many_rows<F: Format>(task: &Task, scratch: *mut u8) {
    for panel in 0..task.panel_count() {
        for (start, len) in kc_blocks(task.act.k) {
            let mut chunk_of = Unpacked { base: scratch, groups: len / F::GROUP, group: F::GROUP };
            // SAFETY: the panel exists; every step stays inside one tile of 16 rows, because rows
            // start at a multiple of 32 and steps shrink from 8 only at the very end.
            unsafe {
                unpack::<F, false>(task.panels.add(panel * task.panel_bytes), start, &chunk_of, 0);
                let mut row = task.rows.start;
                while row < task.rows.end {
                    let step = match task.rows.end - row {
                        8.. => 8,
                        4.. => 4,
                        2.. => 2,
                        _ => 1,
                    };
                    match step {
                        8 => chunk::<F, 8>(task, &mut chunk_of, start, panel, row),
                        4 => chunk::<F, 4>(task, &mut chunk_of, start, panel, row),
                        2 => chunk::<F, 2>(task, &mut chunk_of, start, panel, row),
                        _ => chunk::<F, 1>(task, &mut chunk_of, start, panel, row),
                    }
                    row += step;
                }
            }
        }
    }
}

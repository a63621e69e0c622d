//! The micro-kernel: `NP` panels times `MR` rows, the sums in registers.
//!
//! ```text
//! for every block of weights:
//!     for every 32 channels of it:                        (one block of activations)
//!         for every panel, and every group in these channels:
//!             unpack the group's quants into registers    (GroupSource)
//!             for every row: dot = VPDPBUSD with broadcast activations; sum = fma(dot, scales, sum)
//! ```

use std::arch::x86_64::*;

use super::super::operands::Unpacked;
use crate::format::{ACT_BLOCK, BlockScales, Format, LANES};
use crate::panel::activations::Tile;
use crate::panel::weight_source::PackedPanels;

/// `$body` with the constant `$MR`, which is `$rows`: 1 to 8.
macro_rules! with_row_count {
    ($rows:expr, $MR:ident => $body:expr) => {
        with_row_count!($rows, $MR => $body, 1 2 3 4 5 6 7, 8)
    };
    ($rows:expr, $MR:ident => $body:expr, $($count:literal)*, $most:literal) => {
        match $rows {
            $($count => {
                const $MR: usize = $count;
                $body
            })*
            _ => {
                const $MR: usize = $most;
                $body
            }
        }
    };
}
pub(super) use with_row_count;

/// One group of weights of 16 rows, unpacked.
pub struct Group {
    /// Unsigned. In the lanes of `second` they are smaller than the weight's quant by the type's `STEP`.
    quants: [__m512i; 8],
    second: __mmask16,
    scale: __m512,
    min: __m512,
}

/// Where the micro-kernel takes its groups from.
pub trait GroupSource<F: Format> {
    /// Goes to block `block` of all panels.
    ///
    /// # Safety
    /// The panels must have the block; AVX-512 must be there.
    unsafe fn enter(&mut self, block: usize);

    /// Unpacks group `g` (counted in its block) of block `block` of panel `p`.
    ///
    /// # Safety
    /// The panel must have the group, `block` must be the one that was entered last, and AVX-512 must be there.
    unsafe fn load(&self, p: usize, block: usize, g: usize) -> Group;
}

/// `NP` packed panels, unpacked in registers. `AHEAD`: bytes ahead of the reads that are prefetched, or 0.
pub struct Direct<const NP: usize, const AHEAD: usize> {
    panels: PackedPanels,
    /// Scales of the block that was entered, if it has [`many_groups`].
    scales: [BlockScales; NP],
}

impl<const NP: usize, const AHEAD: usize> Direct<NP, AHEAD> {
    /// The first `NP` of `panels`.
    pub fn new(panels: PackedPanels) -> Self {
        Self { panels, scales: [const { BlockScales::new() }; NP] }
    }

    /// Address of block `block` of panel `p`.
    #[inline]
    fn block<F: Format>(&self, p: usize, block: usize) -> *const u8 {
        self.panels.panel(p).wrapping_add(block * (LANES * F::BYTES))
    }
}

/// Whether blocks have so many groups that their scales are read all at once.
const fn many_groups<F: Format>() -> bool {
    F::BLOCK / F::GROUP >= 8
}

/// [`Format::block_scales_avx512`], compiled once per type instead of once per kernel.
///
/// # Safety
/// `block` must point to a packed block; AVX-512 must be there.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn block_scales<F: Format>(block: *const u8, out: &mut BlockScales) {
    // SAFETY: the block is packed.
    unsafe { F::block_scales_avx512(block, out) };
}

impl<F: Format, const NP: usize, const AHEAD: usize> GroupSource<F> for Direct<NP, AHEAD> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn enter(&mut self, block: usize) {
        if many_groups::<F>() {
            for p in 0..NP {
                let block = self.block::<F>(p, block);
                // SAFETY: all panels have the block.
                unsafe { block_scales::<F>(block, &mut self.scales[p]) };
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn load(&self, p: usize, block: usize, g: usize) -> Group {
        let block = self.block::<F>(p, block);
        // The groups of one block of activations are prefetched at once.
        let groups = ACT_BLOCK / F::GROUP;
        let bytes = LANES * F::BYTES * ACT_BLOCK / F::BLOCK;
        let lines = if AHEAD > 0 && g.is_multiple_of(groups) { bytes.div_ceil(64) } else { 0 };
        for line in 0..lines {
            // A prefetch past the end of the panel is harmless.
            let ahead = block.wrapping_add(g / groups * bytes + line * 64 + AHEAD);
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
        }
        // SAFETY: the panel has the group; its block's scales were read on entering.
        unsafe {
            let (scale, min) = if many_groups::<F>() { self.scales[p].get::<F>(g) } else { F::scales_avx512(block, g) };
            let (quants, second) = F::first_quants_avx512(block, g);
            Group { quants, second, scale, min }
        }
    }
}

/// Panels that were unpacked into scratch, their quants unsigned.
impl<F: Format> GroupSource<F> for Unpacked {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn enter(&mut self, _block: usize) {}

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn load(&self, p: usize, block: usize, g: usize) -> Group {
        let g = block * (F::BLOCK / F::GROUP) + g;
        let mut quants = [_mm512_setzero_si512(); 8];
        // SAFETY: the panel has the group.
        unsafe {
            for (r, row) in quants[..F::GROUP / 4].iter_mut().enumerate() {
                *row = _mm512_load_si512(self.quants(p, g).add(64 * r).cast());
            }
            Group { quants, second: 0, scale: _mm512_load_ps(self.scales(p, g)), min: _mm512_load_ps(self.mins(p, g)) }
        }
    }
}

/// Adds `NP` panels times `MR` rows to `acc`: blocks `0..blocks` of the source, whose first channel is `channel` of the
/// activations, and rows `lane..lane + MR` of `tile`.
///
/// # Safety
/// The source must have the panels and blocks, the tile the rows and channels; AVX-512 VNNI must be there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub unsafe fn micro<F: Format, S: GroupSource<F>, const NP: usize, const MR: usize>(
    source: &mut S,
    blocks: usize,
    channel: usize,
    tile: &Tile,
    lane: usize,
    acc: &mut [[__m512; MR]; NP],
) {
    // Groups of one block of activations.
    let groups = ACT_BLOCK / F::GROUP;
    for block in 0..blocks {
        // SAFETY: the source has the block.
        unsafe { source.enter(block) };
        for within in 0..F::BLOCK / ACT_BLOCK {
            let b = (channel + block * F::BLOCK) / ACT_BLOCK + within;
            for (p, acc) in acc.iter_mut().enumerate() {
                for i in 0..groups {
                    // SAFETY: the source has the panel and the block, the tile the rows and the channels.
                    unsafe {
                        let group = source.load(p, block, within * groups + i);
                        multiply::<F, MR>(&group, tile, b, i, lane, acc);
                    }
                }
            }
        }
    }
}

/// Adds one group of weights times group `i` of block `b` of the activations to `acc`; rows as in [`micro`].
///
/// # Safety
/// The tile must have the rows and the group; AVX-512 VNNI must be there.
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
        // SAFETY: the tile has the row and the group.
        let (q, d, sum) = unsafe {
            (
                tile.quants.add((b * tile.rows + lane + m) * ACT_BLOCK + i * F::GROUP).cast::<i32>(),
                *tile.scales.add(b * tile.rows + lane + m),
                *tile.sums.add((b * (ACT_BLOCK / F::GROUP) + i) * tile.rows + lane + m),
            )
        };
        // Two chains for a group of 32 hide the latency of VPDPBUSD; the order of integer sums does not matter.
        let mut even = _mm512_set1_epi32(-F::ZERO_POINT * sum);
        if F::STEP != 0 {
            even = _mm512_mask_mov_epi32(even, group.second, _mm512_set1_epi32((F::STEP - F::ZERO_POINT) * sum));
        }
        let mut odd = _mm512_setzero_si512();
        for (r, w) in group.quants[..F::GROUP / 4].iter().enumerate() {
            // SAFETY: a group of activations has GROUP bytes.
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

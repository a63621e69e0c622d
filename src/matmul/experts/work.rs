//! The work buffer of a product of experts.

use super::routing::{self, Expert, Routing};
use super::{ExpertMul, SAMPLED_EXPERTS};
use crate::matmul::known_errors::SharedErrors;
use crate::matmul::work::{self, ALIGN, Parts, Scratch, ScratchLayout};
use crate::matmul::{Thread, to_tiles};
use crate::panel::activation_tiles::{ActivationTiles, TileLayout};
use crate::panel::activations::{ActivationLayout, Activations};
use crate::panel::outliers::{ERROR_SAMPLE_ROWS, ErrorStats, OUTLIER_SET_ROWS};
use crate::panel::precision::TILE_MR;

/// Parts of a layout of blocks that are rounded up to whole cache lines.
const LINES_ROUNDED: usize = 3;

/// Where things lie in the work buffer: offsets from its start.
pub struct WorkLayout {
    routing: (usize, routing::RoutingLayout),
    /// Activations in blocks: a layout per expert, one behind the other.
    blocks: usize,
    /// Channels, and weights per sum of activations.
    k: usize,
    group: usize,
    tiles: (usize, TileLayout),
    /// A byte per row.
    flags: usize,
    /// What rows show that are looked at.
    stats: usize,
    parts: Parts,
    scratch: ScratchLayout,
}

/// The work buffer, as one thread sees it.
pub struct WorkBuffer<'a> {
    layout: &'a WorkLayout,
    /// What is known of the weights, from one thread for all; not set if nobody takes tiles.
    pub known: SharedErrors,
    pub routing: Routing,
    blocks: *mut u8,
    pub tiles: ActivationTiles,
    /// A byte per row in the sorted order: 1 for rows that tiles are not good enough for, else 0.
    pub flags: *mut u8,
    pub stats: *mut ErrorStats,
    pub scratch: Scratch,
}

impl WorkLayout {
    /// For an operation; `None` if it does not fit the address space.
    pub fn new(op: &ExpertMul) -> Option<Self> {
        let stored = op.weights.stored.info();
        let (k, group, experts) = (op.weights.ne[0], stored.group, op.weights.ne[2]);
        let choices = op.choices.used.checked_mul(op.choices.tokens)?;
        // As many as there may be where any number of rows takes tiles.
        let with_tiles = experts.min(choices);
        let tile_blocks = if with_tiles == 0 { 0 } else { choices / TILE_MR + with_tiles };
        let outlier_sets = if op.shares_rows() { with_tiles.min(1) } else { with_tiles };
        let tiles = TileLayout::new(tile_blocks.checked_mul(TILE_MR)?, k, stored.planes, outlier_sets)?;
        let blocks = block_bytes(choices, k, group)?.checked_add(with_tiles.checked_mul(LINES_ROUNDED * ALIGN)?)?;
        let routing = routing::RoutingLayout::new(experts, choices)?;
        // One expert may have all choices.
        let looked_at = choices.div_ceil(OUTLIER_SET_ROWS).checked_add(SAMPLED_EXPERTS)?;
        let stats = to_tiles::slot_bytes(looked_at.checked_mul(ERROR_SAMPLE_ROWS)?)?;
        let mut parts = Parts::default();
        parts.add(SharedErrors::BYTES)?;
        Some(Self {
            routing: (parts.add(routing.bytes)?, routing),
            blocks: parts.add(blocks)?,
            k,
            group,
            tiles: (parts.add(tiles.bytes)?, tiles),
            flags: parts.add(choices)?,
            stats: parts.add(stats)?,
            parts,
            scratch: ScratchLayout::new(&op.weights, op.gate.as_ref(), choices, 1)?,
        })
    }

    /// Bytes of work buffer that `threads` threads need; `None` if that does not fit.
    pub fn work_size(&self, threads: usize) -> Option<usize> {
        self.parts.work_size(self.scratch, threads)
    }

    /// The parts, as a thread sees them.
    ///
    /// # Safety
    /// `work` must be valid for the work size.
    pub unsafe fn at(&self, work: *mut u8, thread: &Thread<'_>) -> WorkBuffer<'_> {
        let work = work::aligned(work);
        let ((routing, routing_layout), (tiles, tile_layout)) = (&self.routing, &self.tiles);
        // SAFETY: the parts lie in the work buffer, one behind the other.
        let (routing, tiles) =
            unsafe { (routing_layout.at(work.wrapping_add(*routing)), tile_layout.at(work.wrapping_add(*tiles))) };
        WorkBuffer {
            layout: self,
            known: SharedErrors::at(work),
            routing,
            blocks: work.wrapping_add(self.blocks),
            tiles,
            flags: work.wrapping_add(self.flags),
            stats: work.wrapping_add(self.stats).cast(),
            scratch: self.parts.scratch(work, self.scratch, thread.index),
        }
    }
}

impl WorkBuffer<'_> {
    /// The activations of an expert in blocks of 32.
    ///
    /// # Safety
    /// The expert must be one of the routing's.
    pub unsafe fn blocks(&self, expert: &Expert) -> Activations {
        let (k, group) = (self.layout.k, self.layout.group);
        // Every layout before this one has rounded its parts up to whole lines.
        let before = block_bytes(expert.first as usize, k, group).expect("was planned");
        let before = before + expert.index as usize * LINES_ROUNDED * ALIGN;
        let layout = ActivationLayout::new(expert.rows as usize, k, group).expect("was planned");
        // SAFETY: the part has room for all rows, and for the rounding of all experts.
        unsafe { layout.at(self.blocks.add(before)) }
    }
}

/// Bytes of `rows` rows in blocks, rounded up.
fn block_bytes(rows: usize, k: usize, group: usize) -> Option<usize> {
    ActivationLayout::new(rows, k, group).map(|l| l.bytes)
}

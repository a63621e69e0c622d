//! Where the macrokernel takes packed panels from: the weight tensor, or rows in place that are packed on demand.

use std::ops::Range;

use super::blocking::PACK_BYTES;
use crate::format::{Format, LANES};
use crate::panel::in_place::{self, WeightRows};
use crate::panel::weight_source::PackedPanels;

/// Where packed panels come from.
pub trait PanelSource {
    /// Panel `panel` of the task, readable in `channels`; and an address to prefetch from meanwhile: what is read next
    /// begins at the same place behind it.
    ///
    /// # Safety
    /// The task must have the panel or the one before, and the channels.
    unsafe fn kc_block<F: Format>(&self, panel: usize, channels: Range<usize>) -> (*const u8, *const u8);

    /// The same panel, readable in the block that has `channel`.
    ///
    /// # Safety
    /// As for [`PanelSource::kc_block`].
    unsafe fn block_of<F: Format>(&self, panel: usize, channel: usize) -> *const u8;
}

/// Panels of the weight tensor.
pub struct InTensor {
    pub panels: PackedPanels,
    pub count: usize,
}

impl InTensor {
    /// Panel `panel`. An odd last one stands in for its missing neighbour, whose results are not stored.
    fn panel(&self, panel: usize) -> *const u8 {
        self.panels.panel(panel.min(self.count - 1))
    }
}

impl PanelSource for InTensor {
    unsafe fn kc_block<F: Format>(&self, panel: usize, _: Range<usize>) -> (*const u8, *const u8) {
        let panel = self.panel(panel);
        (panel, panel.wrapping_add(self.panels.stride))
    }

    unsafe fn block_of<F: Format>(&self, panel: usize, _: usize) -> *const u8 {
        self.panel(panel)
    }
}

/// Rows in place, packed into [`PACK_BYTES`] of scratch: the KC block that was asked for last, and behind it one block
/// of weights.
pub struct PackedInPlace {
    pub rows: WeightRows,
    pub scratch: *mut u8,
}

impl PackedInPlace {
    /// Address of the panel whose block number `first` lies at `packed`.
    fn as_panel<F: Format>(packed: *mut u8, first: usize) -> *const u8 {
        packed.wrapping_sub(first * LANES * F::BYTES).cast_const()
    }
}

impl PanelSource for PackedInPlace {
    unsafe fn kc_block<F: Format>(&self, panel: usize, channels: Range<usize>) -> (*const u8, *const u8) {
        let (first, count) = (channels.start / F::BLOCK, channels.len().div_ceil(F::BLOCK));
        // SAFETY: the rows have the blocks, the scratch room for a KC block; AVX-512 is there wherever tiles are.
        unsafe { self.rows.pack::<F>(panel, first, count, self.scratch) };
        let panel = Self::as_panel::<F>(self.scratch, first);
        (panel, panel)
    }

    unsafe fn block_of<F: Format>(&self, panel: usize, channel: usize) -> *const u8 {
        let first = channel / F::BLOCK;
        let one_block = self.scratch.wrapping_add(PACK_BYTES - in_place::packed_bytes(1));
        // SAFETY: the rows have the block, the scratch room for one behind the KC block.
        unsafe { self.rows.pack::<F>(panel, first, 1, one_block) };
        Self::as_panel::<F>(one_block, first)
    }
}

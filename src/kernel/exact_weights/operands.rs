//! What the kernels of exact weights multiply: a task's activations and weights, and panels unpacked into scratch.

use crate::format::{ACT_BLOCK, LANES};
use crate::kernel::{TILE_NR, Task};
use crate::panel::activations::Activations;

/// Channels that are unpacked at a time, so that two unpacked panels (32 bytes per channel, and scales) stay well
/// inside a second-level cache of 2 MiB.
pub const KC_UNPACKED: usize = 16384;

const _: () = assert!(KC_UNPACKED.is_multiple_of(256) && KC_UNPACKED.is_multiple_of(ACT_BLOCK));

/// A task with its activations, and its weights in the form `W`.
#[derive(Clone, Copy)]
pub struct Operands<'a, W> {
    /// Columns, rows and results.
    pub task: &'a Task,
    /// Its activations, quantised with the group of the weights.
    pub act: Activations,
    /// Its weights.
    pub weights: W,
}

/// Two panels' weights of one KC block, unpacked: per group the quants of both panels (16 * group bytes each); behind
/// all groups their scales, then their minima.
#[derive(Clone, Copy)]
pub struct Unpacked {
    /// First byte, 64-byte aligned.
    pub base: *mut u8,
    /// Groups of the KC block.
    pub groups: usize,
    /// Channels per group: 16 or 32.
    pub group: usize,
}

impl Unpacked {
    /// Bytes that a KC block of `k` channels takes.
    pub const fn bytes(k: usize, group: usize) -> usize {
        TILE_NR * k + 2 * (k / group) * TILE_NR * size_of::<f32>()
    }

    /// Quants of panel 0 or 1, group `g` of the KC block.
    #[inline]
    pub fn quants(&self, panel: usize, g: usize) -> *mut u8 {
        self.base.wrapping_add((2 * g + panel) * LANES * self.group)
    }

    /// 16 scales of panel 0 or 1, group `g`.
    #[inline]
    pub fn scales(&self, panel: usize, g: usize) -> *mut f32 {
        let after_quants = self.base.wrapping_add(self.groups * TILE_NR * self.group);
        after_quants.cast::<f32>().wrapping_add((2 * g + panel) * LANES)
    }

    /// 16 minima of panel 0 or 1, group `g`.
    #[inline]
    pub fn mins(&self, panel: usize, g: usize) -> *mut f32 {
        self.scales(panel, g).wrapping_add(self.groups * TILE_NR)
    }
}

/// The KC blocks of `k` channels: first channel and length, whole blocks each.
pub fn kc_blocks(k: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..k).step_by(KC_UNPACKED).map(move |start| (start, (k - start).min(KC_UNPACKED)))
}

//! NC and KC of the macrokernel, and where its parts lie in a thread's scratch.

use std::ops::Range;

use super::microkernel::CTILE_BYTES;
use super::task::TileTask;
use crate::cpu::cache;
use crate::kernel::TILE_NR;
use crate::panel::precision::{FINEST_PASS, STEP_BF16, STEP_BYTES, STEP_INT8};
use crate::panel::{decoded, in_place};

/// k-steps of KC.
const KC_STEPS: usize = 64;
/// Pairs of panels (32 columns) of NC, by least size of the second-level cache: their tiles, 128 KB per pair, take five
/// eighths of it (measured: 8 and 12 are slower).
const NC_PAIRS: [(usize, usize); 3] = [(2 << 20, 10), (1 << 20, 5), (0, 2)];

/// NC and KC, and where in a thread's scratch the parts lie, as bytes from its start.
#[derive(Clone, Copy)]
pub struct Blocking {
    /// Pairs of panels of NC.
    pub pairs: usize,
    /// k-steps of KC, in one plane.
    pub steps: usize,
}

impl Blocking {
    /// For this CPU and one plane of int8.
    pub fn new() -> Self {
        let l2 = cache::l2_bytes();
        let pairs = NC_PAIRS.iter().find(|(least, _)| l2 >= *least).map_or(1, |(_, pairs)| *pairs);
        Self { pairs, steps: KC_STEPS }
    }

    /// For `task`: planes share the scratch. In BF16, where that saves the sums a second round through the result, half
    /// of the columns and twice the channels (measured: 10 % faster at K = 4096, slower above).
    pub fn of(task: &TileTask<'_>) -> Self {
        let Self { pairs, steps } = Self::new();
        let (k, steps) = (task.task.k, steps / task.precision.planes());
        let kc = steps * task.precision.step();
        let halve = task.precision.step() == STEP_BF16 && k > kc && k <= 2 * kc && pairs > 1;
        if halve { Self { pairs: pairs / 2, steps: 2 * steps } } else { Self { pairs, steps } }
    }

    /// Two C tiles of raw dots, used in turn.
    pub const DOTS: usize = 0;
    /// f32 sums of one row block and all pairs.
    pub const SUMS: usize = 2 * CTILE_BYTES;

    /// Weight scales: 32 per pair and pass.
    pub fn scales(self) -> usize {
        Self::SUMS + self.pairs * CTILE_BYTES
    }

    /// Weight panels.
    pub fn panels(self) -> usize {
        self.scales() + self.pairs * (self.steps * STEP_INT8 / FINEST_PASS) * TILE_NR * 4
    }

    /// Weights of the outlier channels: a k-step per outlier set and pair.
    pub fn outliers(self) -> usize {
        self.panels() + self.pairs * self.steps * STEP_BYTES
    }
}

/// Bytes of scratch per thread for rows with `outlier_sets` outlier sets, a multiple of 64. `usize::MAX` or nearly for
/// shapes that fit no memory.
pub fn scratch_bytes(outlier_sets: usize) -> usize {
    let blocking = Blocking::new();
    outlier_sets.saturating_mul(blocking.pairs * STEP_BYTES).saturating_add(blocking.outliers())
}

/// Bytes of scratch to pack weights in place: a KC block of a panel, and one block of weights.
pub const PACK_BYTES: usize = in_place::packed_bytes(KC_STEPS * STEP_INT8) + in_place::packed_bytes(1);

/// Bytes of scratch to decode rows of `k` channels.
pub const fn decoded_bytes(k: usize) -> usize {
    // In BF16 a KC block has up to twice as many k-steps, of half as many channels.
    decoded::scratch_bytes(k, KC_STEPS * STEP_INT8)
}

/// The weights of NC columns and KC channels, as tiles in scratch.
pub struct KcBlock {
    scratch: *mut u8,
    blocking: Blocking,
    /// First pair of panels, counted in the task.
    pub pair: usize,
    /// Pairs of panels.
    pub pairs: usize,
    pub channels: Range<usize>,
    /// k-steps of one plane.
    pub steps: usize,
    pub planes: usize,
    /// Whether these are the first channels of the rows: sums start here, otherwise they go on from the result.
    pub first: bool,
    /// Whether these are the last channels.
    pub last: bool,
}

impl KcBlock {
    /// NC columns of `task` from pair `pair` on, and some of its channels; `scratch` is the thread's.
    pub fn new(task: &TileTask<'_>, blocking: Blocking, pair: usize, channels: Range<usize>, scratch: *mut u8) -> Self {
        Self {
            scratch,
            blocking,
            pair,
            pairs: blocking.pairs.min(task.pairs() - pair),
            steps: channels.len().div_ceil(task.precision.step()),
            planes: task.precision.planes(),
            first: channels.start == 0,
            last: channels.end == task.task.k,
            channels,
        }
    }

    /// Number `index` (0 or 1) of the two C tiles of raw dots.
    pub fn dots(&self, index: usize) -> *mut u8 {
        self.scratch.wrapping_add(Blocking::DOTS + index * CTILE_BYTES)
    }

    /// f32 sums of a row block and pair `pair`.
    pub fn sums(&self, pair: usize) -> *mut f32 {
        self.scratch.wrapping_add(Blocking::SUMS + pair * CTILE_BYTES).cast()
    }

    /// 32 scales of weights, number `index`: pass by pass of each pair.
    pub fn scales(&self, index: usize) -> *mut f32 {
        self.scratch.wrapping_add(self.blocking.scales()).cast::<f32>().wrapping_add(index * TILE_NR)
    }

    /// Weight tiles of a pair's plane from k-step `step` on.
    pub fn weights(&self, pair: usize, plane: usize, step: usize) -> *mut u8 {
        let step = (pair * self.planes + plane) * self.steps + step;
        self.scratch.wrapping_add(self.blocking.panels() + step * STEP_BYTES)
    }

    /// Tile of panel `i` in the first k-step of plane 0.
    pub fn panel(&self, i: usize) -> *mut u8 {
        self.weights(i / 2, 0, 0).wrapping_add(i % 2 * STEP_BYTES / 2)
    }

    /// Two tiles of the weights of an outlier set's channels.
    pub fn outliers(&self, set: usize, pair: usize) -> *mut u8 {
        self.scratch.wrapping_add(self.blocking.outliers() + (set * self.blocking.pairs + pair) * STEP_BYTES)
    }
}

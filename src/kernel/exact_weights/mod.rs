//! The inner loops, one file per instruction set. All compute the same thing in the same order:
//!
//! ```text
//! for every row m of activations and column n (row of the weight matrix):
//!     acc = 0
//!     for every group g along K:
//!         dot = sum over the group of q_activation * q_weight        (exact, int32)
//!         acc = fma(dot, scale_w[n][g] * scale_a[m][g], acc)
//!         if the type has minima:
//!             acc = fma(min_w[n][g], scale_a[m][g] * sum_a[m][g], acc)
//! ```
//!
//! so that their results agree bit for bit, whatever the shape, the thread count or the CPU.

mod amx;
mod avx512;
mod portable;
mod sums;

use super::{TILE_NR, Task};
use crate::cpu::{Amx, Avx512, Isa};
use crate::dispatch::{self, ExactKernel};
use crate::format::{ACT_BLOCK, Format, LANES};
use crate::panel::pack::{WeightRows, packed_bytes};

/// Weights along K that are unpacked at a time, so that two unpacked panels (32 bytes per weight
/// with scales) stay well inside a 2 MiB second-level cache.
pub(in crate::kernel) const KC_UNPACKED: usize = 16384;

/// Channels that it packs at a time.
const KC_IN_PLACE: usize = 256;

/// Bytes of scratch that [`run`] needs for rows of `k` weights, whatever the instruction set: the
/// unpacked panels, then what the tile kernel keeps per 32x32 block. Add 64 for alignment.
pub const fn scratch_bytes(k: usize, group: usize) -> usize {
    let k = if k < KC_UNPACKED { k } else { KC_UNPACKED };
    let unpacked = Unpacked::bytes(k, group) + amx::BLOCK_BYTES;
    if unpacked > packed_bytes(KC_IN_PLACE) { unpacked } else { packed_bytes(KC_IN_PLACE) }
}

/// Computes `task`.
///
/// # Safety
/// The pointers of the job must be valid for what its sizes say, its activations quantised with
/// `F::GROUP`, `scratch` writable for [`scratch_bytes`] and 64-byte aligned, `isa` usable here, and
/// nobody else may touch the results or the scratch.
pub unsafe fn run<F: Format>(isa: Isa, task: &Task, scratch: *mut u8) {
    debug_assert_eq!(task.act.group, F::GROUP);
    if task.rows.is_empty() || task.cols == 0 {
        return;
    }
    // SAFETY: passed on; an instruction set is used only with its proof.
    unsafe {
        let avx512 = || Avx512::new().expect("AVX-512 was found usable");
        match dispatch::exact_weights(isa, task.rows.len()) {
            ExactKernel::Portable => portable::run::<F>(task),
            ExactKernel::Registers => avx512::in_registers::<F>(avx512(), task),
            ExactKernel::Scratch => avx512::in_scratch::<F>(avx512(), task, scratch),
            ExactKernel::Amx => amx::run::<F>(Amx::new().expect("AMX was found usable"), task, scratch),
        }
    }
}

/// Computes `task` on weights that lie in place (its `panels` are not looked at), with the bits of [`run`] on the
/// same weights packed.
///
/// # Safety
/// As for [`run`]; AVX-512 must be there, the job have few rows ([`dispatch::reads_in_place`]), and the weights have a row
/// for every column.
pub unsafe fn run_rows<F: Format>(task: &Task, weights: &WeightRows, scratch: *mut u8) {
    debug_assert!(task.act.group == F::GROUP && dispatch::reads_in_place(Isa::Avx512, task.rows.len()));
    if task.rows.is_empty() || task.cols == 0 {
        return;
    }
    // SAFETY: passed on.
    unsafe { avx512::run_rows::<F>(Avx512::new().expect("AVX-512 was found usable"), task, weights, scratch) }
}

/// Two panels' weights of one chunk along K, unpacked once per operation and chunk: per group the
/// quants of both panels (16 * GROUP bytes each), and apart from them the scales and minima.
#[derive(Clone, Copy)]
struct Unpacked {
    base: *mut u8,
    groups: usize,
    group: usize,
}

impl Unpacked {
    const fn bytes(k: usize, group: usize) -> usize {
        TILE_NR * k + 2 * (k / group) * TILE_NR * size_of::<f32>()
    }

    /// Quants of panel 0 or 1, group `g` of the chunk.
    #[inline]
    fn quants(&self, panel: usize, g: usize) -> *mut u8 {
        self.base.wrapping_add((2 * g + panel) * LANES * self.group)
    }

    /// 16 scales of panel 0 or 1, group `g`.
    #[inline]
    fn scales(&self, panel: usize, g: usize) -> *mut f32 {
        let after_quants = self.base.wrapping_add(self.groups * TILE_NR * self.group);
        after_quants.cast::<f32>().wrapping_add((2 * g + panel) * LANES)
    }

    /// 16 minima of panel 0 or 1, group `g`.
    #[inline]
    fn mins(&self, panel: usize, g: usize) -> *mut f32 {
        self.scales(panel, g).wrapping_add(self.groups * TILE_NR)
    }
}

/// The chunks of `k` weights: start and length, whole blocks each.
fn kc_blocks(k: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..k).step_by(KC_UNPACKED).map(move |start| (start, (k - start).min(KC_UNPACKED)))
}

const _: () = assert!(
    KC_UNPACKED.is_multiple_of(256) && KC_IN_PLACE.is_multiple_of(256) && KC_UNPACKED.is_multiple_of(ACT_BLOCK)
);

//! Products with the weights' own integers and scales: only activations are rounded. One file per instruction set; all
//! compute the same thing in the same order:
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
mod operands;
mod portable;
mod sums;

use super::Task;
use crate::cpu::{Amx, Avx512, Isa};
use crate::dispatch::{self, ExactKernel};
use crate::format::Format;
use crate::panel::activations::Activations;
use crate::panel::in_place::packed_bytes;
use crate::panel::weight_source::{PackedPanels, WeightSource};
use crate::with_format;
#[cfg(test)]
pub(super) use operands::KC_UNPACKED;
use operands::{Operands, Unpacked};

/// Bytes of scratch that [`run`] needs for rows of `k` weights with groups of `group`, whatever the instruction set.
pub const fn scratch_bytes(k: usize, group: usize) -> usize {
    let kc = if k < operands::KC_UNPACKED { k } else { operands::KC_UNPACKED };
    let unpacked = Unpacked::bytes(kc, group) + amx::SCRATCH_BYTES;
    let in_place = packed_bytes(avx512::KC_IN_PLACE);
    if unpacked > in_place { unpacked } else { in_place }
}

/// Computes `task` from quantised activations and packed weights; or from weights in place with AVX-512 and
/// so few rows that [`dispatch::reads_in_place`]. The bits are the same.
///
/// # Safety
/// The task must be valid, `act` have its rows, quantised with the group of the weights' type, `scratch` be writable
/// for [`scratch_bytes`], 64-byte aligned and used by no other thread, and `isa` be usable here.
pub unsafe fn run(isa: Isa, task: &Task, act: &Activations, scratch: *mut u8) {
    debug_assert_eq!(task.k, act.k);
    if task.is_empty() {
        return;
    }
    // SAFETY: the task is valid, and the scratch is large enough for any kernel.
    unsafe {
        match task.weights {
            WeightSource::Packed(ty, weights) => {
                let operands = Operands { task, act: *act, weights };
                with_format!(ty, F => run_packed::<F>(isa, &operands, scratch));
            }
            WeightSource::InPlace(ty, weights) => {
                debug_assert!(dispatch::reads_in_place(isa, task.rows.len()));
                let operands = Operands { task, act: *act, weights };
                with_format!(ty, F => avx512::run_in_place::<F>(avx512(), &operands, scratch));
            }
            WeightSource::Plain(_) | WeightSource::Decoded(_) => unreachable!("only the tile GEMM takes these weights"),
        }
    }
}

/// # Safety
/// As for [`run`].
unsafe fn run_packed<F: Format>(isa: Isa, operands: &Operands<'_, PackedPanels>, scratch: *mut u8) {
    debug_assert_eq!(operands.act.group, F::GROUP);
    // SAFETY: the task is valid, and each proof stands for its instruction set.
    unsafe {
        match dispatch::exact_weights(isa, operands.task.rows.len()) {
            ExactKernel::Portable => portable::run::<F>(operands),
            ExactKernel::Registers => avx512::in_registers::<F>(avx512(), operands),
            ExactKernel::Scratch => avx512::in_scratch::<F>(avx512(), operands, scratch),
            ExactKernel::Amx => amx::run::<F>(Amx::new().expect("AMX was found usable"), operands, scratch),
        }
    }
}

fn avx512() -> Avx512 {
    Avx512::new().expect("AVX-512 was found usable")
}

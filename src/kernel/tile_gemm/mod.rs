//! The tile GEMM: activations and weights are requantised into compact tiles, and one loop multiplies them, whatever
//! the weight type and wherever the weights lie.

mod blocking;
mod macrokernel;
mod microkernel;
mod panel_source;
mod task;

use std::arch::x86_64::_mm_sfence;

use crate::cpu::Amx;
use crate::cpu::tile::TileUnit;
pub use blocking::{PACK_BYTES, decoded_bytes, scratch_bytes};
pub use microkernel::{SAME, accumulate};
pub use task::TileTask;

/// Computes `task`.
///
/// # Safety
/// The task must be valid. `scratch` must be 64-byte aligned, used by no other thread, and writable for
/// [`scratch_bytes`], and behind that for what making panels takes: [`PACK_BYTES`] for weights in place,
/// [`decoded_bytes`] for decoded ones.
pub unsafe fn run(proof: Amx, task: &TileTask<'_>, scratch: *mut u8) {
    if task.task.is_empty() {
        return;
    }
    let _unit = TileUnit::enter_full(proof);
    // SAFETY: an AMX CPU has AVX-512 and its BF16, the tile unit is configured, and the task is valid.
    unsafe {
        macrokernel::run(task, scratch);
        // The barrier that follows does not order stores past the caches.
        _mm_sfence();
    }
}

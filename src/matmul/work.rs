//! Where things lie in the work buffer that all threads of an operation share: parts, one behind the other, and behind
//! them the scratch of each thread. Every part begins on a cache line.

use super::{Gate, Weights, gate};
use crate::kernel::{exact_weights, tile_gemm};

/// Alignment of everything in the work buffer: a cache line.
pub const ALIGN: usize = 64;

/// Adds up the sizes of parts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts {
    bytes: usize,
}

impl Parts {
    /// Adds a part; its offset. `None` if it does not fit the address space.
    pub fn add(&mut self, bytes: usize) -> Option<usize> {
        let offset = self.bytes;
        self.bytes = offset.checked_add(bytes)?.checked_next_multiple_of(ALIGN)?;
        Some(offset)
    }

    /// Bytes of a work buffer with these parts and the scratch of `threads` threads, wherever it begins.
    pub fn work_size(self, scratch: ScratchLayout, threads: usize) -> Option<usize> {
        scratch.bytes.checked_mul(threads)?.checked_add(self.bytes)?.checked_add(ALIGN)
    }

    /// The scratch of thread `index`, in a work buffer that begins at `work`.
    pub fn scratch(self, work: *mut u8, scratch: ScratchLayout, index: usize) -> Scratch {
        scratch.at(work.wrapping_add(self.bytes + index * scratch.bytes))
    }
}

/// The first address in `work` at which parts may begin.
pub fn aligned(work: *mut u8) -> *mut u8 {
    work.wrapping_add(work.align_offset(ALIGN))
}

/// Sizes of a thread's scratch.
#[derive(Clone, Copy, Debug)]
pub struct ScratchLayout {
    /// For kernels.
    kernel: usize,
    /// To gather rows of views.
    gather: usize,
    /// Of all.
    bytes: usize,
}

impl ScratchLayout {
    /// For rows of `k` weights; a piece has up to `m` rows of activations, in `outlier_sets` outlier sets. `None` if
    /// that does not fit.
    pub fn new(weights: &Weights, gate: Option<&Gate>, m: usize, outlier_sets: usize) -> Option<Self> {
        let (k, group) = (weights.ne[0], weights.stored.info().group);
        let of_gate = |of: fn(&Weights) -> usize| gate.map_or(0, |gate| of(&gate.weights));
        // A matrix and its gate may be stored in different ways.
        let pack_bytes = |w: &Weights| w.stored.pack_bytes(w.ne[0]);
        let tiles = tile_gemm::scratch_bytes(outlier_sets).checked_add(pack_bytes(weights).max(of_gate(pack_bytes)))?;
        // The search for outliers keeps a bit per channel there, and quantising a byte.
        let kernel = exact_weights::scratch_bytes(k, group).max(tiles).max(k).checked_next_multiple_of(ALIGN)?;
        let gather = weights.gather_bytes().max(of_gate(Weights::gather_bytes));
        let up = if gate.is_some() { gate::up_bytes(m) } else { 0 };
        Some(Self { kernel, gather, bytes: kernel.checked_add(gather)?.checked_add(up)? })
    }

    fn at(self, base: *mut u8) -> Scratch {
        let gathered = base.wrapping_add(self.kernel);
        Scratch { kernel: base, gathered, up: gathered.wrapping_add(self.gather).cast() }
    }
}

/// A thread's scratch.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    /// For kernels, and for what comes before them: at least a byte per channel.
    pub kernel: *mut u8,
    /// Rows of views are gathered here ([`Weights::each_run`]).
    pub gathered: *mut u8,
    /// Results of `up` that wait for those of the gate.
    pub up: *mut f32,
}

impl Scratch {
    /// A bit per channel at the start of [`Scratch::kernel`], for `k` channels.
    ///
    /// # Safety
    /// The scratch must be this thread's and not in use otherwise while the result lives.
    pub unsafe fn mask<'a>(self, k: usize) -> &'a mut [u16] {
        // SAFETY: there is a byte per channel, and nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.kernel.cast(), k / 16) }
    }
}

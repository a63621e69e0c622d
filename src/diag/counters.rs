//! How many products this library has computed in this process, by operation and by kernel: the first thread of every
//! operation adds one. `report.rs` prints the counts.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// The operation that a host asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// MUL_MAT.
    MulMat,
    /// MUL_MAT_ID.
    MulMatId,
    /// Up, gate and activation function of a feed-forward network.
    FusedUpGate,
    /// The same for experts.
    MoeFusedUpGate,
    /// FLASH_ATTN_EXT.
    FlashAttn,
}

/// The kernel that multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Plain Rust, exact weights.
    Portable,
    /// Exact weights, by AVX-512 or, from some rows of activations on, group by group on the tile unit.
    Vectors,
    /// Tiles of int8.
    Int8,
    /// Tiles of BF16.
    Bf16,
}

const OPS: [(Op, &str); 5] = [
    (Op::MulMat, "MUL_MAT"),
    (Op::MulMatId, "MUL_MAT_ID"),
    (Op::FusedUpGate, "FUSED_UP_GATE"),
    (Op::MoeFusedUpGate, "MOE_FUSED_UP_GATE"),
    (Op::FlashAttn, "FLASH_ATTN_EXT"),
];

const KERNELS: [(Kernel, &str); 4] =
    [(Kernel::Portable, "portable"), (Kernel::Vectors, "vectors"), (Kernel::Int8, "int8"), (Kernel::Bf16, "bf16")];

/// On cache lines of its own, so that counting slows nothing else.
#[repr(align(64))]
struct Counts([[AtomicU64; KERNELS.len()]; OPS.len()]);

static COUNTS: Counts = Counts([const { [const { AtomicU64::new(0) }; KERNELS.len()] }; OPS.len()]);

/// Counts one operation.
#[inline]
pub fn count(op: Op, kernel: Kernel) {
    let one = if cfg!(mutant = "uncounted") { 0 } else { 1 };
    COUNTS.0[op as usize][kernel as usize].fetch_add(one, Ordering::Relaxed);
}

/// Operations so far.
pub fn counted(op: Op, kernel: Kernel) -> u64 {
    COUNTS.0[op as usize][kernel as usize].load(Ordering::Relaxed)
}

/// All counts that are not zero: `MUL_MAT int8 420, MUL_MAT vectors 2100`, or `none`.
pub fn report() -> String {
    let mut text = String::new();
    for (op, op_name) in OPS {
        for (kernel, kernel_name) in KERNELS {
            let n = counted(op, kernel);
            if n > 0 {
                let comma = if text.is_empty() { "" } else { ", " };
                // Writing to a string cannot fail.
                let _ = write!(text, "{comma}{op_name} {kernel_name} {n}");
            }
        }
    }
    if text.is_empty() { "none".into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_indices_into_the_tables() {
        assert!(OPS.iter().enumerate().all(|(i, (op, _))| *op as usize == i));
        assert!(KERNELS.iter().enumerate().all(|(i, (kernel, _))| *kernel as usize == i));
    }

    #[test]
    fn what_is_counted_is_reported() {
        // Other tests count at the same time, but none counts portable attention.
        count(Op::FlashAttn, Kernel::Portable);
        count(Op::FlashAttn, Kernel::Portable);
        assert_eq!(counted(Op::FlashAttn, Kernel::Portable), 2);
        assert!(report().contains("FLASH_ATTN_EXT portable 2"), "{}", report());
    }
}

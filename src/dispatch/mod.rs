//! The one room for decisions: who multiplies a product, by which kernel, and in which precision.
//!
//! Everything here is a pure function of facts: how the weights are stored and of what type, the instruction set, the
//! number of rows (M), batches and threads, what the user or the graph demands, and what a look at the activations
//! showed. No function here reads memory, the environment or the host. Every threshold stands in [`thresholds`], with
//! its unit and the measurement that it comes from; `cargo xtask bench --thresholds` prints them.
//!
//! The questions, in the order in which they come up:
//!
//! 1. [`is_ours`], [`attention_is_ours`]: does this library compute the node, or is it left to the host?
//! 2. [`Facts::choice`]: exact weights, or tiles? Perhaps the activations must be looked at first.
//! 3. [`Facts::after_looking`]: after that look, which precision?
//! 4. [`exact_weights`]: which kernel multiplies exact weights?
//! 5. [`unit_cost`], [`parts`], [`bypasses_caches`]: how is the work cut, and how are results written?
//!
//! Every row is held to its own bound later, whatever is chosen here ([`crate::panel::row_error`]): these choices are
//! about speed, and about errors that are the same for many rows.

mod choice;
mod table;
pub mod thresholds;

use crate::cpu::Isa;
use crate::format::WeightType;
use crate::panel::precision::Precision;
pub use choice::{Choice, Demand, Facts};
pub use table::{Line, constants, lines};
use thresholds as at;

/// How a weight matrix is stored, as far as that decides who multiplies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// In panels, in a buffer of this library.
    Packed(WeightType),
    /// Where the host has it, of a type that can be packed.
    InPlace(WeightType),
    /// As in GGUF; tiles of this precision are made of it.
    Plain(Precision),
    /// Of a type that only the host can read.
    Decoded,
}

impl Storage {
    /// The type, of those that can be packed.
    pub fn weight_type(self) -> Option<WeightType> {
        match self {
            Storage::Packed(ty) | Storage::InPlace(ty) => Some(ty),
            Storage::Plain(_) | Storage::Decoded => None,
        }
    }

    /// NMSE of the type itself; 0 if it is not known, or loses nothing.
    pub fn quant_nmse(self) -> f32 {
        self.weight_type().map_or(0.0, |ty| ty.info().quant_nmse)
    }

    /// Rows of activations (of experts: on average) from which on the product is computed here.
    pub fn min_m(self) -> usize {
        match self {
            Storage::Packed(_) => 1,
            Storage::InPlace(ty) => at::min_m_in_place(ty),
            Storage::Plain(precision) => at::min_m_plain(precision),
            Storage::Decoded => at::MIN_M_DECODED,
        }
    }
}

/// Rows per matrix where `rows` rows are shared out to `matrices` of them: the mean, at least 1 where there is a row.
pub fn mean_rows(rows: usize, matrices: usize) -> usize {
    rows / matrices.clamp(1, rows.max(1))
}

/// Whether a product of `m` rows (of experts: on average) is computed here. Nobody else can read packed weights;
/// others are worth it on the tile unit only.
pub fn is_ours(storage: Storage, isa: Isa, m: usize) -> bool {
    match storage {
        Storage::Packed(_) => true,
        _ => isa == Isa::Amx && m >= storage.min_m(),
    }
}

/// Whether attention is computed here: `queries` per head of the cache, of `tokens` tokens, make `tiles` tiles for
/// `threads` threads. Where results shall be exact nobody asks: a row's bits must not depend on these numbers.
pub fn attention_is_ours(tokens: usize, queries: usize, tiles: usize, threads: usize) -> bool {
    // The host gives every head of Q to a thread of its own, so it keeps more threads busy.
    tokens >= at::MIN_TOKENS_ATTENTION && queries >= at::MIN_QUERIES_ATTENTION && 2 * tiles >= threads
}

/// Which kernel multiplies exact weights. All of them give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExactKernel {
    /// Plain Rust.
    Portable,
    /// AVX-512 VNNI; weights become integers in registers, once per product of a few rows.
    Registers,
    /// AVX-512 VNNI; weights become integers in scratch, once for all rows.
    Scratch,
    /// TDPBSSD, one group of channels at a time; weights become integers in scratch, once for all rows.
    Amx,
}

/// The kernel for `m` rows on exact weights.
pub fn exact_weights(isa: Isa, m: usize) -> ExactKernel {
    match isa {
        Isa::Portable => ExactKernel::Portable,
        Isa::Amx if m >= at::MIN_M_EXACT_AMX => ExactKernel::Amx,
        _ if m <= at::MAX_M_REGISTERS => ExactKernel::Registers,
        _ => ExactKernel::Scratch,
    }
}

/// Whether `m` rows are multiplied with weights in place while those are packed, KC channels at a time, in the
/// first-level cache; otherwise whole panels are packed first.
pub fn reads_in_place(isa: Isa, m: usize) -> bool {
    isa >= Isa::Avx512 && m <= at::MAX_M_IN_PLACE
}

/// Whether results are written past the caches: one thread has `bytes` of them, and whole cache lines.
pub fn bypasses_caches(bytes: usize, is_aligned: bool) -> bool {
    bytes >= at::BYPASS_BYTES && is_aligned
}

/// What a unit of work costs: 32 columns of an expert and some of its rows, in rows on tiles.
pub fn unit_cost(m: usize, on_tiles: bool) -> usize {
    at::COST_OF_COLUMNS + m * if on_tiles { 1 } else { at::COST_OF_EXACT_ROW }
}

/// Parts that the work of all threads is cut into, so that they are done at about the same time.
pub fn parts(threads: usize) -> usize {
    if threads == 1 { 1 } else { threads * at::PARTS_PER_THREAD }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_packed_weights_then_nobody_else_is_asked() {
        assert!(is_ours(Storage::Packed(WeightType::Q4_0), Isa::Portable, 1));
    }

    #[test]
    fn given_weights_of_the_host_then_the_tile_unit_takes_them_from_their_threshold_on() {
        let cases = [
            (Storage::InPlace(WeightType::Q4_0), 1),
            (Storage::InPlace(WeightType::Q2_K), 12),
            (Storage::Plain(Precision::Bf16), 16),
            (Storage::Plain(Precision::Bf16Twice), 32),
            (Storage::Decoded, 64),
        ];
        for (storage, m) in cases {
            assert!(is_ours(storage, Isa::Amx, m), "{storage:?}");
            assert!(!is_ours(storage, Isa::Amx, m - 1), "{storage:?}");
            assert!(!is_ours(storage, Isa::Avx512, 512), "{storage:?}");
        }
    }

    #[test]
    fn given_rows_of_experts_then_their_mean_counts() {
        assert_eq!(mean_rows(1024, 128), 8);
        assert_eq!(mean_rows(8, 128), 1);
        assert_eq!(mean_rows(0, 128), 0);
        assert_eq!(mean_rows(8, 0), 8);
    }

    #[test]
    fn given_few_queries_or_many_threads_then_attention_is_the_hosts() {
        assert!(attention_is_ours(2, 16, 1, 2));
        assert!(!attention_is_ours(1, 64, 2, 2));
        assert!(!attention_is_ours(2, 15, 1, 2));
        assert!(!attention_is_ours(2, 16, 1, 3));
    }

    #[test]
    fn given_an_instruction_set_then_the_kernel_follows_the_rows() {
        assert_eq!(exact_weights(Isa::Portable, 100), ExactKernel::Portable);
        assert_eq!(exact_weights(Isa::Avx512, 12), ExactKernel::Registers);
        assert_eq!(exact_weights(Isa::Avx512, 13), ExactKernel::Scratch);
        assert_eq!(exact_weights(Isa::Amx, 8), ExactKernel::Registers);
        assert_eq!(exact_weights(Isa::Amx, 9), ExactKernel::Amx);
        assert!(reads_in_place(Isa::Amx, 8) && !reads_in_place(Isa::Avx512, 9) && !reads_in_place(Isa::Portable, 1));
    }
}

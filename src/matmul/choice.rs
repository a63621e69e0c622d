//! Which kernel, and in which precision: a pure function of the weights' storage and type, the number of rows, what the
//! user asked for, and what was seen of the activations. The bound of each row is kept elsewhere, whatever is chosen
//! here ([`crate::panel::row_error`]); this is about speed, and about errors that are the same for many rows.

use super::Wish;
use crate::panel::outliers::ErrorStats;
use crate::panel::precision::{FINEST_PASS, PASSES, Precision, TILE_MR};
use crate::panel::row_error::MAX_OF_TYPE;

/// Largest mean of amax / rms of a row without its outlier channels up to which all passes are allowed
/// (measured: 3.5 to 5.5 where outliers sit in fixed channels, above 9 where they move).
const MAX_CREST: f32 = 7.5;
/// The means are from a few rows: keep this far below what is allowed.
const MARGIN: f32 = 0.8;
/// The same where outliers move: there errors hit few rows hard, which a mean does not show.
const MARGIN_SPIKY: f32 = 0.3;
/// Rows from which on BF16 tiles of quantised weights are worth making: more than one block.
pub const MIN_BF16_ROWS: usize = TILE_MR + 1;
/// One row of so many may break its bound and be computed apart: it costs about as much as so many on tiles.
const APART: usize = 8;

/// How the weights are stored, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Packed, or in place and of a type that is packed elsewhere.
    Quantised,
    /// As they are, for tiles of this precision.
    Plain(Precision),
    /// Decoded by the host on the way.
    Decoded,
}

/// What is known before the activations are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// How the weights are stored.
    pub storage: Storage,
    /// NMSE of the weight type itself.
    pub quant_nmse: f32,
    /// Rows of activations that share the weights.
    pub rows: usize,
    /// Rows from which on the tile GEMM is faster than vectors.
    pub tile_rows: usize,
    /// Products of matrices of their own.
    pub batches: usize,
    /// What the results are wanted for.
    pub wish: Wish,
}

/// What to do with the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Weights as they are, activations of 8 bits per 32.
    Vectors,
    /// The tile GEMM.
    Tiles(Precision),
    /// Look at the activations first.
    Look,
}

impl Facts {
    /// The choice, as far as it does not depend on the activations.
    pub fn choice(&self) -> Choice {
        match self.storage {
            Storage::Plain(precision) => Choice::Tiles(precision),
            Storage::Decoded => Choice::Tiles(Precision::Bf16),
            // Whatever the number of rows: theirs and their neighbours' must not matter.
            Storage::Quantised if self.wish >= Wish::Exact && cfg!(not(mutant = "exact-by-number")) => {
                Choice::Tiles(Precision::Bf16)
            }
            Storage::Quantised if self.rows < self.tile_rows => Choice::Vectors,
            // Small products (heads), not worth the search for outliers.
            Storage::Quantised if self.batches > 1 => self.without_int8(),
            Storage::Quantised => Choice::Look,
        }
    }

    fn without_int8(&self) -> Choice {
        if self.rows >= MIN_BF16_ROWS { Choice::Tiles(Precision::Bf16) } else { Choice::Vectors }
    }

    /// The choice after [`Choice::Look`]: the coarsest int8 whose mean error is at most that of ggml's own kernels
    /// (8 bits per 32 activations) or a tenth of the weight type's own (at most 3e-4), and that few rows break their
    /// bound in. Where what is left after the outlier split is spiky, only the finest scales will do.
    pub fn after_looking(&self, seen: &ErrorStats) -> Choice {
        // Written so that NaN means spiky, here, and no int8 below.
        let calm = seen.mean(seen.crest) <= MAX_CREST;
        let margin = if calm { MARGIN } else { MARGIN_SPIKY };
        let allowed = margin * seen.mean(seen.blocks).max((self.quant_nmse / 10.0).min(MAX_OF_TYPE));
        let few = |broken: usize| broken * APART <= seen.rows;
        let int8 = PASSES.into_iter().zip(seen.int8).zip(seen.broken_int8).find(|((pass, error), broken)| {
            (calm || *pass == FINEST_PASS) && seen.mean(*error) <= allowed && few(*broken)
        });
        match int8 {
            Some(((pass, _), _)) => Choice::Tiles(Precision::Int8 { pass }),
            None if few(seen.broken_bf16) => self.without_int8(),
            None => Choice::Vectors,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q4_0: Facts = Facts {
        storage: Storage::Quantised,
        quant_nmse: 7.3e-3,
        rows: 512,
        tile_rows: 11,
        batches: 1,
        wish: Wish::Auto,
    };

    /// 16 rows with these mean errors.
    fn seen(blocks: f32, int8: [f32; 3], crest: f32) -> ErrorStats {
        let sum = |v: f32| 16.0 * v;
        ErrorStats { rows: 16, blocks: sum(blocks), int8: int8.map(sum), crest: sum(crest), ..ErrorStats::default() }
    }

    #[test]
    fn few_rows_take_vectors_unless_their_bits_must_not_depend_on_their_number() {
        assert_eq!(Facts { rows: 10, ..Q4_0 }.choice(), Choice::Vectors);
        assert_eq!(Facts { rows: 1, wish: Wish::Exact, ..Q4_0 }.choice(), Choice::Tiles(Precision::Bf16));
        assert_eq!(Facts { batches: 2, rows: 32, ..Q4_0 }.choice(), Choice::Vectors);
        assert_eq!(Facts { batches: 2, rows: 33, ..Q4_0 }.choice(), Choice::Tiles(Precision::Bf16));
        assert_eq!(Q4_0.choice(), Choice::Look);
    }

    #[test]
    fn the_coarsest_scales_that_are_good_enough_are_taken() {
        let int8 = |pass| Choice::Tiles(Precision::Int8 { pass });
        assert_eq!(Q4_0.after_looking(&seen(3e-5, [1.2e-4, 1.1e-4, 9e-5], 4.0)), int8(1024));
        assert_eq!(Q4_0.after_looking(&seen(3e-5, [1e-3, 1.1e-4, 9e-5], 4.0)), int8(512));
        // Moving outliers: the finest only, and only if it is much better.
        assert_eq!(Q4_0.after_looking(&seen(3e-5, [1e-5, 1e-5, 8e-5], 10.0)), int8(256));
        assert_eq!(Q4_0.after_looking(&seen(3e-5, [1e-5, 1e-5, 1e-4], 10.0)), Choice::Tiles(Precision::Bf16));
    }

    #[test]
    fn many_rows_beyond_their_bounds_take_the_next_better_way() {
        let good = seen(3e-5, [1e-4, 1e-4, 1e-4], 4.0);
        let int8 = |pass| Choice::Tiles(Precision::Int8 { pass });
        assert_eq!(Q4_0.after_looking(&ErrorStats { broken_int8: [2, 2, 2], ..good }), int8(1024));
        assert_eq!(Q4_0.after_looking(&ErrorStats { broken_int8: [3, 2, 0], ..good }), int8(512));
        let bf16 = ErrorStats { broken_int8: [3, 3, 3], ..good };
        assert_eq!(Q4_0.after_looking(&bf16), Choice::Tiles(Precision::Bf16));
        assert_eq!(Facts { rows: 32, ..Q4_0 }.after_looking(&bf16), Choice::Vectors);
        assert_eq!(Q4_0.after_looking(&ErrorStats { broken_bf16: 3, ..bf16 }), Choice::Vectors);
    }

    #[test]
    fn nan_never_leads_to_int8() {
        let nan = seen(f32::NAN, [f32::NAN; 3], f32::NAN);
        assert_eq!(Q4_0.after_looking(&ErrorStats { broken_int8: [16; 3], broken_bf16: 16, ..nan }), Choice::Vectors);
    }
}

//! Exact weights or tiles, and tiles of which precision.

use std::fmt;

use super::Storage;
use super::thresholds::{APART, MARGIN, MARGIN_SPIKY, MAX_CREST, MIN_TILE_M_BF16, min_tile_m};
use crate::cpu::Isa;
use crate::panel::outliers::ErrorStats;
use crate::panel::precision::{FINEST_PASS, PASSES, Precision};
use crate::panel::row_error::MAX_OF_TYPE;

/// The precision that the user or the graph demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Demand {
    /// Whatever keeps the bound of each row.
    Auto,
    /// BF16 for any number of rows, so that a row's bits do not depend on other rows (`GGML_AMX_PRECISION=exact`).
    Bf16,
    /// f32: the graph says that activations must not be rounded.
    F32,
}

/// What is known before the activations are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// How the weights are stored.
    pub storage: Storage,
    /// Highest instruction set that may be used.
    pub isa: Isa,
    /// Rows of activations that share the weights.
    pub m: usize,
    /// Products, each of a matrix of its own.
    pub batches: usize,
    /// What is demanded.
    pub demand: Demand,
}

/// How rows are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Exact weights, activations of 8 bits per 32.
    ExactWeights,
    /// The tile GEMM.
    Tiles(Precision),
    /// Look at the activations first, then ask [`Facts::after_looking`].
    Look,
}

/// The name in log lines, which people and scripts know: they call exact weights by what multiplies them.
impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::ExactWeights => f.write_str("Vectors"),
            Choice::Tiles(_) | Choice::Look => write!(f, "{self:?}"),
        }
    }
}

impl Facts {
    /// Rows from which on the tile GEMM may multiply a matrix. Fewer are multiplied with exact weights, whatever the
    /// activations are like.
    pub fn min_tile_m(&self) -> usize {
        match self.storage.weight_type() {
            Some(ty) if self.demand == Demand::Auto => min_tile_m(ty),
            _ => 1,
        }
    }

    /// The choice, as far as it does not depend on the activations.
    pub fn choice(&self) -> Choice {
        if self.isa != Isa::Amx {
            return Choice::ExactWeights;
        }
        match self.storage {
            Storage::Plain(precision) => Choice::Tiles(precision),
            Storage::Decoded => Choice::Tiles(Precision::Bf16),
            Storage::Packed(_) | Storage::InPlace(_) => self.choice_of_quantised(),
        }
    }

    fn choice_of_quantised(&self) -> Choice {
        // For any number of rows: neither theirs nor their neighbours' bits may depend on it.
        if self.demand >= Demand::Bf16 && cfg!(not(mutant = "exact-by-number")) {
            Choice::Tiles(Precision::Bf16)
        } else if self.m < self.min_tile_m() {
            Choice::ExactWeights
        } else if self.batches > 1 {
            // Small products (heads of attention) are not worth the search for outliers.
            self.without_int8()
        } else {
            Choice::Look
        }
    }

    fn without_int8(&self) -> Choice {
        if self.m >= MIN_TILE_M_BF16 { Choice::Tiles(Precision::Bf16) } else { Choice::ExactWeights }
    }

    /// The choice after [`Choice::Look`]: the coarsest int8 that few rows break their bound in, and whose mean error is
    /// at most that of ggml's own kernels (8 bits per 32 activations), or a tenth of the weight type's own (at most
    /// 3e-4). Where what is left after the outlier split is spiky, only the finest scales are allowed.
    pub fn after_looking(&self, seen: &ErrorStats) -> Choice {
        // NaN must count as spiky here, and must not pass as int8 below: so these comparisons are not turned around.
        let is_calm = seen.mean(seen.crest) <= MAX_CREST;
        let margin = if is_calm { MARGIN } else { MARGIN_SPIKY };
        let of_type = (self.storage.quant_nmse() / 10.0).min(MAX_OF_TYPE);
        let allowed = margin * seen.mean(seen.blocks).max(of_type);
        let are_few = |broken: usize| broken * APART <= seen.rows;
        let int8 = PASSES.into_iter().zip(seen.int8).zip(seen.broken_int8).find(|((pass, error), broken)| {
            (is_calm || *pass == FINEST_PASS) && seen.mean(*error) <= allowed && are_few(*broken)
        });
        match int8 {
            Some(((pass, _), _)) => Choice::Tiles(Precision::Int8 { pass }),
            None if are_few(seen.broken_bf16) => self.without_int8(),
            None => Choice::ExactWeights,
        }
    }

    /// For experts, after the same look: rows from which on an expert is multiplied by the tile GEMM, and in which
    /// precision; `None` if none is.
    pub fn experts_after_looking(&self, seen: &ErrorStats) -> Option<(usize, Precision)> {
        match self.after_looking(seen) {
            Choice::Tiles(Precision::Bf16) => Some((self.min_tile_m().max(MIN_TILE_M_BF16), Precision::Bf16)),
            Choice::Tiles(precision) => Some((self.min_tile_m(), precision)),
            Choice::ExactWeights | Choice::Look => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::WeightType;

    const Q4_0: Facts =
        Facts { storage: Storage::Packed(WeightType::Q4_0), isa: Isa::Amx, m: 512, batches: 1, demand: Demand::Auto };

    fn int8(pass: usize) -> Choice {
        Choice::Tiles(Precision::Int8 { pass })
    }

    /// 16 rows with these mean errors.
    fn seen(blocks: f32, int8: [f32; 3], crest: f32) -> ErrorStats {
        let sum = |v: f32| 16.0 * v;
        ErrorStats { rows: 16, blocks: sum(blocks), int8: int8.map(sum), crest: sum(crest), ..ErrorStats::default() }
    }

    #[test]
    fn given_few_rows_then_weights_are_exact_unless_bits_must_not_depend_on_the_number() {
        assert_eq!(Facts { m: 10, ..Q4_0 }.choice(), Choice::ExactWeights);
        assert_eq!(Facts { m: 1, demand: Demand::Bf16, ..Q4_0 }.choice(), Choice::Tiles(Precision::Bf16));
        assert_eq!(Facts { batches: 2, m: 32, ..Q4_0 }.choice(), Choice::ExactWeights);
        assert_eq!(Facts { batches: 2, m: 33, ..Q4_0 }.choice(), Choice::Tiles(Precision::Bf16));
        assert_eq!(Q4_0.choice(), Choice::Look);
        assert_eq!(Facts { isa: Isa::Avx512, demand: Demand::F32, ..Q4_0 }.choice(), Choice::ExactWeights);
    }

    #[test]
    fn given_several_scales_that_are_good_enough_then_the_coarsest_are_taken() {
        assert_eq!(Q4_0.after_looking(&seen(3e-5, [1.2e-4, 1.1e-4, 9e-5], 4.0)), int8(1024));
        assert_eq!(Q4_0.after_looking(&seen(3e-5, [1e-3, 1.1e-4, 9e-5], 4.0)), int8(512));
        // Outliers that move: the finest only, and only if they are much better.
        assert_eq!(Q4_0.after_looking(&seen(3e-5, [1e-5, 1e-5, 8e-5], 10.0)), int8(256));
        assert_eq!(Q4_0.after_looking(&seen(3e-5, [1e-5, 1e-5, 1e-4], 10.0)), Choice::Tiles(Precision::Bf16));
    }

    #[test]
    fn given_many_rows_beyond_their_bounds_then_the_next_better_way_is_taken() {
        let good = seen(3e-5, [1e-4, 1e-4, 1e-4], 4.0);
        assert_eq!(Q4_0.after_looking(&ErrorStats { broken_int8: [2, 2, 2], ..good }), int8(1024));
        assert_eq!(Q4_0.after_looking(&ErrorStats { broken_int8: [3, 2, 0], ..good }), int8(512));
        let bf16 = ErrorStats { broken_int8: [3, 3, 3], ..good };
        assert_eq!(Q4_0.after_looking(&bf16), Choice::Tiles(Precision::Bf16));
        assert_eq!(Facts { m: 32, ..Q4_0 }.after_looking(&bf16), Choice::ExactWeights);
        assert_eq!(Q4_0.after_looking(&ErrorStats { broken_bf16: 3, ..bf16 }), Choice::ExactWeights);
        assert_eq!(Q4_0.experts_after_looking(&bf16), Some((33, Precision::Bf16)));
        assert_eq!(Q4_0.experts_after_looking(&good), Some((11, Precision::Int8 { pass: 1024 })));
    }

    #[test]
    fn given_a_choice_then_log_lines_have_its_old_name() {
        let names = [Choice::ExactWeights, int8(1024), Choice::Tiles(Precision::Bf16)].map(|choice| choice.to_string());
        assert_eq!(names, ["Vectors", "Tiles(Int8 { pass: 1024 })", "Tiles(Bf16)"]);
    }

    #[test]
    fn given_nan_then_int8_is_never_taken() {
        let nan = seen(f32::NAN, [f32::NAN; 3], f32::NAN);
        let seen = ErrorStats { broken_int8: [16; 3], broken_bf16: 16, ..nan };
        assert_eq!(Q4_0.after_looking(&seen), Choice::ExactWeights);
    }
}

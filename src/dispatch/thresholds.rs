//! Every threshold that chooses between kernels, precisions or owners of a product, with its unit and where it comes
//! from. The measurements are of a Xeon with AMX, 2 threads, unless said otherwise; docs/lab/notebook.md keeps them.

use crate::format::WeightType;
use crate::panel::precision::{Precision, TILE_MR};

/// Rows of activations from which on the tile GEMM beats exact weights on packed weights of a type, in int8.
///
/// Measured per type at 4,096 x 4,096 (`cargo bench --bench mul_mat`; docs/lab/notebook.md, "Types that take tiles from
/// 10 rows on"). 10 is right for most.
pub const fn min_tile_m(ty: WeightType) -> usize {
    use WeightType::*;
    match ty {
        Q6_K => 6,
        Q2_K | Q5_1 | IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | TQ2_0 | NVFP4 => 9,
        IQ2_K | IQ3_K | IQ4_K | IQ5_K | IQ6_K => 9,
        Q4_0 | IQ4_XS => 11,
        _ => 10,
    }
}

/// Rows from which on BF16 tiles of quantised weights are worth making: more than one block of 32 rows.
pub const MIN_TILE_M_BF16: usize = TILE_MR + 1;

/// Rows from which on weights in place are multiplied here: packing them on the way must pay off against the host's
/// kernels on plain weights. Of Q2_K the host's are faster below 12 rows (docs/performance.md).
pub const fn min_m_in_place(ty: WeightType) -> usize {
    match ty {
        WeightType::Q2_K => 12,
        _ => 1,
    }
}

/// Rows from which on weights that are stored plain are multiplied here. F16 needs three products, so it takes twice as
/// many (docs/lab/notebook.md, F16).
pub const fn min_m_plain(precision: Precision) -> usize {
    match precision {
        Precision::Bf16Twice => 32,
        _ => 16,
    }
}

/// Rows from which on decoding weights by the host's decoder pays off (docs/performance.md).
pub const MIN_M_DECODED: usize = 64;

/// Tokens from which on attention is computed here: one token is bound by reading the cache.
pub const MIN_TOKENS_ATTENTION: usize = 2;

/// Queries per head of the cache from which on attention is faster here (docs/lab/notebook.md, attention: 512 and
/// 4,096 keys, 8 to 64 queries).
pub const MIN_QUERIES_ATTENTION: usize = 16;

/// Rows from which on TDPBSSD beats VPDPBUSD on exact weights.
pub const MIN_M_EXACT_AMX: usize = 9;

/// Rows up to which making integers of weights in registers beats making them in scratch.
pub const MAX_M_REGISTERS: usize = 12;

/// Rows up to which weights in place are multiplied while they are packed: more would read them from the first-level
/// cache more often than that is worth.
pub const MAX_M_IN_PLACE: usize = 8;

/// Largest mean of amax / rms of a row without its outlier channels up to which all passes are allowed.
/// Measured on models: 3.5 to 5.5 where outliers sit in fixed channels, above 9 where they move from row to row.
pub const MAX_CREST: f32 = 7.5;

/// Share of the allowed mean error that an estimate may reach: it is made from a few rows.
pub const MARGIN: f32 = 0.8;

/// The same where outliers move: there errors hit few rows hard, which a mean does not show.
pub const MARGIN_SPIKY: f32 = 0.3;

/// One row in so many may break its bound and be computed apart, in f32: it costs about as much as so many on tiles.
pub const APART: usize = 8;

/// Bytes of results of one thread from which on they are written past the caches: half of a second-level cache.
pub const BYPASS_BYTES: usize = 1 << 20;

/// What reading 32 columns of weights and making panels of them costs, in rows on tiles. Measured: 512 rows take about
/// eight times as long as one.
pub const COST_OF_COLUMNS: usize = 64;

/// What a row on exact weights costs, in rows on tiles.
pub const COST_OF_EXACT_ROW: usize = 8;

/// Parts of the work per thread.
pub const PARTS_PER_THREAD: usize = 4;

//! The precisions of the tile GEMM, and the sizes that all code which makes or reads tiles shares.

/// Rows of activations of a row block (MR): two tiles.
pub const TILE_MR: usize = 32;
/// Bytes of a k-step of a row block, or of two panels: two tiles.
pub const STEP_BYTES: usize = 2048;
/// Channels per k-step, int8.
pub const STEP_INT8: usize = 64;
/// Channels per k-step, BF16.
pub const STEP_BF16: usize = 32;
/// Lengths of a pass in int8: channels that share one scale per row, coarsest first.
pub const PASSES: [usize; 3] = [1024, 512, 256];
/// The finest of them.
pub const FINEST_PASS: usize = 256;
/// Outlier channels of an outlier set: one k-step in BF16.
pub const OUTLIERS: usize = 32;

/// The outlier channels of an outlier set, ascending.
pub type OutlierChannels = [u32; OUTLIERS];

/// What the tiles of a product are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 8-bit integers with a scale per row and pass; outlier channels apart, in BF16.
    Int8 {
        /// Channels per scale, one of [`PASSES`].
        pass: usize,
    },
    /// BF16.
    Bf16,
    /// Every number as the sum of two in BF16: 16 bits, for weights that have more than 8.
    Bf16Twice,
}

impl Precision {
    /// Channels per k-step.
    pub fn step(self) -> usize {
        match self {
            Precision::Int8 { .. } => STEP_INT8,
            Precision::Bf16 | Precision::Bf16Twice => STEP_BF16,
        }
    }

    /// Planes of tiles: how many tile numbers stand for one number.
    pub const fn planes(self) -> usize {
        match self {
            Precision::Int8 { .. } | Precision::Bf16 => 1,
            Precision::Bf16Twice => 2,
        }
    }

    /// The planes (of activations, of weights) whose products are added up. Low times low is left out: it is below
    /// 2^-15 of a product.
    pub fn products(self) -> &'static [(usize, usize)] {
        match self {
            Precision::Int8 { .. } | Precision::Bf16 => &[(0, 0)],
            // The same activations twice in a row, while they are in the first-level cache.
            Precision::Bf16Twice => &[(0, 0), (0, 1), (1, 0)],
        }
    }

    /// k-steps of a pass: in int8 those that share scales, in BF16 as many bytes as the longest of these.
    pub fn pass_steps(self) -> usize {
        match self {
            Precision::Int8 { pass } => pass / STEP_INT8,
            Precision::Bf16 | Precision::Bf16Twice => PASSES[0] / STEP_INT8,
        }
    }
}

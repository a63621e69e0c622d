//! The precisions of the tile GEMM, and the sizes that everything that makes or reads tiles shares.

/// Rows of a block.
pub const TILE_MR: usize = 32;
/// Bytes of a k-step of a block: two tiles.
pub const STEP_BYTES: usize = 2048;
/// Channels per k-step, int8.
pub const STEP_INT8: usize = 64;
/// Channels per k-step, BF16.
pub const STEP_BF16: usize = 32;
/// Numbers of channels that may share an activation scale and a weight scale, coarsest first.
pub const PASSES: [usize; 3] = [1024, 512, 256];
/// The finest of them.
pub const FINEST_PASS: usize = 256;
/// Outlier channels per chunk: one BF16 k-step.
pub const OUTLIERS: usize = 32;

/// What the products are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 8-bit integers, a scale for every `pass` channels (one of [`PASSES`]), and the outlier split.
    Int8 {
        /// Channels per scale.
        pass: usize,
    },
    /// BF16 throughout.
    Bf16,
    /// BF16, and what it leaves of every number in BF16 too: 16 bits. For weights that have more than 8.
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

    /// Numbers that stand for one.
    pub const fn planes(self) -> usize {
        match self {
            Precision::Int8 { .. } | Precision::Bf16 => 1,
            Precision::Bf16Twice => 2,
        }
    }

    /// The planes of activations and of weights whose products make the result. Low times low is not among
    /// them: it is below 2^-15 of a product.
    pub fn products(self) -> &'static [(usize, usize)] {
        match self {
            Precision::Int8 { .. } | Precision::Bf16 => &[(0, 0)],
            // The same activations twice while they are in the first-level cache.
            Precision::Bf16Twice => &[(0, 0), (0, 1), (1, 0)],
        }
    }

    /// k-steps of a pass: for int8 those that share scales, for BF16 as many bytes as the longest.
    pub fn pass_steps(self) -> usize {
        match self {
            Precision::Int8 { pass } => pass / STEP_INT8,
            Precision::Bf16 | Precision::Bf16Twice => PASSES[0] / STEP_INT8,
        }
    }
}

/// The outlier channels of a set of rows, ascending.
pub type OutlierChannels = [u32; OUTLIERS];

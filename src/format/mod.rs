//! GGUF weight types: their blocks, their packed form, and what the kernels read out of it.
//!
//! **Packed form.** A matrix of `n` rows of `k` weights is cut into panels of 16 rows ([`LANES`]:
//! the columns of the product, one zmm of 32-bit lanes). A panel is a sequence of blocks along K;
//! each holds the same block of all 16 rows, its bytes interleaved so that one vector load gives
//! the same few weights of every row. That is a permutation of bytes, described by [`Field`]s: it
//! loses nothing, and any byte of the plain form can be read or written in place.
//!
//! **Groups.** Within a block, `GROUP` consecutive weights share one scale (and minimum):
//! `w = scale * q + min`. A group is what a kernel handles as one integer dot product.
//!
//! **Codebooks.** Quants of some types are indices into a table of ggml's, which is read off the host
//! ([`Codebook`]); without it their blocks can be permuted, not read.
//!
//! A new type is one new file here and one line in each of the two tables below.

mod bits;
mod block_scales;
mod grids;
pub mod interleaved;
mod iq1_m;
mod iq1_s;
mod iq2_k;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3_k;
mod iq3_s;
mod iq3_xxs;
mod iq4_k;
mod iq4_nl;
mod iq4_xs;
mod iq5_k;
mod iq6_k;
mod k_scales;
mod layout;
mod mxfp4;
mod nvfp4;
mod q1_0;
mod q2_0;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_0;
mod q6_k;
mod q8_0;
mod tables;
mod tq1_0;
mod tq2_0;
mod two_tables;

use std::arch::x86_64::{__m512, __m512i, __mmask16};

pub use block_scales::BlockScales;
pub use grids::{Codebook, Dequantise};
pub use layout::Layout;

/// Rows of a panel: 16 lanes of 32 bits.
pub const LANES: usize = 16;

/// Weights that share one scale of activations.
pub const ACT_BLOCK: usize = 32;

/// `len` bytes at `offset` of a plain block, interleaved over the 16 rows in runs of `unit` bytes:
/// byte `j` of row `lane` goes to `16 * offset + (j / unit * 16 + lane) * unit + j % unit`.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// First byte in the plain block.
    pub offset: usize,
    /// Bytes.
    pub len: usize,
    /// 1, 2 or 4: bytes of one row that stay together.
    pub unit: usize,
}

/// Shorthand for the tables of fields.
const fn field(offset: usize, len: usize, unit: usize) -> Field {
    Field { offset, len, unit }
}

/// Scales and minima of one group, one per lane.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GroupScales {
    /// Multiplies the signed quant.
    pub scale: [f32; LANES],
    /// Is added; all zero if the type has no minima.
    pub min: [f32; LANES],
}

/// One GGUF weight type. Functions read a packed block: `16 * BYTES` bytes.
///
/// # Safety
/// The constants must describe the type truthfully: kernels index memory by them. `GROUP` must be
/// 16 or 32 and divide `BLOCK`; `FIELDS` must cover `0..BYTES` exactly once.
pub unsafe trait Format: Sized + 'static {
    /// Its entry in the table.
    const TYPE: WeightType;
    /// Weights per block.
    const BLOCK: usize;
    /// Bytes per plain block.
    const BYTES: usize;
    /// Weights per scale: 16 or 32.
    const GROUP: usize;
    /// What is subtracted from the unsigned quant to get the signed one.
    const ZERO_POINT: i32;
    /// NMSE of normally distributed weights in this type (measured with ggml's own quantiser); 0 for types
    /// that models are trained in, whose weights lose nothing.
    const OWN_ERROR: f32;
    /// Smallest unsigned quant.
    const Q_MIN: i32 = 0;
    /// Largest unsigned quant.
    const Q_MAX: i32;
    /// Whether a group has a minimum.
    const HAS_MIN: bool;
    /// Rows of activations from which on the tile unit is faster than vectors on the packed weights
    /// (measured, see docs/performance.md).
    const TILE_ROWS: usize = 10;
    /// What quants have more in lanes whose group chose the second of two tables; 0 if there is one table.
    const STEP: i32 = 0;
    /// The codebook that quants are looked up in, if the type has one.
    const CODEBOOK: Option<Codebook> = None;
    /// The interleaving.
    const FIELDS: &'static [Field];

    /// Signed quants of group `group`: weight `k` of row `lane` at `out[k / 4 * 64 + lane * 4 + k % 4]`
    /// (the layout TDPBSSD wants for its second operand). `out` holds `16 * GROUP`.
    fn quants(block: &[u8], group: usize, out: &mut [i8]);

    /// Scales and minima of group `group`.
    fn scales(block: &[u8], group: usize) -> GroupScales;

    /// Like [`Format::quants`] in registers, but *unsigned* (signed + `ZERO_POINT`): vector `r` holds
    /// weights `4r..4r + 4` of every row. Vectors past `GROUP / 4` are unspecified.
    ///
    /// # Safety
    /// `block` must point to `16 * BYTES` readable bytes; AVX-512 F and BW must be there.
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8];

    /// Like [`Format::scales`] in registers, equal bit for bit.
    ///
    /// # Safety
    /// As for [`Format::quants_avx512`].
    unsafe fn scales_avx512(block: *const u8, group: usize) -> (__m512, __m512);

    /// [`Format::quants_avx512`] all from the first table, and the lanes with the second, whose quants lack `STEP`: a
    /// dot product gets it with the sum of the other factors.
    ///
    /// # Safety
    /// As for [`Format::quants_avx512`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn first_quants_avx512(block: *const u8, group: usize) -> ([__m512i; 8], __mmask16) {
        const { assert!(Self::STEP == 0) };
        // SAFETY: promised by the caller.
        (unsafe { Self::quants_avx512(block, group) }, 0)
    }

    /// [`Format::scales_avx512`] of all groups of a block, which share work.
    ///
    /// # Safety
    /// As for [`Format::quants_avx512`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn block_scales_avx512(block: *const u8, out: &mut BlockScales) {
        for group in 0..Self::BLOCK / Self::GROUP {
            // SAFETY: promised by the caller.
            let (scale, min) = unsafe { Self::scales_avx512(block, group) };
            out.set::<Self>(group, scale, min);
        }
    }
}

/// Facts about a type for code that is not generic over it.
#[derive(Clone, Copy, Debug)]
pub struct TypeInfo {
    /// ggml's name, as `ggml_type_name` gives it.
    pub name: &'static str,
    /// Weights per block.
    pub block: usize,
    /// Bytes per block.
    pub bytes: usize,
    /// Weights per scale.
    pub group: usize,
    /// NMSE of normally distributed weights in this type, for the choice of precision.
    pub own_error: f32,
    /// Rows of activations from which on the tile unit is faster than vectors.
    pub tile_rows: usize,
    /// Without it weights can be packed, but not read.
    pub codebook: Option<Codebook>,
    /// The byte permutation.
    pub layout: Layout,
}

/// The table of types: variant, ggml's number, ggml's name, implementation.
macro_rules! weight_types {
    ($($variant:ident = $number:literal, $name:literal, $format:ty, $doc:literal;)*) => {
        /// The weight types that are packed. The numbers are ggml's (above 100 ik_llama.cpp's), and the C API's.
        #[repr(i32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(non_camel_case_types)]
        pub enum WeightType {
            $(#[doc = $doc] $variant = $number,)*
        }

        impl WeightType {
            /// All of them, in ggml's order.
            pub const ALL: &'static [WeightType] = &[$(WeightType::$variant),*];

            /// The type with ggml's number `number`, if it is one that is packed.
            pub fn from_ggml(number: i32) -> Option<Self> {
                match number {
                    $($number => Some(WeightType::$variant),)*
                    _ => None,
                }
            }

            /// Facts for code that is not generic.
            pub fn info(self) -> &'static TypeInfo {
                match self {
                    $(WeightType::$variant => const {
                        &TypeInfo {
                            name: $name,
                            block: <$format>::BLOCK,
                            bytes: <$format>::BYTES,
                            group: <$format>::GROUP,
                            own_error: <$format>::OWN_ERROR,
                            tile_rows: <$format>::TILE_ROWS,
                            codebook: <$format>::CODEBOOK,
                            layout: Layout::new::<$format>(),
                        }
                    },)*
                }
            }
        }
    };
}

weight_types! {
    Q4_0 = 2, "q4_0", Q4_0, "32 weights: f16 scale, 4-bit quants.";
    Q4_1 = 3, "q4_1", Q4_1, "32 weights: f16 scale and minimum, 4-bit quants.";
    Q5_0 = 6, "q5_0", Q5_0, "32 weights: f16 scale, 5-bit quants.";
    Q5_1 = 7, "q5_1", Q5_1, "32 weights: f16 scale and minimum, 5-bit quants.";
    Q8_0 = 8, "q8_0", Q8_0, "32 weights: f16 scale, 8-bit quants.";
    Q2_K = 10, "q2_K", Q2K, "256 weights: 16 groups with 4-bit scales and minima, 2-bit quants.";
    Q3_K = 11, "q3_K", Q3K, "256 weights: 16 groups with 6-bit scales, 3-bit quants.";
    Q4_K = 12, "q4_K", Q4K, "256 weights: 8 groups with 6-bit scales and minima, 4-bit quants.";
    Q5_K = 13, "q5_K", Q5K, "256 weights: 8 groups with 6-bit scales and minima, 5-bit quants.";
    Q6_K = 14, "q6_K", Q6K, "256 weights: 16 groups with 8-bit scales, 6-bit quants.";
    IQ2_XXS = 16, "iq2_xxs", Iq2Xxs, "256 weights: 8 groups with 4-bit scales, 8-bit indices of 8 weights, 7-bit signs.";
    IQ2_XS = 17, "iq2_xs", Iq2Xs, "256 weights: 16 groups with 4-bit scales, 9-bit indices of 8 weights, 7-bit signs.";
    IQ3_XXS = 18, "iq3_xxs", Iq3Xxs, "256 weights: 8 groups with 4-bit scales, 8-bit indices of 4 weights, 7-bit signs.";
    IQ1_S = 19, "iq1_s", Iq1S, "256 weights: 8 groups with 3-bit scales, 11-bit indices of 8 weights.";
    IQ4_NL = 20, "iq4_nl", Iq4Nl, "32 weights: f16 scale, 4-bit indices into a fixed table.";
    IQ3_S = 21, "iq3_s", Iq3S, "256 weights: 8 groups with 4-bit scales, 9-bit indices of 4 weights.";
    IQ2_S = 22, "iq2_s", Iq2S, "256 weights: 16 groups with 4-bit scales, 10-bit indices of 8 weights.";
    IQ4_XS = 23, "iq4_xs", Iq4Xs, "256 weights: 8 groups with 6-bit scales, 4-bit indices into a fixed table.";
    IQ1_M = 29, "iq1_m", Iq1M, "256 weights: 16 groups with 3-bit scales, 11-bit indices of 8 weights.";
    TQ1_0 = 34, "tq1_0", Tq1_0, "256 weights: f16 scale, -1, 0 or 1, five in a byte.";
    TQ2_0 = 35, "tq2_0", Tq2_0, "256 weights: f16 scale, -1, 0 or 1 in two bits.";
    MXFP4 = 39, "mxfp4", Mxfp4, "32 weights: 8-bit exponent, 4-bit floats.";
    NVFP4 = 40, "nvfp4", Nvfp4, "64 weights: 4 groups with 8-bit float scales, 4-bit floats.";
    Q1_0 = 41, "q1_0", Q1_0, "128 weights: f16 scale and its sign.";
    Q2_0 = 42, "q2_0", Q2_0, "64 weights: f16 scale, -1, 0, 1 or 2 in two bits.";
    Q6_0 = 133, "q6_0", Q6_0, "32 weights: f16 scale, 6-bit quants; ik_llama.cpp's.";
    IQ2_K = 137, "iq2_k", Iq2K, "256 weights: 16 groups with 4-bit scales and one of two tables, 2-bit indices into it; ik_llama.cpp's.";
    IQ3_K = 138, "iq3_k", Iq3K, "256 weights: 16 groups with 4-bit scales, signs and one of two tables, 3-bit indices into it; ik_llama.cpp's.";
    IQ4_K = 139, "iq4_k", Iq4K, "256 weights: 16 groups with 6-bit scales and one of two tables, 4-bit indices into it; ik_llama.cpp's.";
    IQ5_K = 140, "iq5_k", Iq5K, "256 weights: 16 groups with 6-bit scales and one of two tables, 5-bit indices into it; ik_llama.cpp's.";
    IQ6_K = 141, "iq6_k", Iq6K, "256 weights: 16 groups with 8-bit scales and one of two tables, 6-bit indices into it; ik_llama.cpp's.";
}

impl WeightType {
    /// Whether products can be computed: the type has no codebook, or it was read.
    pub fn is_readable(self) -> bool {
        self.info().codebook.is_none_or(|c| (c.is_there)())
    }
}

/// Runs `$body` with the type alias `$F` bound to the [`Format`] of the [`WeightType`] `$ty`.
#[macro_export]
macro_rules! with_format {
    ($ty:expr, $F:ident => $body:expr) => {
        match $ty {
            $crate::format::WeightType::Q4_0 => {
                type $F = $crate::format::Q4_0;
                $body
            }
            $crate::format::WeightType::Q4_1 => {
                type $F = $crate::format::Q4_1;
                $body
            }
            $crate::format::WeightType::Q5_0 => {
                type $F = $crate::format::Q5_0;
                $body
            }
            $crate::format::WeightType::Q5_1 => {
                type $F = $crate::format::Q5_1;
                $body
            }
            $crate::format::WeightType::Q8_0 => {
                type $F = $crate::format::Q8_0;
                $body
            }
            $crate::format::WeightType::Q2_K => {
                type $F = $crate::format::Q2K;
                $body
            }
            $crate::format::WeightType::Q3_K => {
                type $F = $crate::format::Q3K;
                $body
            }
            $crate::format::WeightType::Q4_K => {
                type $F = $crate::format::Q4K;
                $body
            }
            $crate::format::WeightType::Q5_K => {
                type $F = $crate::format::Q5K;
                $body
            }
            $crate::format::WeightType::Q6_K => {
                type $F = $crate::format::Q6K;
                $body
            }
            $crate::format::WeightType::IQ2_XXS => {
                type $F = $crate::format::Iq2Xxs;
                $body
            }
            $crate::format::WeightType::IQ2_XS => {
                type $F = $crate::format::Iq2Xs;
                $body
            }
            $crate::format::WeightType::IQ3_XXS => {
                type $F = $crate::format::Iq3Xxs;
                $body
            }
            $crate::format::WeightType::IQ1_S => {
                type $F = $crate::format::Iq1S;
                $body
            }
            $crate::format::WeightType::IQ4_NL => {
                type $F = $crate::format::Iq4Nl;
                $body
            }
            $crate::format::WeightType::IQ3_S => {
                type $F = $crate::format::Iq3S;
                $body
            }
            $crate::format::WeightType::IQ2_S => {
                type $F = $crate::format::Iq2S;
                $body
            }
            $crate::format::WeightType::IQ4_XS => {
                type $F = $crate::format::Iq4Xs;
                $body
            }
            $crate::format::WeightType::IQ1_M => {
                type $F = $crate::format::Iq1M;
                $body
            }
            $crate::format::WeightType::TQ1_0 => {
                type $F = $crate::format::Tq1_0;
                $body
            }
            $crate::format::WeightType::TQ2_0 => {
                type $F = $crate::format::Tq2_0;
                $body
            }
            $crate::format::WeightType::MXFP4 => {
                type $F = $crate::format::Mxfp4;
                $body
            }
            $crate::format::WeightType::NVFP4 => {
                type $F = $crate::format::Nvfp4;
                $body
            }
            $crate::format::WeightType::Q1_0 => {
                type $F = $crate::format::Q1_0;
                $body
            }
            $crate::format::WeightType::Q2_0 => {
                type $F = $crate::format::Q2_0;
                $body
            }
            $crate::format::WeightType::Q6_0 => {
                type $F = $crate::format::Q6_0;
                $body
            }
            $crate::format::WeightType::IQ2_K => {
                type $F = $crate::format::Iq2K;
                $body
            }
            $crate::format::WeightType::IQ3_K => {
                type $F = $crate::format::Iq3K;
                $body
            }
            $crate::format::WeightType::IQ4_K => {
                type $F = $crate::format::Iq4K;
                $body
            }
            $crate::format::WeightType::IQ5_K => {
                type $F = $crate::format::Iq5K;
                $body
            }
            $crate::format::WeightType::IQ6_K => {
                type $F = $crate::format::Iq6K;
                $body
            }
        }
    };
}

pub use iq1_m::Iq1M;
pub use iq1_s::Iq1S;
pub use iq2_k::Iq2K;
pub use iq2_s::Iq2S;
pub use iq2_xs::Iq2Xs;
pub use iq2_xxs::Iq2Xxs;
pub use iq3_k::Iq3K;
pub use iq3_s::Iq3S;
pub use iq3_xxs::Iq3Xxs;
pub use iq4_k::Iq4K;
pub use iq4_nl::Iq4Nl;
pub use iq4_xs::Iq4Xs;
pub use iq5_k::Iq5K;
pub use iq6_k::Iq6K;
pub use mxfp4::Mxfp4;
pub use nvfp4::Nvfp4;
pub use q1_0::Q1_0;
pub use q2_0::Q2_0;
pub use q2_k::Q2K;
pub use q3_k::Q3K;
pub use q4_0::Q4_0;
pub(crate) use q4_0::f16_lanes;
pub use q4_1::Q4_1;
pub use q4_k::Q4K;
pub use q5_0::Q5_0;
pub use q5_1::Q5_1;
pub use q5_k::Q5K;
pub use q6_0::Q6_0;
pub use q6_k::Q6K;
pub use q8_0::Q8_0;
pub use tq1_0::Tq1_0;
pub use tq2_0::Tq2_0;

/// The f16 at byte `offset`, exactly.
fn f16_at(bytes: &[u8], offset: usize) -> f32 {
    half::f16::from_le_bytes([bytes[offset], bytes[offset + 1]]).to_f32()
}

#[cfg(test)]
pub(crate) mod stand_in;
#[cfg(test)]
mod tests;

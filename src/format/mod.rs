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
//! A new type is one new file here and one row in `table.rs` (docs/adding-a-weight-type.md).

mod bits;
mod block_scales;
mod grids;
pub mod interleaved;
mod k_scales;
mod layout;
#[macro_use]
mod table;
mod tables;
mod two_tables;

use std::arch::x86_64::{__m512, __m512i, __mmask16};

pub use block_scales::BlockScales;
pub use grids::{Codebook, Dequantise};
pub use layout::Layout;
pub(crate) use q4_0::f16_lanes;
pub use table::{Field, FieldKind, Origin, ROWS, TypeRow};

/// Rows of a panel: 16 lanes of 32 bits.
pub const LANES: usize = 16;

/// Weights that share one scale of activations.
pub const ACT_BLOCK: usize = 32;

/// Most bytes that a type may have for 32 weights.
pub const MOST_BYTES: usize = 36;

/// Scales and minima of one group, one per lane.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GroupScales {
    /// Multiplies the signed quant.
    pub scale: [f32; LANES],
    /// Is added; all zero if the type has no minima.
    pub min: [f32; LANES],
}

/// What the table says of a type.
///
/// # Safety
/// The constants must describe the type truthfully: kernels index memory by them. `FIELDS` must cover `0..BYTES`
/// exactly once.
pub unsafe trait Block: Sized + 'static {
    /// Its row in the table.
    const TYPE: WeightType;
    /// Weights per block.
    const BLOCK: usize;
    /// Bytes per plain block.
    const BYTES: usize;
    /// Its bytes, and how they are interleaved.
    const FIELDS: &'static [Field];
}

/// One GGUF weight type. Functions read a packed block: `16 * BYTES` bytes.
///
/// # Safety
/// The constants must describe the type truthfully: kernels index memory by them. `GROUP` must be 16 or 32 and divide
/// `BLOCK`.
pub unsafe trait Format: Block {
    /// Weights per scale: 16 or 32.
    const GROUP: usize;
    /// What is subtracted from the unsigned quant to get the signed one.
    const ZERO_POINT: i32;
    /// NMSE of normally distributed weights in this type (measured with ggml's own quantiser); 0 for types
    /// that models are trained in, whose weights lose nothing.
    const QUANT_NMSE: f32;
    /// Smallest unsigned quant.
    const Q_MIN: i32 = 0;
    /// Largest unsigned quant.
    const Q_MAX: i32;
    /// Whether a group has a minimum.
    const HAS_MIN: bool;
    /// What quants have more in lanes whose group chose the second of two tables; 0 if there is one table.
    const STEP: i32 = 0;
    /// The codebook that quants are looked up in, if the type has one.
    const CODEBOOK: Option<Codebook> = None;

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
    pub quant_nmse: f32,
    /// Without it weights can be packed, but not read.
    pub codebook: Option<Codebook>,
    /// The bytes of a block by name and kind.
    pub fields: &'static [Field],
    /// The byte permutation.
    pub layout: Layout,
}

/// What the library makes of the table.
macro_rules! weight_types {
    ([] $(
        $variant:ident = $number:literal, $name:literal, $module:ident::$format:ident,
        of $origin:ident $(by $importance:ident)?, $block:literal in $bytes:literal,
        [$($field:ident: $kind:ident $len:literal/$unit:literal),*] $(after [$($rest:tt)*])?, $doc:literal;
    )*) => {
        $(mod $module;)*
        $(pub use $module::$format;)*

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
                    $(WeightType::$variant => const { &TypeInfo::new::<$format>($name) },)*
                }
            }
        }

        $(
            $(compile_error!(concat!("data per row is not packed yet: ", stringify!($($rest)*)));)?

            // SAFETY: the row is that of ggml-common.h, and fields without gaps that fill the block.
            unsafe impl Block for $format {
                const TYPE: WeightType = WeightType::$variant;
                const BLOCK: usize = $block;
                const BYTES: usize = $bytes;
                const FIELDS: &'static [Field] =
                    &table::fields([$((stringify!($field), FieldKind::$kind, $len, $unit)),*]);
            }
        )*
    };
}

for_weight_types!([weight_types]);

impl TypeInfo {
    const fn new<F: Format>(name: &'static str) -> Self {
        TypeInfo {
            name,
            block: F::BLOCK,
            bytes: F::BYTES,
            group: F::GROUP,
            quant_nmse: F::QUANT_NMSE,
            codebook: F::CODEBOOK,
            fields: F::FIELDS,
            layout: Layout::new::<F>(),
        }
    }
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
        $crate::for_weight_types!([$crate::match_format], ($ty), $F, ($body))
    };
}

/// The arms of [`with_format!`].
#[macro_export]
#[doc(hidden)]
macro_rules! match_format {
    ([($ty:expr) $F:ident ($body:expr)] $(
        $variant:ident = $number:literal, $name:literal, $module:ident::$format:ident,
        of $origin:ident $(by $importance:ident)?, $block:literal in $bytes:literal,
        [$($field:tt)*] $(after [$($rest:tt)*])?, $doc:literal;
    )*) => {
        match $ty {
            $($crate::format::WeightType::$variant => {
                type $F = $crate::format::$format;
                $body
            })*
        }
    };
}

/// The f16 at byte `offset`, exactly.
fn f16_at(bytes: &[u8], offset: usize) -> f32 {
    half::f16::from_le_bytes([bytes[offset], bytes[offset + 1]]).to_f32()
}

#[cfg(test)]
pub(crate) mod stand_in;
#[cfg(test)]
mod tests;

//! GGUF weight types: their blocks, their packed form, and what the kernels read out of it.
//!
//! **Packed form.** A matrix of `n` rows of `k` weights is cut into panels of 16 rows ([`LANES`]:
//! the columns of the product, one zmm of 32-bit lanes). A panel is a sequence of packed blocks along K.
//! A packed block holds the same block of all 16 rows; its bytes are interleaved so that one vector load gives
//! the same few weights of every row. That is a permutation of bytes, described by [`Field`]s: it
//! loses nothing, and any byte of the plain form can be read or written in place.
//!
//! **Groups.** Within a block, `GROUP` consecutive weights share one scale (and minimum):
//! `w = scale * q + min`. A kernel multiplies a group as one integer dot product.
//!
//! **Codebooks.** Quants of some types are indices into a table of ggml's, which is read off ggml's decoder
//! ([`Codebook`]). Without it, blocks of such a type can be packed and unpacked, but not multiplied.
//!
//! A new type is one new file here and one row in `table.rs` (docs/adding-a-weight-type.md). What types share is in
//! `lanes.rs` (one number of each row), `quants.rs`, `scales.rs`, `lookup.rs`, and for groups of types in
//! `k_scales.rs`, `two_tables.rs`, `six_bit_scales.rs` and `signs.rs`.

mod block_fields;
mod block_scales;
mod codebook;
pub mod interleaved;
mod k_scales;
mod lanes;
mod quants;
mod scales;
mod signs;
mod six_bit_scales;
#[macro_use]
mod table;
mod lookup;
mod two_tables;

use std::arch::x86_64::*;

pub use block_fields::BlockFields;
pub use block_scales::BlockScales;
pub use codebook::{Codebook, Dequantise};
pub(crate) use lanes::f16_lanes;
pub use scales::{GroupScales, ScaleReader};
pub use table::{Field, FieldKind, Origin, ROWS, TypeRow};

/// Rows of a panel: 16 lanes of 32 bits.
pub const LANES: usize = 16;

/// Activations of a row that share a scale when they are quantised.
pub const ACT_BLOCK: usize = 32;

/// The most bytes that 32 weights of any type may take.
pub const MOST_BYTES: usize = 36;

/// ggml's struct of a block of the type, as its row in the table gives it.
///
/// # Safety
/// The constants must be those of ggml's struct: kernels index memory by them. `FIELDS` must cover `0..BYTES`
/// exactly once.
pub unsafe trait BlockStruct: Sized + 'static {
    /// The type.
    const TYPE: WeightType;
    /// Weights per block.
    const BLOCK: usize;
    /// Bytes per plain block.
    const BYTES: usize;
    /// The fields of a block.
    const FIELDS: &'static [Field];
}

/// One GGUF weight type: how its packed blocks are read.
///
/// Functions with a raw `block` want a **whole block**: it points to a packed block, `16 * BYTES` readable bytes, and
/// the CPU has AVX-512 F and BW.
///
/// # Safety
/// The constants must describe the type truthfully: kernels index memory by them. `GROUP` must be 16 or 32 and divide
/// `BLOCK`. Functions, and `Scales`, may read no more than a whole block.
pub unsafe trait Format: BlockStruct {
    /// How the scales of groups are read; the type itself if no other type stores them the same way.
    type Scales: ScaleReader;
    /// Weights per scale: 16 or 32.
    const GROUP: usize;
    /// An unsigned quant less this is the signed quant.
    const ZERO_POINT: i32;
    /// NMSE of normally distributed weights in this type (measured with ggml's own quantiser); 0 for types
    /// that models are trained in, whose weights lose nothing.
    const QUANT_NMSE: f32;
    /// Smallest unsigned quant.
    const Q_MIN: i32 = 0;
    /// Largest unsigned quant.
    const Q_MAX: i32;
    /// Whether a group has a minimum.
    const HAS_MIN: bool = Self::Scales::HAS_MIN;
    /// For types whose groups choose between two tables of quants: every quant of the second table less that of the
    /// first. 0 for all other types.
    const STEP: i32 = 0;
    /// The codebook that quants are looked up in, if the type has one.
    const CODEBOOK: Option<Codebook> = None;

    /// Signed quants of group `group`: weight `k` of row `lane` at `out[k / 4 * 64 + lane * 4 + k % 4]`
    /// (the order that TDPBSSD wants for its second operand). `out` holds `16 * GROUP`.
    fn quants(block: &[u8], group: usize, out: &mut [i8]);

    /// Scales and minima of group `group`.
    fn scales(block: &[u8], group: usize) -> GroupScales {
        Self::Scales::read(block, group)
    }

    /// Like [`Format::quants`] in registers, but *unsigned* (signed + `ZERO_POINT`): vector `r` holds
    /// weights `4r..4r + 4` of every row. Vectors past `GROUP / 4` are unspecified.
    ///
    /// A type has either this function or, if its `STEP` is not 0, [`Format::first_quants_avx512`].
    ///
    /// # Safety
    /// `block` must be a whole block.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        const { assert!(Self::STEP != 0, "a type without a second table reads its quants itself") };
        // SAFETY: a whole block.
        let (mut rows, second) = unsafe { Self::first_quants_avx512(block, group) };
        let step = _mm512_maskz_set1_epi32(second, i32::from_le_bytes([Self::STEP as u8; 4]));
        for row in &mut rows[..Self::GROUP / 4] {
            *row = _mm512_add_epi8(*row, step);
        }
        rows
    }

    /// Like [`Format::scales`] in registers, equal bit for bit.
    ///
    /// # Safety
    /// `block` must be a whole block.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: a whole block.
        unsafe { Self::Scales::read_avx512(block, group) }
    }

    /// Like [`Format::quants_avx512`], but all quants come from the first table. The mask has the rows whose group uses
    /// the second table: their quants are `STEP` too small. A kernel adds `STEP` times the sum of the activations
    /// instead.
    ///
    /// # Safety
    /// `block` must be a whole block.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn first_quants_avx512(block: *const u8, group: usize) -> ([__m512i; 8], __mmask16) {
        const { assert!(Self::STEP == 0, "a type with a second table reads both itself") };
        // SAFETY: a whole block.
        (unsafe { Self::quants_avx512(block, group) }, 0)
    }

    /// [`Format::scales_avx512`] of all groups of a block; types whose groups share work do it once.
    ///
    /// # Safety
    /// `block` must be a whole block.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn block_scales_avx512(block: *const u8, out: &mut BlockScales) {
        // SAFETY: a whole block.
        unsafe { Self::Scales::read_block_avx512::<Self>(block, out) }
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
    /// What the type must have read before its weights can be multiplied.
    pub codebook: Option<Codebook>,
    /// The fields of a block, and where their bytes are in a packed one.
    pub fields: BlockFields,
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
            /// All types, in the order of their numbers.
            pub const ALL: &'static [WeightType] = &[$(WeightType::$variant),*];

            /// The type with ggml's number `number`, if it is packed.
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
            $(compile_error!(concat!("data before the blocks of a row is not packed yet: ", stringify!($($rest)*)));)?

            // SAFETY: the row has the facts of ggml-common.h; `BlockFields::new` checks that the fields cover the
            // block.
            unsafe impl BlockStruct for $format {
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
            fields: BlockFields::new::<F>(),
        }
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

#[cfg(test)]
pub(crate) mod stand_in;
#[cfg(test)]
mod tests;

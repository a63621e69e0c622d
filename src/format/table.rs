//! The table of weight types: one row for each type that is packed.
//!
//! ```text
//! NAME = ggml's number, "ggml's name", file::Implementation, of HOST [by importance], WEIGHTS in BYTES,
//!     [field: Kind bytes/unit, ...] [after [field: Kind bytes/unit, ...]],
//!     "doc";
//! ```
//!
//! Everything that lists types is made from it: the modules of the types, `WeightType`, the
//! dispatch, the enum of the C header, and what C tests (`c_tests/types.h`), benchmarks and xtask know of them. The
//! build script and xtask compile this file too, so it uses nothing of the library.
//!
//! The fields of a block are listed in their order, without gaps. `unit`: bytes of one row that stay together in a
//! packed block (see [`Field`]). `after [...]`: data at the start of each row, before its blocks. No type that is
//! packed has any yet.

/// What the bytes of a field mean, as far as it matters for making random blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// Half-precision numbers: scales, minima.
    F16,
    /// Single-precision numbers.
    F32,
    /// Exponents of 8 bits: `2^(e - 127)`.
    E8M0,
    /// Floats of 8 bits: 4 of exponent, 3 of mantissa, no sign.
    UE4M3,
    /// Four 16-bit words whose upper nibbles make one half-precision number, the lowest nibble first.
    F16Nibbles,
    /// Integers of any width that are no quants: scales, signs.
    U8,
    /// Quants.
    Quants,
    /// Indices into a codebook of ggml's.
    Indices,
}

/// `len` bytes at `offset` of a plain block, interleaved over the 16 rows in runs of `unit` bytes:
/// byte `j` of row `lane` goes to `16 * offset + (j / unit * 16 + lane) * unit + j % unit`.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name in ggml's struct.
    pub name: &'static str,
    /// What it holds.
    pub kind: FieldKind,
    /// Offset of its first byte in the plain block.
    pub offset: usize,
    /// Bytes.
    pub len: usize,
    /// 1, 2 or 4: bytes of one row that stay together.
    pub unit: usize,
}

/// The hosts that have a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// ggml, and ik_llama.cpp too.
    Both,
    /// ggml alone.
    Ggml,
    /// ik_llama.cpp alone.
    Ik,
}

/// A row of the table, as values.
#[derive(Clone, Copy, Debug)]
pub struct TypeRow {
    /// ggml's name in capitals.
    pub capitals: &'static str,
    /// ggml's number, above 100 ik_llama.cpp's.
    pub number: i32,
    /// ggml's name, as `ggml_type_name` gives it.
    pub name: &'static str,
    /// The hosts that have it.
    pub origin: Origin,
    /// Whether quantisers need an importance matrix to make it.
    pub by_importance: bool,
    /// Weights per block.
    pub block: usize,
    /// Bytes per block.
    pub bytes: usize,
    /// The fields of a block.
    pub fields: &'static [Field],
    /// Fields before the first block of a row.
    pub row_fields: &'static [Field],
}

/// Fields without gaps, from their names, kinds, bytes and units.
pub const fn fields<const N: usize>(list: [(&'static str, FieldKind, usize, usize); N]) -> [Field; N] {
    let mut fields = [Field { name: "", kind: FieldKind::U8, offset: 0, len: 0, unit: 1 }; N];
    let (mut i, mut offset) = (0, 0);
    while i < N {
        let (name, kind, len, unit) = list[i];
        fields[i] = Field { name, kind, offset, len, unit };
        offset += len;
        i += 1;
    }
    fields
}

/// Calls the macro `$then` with `[$args]` and all rows.
#[macro_export]
#[doc(hidden)]
macro_rules! for_weight_types {
    ([$($then:tt)*] $(, $args:tt)*) => { $($then)*! {
        [$($args)*]
        Q4_0 = 2, "q4_0", q4_0::Q4_0, of Both, 32 in 18,
            [d: F16 2/2, qs: Quants 16/4],
            "32 weights: f16 scale, 4-bit quants.";
        Q4_1 = 3, "q4_1", q4_1::Q4_1, of Both, 32 in 20,
            [d: F16 2/2, m: F16 2/2, qs: Quants 16/4],
            "32 weights: f16 scale and minimum, 4-bit quants.";
        Q5_0 = 6, "q5_0", q5_0::Q5_0, of Both, 32 in 22,
            [d: F16 2/2, qh: Quants 4/4, qs: Quants 16/4],
            "32 weights: f16 scale, 5-bit quants.";
        Q5_1 = 7, "q5_1", q5_1::Q5_1, of Both, 32 in 24,
            [d: F16 2/2, m: F16 2/2, qh: Quants 4/4, qs: Quants 16/4],
            "32 weights: f16 scale and minimum, 5-bit quants.";
        Q8_0 = 8, "q8_0", q8_0::Q8_0, of Both, 32 in 34,
            [d: F16 2/2, qs: Quants 32/4],
            "32 weights: f16 scale, 8-bit quants.";
        Q2_K = 10, "q2_K", q2_k::Q2K, of Both, 256 in 84,
            [scales: U8 16/1, qs: Quants 64/4, d: F16 2/2, dmin: F16 2/2],
            "256 weights: 16 groups with 4-bit scales and minima, 2-bit quants.";
        Q3_K = 11, "q3_K", q3_k::Q3K, of Both, 256 in 110,
            [hmask: Quants 32/4, qs: Quants 64/4, scales: U8 12/1, d: F16 2/2],
            "256 weights: 16 groups with 6-bit scales, 3-bit quants.";
        Q4_K = 12, "q4_K", q4_k::Q4K, of Both, 256 in 144,
            [d: F16 2/2, dmin: F16 2/2, scales: U8 12/1, qs: Quants 128/4],
            "256 weights: 8 groups with 6-bit scales and minima, 4-bit quants.";
        Q5_K = 13, "q5_K", q5_k::Q5K, of Both, 256 in 176,
            [d: F16 2/2, dmin: F16 2/2, scales: U8 12/1, qh: Quants 32/4, qs: Quants 128/4],
            "256 weights: 8 groups with 6-bit scales and minima, 5-bit quants.";
        Q6_K = 14, "q6_K", q6_k::Q6K, of Both, 256 in 210,
            [ql: Quants 128/4, qh: Quants 64/4, scales: U8 16/1, d: F16 2/2],
            "256 weights: 16 groups with 8-bit scales, 6-bit quants.";
        IQ2_XXS = 16, "iq2_xxs", iq2_xxs::Iq2Xxs, of Both by importance, 256 in 66,
            [d: F16 2/2, qs: Indices 64/4],
            "256 weights: 8 groups with 4-bit scales, 8-bit indices of 8 weights, 7-bit signs.";
        IQ2_XS = 17, "iq2_xs", iq2_xs::Iq2Xs, of Both by importance, 256 in 74,
            [d: F16 2/2, qs: Indices 64/4, scales: U8 8/1],
            "256 weights: 16 groups with 4-bit scales, 9-bit indices of 8 weights, 7-bit signs.";
        IQ3_XXS = 18, "iq3_xxs", iq3_xxs::Iq3Xxs, of Both by importance, 256 in 98,
            [d: F16 2/2, qs: Indices 64/1, signs: U8 32/4],
            "256 weights: 8 groups with 4-bit scales, 8-bit indices of 4 weights, 7-bit signs.";
        IQ1_S = 19, "iq1_s", iq1_s::Iq1S, of Both by importance, 256 in 50,
            [d: F16 2/2, qs: Indices 32/1, qh: Indices 16/2],
            "256 weights: 8 groups with 3-bit scales, 11-bit indices of 8 weights.";
        IQ4_NL = 20, "iq4_nl", iq4_nl::Iq4Nl, of Both, 32 in 18,
            [d: F16 2/2, qs: Quants 16/4],
            "32 weights: f16 scale, 4-bit indices into a fixed table.";
        IQ3_S = 21, "iq3_s", iq3_s::Iq3S, of Both, 256 in 110,
            [d: F16 2/2, qs: Indices 64/1, qh: Indices 8/1, signs: U8 32/4, scales: U8 4/1],
            "256 weights: 8 groups with 4-bit scales, 9-bit indices of 4 weights.";
        IQ2_S = 22, "iq2_s", iq2_s::Iq2S, of Both by importance, 256 in 82,
            [d: F16 2/2, qs: Indices 32/1, signs: U8 32/2, qh: Indices 8/1, scales: U8 8/1],
            "256 weights: 16 groups with 4-bit scales, 10-bit indices of 8 weights.";
        IQ4_XS = 23, "iq4_xs", iq4_xs::Iq4Xs, of Both, 256 in 136,
            [d: F16 2/2, scales_h: U8 2/2, scales_l: U8 4/1, qs: Quants 128/4],
            "256 weights: 8 groups with 6-bit scales, 4-bit indices into a fixed table.";
        IQ1_M = 29, "iq1_m", iq1_m::Iq1M, of Both by importance, 256 in 56,
            [qs: Indices 32/1, qh: Indices 16/1, scales: F16Nibbles 8/2],
            "256 weights: 16 groups with 3-bit scales, 11-bit indices of 8 weights.";
        TQ1_0 = 34, "tq1_0", tq1_0::Tq1_0, of Ggml, 256 in 54,
            [qs: Quants 48/4, qh: Quants 4/4, d: F16 2/2],
            "256 weights: f16 scale, -1, 0 or 1, five in a byte.";
        TQ2_0 = 35, "tq2_0", tq2_0::Tq2_0, of Ggml, 256 in 66,
            [qs: Quants 64/4, d: F16 2/2],
            "256 weights: f16 scale, -1, 0 or 1 in two bits.";
        MXFP4 = 39, "mxfp4", mxfp4::Mxfp4, of Both, 32 in 17,
            [e: E8M0 1/1, qs: Quants 16/4],
            "32 weights: 8-bit exponent, 4-bit floats.";
        NVFP4 = 40, "nvfp4", nvfp4::Nvfp4, of Ggml, 64 in 36,
            [d: UE4M3 4/1, qs: Quants 32/4],
            "64 weights: 4 groups with 8-bit float scales, 4-bit floats.";
        Q1_0 = 41, "q1_0", q1_0::Q1_0, of Ggml, 128 in 18,
            [d: F16 2/2, qs: Quants 16/4],
            "128 weights: f16 scale and its sign.";
        Q2_0 = 42, "q2_0", q2_0::Q2_0, of Ggml, 64 in 18,
            [d: F16 2/2, qs: Quants 16/1],
            "64 weights: f16 scale, -1, 0, 1 or 2 in two bits.";
        Q6_0 = 133, "q6_0", q6_0::Q6_0, of Ik, 32 in 26,
            [d: F16 2/2, qh: Quants 8/4, qs: Quants 16/4],
            "32 weights: f16 scale, 6-bit quants; ik_llama.cpp's.";
        IQ2_K = 137, "iq2_k", iq2_k::Iq2K, of Ik, 256 in 76,
            [d: F16 2/2, extra: U8 2/2, scales: U8 8/1, qs: Quants 64/4],
            "256 weights: 16 groups with 4-bit scales and one of two tables, 2-bit indices into it; ik_llama.cpp's.";
        IQ3_K = 138, "iq3_k", iq3_k::Iq3K, of Ik, 256 in 110,
            [d: F16 2/2, extra: U8 2/2, scales_h: U8 2/2, scales_l: U8 8/1, qs: Quants 64/4, qh: Quants 32/4],
            "256 weights: 16 groups with 4-bit scales, signs and one of two tables, 3-bit indices into it; ik_llama.cpp's.";
        IQ4_K = 139, "iq4_k", iq4_k::Iq4K, of Ik, 256 in 144,
            [d: F16 2/2, extra: U8 2/2, scales_h: U8 4/1, scales_l: U8 8/1, qs: Quants 128/4],
            "256 weights: 16 groups with 6-bit scales and one of two tables, 4-bit indices into it; ik_llama.cpp's.";
        IQ5_K = 140, "iq5_k", iq5_k::Iq5K, of Ik, 256 in 176,
            [d: F16 2/2, extra: U8 2/2, scales_h: U8 4/1, scales_l: U8 8/1, qs: Quants 128/4, qh: Quants 32/4],
            "256 weights: 16 groups with 6-bit scales and one of two tables, 5-bit indices into it; ik_llama.cpp's.";
        IQ6_K = 141, "iq6_k", iq6_k::Iq6K, of Ik, 256 in 212,
            [d: F16 2/2, extra: U8 2/2, scales: U8 16/1, qs: Quants 128/4, qh: Quants 64/4],
            "256 weights: 16 groups with 8-bit scales and one of two tables, 6-bit indices into it; ik_llama.cpp's.";
    } };
}

/// The table as values.
macro_rules! rows {
    ([] $(
        $variant:ident = $number:literal, $name:literal, $module:ident::$format:ident,
        of $origin:ident $(by $importance:ident)?, $block:literal in $bytes:literal,
        [$($field:ident: $kind:ident $len:literal/$unit:literal),*] $(after [$($rest:tt)*])?, $doc:literal;
    )*) => {
        /// All rows, in the order of their numbers.
        pub const ROWS: &[TypeRow] = &[$(TypeRow {
            capitals: stringify!($variant),
            number: $number,
            name: $name,
            origin: Origin::$origin,
            by_importance: false $(|| stringify!($importance).len() > 0)?,
            block: $block,
            bytes: $bytes,
            fields: const { &fields([$((stringify!($field), FieldKind::$kind, $len, $unit)),*]) },
            row_fields: const { &row_fields!($($($rest)*)?) },
        },)*];
    };
}

/// The fields of `after [...]`.
macro_rules! row_fields {
    ($($field:ident: $kind:ident $len:literal/$unit:literal),*) => {
        fields([$((stringify!($field), FieldKind::$kind, $len, $unit)),*])
    };
}

for_weight_types!([rows]);

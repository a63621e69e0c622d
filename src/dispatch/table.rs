//! The thresholds as a table, for people: `cargo xtask bench --thresholds` prints it.

use super::Storage;
use super::thresholds as at;
use crate::format::WeightType;
use crate::panel::plain;

/// What is known of a weight type. Numbers are rows of activations; `None`: never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// ggml's name.
    pub name: &'static str,
    /// Whether it is packed; if not, it is stored plain.
    pub is_packed: bool,
    /// From so many on packed weights (or plain ones) are multiplied here.
    pub min_m: usize,
    /// The same for weights in place.
    pub min_m_in_place: Option<usize>,
    /// From so many on by the tile GEMM in int8, if the activations allow it.
    pub int8: Option<usize>,
    /// The same in BF16.
    pub bf16: usize,
}

/// All types: packed ones in ggml's order, then plain ones.
pub fn lines() -> impl Iterator<Item = Line> {
    let packed = WeightType::ALL.iter().map(|ty| Line {
        name: ty.info().name,
        is_packed: true,
        min_m: Storage::Packed(*ty).min_m(),
        min_m_in_place: Some(Storage::InPlace(*ty).min_m()),
        int8: Some(at::min_tile_m(*ty)),
        bf16: at::MIN_TILE_M_BF16,
    });
    let plain = plain::TYPES.iter().map(|ty| {
        let min_m = Storage::Plain(ty.precision).min_m();
        Line { name: ty.name, is_packed: false, min_m, min_m_in_place: None, int8: None, bf16: min_m }
    });
    packed.chain(plain)
}

/// The thresholds that are no type's: name, value with its unit, what it decides.
pub fn constants() -> Vec<(&'static str, String, &'static str)> {
    let rows = |m: usize| format!("{m} rows");
    vec![
        ("MIN_M_DECODED", rows(at::MIN_M_DECODED), "from here on weights are decoded by the host and multiplied here"),
        (
            "MIN_TOKENS_ATTENTION",
            format!("{} tokens", at::MIN_TOKENS_ATTENTION),
            "from here on attention is computed here",
        ),
        ("MIN_QUERIES_ATTENTION", format!("{} queries", at::MIN_QUERIES_ATTENTION), "per head of the cache; the same"),
        ("MIN_M_EXACT_AMX", rows(at::MIN_M_EXACT_AMX), "from here on exact weights go to the tile unit"),
        ("MAX_M_REGISTERS", rows(at::MAX_M_REGISTERS), "up to here weights become integers in registers"),
        (
            "MAX_M_IN_PLACE",
            rows(at::MAX_M_IN_PLACE),
            "up to here weights in place are multiplied while they are packed",
        ),
        ("MAX_CREST", format!("{}", at::MAX_CREST), "amax / rms up to which all passes are allowed"),
        ("MARGIN", format!("{}", at::MARGIN), "share of the allowed error that an estimate may reach"),
        ("MARGIN_SPIKY", format!("{}", at::MARGIN_SPIKY), "the same where outliers move"),
        ("APART", format!("1 row in {}", at::APART), "may break its bound and be computed apart"),
        (
            "BYPASS_BYTES",
            format!("{} KiB", at::BYPASS_BYTES >> 10),
            "results of a thread from which on they bypass the caches",
        ),
        ("COST_OF_COLUMNS", rows(at::COST_OF_COLUMNS), "what reading 32 columns costs, in rows on tiles"),
        ("COST_OF_EXACT_ROW", rows(at::COST_OF_EXACT_ROW), "what a row on exact weights costs, in rows on tiles"),
        ("PARTS_PER_THREAD", format!("{}", at::PARTS_PER_THREAD), "parts that each thread's work is cut into"),
    ]
}

//! What the library itself says of its weight types and thresholds, for `cargo xtask bench --type-table` and
//! `--thresholds`.

use ggml_amx::dispatch;

/// One JSON object per type: how it is stored, and rows of activations from which on it is multiplied here, packed or plain and
/// in place, and by the tile unit, where int8 is good enough and where it takes BF16 (`null`: never). Then one per threshold.
pub fn lines() -> Vec<String> {
    let rows = |m: Option<usize>| m.map_or("null".to_string(), |m| m.to_string());
    let line = |line: dispatch::Line| {
        let stored = if line.is_packed { "packed" } else { "plain" };
        let (in_place, int8) = (rows(line.min_m_in_place), rows(line.int8));
        let (name, min_m, bf16) = (line.name, line.min_m, line.bf16);
        format!(
            "{{\"type\":\"{name}\",\"stored\":\"{stored}\",\"rows\":{min_m},\"in_place_rows\":{in_place},\
             \"int8_rows\":{int8},\"bf16_rows\":{bf16}}}"
        )
    };
    let constant = |(name, value, what): (&str, String, &str)| {
        format!("{{\"threshold\":\"{name}\",\"value\":\"{value}\",\"what\":\"{what}\"}}")
    };
    dispatch::lines().map(line).chain(dispatch::constants().into_iter().map(constant)).collect()
}

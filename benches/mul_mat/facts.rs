//! What the library itself says of its weight types, for the tables of `cargo xtask bench --type-table`.

use ggml_amx::dispatch;

/// One JSON object per type: how it is stored, and rows of activations from which on the tile unit multiplies it, where
/// int8 is good enough for it (`null`: never) and where it takes BF16.
pub fn lines() -> Vec<String> {
    let line = |line: dispatch::Line| {
        let stored = if line.is_packed { "packed" } else { "plain" };
        let int8 = line.int8.map_or("null".to_string(), |m| m.to_string());
        let (name, bf16) = (line.name, line.bf16);
        format!("{{\"type\":\"{name}\",\"stored\":\"{stored}\",\"int8_rows\":{int8},\"bf16_rows\":{bf16}}}")
    };
    dispatch::lines().map(line).collect()
}

//! What the library itself knows of its weight types, for the tables of `cargo xtask bench --type-table`.

use ggml_amx::format::WeightType;
use ggml_amx::panel::plain;
use ggml_amx::panel::precision::TILE_MR;

/// One JSON object per type: how it is stored, and rows of activations from which on the tile unit multiplies
/// it, where int8 is good enough for it (`null`: never) and where it takes BF16.
pub fn lines() -> Vec<String> {
    let line = |name: &str, stored: &str, int8: &str, bf16: usize| {
        format!("{{\"type\":\"{name}\",\"stored\":\"{stored}\",\"int8_rows\":{int8},\"bf16_rows\":{bf16}}}")
    };
    let packed = WeightType::ALL.iter().map(|ty| {
        let info = ty.info();
        line(info.name, "packed", &info.tile_rows.to_string(), TILE_MR + 1)
    });
    packed.chain(plain::TYPES.iter().map(|ty| line(ty.name, "plain", "null", ty.rows))).collect()
}

//! What the kernels eat: activations quantised once per operation, and packed weight matrices.

pub mod activation_tiles;
pub mod activations;
pub mod bf16;
pub mod columns;
pub mod decoded;
pub mod outliers;
pub mod pack;
pub mod plain;
pub mod precision;
pub mod requant;
pub mod row_error;
pub mod rows;
mod scale;
pub mod weight_error;
pub mod weight_sums;
pub mod weights;

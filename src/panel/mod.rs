//! What the kernels eat, in the order of the data:
//!
//! - `rows`: where rows of f32 lie; `activations` and `activation_tiles`: rows quantised for the kernels of exact
//!   weights and for the tile GEMM; `scale`: how a scale is chosen; `outliers`: which channels are kept out of int8
//!   tiles;
//! - `weights`: packed matrices; `in_place`, `plain`, `decoded`: rows that stay as the host has them; `weight_source`:
//!   any of these as one value; `requant`: packed panels made into tiles;
//! - `weight_sums`, `weight_error`, `row_error`: the error of a row of results, known before it is computed;
//! - `precision`: the precisions of the tile GEMM, and its sizes.

pub mod activation_tiles;
pub mod activations;
pub mod bf16;
pub mod decoded;
pub mod in_place;
pub mod outliers;
pub mod plain;
pub mod precision;
pub mod requant;
pub mod row_error;
pub mod rows;
mod scale;
pub mod transpose;
pub mod weight_error;
pub mod weight_source;
pub mod weight_sums;
pub mod weights;

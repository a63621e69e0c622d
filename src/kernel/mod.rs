//! The inner loops. [`exact_weights`] multiplies with the weights' own integers and scales; [`tile_gemm`] multiplies
//! many rows with weights requantised for the tile unit; [`glu`] combines the results of two products.

pub mod exact_weights;
pub mod glu;
mod task;
#[cfg(test)]
pub(crate) mod tests;
pub mod tile_gemm;

pub use task::{TILE_NR, Task};

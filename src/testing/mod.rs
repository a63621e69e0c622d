//! What tests of several rooms share. Compiled for tests only.

pub mod bound;
mod hashes;
pub mod products;
pub mod random;
pub mod reference;

use crate::format::{Field, FieldKind, WeightType, stand_in};

/// The weights of a plain block, by the stand-in for ggml's decoder.
fn decode_codebook(ty: WeightType, block: &[u8], out: &mut [f32]) {
    let decode = stand_in::decoder(ty.info().codebook.expect("a type without a reference").decoder);
    // SAFETY: one block, its weights.
    unsafe { decode(block.as_ptr().cast(), out.as_mut_ptr(), out.len() as i64) };
}

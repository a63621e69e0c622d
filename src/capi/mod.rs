//! The exported symbols, and nothing else: pointers are checked and turned into what the floors below
//! understand, panics end here. `include/ggml-amx.h` is generated from this module.

pub mod args;
pub mod backend;
mod behind;
pub mod ik;
mod jump;
pub mod standalone;
mod threads;
mod twin;
pub mod types;

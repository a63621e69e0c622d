//! The exported symbols, and nothing else: pointers are checked and turned into what the rooms below understand, and
//! panics end here ([`crate::diag::border`]). `include/ggml-amx.h` is generated from this module.
//!
//! - [`standalone`], [`threads`], [`args`], [`types`]: the API that needs no ggml
//! - [`backend`]: the drop-in surface for hosts
//! - [`ik`], [`jump`], [`behind`]: functions in front of ik_llama.cpp's
//! - [`server`], [`hosts`], [`twin`], [`callers`]: which host a caller belongs to, and who serves it

pub mod args;
pub mod backend;
mod behind;
mod callers;
mod hosts;
pub mod ik;
mod jump;
mod server;
pub mod standalone;
mod threads;
mod twin;
pub mod types;

//! ik_llama.cpp: a fork of llama.cpp that has no extra buffer types, but a seam of its own. All its matrix products on
//! the CPU go through a few exported C functions in a translation unit apart from their callers. So a linker (`--wrap`)
//! or a preloaded library can put ours in front of them.
//!
//! Every file uses only files above it:
//!
//! - [`abi`], [`symbols`]: structs and functions that only this ggml has
//! - [`discover`]: what is found out about it, beyond what both flavours have
//! - [`types`]: weight types that only it has
//! - [`host`]: the host of this process, once it was found out
//! - [`roles`]: which tensors graphs only multiply with, by name
//! - [`address_map`], [`packed`]: which tensors are packed, looked up by address
//! - [`handshake`]: the proof that the host multiplies through us, before anything is packed
//! - [`buffer_type`]: the buffer type `AMX`, and how a tensor in its buffers is stored
//! - [`companions`]: buffers of ours beside the host's
//! - [`loading`]: packing a model's tensors as they are allocated
//! - [`product`]: from nodes of a graph to products
//! - [`openmp`], [`team`]: the threads of a run of a graph: where they meet, and their work buffer
//! - [`node`], [`runs`]: the runs of graphs that are under way, and their nodes
//! - [`calls`]: from the addresses that a kernel gets to a node of a run
//! - [`unpack`]: rows of packed weights for the host's own kernels
//! - [`kernels`], [`attention`]: what is called in front of the host's kernels
//! - [`graph_compute`], [`backend`]: what is called in front of its other functions
//! - [`surface`]: the other way in: forks that ask by function who computes a node

#[allow(missing_docs)] // fields are documented where ggml declares them
pub mod abi;
mod address_map;
pub mod attention;
pub mod backend;
mod buffer_type;
mod calls;
mod companions;
mod discover;
pub mod graph_compute;
pub mod handshake;
mod host;
pub mod kernels;
pub mod loading;
mod node;
mod openmp;
mod packed;
mod product;
mod roles;
mod runs;
pub mod surface;
mod symbols;
mod team;
#[cfg(test)]
mod tests;
mod types;
mod unpack;

use crate::cpu::sync; // for `address_map`, which the models of tests/ give another one
pub use host::IkHost;

//! `ggml-amx`: an AMX weight path for any ggml host.
//!
//! The crate replaces ggml's C++ AMX backend. It holds quantised weights in a packed form that the tile unit and
//! AVX-512 VNNI read well, and computes `MUL_MAT` on them. Data flows straight down these rooms, and imports point
//! down only:
//!
//! | room | what it does |
//! |---|---|
//! | [`capi`] | the exported symbols; panics and NULLs stop here |
//! | [`host`] | ggml's structs, found out at run time; what a host calls: buffer type, C++ objects, seam |
//! | [`attention`] | FLASH_ATTN_EXT: softmax between two products on the tile unit |
//! | [`buffer`] | packing and unpacking of any byte range; the memory that holds weights |
//! | [`matmul`] | the course of one product, split over threads |
//! | [`kernel`] | the inner loops, per instruction set |
//! | [`dispatch`] | every decision: who multiplies, by which kernel, in which precision |
//! | [`panel`] | what the inner loops read: quantised activations, packed weight matrices |
//! | [`format`] | the table of GGUF weight types, one file per type |
//! | [`cpu`] | features, AMX permission, tile configuration, memory |
//! | [`diag`] | log, errors, environment |
//! | [`process`] | which process this is after a fork; locks, and things made once |
//!
//! The C surface is `include/ggml-amx.h`. The modules are public for this crate's own tests and benchmarks, and promise
//! no stability.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("ggml-amx is for x86-64: AMX exists nowhere else");
#[cfg(not(target_os = "linux"))]
compile_error!("ggml-amx supports Linux only for now");

pub mod attention;
pub mod buffer;
pub mod capi;
pub mod cpu;
pub mod diag;
pub mod dispatch;
pub mod format;
pub mod host;
pub mod kernel;
pub mod matmul;
pub mod panel;
pub mod process;
#[cfg(test)]
mod testing;

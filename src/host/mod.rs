//! The host: a ggml in the same process. The layouts of its structs are found out, its functions are called, and it
//! calls ours. Nothing above this room follows a pointer of the host's before [`Host::get`] (or that of [`ik`]) has
//! succeeded.
//!
//! From the bottom up; imports point down only:
//!
//! - [`flavour`], [`loader`], [`symbols`], [`decoders`], [`hbm`]: what the process has, and where
//! - [`abi`], [`layout`], [`tensor`], [`objects`], [`peek`]: structs of the host's
//! - [`discover`], [`core`], [`foreign`], [`llama`]: a host whose layout was found out
//! - [`operands`], [`waiting`], [`registry`], [`op`], [`driver`]: nodes, and who computes them
//! - [`budget`], [`proof`], [`cxx`], [`callbacks`], [`buffer_type`]: what the host calls
//! - [`ik`]: the same for ik_llama.cpp

#[allow(missing_docs)] // fields are documented where ggml declares them
pub mod abi;
pub mod budget;
pub mod buffer_type;
mod callbacks;
mod core;
mod cxx;
mod decoders;
mod discover;
pub mod driver;
mod flavour;
mod foreign;
mod hbm;
pub mod ik;
mod layout;
mod llama;
pub(crate) mod loader;
mod objects;
pub mod op;
mod operands;
pub mod peek;
mod proof;
mod registry;
pub(crate) mod symbols;
mod tensor;
mod waiting;

pub use core::Core;
pub use decoders::make_readable;
pub use flavour::Flavour;
pub use layout::{HostTypes, Ops};
pub use llama::Host;
pub use objects::{Buffer, BufferInterface, RawBuffer, RawBufferType};
pub use symbols::Symbols;
pub use tensor::{RawTensor, Tensor};

//! How a weight tensor is stored, and what code that does not read its bytes wants to know of that.

use crate::dispatch::Storage;
use crate::format::ACT_BLOCK;
use crate::kernel::tile_gemm;
use crate::panel::decoded::DecodedType;
use crate::panel::plain::PlainType;
use crate::panel::weights::Shape;

/// How a weight tensor is stored.
#[derive(Clone, Copy, Debug)]
pub enum Stored {
    /// In panels of 16 rows.
    Packed(Shape),
    /// As GGUF has it, of a type that can be packed: panels are made on the way.
    InPlace {
        /// Its shape.
        shape: Shape,
        /// Rows that the host has interleaved: 1, 4, 8 or 16.
        interleave: usize,
    },
    /// As GGUF has it, of a type that tiles are made of directly.
    Plain(&'static PlainType),
    /// As the host has it, of a type that only the host can read.
    Decoded(&'static DecodedType),
}

/// What a [`Stored`] is like.
#[derive(Clone, Copy, Debug)]
pub struct StoredInfo {
    /// ggml's name of the type.
    pub name: &'static str,
    /// ggml's number of the type.
    pub number: i32,
    /// What matters for the choice of a kernel.
    pub storage: Storage,
    /// Weights per block.
    pub block: usize,
    /// Bytes per block.
    pub bytes: usize,
    /// Weights per sum of activations on exact weights.
    pub group: usize,
    /// BF16 numbers that stand for one activation, at most.
    pub planes: usize,
    /// Rows that lie interleaved: nothing less can be read.
    pub interleave: usize,
    /// The shape of its panels, if there are some or they are made on the way.
    pub shape: Option<Shape>,
}

impl StoredInfo {
    fn quantised(storage: Storage, shape: Shape, interleave: usize) -> Self {
        let (number, ty) = (shape.ty as i32, shape.ty.info());
        let (name, block, bytes, group) = (ty.name, ty.block, ty.bytes, ty.group);
        Self { name, number, storage, block, bytes, group, planes: 1, interleave, shape: Some(shape) }
    }
}

impl Stored {
    /// What it is like.
    pub fn info(&self) -> StoredInfo {
        match *self {
            Stored::Packed(shape) => StoredInfo::quantised(Storage::Packed(shape.ty), shape, 1),
            Stored::InPlace { shape, interleave } => {
                StoredInfo::quantised(Storage::InPlace(shape.ty), shape, interleave)
            }
            Stored::Plain(ty) => StoredInfo {
                name: ty.name,
                number: ty.number,
                storage: Storage::Plain(ty.precision),
                block: 1,
                bytes: ty.bytes,
                group: ACT_BLOCK,
                planes: ty.precision.planes(),
                interleave: 1,
                shape: None,
            },
            Stored::Decoded(ty) => StoredInfo {
                name: ty.name,
                number: ty.number,
                storage: Storage::Decoded,
                block: ty.block,
                bytes: ty.bytes,
                group: ACT_BLOCK,
                planes: 1,
                interleave: ty.interleave,
                shape: None,
            },
        }
    }

    /// Whether it is in panels.
    pub fn is_packed(&self) -> bool {
        matches!(self, Stored::Packed(_))
    }

    /// Scratch that the tile GEMM needs, besides its own, to make panels of rows of `k` weights that are stored so.
    pub fn pack_bytes(&self, k: usize) -> usize {
        match self {
            Stored::InPlace { .. } => tile_gemm::PACK_BYTES,
            Stored::Decoded(_) => tile_gemm::decoded_bytes(k),
            Stored::Packed(_) | Stored::Plain(_) => 0,
        }
    }
}

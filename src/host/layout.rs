//! What a host is like, as [`super::discover`] finds it out at run time: the layout of its structs, its operation
//! numbers, its weight types. Both flavours have the same description, and nothing else in `host/` knows an offset.

use crate::format::WeightType;
use crate::panel::plain::{self, PlainType};

/// Operation numbers of a host, read off real graph nodes (they move between ggml versions).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ops {
    /// `GGML_OP_MUL_MAT`.
    pub mul_mat: i32,
    /// `GGML_OP_MUL_MAT_ID`.
    pub mul_mat_id: i32,
    /// `NONE`, `RESHAPE`, `VIEW`, `PERMUTE`, `TRANSPOSE`: nodes that read no data.
    pub no_data: [i32; 5],
}

/// Which of our weight types a host has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostTypes {
    /// One bit for each of [`WeightType::ALL`].
    packed: u64,
    /// One bit for each of [`plain::TYPES`].
    plain: u64,
}

impl HostTypes {
    fn plain_bit(ty: &PlainType) -> u64 {
        1 << plain::TYPES.iter().position(|t| t.number == ty.number).expect("one of all types")
    }

    /// Of these types those that stay plain.
    pub(super) fn only_plain(self) -> Self {
        Self { packed: 0, ..self }
    }

    pub(super) fn add_plain(&mut self, ty: &PlainType) {
        self.plain |= Self::plain_bit(ty);
    }

    pub(super) fn has_plain(self, ty: &PlainType) -> bool {
        self.plain & Self::plain_bit(ty) != 0
    }

    fn bit(ty: WeightType) -> u64 {
        const { assert!(WeightType::ALL.len() <= 64) };
        1 << WeightType::ALL.iter().position(|t| *t == ty).expect("one of all types")
    }

    pub(super) fn add(&mut self, ty: WeightType) {
        self.packed |= Self::bit(ty);
    }

    pub(super) fn has(self, ty: WeightType) -> bool {
        self.packed & Self::bit(ty) != 0
    }
}

/// Offsets in `struct ggml_tensor`, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // ggml's names
pub struct TensorLayout {
    /// Bytes of the struct.
    pub size: usize,
    pub ty: usize,
    pub buffer: usize,
    pub ne: usize,
    pub nb: usize,
    pub op: usize,
    pub op_params: usize,
    pub src: usize,
    /// `GGML_MAX_SRC`.
    pub sources: usize,
    pub view_src: usize,
    pub view_offs: usize,
    pub data: usize,
    pub name: usize,
    /// `GGML_MAX_NAME`.
    pub name_bytes: usize,
    /// Where the host's buffer type for repacked weights writes it. `None` if none is written; then we write none
    /// either.
    pub extra: Option<usize>,
}

/// Fields of `struct ggml_backend_buffer`, in words from its start. It starts with its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // ggml's names
pub struct BufferLayout {
    /// How many members the interface has.
    pub members: usize,
    pub get_name: Option<usize>,
    pub free_buffer: usize,
    pub get_base: usize,
    pub init_tensor: usize,
    pub memset_tensor: Option<usize>,
    pub set_tensor: usize,
    pub get_tensor: usize,
    pub set_tensor_2d: Option<usize>,
    pub get_tensor_2d: Option<usize>,
    pub cpy_tensor: Option<usize>,
    pub clear: usize,
    pub reset: Option<usize>,
    pub buft: usize,
    pub context: usize,
    pub size: usize,
    /// The word that starts with it, a number of 32 bits.
    pub usage: Option<usize>,
}

/// Fields of `struct ggml_backend_buffer_type`, in words from its start. It starts with its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // ggml's names
pub struct BufferTypeLayout {
    pub get_name: usize,
    pub alloc_buffer: usize,
    pub get_alignment: usize,
    pub get_max_size: Option<usize>,
    pub get_alloc_size: usize,
    pub is_host: usize,
    /// The word after the interface; the context is the word after that. `None` in hosts without devices, where the
    /// context is not needed.
    pub device: Option<usize>,
}

/// A host's structs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLayout {
    /// `struct ggml_tensor`.
    pub tensor: TensorLayout,
    /// `struct ggml_backend_buffer`.
    pub buffer: BufferLayout,
    /// `struct ggml_backend_buffer_type`.
    pub buffer_type: BufferTypeLayout,
}

#[cfg(test)]
impl TensorLayout {
    /// ggml 0.25's, for tests without a host.
    pub const SAMPLE: Self = Self {
        size: 336,
        ty: 0,
        buffer: 8,
        ne: 16,
        nb: 48,
        op: 80,
        op_params: 84,
        src: 152,
        sources: 10,
        view_src: 232,
        view_offs: 240,
        data: 248,
        name: 256,
        name_bytes: 64,
        extra: Some(320),
    };
}

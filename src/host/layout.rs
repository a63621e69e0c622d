//! Where a host has what, found by [`super::discover`] at run time. Both flavours fill the same description, and nothing
//! else in `host/` knows an offset.

/// Offsets in `struct ggml_tensor`, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // ggml's names
pub struct TensorLayout {
    /// Of the struct.
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
    /// Where the host's buffer type for repacked weights puts one; where it does not, nothing is written.
    pub extra: Option<usize>,
}

/// Words in `struct ggml_backend_buffer`, whose interface comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // ggml's names
pub struct BufferLayout {
    /// Members of the interface.
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
    /// A number of 32 bits at the start of this word.
    pub usage: Option<usize>,
}

/// Words in `struct ggml_backend_buffer_type`, whose interface comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // ggml's names
pub struct BufferTypeLayout {
    pub get_name: usize,
    pub alloc_buffer: usize,
    pub get_alignment: usize,
    pub get_max_size: Option<usize>,
    pub get_alloc_size: usize,
    pub is_host: usize,
    /// Behind the interface; the context follows. Hosts without devices have none, and their context is not needed.
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

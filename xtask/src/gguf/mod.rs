//! GGUF files: what a file says about itself, reading and writing it.

mod random;
mod read;
mod types;
mod write;

pub use random::{Content, Normal, Tensor, write as write_random};
pub use read::Reader;
pub use types::{Origin, Type, all, by_id, by_name};
pub use write::write;

/// Where tensor data must begin.
pub const ALIGNMENT: u64 = 32;
/// The key every file must begin with.
const MAGIC: &[u8; 4] = b"GGUF";
/// The only key that changes how the rest is read.
const ALIGNMENT_KEY: &str = "general.alignment";

/// Numbers of metadata kinds.
mod kind {
    pub const U32: u32 = 4;
    pub const F32: u32 = 6;
    pub const TEXT: u32 = 8;
    pub const ARRAY: u32 = 9;
}

/// Metadata of any kind, as it lies in the file: what is not understood is carried over unchanged.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    kind: u32,
    bytes: Vec<u8>,
}

/// Key and value.
pub type Entry = (String, Value);

impl Value {
    /// The number, if it is one of this kind.
    pub fn as_u32(&self) -> Option<u32> {
        let bytes = self.bytes.as_slice().try_into().ok()?;
        (self.kind == kind::U32).then(|| u32::from_le_bytes(bytes))
    }

    /// The number, if it is one of this kind.
    pub fn as_f32(&self) -> Option<f32> {
        let bytes = self.bytes.as_slice().try_into().ok()?;
        (self.kind == kind::F32).then(|| f32::from_le_bytes(bytes))
    }

    /// A list of texts.
    pub fn texts(list: &[&str]) -> Self {
        let mut bytes = kind::TEXT.to_le_bytes().to_vec();
        bytes.extend((list.len() as u64).to_le_bytes());
        list.iter().for_each(|t| put_text(&mut bytes, t));
        Self { kind: kind::ARRAY, bytes }
    }
}

impl From<u32> for Value {
    fn from(n: u32) -> Self {
        Self { kind: kind::U32, bytes: n.to_le_bytes().into() }
    }
}

impl From<f32> for Value {
    fn from(n: f32) -> Self {
        Self { kind: kind::F32, bytes: n.to_le_bytes().into() }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        let mut bytes = Vec::new();
        put_text(&mut bytes, text);
        Self { kind: kind::TEXT, bytes }
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A tensor without its data.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    /// Its name.
    pub name: String,
    /// Dimensions, the row length first.
    pub dimensions: Vec<u64>,
    /// What its rows are made of.
    pub ty: Type,
}

impl Info {
    /// A tensor of F32.
    pub fn f32(name: impl Into<String>, dimensions: impl Into<Vec<u64>>) -> Self {
        Self { name: name.into(), dimensions: dimensions.into(), ty: types::F32 }
    }

    /// Number of weights.
    pub fn elements(&self) -> u64 {
        self.dimensions.iter().product()
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> u64 {
        self.ty.head + self.dimensions[0] / self.ty.block * self.ty.bytes
    }

    /// Bytes of all rows.
    pub fn bytes(&self) -> u64 {
        self.row_bytes() * self.dimensions[1..].iter().product::<u64>()
    }

    /// Two dimensions or more: what matrices are multiplied with.
    pub fn is_matrix(&self) -> bool {
        self.dimensions.len() > 1
    }
}

#[cfg(test)]
mod tests;

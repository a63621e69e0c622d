//! The weight types of ggml: number, name, and the blocks rows are made of. Those that the library packs are in its
//! table.

#[path = "../../../src/format/table.rs"]
#[allow(dead_code)] // not all columns matter here
mod table;

pub use table::Origin;
use table::{ROWS, TypeRow};

/// One type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Type {
    /// ggml's number for it.
    pub id: u32,
    /// ggml's name for it, in capitals.
    pub name: &'static str,
    /// Weights in a block.
    pub block: u64,
    /// Bytes of a block.
    pub bytes: u64,
    /// Bytes of a row in front of its blocks.
    pub head: u64,
    /// Which hosts have it.
    pub origin: Origin,
    /// Whether quantisers refuse to make it without an importance matrix.
    pub by_importance: bool,
    /// Whether this library packs it.
    pub is_packed: bool,
}

impl Type {
    /// Only ik_llama.cpp has it.
    pub fn is_of_ik(self) -> bool {
        self.origin == Origin::Ik
    }

    /// ik_llama.cpp's own, and not packed by this library.
    pub fn stays_with_ik(self) -> bool {
        self.is_of_ik() && !self.is_packed
    }

    fn of_row(row: &TypeRow) -> Self {
        Type {
            id: row.number as u32,
            name: row.capitals,
            block: row.block as u64,
            bytes: row.bytes as u64,
            head: row.row_fields.iter().map(|f| f.len as u64).sum(),
            origin: row.origin,
            by_importance: row.by_importance,
            is_packed: true,
        }
    }
}

/// A type of floats.
const fn floats(id: u32, name: &'static str, bytes: u64) -> Type {
    Type { id, name, block: 1, bytes, head: 0, origin: Origin::Both, by_importance: false, is_packed: false }
}

/// A type of ik_llama.cpp that is not packed.
const fn ik(id: u32, name: &'static str, bytes: u64, head: u64) -> Type {
    Type { id, name, block: 256, bytes, head, origin: Origin::Ik, by_importance: false, is_packed: false }
}

/// Plain floats.
pub const F32: Type = floats(0, "F32", 4);
/// Plain half floats.
pub const F16: Type = floats(1, "F16", 2);

/// Types that are not packed.
const OTHERS: [Type; 9] = [
    F32,
    F16,
    floats(30, "BF16", 2),
    ik(144, "IQ4_KS", 136, 4),
    ik(145, "IQ2_KS", 70, 2),
    ik(146, "IQ4_KSS", 128, 4),
    ik(152, "IQ5_KS", 168, 4),
    ik(156, "IQ3_KS", 102, 2),
    ik(157, "IQ2_KL", 86, 2),
];

/// Every type a file of ggml 0.25 can hold weights in, and types of ik_llama.cpp; those that are packed first.
pub fn all() -> impl Iterator<Item = Type> {
    ROWS.iter().map(Type::of_row).chain(OTHERS)
}

/// The type of this number.
pub fn by_id(id: u32) -> Option<Type> {
    all().find(|t| t.id == id)
}

/// The type of this name, in capitals.
pub fn by_name(name: &str) -> Option<Type> {
    all().find(|t| t.name == name)
}

//! The weight types of ggml: number, name, and the blocks rows are made of.

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
}

impl Type {
    /// Only ik_llama.cpp has it.
    pub fn is_of_ik(self) -> bool {
        self.id > 100
    }

    /// ik_llama.cpp's own, and not packed by this library: those whose rows have something in front of their blocks.
    pub fn stays_with_ik(self) -> bool {
        self.is_of_ik() && self.head > 0
    }
}

const fn ty(id: u32, name: &'static str, block: u64, bytes: u64) -> Type {
    Type { id, name, block, bytes, head: 0 }
}

/// A type of ik_llama.cpp.
const fn ik(id: u32, name: &'static str, bytes: u64, head: u64) -> Type {
    Type { id, name, block: 256, bytes, head }
}

/// Plain floats.
pub const F32: Type = ty(0, "F32", 1, 4);
/// Plain half floats.
pub const F16: Type = ty(1, "F16", 1, 2);

/// Every type a file of ggml 0.25 can hold weights in, and types of ik_llama.cpp.
const TYPES: [Type; 40] = [
    F32,
    F16,
    ty(2, "Q4_0", 32, 18),
    ty(3, "Q4_1", 32, 20),
    ty(6, "Q5_0", 32, 22),
    ty(7, "Q5_1", 32, 24),
    ty(8, "Q8_0", 32, 34),
    ty(10, "Q2_K", 256, 84),
    ty(11, "Q3_K", 256, 110),
    ty(12, "Q4_K", 256, 144),
    ty(13, "Q5_K", 256, 176),
    ty(14, "Q6_K", 256, 210),
    ty(16, "IQ2_XXS", 256, 66),
    ty(17, "IQ2_XS", 256, 74),
    ty(18, "IQ3_XXS", 256, 98),
    ty(19, "IQ1_S", 256, 50),
    ty(20, "IQ4_NL", 32, 18),
    ty(21, "IQ3_S", 256, 110),
    ty(22, "IQ2_S", 256, 82),
    ty(23, "IQ4_XS", 256, 136),
    ty(29, "IQ1_M", 256, 56),
    ty(30, "BF16", 1, 2),
    ty(34, "TQ1_0", 256, 54),
    ty(35, "TQ2_0", 256, 66),
    ty(39, "MXFP4", 32, 17),
    ty(40, "NVFP4", 64, 36),
    ty(41, "Q1_0", 128, 18),
    ty(42, "Q2_0", 64, 18),
    ty(133, "Q6_0", 32, 26),
    ik(137, "IQ2_K", 76, 0),
    ik(138, "IQ3_K", 110, 0),
    ik(139, "IQ4_K", 144, 0),
    ik(140, "IQ5_K", 176, 0),
    ik(141, "IQ6_K", 212, 0),
    ik(144, "IQ4_KS", 136, 4),
    ik(145, "IQ2_KS", 70, 2),
    ik(146, "IQ4_KSS", 128, 4),
    ik(152, "IQ5_KS", 168, 4),
    ik(156, "IQ3_KS", 102, 2),
    ik(157, "IQ2_KL", 86, 2),
];

/// The type of this number.
pub fn by_id(id: u32) -> Option<Type> {
    TYPES.into_iter().find(|t| t.id == id)
}

/// The type of this name, in capitals.
pub fn by_name(name: &str) -> Option<Type> {
    TYPES.into_iter().find(|t| t.name == name)
}

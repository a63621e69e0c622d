//! What ik_llama.cpp's IQ2_K to IQ6_K share: 256 weights in 16 groups of 16. A block begins with f16 d and 16 bits;
//! bit `g` chooses the second table of values for group `g`, which is the first plus a constant (ggml-common.h there).

use std::arch::x86_64::*;

use super::grids::{byte_lanes, word_lanes};
use super::q4_0::f16_lanes;
use super::{Field, GroupScales, LANES, f16_at, field};

/// Where the packed 16 bits start.
const CHOICES: usize = 2 * LANES;
/// d and the bits.
pub(super) const FIELDS: [Field; 2] = [field(0, 2, 2), field(2, 2, 2)];

/// `1 << bit`. A table, as those of shifts below: broadcasts from memory are free, those from a register are not.
static BITS: [i32; 16] = {
    let mut bits = [0; 16];
    let mut g = 0;
    while g < 16 {
        bits[g] = 1 << g;
        g += 1;
    }
    bits
};

/// Bit `bit` of the packed 16-bit number of row `lane` at `at`.
pub(super) fn bit_of(block: &[u8], at: usize, bit: usize, lane: usize) -> bool {
    block[at + 2 * lane + bit / 8] >> (bit % 8) & 1 == 1
}

/// [`bit_of`] of all rows.
///
/// # Safety
/// 32 readable bytes at `at`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn bits_avx512(block: *const u8, at: usize, bit: usize) -> __mmask16 {
    // SAFETY: as promised by the caller.
    let words = unsafe { word_lanes(block.add(at)) };
    _mm512_test_epi32_mask(words, _mm512_set1_epi32(BITS[bit % 16]))
}

/// Whether group `group` of the row that position `i` of the group's layout belongs to has the second table.
pub(super) fn has_second(block: &[u8], group: usize, i: usize) -> bool {
    bit_of(block, CHOICES, group, i % 64 / 4)
}

/// `value` in every byte of the rows whose group `group` has the second table, 0 elsewhere.
///
/// # Safety
/// `block` must point to a packed block.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn if_second_avx512(block: *const u8, group: usize, value: u8) -> __m512i {
    // SAFETY: as promised by the caller.
    let second = unsafe { bits_avx512(block, CHOICES, group) };
    _mm512_maskz_set1_epi32(second, i32::from_le_bytes([value; 4]))
}

/// The scales of IQ4_K and IQ5_K, `d * (ls - 32)`. Behind d and the bits: 4 bytes with the upper two of six bits, four
/// groups in a byte, and 8 with the lower four, two groups in a byte.
pub(super) mod six_bits {
    use super::*;

    /// Of all that is before the quants.
    pub const FIELDS: [Field; 4] = [super::FIELDS[0], super::FIELDS[1], field(4, 4, 1), field(8, 8, 1)];
    /// Bytes of it.
    pub const BYTES: usize = 16;
    const HIGH: usize = 4 * LANES;
    const LOW: usize = 8 * LANES;
    /// What brings a group's low bits to bit 0, and its high ones to bit 4.
    static LOW_SHIFTS: [i32; 2] = [0, 4];
    static HIGH_TURNS: [i32; 4] = [4, 2, 0, 30];

    /// Of group `group` (0..16).
    pub fn scales(block: &[u8], group: usize) -> GroupScales {
        let scale = std::array::from_fn(|lane| {
            let high = block[HIGH + group / 4 * LANES + lane] >> (group % 4 * 2) & 3;
            let low = block[LOW + group / 2 * LANES + lane] >> (group % 2 * 4) & 15;
            f16_at(block, 2 * lane) * (i32::from(low | high << 4) - 32) as f32
        });
        GroupScales { scale, ..Default::default() }
    }

    /// [`scales`] in registers.
    ///
    /// # Safety
    /// `block` must point to a packed block.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn scales_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        let (d, high, low) = unsafe {
            (
                f16_lanes(block),
                byte_lanes(block.add(HIGH + group / 4 * LANES)),
                byte_lanes(block.add(LOW + group / 2 * LANES)),
            )
        };
        let low = _mm512_srlv_epi32(low, _mm512_set1_epi32(LOW_SHIFTS[group % 2]));
        let high = _mm512_rolv_epi32(high, _mm512_set1_epi32(HIGH_TURNS[group % 4]));
        let (low, high) =
            (_mm512_and_si512(low, _mm512_set1_epi32(15)), _mm512_and_si512(high, _mm512_set1_epi32(0x30)));
        let ls = _mm512_sub_epi32(_mm512_or_si512(low, high), _mm512_set1_epi32(32));
        (_mm512_mul_ps(d, _mm512_cvtepi32_ps(ls)), _mm512_setzero_ps())
    }
}

//! What ik_llama.cpp's IQ2_K to IQ6_K share: 256 weights in 16 groups of 16, whose quants are indices into one of two
//! tables. A block begins with f16 d and 16 bits; bit `g` chooses the second table for group `g`. The second table is
//! the first plus [`Format::STEP`] (ggml-common.h there).

use std::arch::x86_64::*;

use super::lanes::dword_lanes;
use super::{Format, LANES};

/// Packed offset of the 16 bits.
const CHOICES: usize = 2 * LANES;

/// `1 << bit` in both halves. A table, because a broadcast from memory costs nothing, one from a register does.
static BITS: [i32; 16] = {
    let mut bits = [0; 16];
    let mut g = 0;
    while g < 16 {
        bits[g] = 0x10001 << g;
        g += 1;
    }
    bits
};

/// Bit `bit` of row `lane` in a field of 16-bit numbers at `at`.
pub(super) fn bit_of(block: &[u8], at: usize, bit: usize, lane: usize) -> bool {
    block[at + 2 * lane + bit / 8] >> (bit % 8) & 1 == 1
}

/// [`bit_of`] of all rows.
///
/// # Safety
/// 64 readable bytes at `at`: the 32 of the field, and 32 that do not matter.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn bits_avx512(block: *const u8, at: usize, bit: usize) -> __mmask16 {
    // SAFETY: 64 bytes are readable there.
    let words = unsafe { dword_lanes(block.add(at)) };
    _mm512_test_epi16_mask(words, _mm512_set1_epi32(BITS[bit % 16])) as __mmask16
}

/// Whether group `group` uses the second table in the row of position `i` (see [`super::quants`]).
pub(super) fn has_second(block: &[u8], group: usize, i: usize) -> bool {
    bit_of(block, CHOICES, group, i % 64 / 4)
}

/// What the table that position `i` of group `group` uses has more than the first.
pub(super) fn step<F: Format>(block: &[u8], group: usize, i: usize) -> i8 {
    if has_second(block, group, i) { F::STEP as i8 } else { 0 }
}

/// [`has_second`] of all rows.
///
/// # Safety
/// `block` must be a whole block, as [`Format`] says.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn second_avx512(block: *const u8, group: usize) -> __mmask16 {
    // SAFETY: a whole block, which has more than 64 bytes behind the choices.
    unsafe { bits_avx512(block, CHOICES, group) }
}

//! What ik_llama.cpp's IQ2_K to IQ6_K share: 256 weights in 16 groups of 16. A block begins with f16 d and 16 bits;
//! bit `g` chooses the second table of values for group `g`, which is the first plus a constant (ggml-common.h there).

use std::arch::x86_64::*;

use super::grids::byte_lanes;
use super::q4_0::f16_lanes;
use super::{BlockScales, Format, GroupScales, LANES, f16_at};

/// Where the packed 16 bits start.
const CHOICES: usize = 2 * LANES;

/// `1 << bit` in both halves. A table, as those of shifts below: broadcasts from memory are free, those from a register are not.
static BITS: [i32; 16] = {
    let mut bits = [0; 16];
    let mut g = 0;
    while g < 16 {
        bits[g] = 0x10001 << g;
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
/// 64 readable bytes at `at`: the numbers, and as many that do not matter.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn bits_avx512(block: *const u8, at: usize, bit: usize) -> __mmask16 {
    // SAFETY: as promised by the caller.
    let words = unsafe { _mm512_loadu_si512(block.add(at).cast()) };
    _mm512_test_epi16_mask(words, _mm512_set1_epi32(BITS[bit % 16])) as __mmask16
}

/// Whether group `group` of the row that position `i` of the group's layout belongs to has the second table.
pub(super) fn has_second(block: &[u8], group: usize, i: usize) -> bool {
    bit_of(block, CHOICES, group, i % 64 / 4)
}

/// [`has_second`] of all rows.
///
/// # Safety
/// `block` must point to a packed block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn second_avx512(block: *const u8, group: usize) -> __mmask16 {
    // SAFETY: as promised by the caller.
    unsafe { bits_avx512(block, CHOICES, group) }
}

/// [`Format::quants_avx512`] from [`Format::first_quants_avx512`].
///
/// # Safety
/// `block` must point to a packed block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn quants_avx512<F: Format>(block: *const u8, group: usize) -> [__m512i; 8] {
    // SAFETY: as promised by the caller.
    let (mut rows, second) = unsafe { F::first_quants_avx512(block, group) };
    let step = _mm512_maskz_set1_epi32(second, i32::from_le_bytes([F::STEP as u8; 4]));
    for row in &mut rows[..4] {
        *row = _mm512_add_epi8(*row, step);
    }
    rows
}

/// The scales of IQ4_K and IQ5_K, `d * (ls - 32)`. Behind d and the bits: 4 bytes with the upper two of six bits, four
/// groups in a byte, and 8 with the lower four, two groups in a byte.
pub(super) mod six_bits {
    use super::*;

    /// Of all that is before the quants.
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

    /// [`scales_avx512`] of all groups; the six bits of four are put together at once.
    ///
    /// # Safety
    /// `block` must point to a packed block.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn block_scales_avx512<F: Format>(block: *const u8, out: &mut BlockScales) {
        let (low_mask, high_mask, zero) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30), _mm512_set1_epi8(32));
        // SAFETY: the caller's block is large enough.
        unsafe {
            let (d, high) = (f16_lanes(block), _mm512_loadu_si512(block.add(HIGH).cast()));
            let mut vectors = [_mm512_setzero_si512(); 4];
            for half in 0..2 {
                let low = _mm512_loadu_si512(block.add(LOW + half * 64).cast());
                // Each quarter of `low` has two groups, of `high` four: those with the same groups meet.
                let high = if half == 0 {
                    _mm512_shuffle_i64x2::<0x50>(high, high)
                } else {
                    _mm512_shuffle_i64x2::<0xfa>(high, high)
                };
                let high = _mm512_mask_srli_epi16::<4>(high, 0xff00_ff00, high);
                let numbers = |low, high| {
                    let number = _mm512_or_si512(_mm512_and_si512(low, low_mask), _mm512_and_si512(high, high_mask));
                    _mm512_sub_epi8(number, zero)
                };
                vectors[2 * half] = numbers(low, _mm512_slli_epi16::<4>(high));
                vectors[2 * half + 1] = numbers(_mm512_srli_epi16::<4>(low), _mm512_slli_epi16::<2>(high));
            }
            let quarters: [__m128i; 16] = std::mem::transmute(vectors);
            for group in 0..16 {
                let ls = _mm512_cvtepi8_epi32(quarters[group / 8 * 8 + group % 2 * 4 + group % 8 / 2]);
                out.set::<F>(group, _mm512_mul_ps(d, _mm512_cvtepi32_ps(ls)), _mm512_setzero_ps());
            }
        }
    }
}

//! The scales of ik_llama.cpp's IQ4_K and IQ5_K: `d * (ls - 32)` for 16 groups. A block begins with f16 d, 16 bits that
//! choose tables, 4 bytes with the upper two bits of ls, four groups in a byte, and 8 bytes with the lower four, two
//! groups in a byte (its ggml-common.h).

use std::arch::x86_64::*;

use super::lanes::*;
use super::scales::{GroupScales, ScaleReader, times};
use super::{BlockScales, Format, LANES};

/// Bytes of a plain block before its quants.
pub(super) const BYTES: usize = 16;
/// Packed offsets of the upper and the lower bits.
const HIGH: usize = 4 * LANES;
const LOW: usize = 8 * LANES;

/// What brings a group's lower bits to bit 0, and its upper ones to bit 4. Tables, because a broadcast from memory
/// costs nothing, one from a register does.
static LOW_SHIFTS: [i32; 2] = [0, 4];
static HIGH_TURNS: [i32; 4] = [4, 2, 0, 30];

/// The scales; see the module.
pub struct SixBitScales;

impl ScaleReader for SixBitScales {
    fn read(block: &[u8], group: usize) -> GroupScales {
        GroupScales::of(|lane| {
            let high = block[HIGH + group / 4 * LANES + lane] >> (group % 4 * 2) & 3;
            let low = nibble_of_group(block, LOW, group, lane);
            f16_at(block, 2 * lane) * (i32::from(low | high << 4) - 32) as f32
        })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn read_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: a whole block, which has these fields.
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
        (times(d, ls), _mm512_setzero_ps())
    }

    /// The six bits of eight groups are put together at once.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn read_block_avx512<F: Format>(block: *const u8, out: &mut BlockScales) {
        let (low_mask, high_mask, zero) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30), _mm512_set1_epi8(32));
        // SAFETY: a whole block, which has d, one vector of upper bits and two of lower ones.
        let (d, high, lows) = unsafe {
            (f16_lanes(block), dword_lanes(block.add(HIGH)), [0, 64].map(|at| dword_lanes(block.add(LOW + at))))
        };
        let mut vectors = [_mm512_setzero_si512(); 4];
        for (half, low) in lows.into_iter().enumerate() {
            // A quarter of `low` has two groups, one of `high` four: bring the upper bits of the same groups beside
            // them.
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
        // SAFETY: vectors without padding; a quarter of one has a byte of every row.
        let quarters: [__m128i; 16] = unsafe { std::mem::transmute(vectors) };
        for group in 0..16 {
            let ls = _mm512_cvtepi8_epi32(quarters[group / 8 * 8 + group % 2 * 4 + group % 8 / 2]);
            out.set::<F>(group, times(d, ls), _mm512_setzero_ps());
        }
    }
}

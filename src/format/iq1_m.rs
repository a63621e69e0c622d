//! IQ1_M: 256 weights in 16 groups of 16, `w = d * (2s + 1) * (g + delta)` as in IQ1_S, with a delta for
//! every 8 weights. Block: 32 bytes of indices of 8 weights each, 16 bytes of two nibbles with the upper 3
//! bits of an index and the sign of delta, 4 words of four times 3 bits s, whose upper nibbles are f16 d,
//! lowest first (ggml-common.h, `block_iq1_m`; ggml-quants.c, `dequantize_row_iq1_m`).

use std::arch::x86_64::*;

use super::grids::*;
use super::iq1_s::{store_shifted, two_where};
use super::{Format, GroupScales, LANES};

/// The type; see the module.
pub struct Iq1M;

/// Entries with a positive delta.
static GRID: Grid<2048, 8> = Grid::new();

/// Packed offsets of the nibbles and the words; the indices come first.
const QH: usize = 32 * LANES;
const SCALES: usize = 48 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Iq1M {
    const GROUP: usize = 16;
    const ZERO_POINT: i32 = 9;
    const QUANT_NMSE: f32 = 2.0e-1;
    const Q_MAX: i32 = 18;
    const HAS_MIN: bool = false;
    const CODEBOOK: Option<Codebook> = Some(Codebook {
        decoder: c"dequantize_row_iq1_m",
        // SAFETY: promised by the caller.
        read: |decode| unsafe {
            GRID.read::<Self>(decode, 2..=18, |block, index| {
                block[0] = index as u8;
                block[32] = (index >> 8) as u8;
                // 8.0 is 0x4800.
                block[53] = 0x80;
                block[55] = 0x40;
            })
        },
        is_there: || GRID.is_there(),
    });

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        for lane in 0..LANES {
            let high = usize::from(block[QH + group * LANES + lane]);
            for l in 0..2 {
                let (low, high) = (usize::from(block[(2 * group + l) * LANES + lane]), high >> (4 * l));
                store_shifted::<Self>(GRID.entry(low | (high & 7) << 8), high & 8 != 0, lane, 8 * l, out);
            }
        }
    }

    fn scales(block: &[u8], group: usize) -> GroupScales {
        let word = |j: usize, lane: usize| {
            let at = SCALES + (j * LANES + lane) * 2;
            u32::from(u16::from_le_bytes([block[at], block[at + 1]]))
        };
        let scale = std::array::from_fn(|lane| {
            let d = (0..4).fold(0, |d, j| d | (word(j, lane) >> 12) << (4 * j));
            odd_scale(half::f16::from_bits(d as u16).to_f32(), word(group / 4, lane) >> (group % 4 * 3) & 7, 0.125)
        });
        GroupScales { scale, ..Default::default() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        let upper = _mm512_set1_epi32(0x700);
        let mut rows = [_mm512_setzero_si512(); 8];
        // SAFETY: the caller's block is large enough; an index of eleven bits is below 2048.
        unsafe {
            let nibbles = byte_lanes(block.add(QH + group * LANES));
            for l in 0..2 {
                let low = byte_lanes(block.add((2 * group + l) * LANES));
                let high = _mm512_sllv_epi32(nibbles, _mm512_set1_epi32(8 - 4 * l as i32));
                let index = _mm512_or_si512(low, _mm512_and_si512(high, upper));
                let halves = GRID.entries_avx512(index);
                let shift = two_where(high, 0x800);
                for (half, quants) in halves.into_iter().enumerate() {
                    rows[2 * l + half] = _mm512_sub_epi8(quants, shift);
                }
            }
        }
        rows
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        let word = |j: usize| unsafe { _mm256_loadu_si256(block.add(SCALES + j * 2 * LANES).cast()) };
        let nibble = |v| _mm256_and_si256(v, _mm256_set1_epi16(0xf000_u16 as i16));
        let low = _mm256_or_si256(_mm256_srli_epi16::<12>(word(0)), _mm256_srli_epi16::<8>(nibble(word(1))));
        let high = _mm256_or_si256(_mm256_srli_epi16::<4>(nibble(word(2))), nibble(word(3)));
        let d = _mm512_cvtph_ps(_mm256_or_si256(low, high));
        let s = _mm512_srlv_epi32(_mm512_cvtepu16_epi32(word(group / 4)), _mm512_set1_epi32(group as i32 % 4 * 3));
        (odd_scale_avx512(d, s, 7, 0.125), _mm512_setzero_ps())
    }
}

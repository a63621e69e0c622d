//! IQ1_S: 256 weights in 8 groups of 32, `w = d * (2s + 1) * (g + delta)`, g an entry's -1, 0 or 1, delta
//! 1/8 or -1/8; here `d * (2s + 1) / 8` is the scale and `8g + 1` or `8g - 1` the quant. Block: f16 d, 32
//! bytes of indices of 8 weights each, 8 words of 4 times the upper 3 bits of an index, 3 bits s and the
//! sign of delta (ggml-common.h, `block_iq1_s`; ggml-quants.c, `dequantize_row_iq1_s`).

use std::arch::x86_64::*;

use super::grids::*;
use super::q4_0::f16_lanes;
use super::{Format, GroupScales, LANES, f16_at};

/// The type; see the module.
pub struct Iq1S;

/// Entries with a positive delta.
static GRID: Grid<2048, 8> = Grid::new();

/// Packed offsets of the indices and the words.
const QS: usize = 2 * LANES;
const QH: usize = 34 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Iq1S {
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 9;
    const QUANT_NMSE: f32 = 2.3e-1;
    const Q_MAX: i32 = 18;
    const HAS_MIN: bool = false;
    const CODEBOOK: Option<Codebook> = Some(Codebook {
        decoder: c"dequantize_row_iq1_s",
        // SAFETY: promised by the caller.
        read: |decode| unsafe {
            GRID.read::<Self>(decode, 2..=18, |block, index| {
                block[1] = 0x48; // 8.0
                block[2] = index as u8;
                block[34] = (index >> 8) as u8;
            })
        },
        is_there: || GRID.is_there(),
    });

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        for lane in 0..LANES {
            let word = word(block, group, lane);
            for l in 0..4 {
                let low = usize::from(block[QS + (4 * group + l) * LANES + lane]);
                let entry = GRID.entry(low | (word as usize >> (3 * l) & 7) << 8);
                store_shifted::<Self>(entry, word >> 15 == 1, lane, 8 * l, out);
            }
        }
    }

    fn scales(block: &[u8], group: usize) -> GroupScales {
        let s = |lane| word(block, group, lane) >> 12 & 7;
        let scale = std::array::from_fn(|lane| odd_scale(f16_at(block, 2 * lane), s(lane), 0.125));
        GroupScales { scale, ..Default::default() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        let upper = _mm512_set1_epi32(0x700);
        let mut rows = [_mm512_setzero_si512(); 8];
        // SAFETY: the caller's block is large enough; an index of eleven bits is below 2048.
        unsafe {
            let words = word_lanes(block.add(QH + group * 2 * LANES));
            let shift = two_where(words, 0x8000);
            let words = _mm512_slli_epi32::<8>(words);
            for l in 0..4 {
                let low = byte_lanes(block.add(QS + (4 * group + l) * LANES));
                let high = _mm512_and_si512(_mm512_srlv_epi32(words, _mm512_set1_epi32(3 * l as i32)), upper);
                let halves = GRID.entries_avx512(_mm512_or_si512(low, high));
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
        let (d, s) = unsafe { (f16_lanes(block), word_lanes(block.add(QH + group * 2 * LANES))) };
        (odd_scale_avx512(d, _mm512_srli_epi32::<12>(s), 7, 0.125), _mm512_setzero_ps())
    }
}

/// The word of a group.
fn word(block: &[u8], group: usize, lane: usize) -> u32 {
    let at = QH + (group * LANES + lane) * 2;
    u16::from_le_bytes([block[at], block[at + 1]]).into()
}

/// Stores an entry as signed quants, from weight `from` of row `lane` on, two less if delta is negative.
pub(super) fn store_shifted<F: Format>(entry: [u8; 8], negative: bool, lane: usize, from: usize, out: &mut [i8]) {
    for (j, quant) in entry.into_iter().enumerate() {
        out[place(lane, from + j)] = (i32::from(quant) - F::ZERO_POINT - 2 * i32::from(negative)) as i8;
    }
}

/// Every byte 2 in the rows that have `bit`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn two_where(rows: __m512i, bit: i32) -> __m512i {
    _mm512_maskz_set1_epi32(_mm512_test_epi32_mask(rows, _mm512_set1_epi32(bit)), 0x0202_0202)
}

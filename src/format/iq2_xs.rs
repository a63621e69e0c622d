//! IQ2_XS: 256 weights in 16 groups of 16, `w = d * (s + 0.5) / 4 * q`, q an entry's quant or its negative.
//! Block: f16 d, 32 words of 9 bits of index, for 8 weights, and 7 of signs as in IQ3_XXS, 8 bytes of
//! scales, low nibbles first (ggml-common.h, `block_iq2_xs`; ggml-quants.c, `dequantize_row_iq2_xs`).

use std::arch::x86_64::*;

use super::codebook::{Codebook, Grid, codebook};
use super::lanes::{dword, dword_lanes};
use super::quants::masks_of;
use super::scales::OddNibbles;
use super::signs::{eight_of_seven, eight_of_seven_avx512, negated, store_signed};
use super::{Format, LANES};

/// The type; see the module.
pub struct Iq2Xs;

static GRID: Grid<512, 8> = Grid::new();

/// Packed offset of the words, and packed bytes of a group: two words.
const QS: usize = 2 * LANES;
const GROUP_BYTES: usize = 4 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Iq2Xs {
    type Scales = OddNibbles<66, 1>;
    const GROUP: usize = 16;
    const ZERO_POINT: i32 = 43;
    const QUANT_NMSE: f32 = 9.0e-2;
    const Q_MAX: i32 = 86;
    const CODEBOOK: Option<Codebook> = codebook!(GRID, c"dequantize_row_iq2_xs", 43..=86, |block, index| {
        block[1] = 0x48; // 8.0
        block[2..4].copy_from_slice(&(index as u16).to_le_bytes());
    });

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        for lane in 0..LANES {
            let words = dword(&block[QS + group * GROUP_BYTES..], lane);
            let signs = eight_of_seven(words >> 9 & 0x7f | words >> 17 & 0x7f00);
            for l in 0..2 {
                let entry = GRID.entry((words >> (16 * l) & 511) as usize);
                store_signed::<Self>(&entry, signs, lane, 8 * l, out);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        let (nine, seven) = (_mm512_set1_epi32(511), _mm512_set1_epi32(127));
        // SAFETY: a whole block, with two words for every group.
        let words = unsafe { dword_lanes(block.add(QS + group * GROUP_BYTES)) };
        let first = _mm512_and_si512(_mm512_srli_epi32::<9>(words), seven);
        let second = _mm512_slli_epi32::<8>(_mm512_srli_epi32::<25>(words));
        let signs = masks_of(eight_of_seven_avx512(_mm512_or_si512(first, second)));
        let index = |l: usize| _mm512_and_si512(_mm512_srlv_epi32(words, _mm512_set1_epi32(16 * l as i32)), nine);
        // SAFETY: an index of nine bits is below 512.
        unsafe { GRID.vectors_avx512::<2>(index, |r, quants| negated::<Self>(quants, signs[r])) }
    }
}

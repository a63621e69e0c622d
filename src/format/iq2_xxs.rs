//! IQ2_XXS: 256 weights in 8 groups of 32, `w = d * (s + 0.5) / 4 * q`, q an entry's quant or its negative.
//! Block: f16 d, then for each group 4 bytes of indices of 8 weights each, and a 32-bit number of signs and scale
//! as in IQ3_XXS (ggml-common.h, `block_iq2_xxs`; ggml-quants.c, `dequantize_row_iq2_xxs`).

use std::arch::x86_64::*;

use super::codebook::{Codebook, Grid, codebook};
use super::lanes::{dword, dword_lanes};
use super::quants::masks_of;
use super::scales::OddUpperBits;
use super::signs::{self, negated, store_signed};
use super::{Format, LANES};

/// The type; see the module.
pub struct Iq2Xxs;

static GRID: Grid<256, 8> = Grid::new();

/// Packed offset of the groups, and packed bytes of one.
const QS: usize = 2 * LANES;
const GROUP_BYTES: usize = 8 * LANES;
/// Offset of signs and scale in a packed group.
const SIGNS: usize = 4 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Iq2Xxs {
    type Scales = OddUpperBits<6, 8, 1>;
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 43;
    const QUANT_NMSE: f32 = 1.2e-1;
    const Q_MAX: i32 = 86;
    const CODEBOOK: Option<Codebook> = codebook!(GRID, c"dequantize_row_iq2_xxs", 43..=86, |block, index| {
        block[1] = 0x48; // 8.0
        block[2] = index as u8;
    });

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        let block = &block[QS + group * GROUP_BYTES..];
        for lane in 0..LANES {
            let (indices, signs) = (dword(block, lane), signs::of_28_bits(dword(&block[SIGNS..], lane)));
            for l in 0..4 {
                let entry = GRID.entry((indices >> (8 * l) & 255) as usize);
                store_signed::<Self>(&entry, signs, lane, 8 * l, out);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        let byte = _mm512_set1_epi32(255);
        // SAFETY: a whole block, which has both numbers for every group.
        let (indices, signs) = unsafe {
            let block = block.add(QS + group * GROUP_BYTES);
            (dword_lanes(block), masks_of(signs::of_28_bits_avx512(dword_lanes(block.add(SIGNS)))))
        };
        let index = |l: usize| _mm512_and_si512(_mm512_srlv_epi32(indices, _mm512_set1_epi32(8 * l as i32)), byte);
        // SAFETY: an index of one byte is below 256.
        unsafe { GRID.vectors_avx512::<4>(index, |r, quants| negated::<Self>(quants, signs[r])) }
    }
}

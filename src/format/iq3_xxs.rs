//! IQ3_XXS: 256 weights in 8 groups of 32, `w = d * (s + 0.5) / 2 * q`, q an entry's quant or its negative. Block: f16
//! d, 64 bytes of indices of 4 weights each, for every group a 32-bit number: 4 times 7 bits for the signs of 8 weights
//! (see `signs.rs`), then 4 bits s (ggml-common.h, `block_iq3_xxs`; ggml-quants.c, `dequantize_row_iq3_xxs`).

use std::arch::x86_64::*;

use super::codebook::{Codebook, Grid, codebook};
use super::lanes::{byte_lanes, dword, dword_lanes};
use super::quants::masks_of;
use super::scales::OddUpperBits;
use super::signs::{self, negated, store_signed};
use super::{Format, LANES};

/// The type; see the module.
pub struct Iq3Xxs;

static GRID: Grid<256, 4> = Grid::new();

/// Packed offsets of the indices, and of the signs and scales.
const QS: usize = 2 * LANES;
const SIGNS: usize = 66 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Iq3Xxs {
    type Scales = OddUpperBits<66, 4, 2>;
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 62;
    const QUANT_NMSE: f32 = 3.3e-2;
    const Q_MAX: i32 = 124;
    const CODEBOOK: Option<Codebook> = codebook!(GRID, c"dequantize_row_iq3_xxs", 62..=124, |block, index| {
        block[1] = 0x44; // 4.0
        block[2] = index as u8;
    });

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        for lane in 0..LANES {
            let signs = signs::of_28_bits(dword(&block[SIGNS + group * 64..], lane));
            for r in 0..8 {
                let entry = GRID.entry(block[QS + (8 * group + r) * LANES + lane].into());
                store_signed::<Self>(&entry, signs, lane, 4 * r, out);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        // SAFETY: a whole block, which has these fields; an index of one byte is below 256.
        unsafe {
            let signs = masks_of(signs::of_28_bits_avx512(dword_lanes(block.add(SIGNS + group * 64))));
            std::array::from_fn(|r| {
                let indices = byte_lanes(block.add(QS + (8 * group + r) * LANES));
                negated::<Self>(GRID.entries_avx512(indices), signs[r])
            })
        }
    }
}

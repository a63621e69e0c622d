//! IQ2_XXS: 256 weights in 8 groups of 32, `w = d * (s + 0.5) / 4 * q`, q an entry's quant or its negative.
//! Block: f16 d, then for each group 4 bytes of indices of 8 weights each, and a dword of signs and scale
//! as in IQ3_XXS (ggml-common.h, `block_iq2_xxs`; ggml-quants.c, `dequantize_row_iq2_xxs`).

use std::arch::x86_64::*;

use super::bits::masks_of;
use super::grids::*;
use super::q4_0::f16_lanes;
use super::{Format, GroupScales, LANES, f16_at};

/// The type; see the module.
pub struct Iq2Xxs;

static GRID: Grid<256, 8> = Grid::new();

/// Packed offset of the groups, and of signs and scale in one.
const QS: usize = 2 * LANES;
const SIGNS: usize = 4 * LANES;
const GROUP_BYTES: usize = 8 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Iq2Xxs {
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 43;
    const QUANT_NMSE: f32 = 1.2e-1;
    const Q_MAX: i32 = 86;
    const HAS_MIN: bool = false;
    const CODEBOOK: Option<Codebook> = Some(Codebook {
        decoder: c"dequantize_row_iq2_xxs",
        // SAFETY: promised by the caller.
        read: |decode| unsafe {
            GRID.read::<Self>(decode, 43..=86, |block, index| {
                block[1] = 0x48; // 8.0
                block[2] = index as u8;
            })
        },
        is_there: || GRID.is_there(),
    });

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        let block = &block[QS + group * GROUP_BYTES..];
        for lane in 0..LANES {
            let (indices, signs) = (dword(block, lane), spread(dword(&block[SIGNS..], lane)));
            for l in 0..4 {
                let entry = GRID.entry((indices >> (8 * l) & 255) as usize);
                store_signed::<Self>(&entry, signs, lane, 8 * l, out);
            }
        }
    }

    fn scales(block: &[u8], group: usize) -> GroupScales {
        let s = |lane| dword(&block[QS + group * GROUP_BYTES + SIGNS..], lane) >> 28;
        let scale = std::array::from_fn(|lane| odd_scale(f16_at(block, 2 * lane), s(lane), 0.125));
        GroupScales { scale, ..Default::default() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        let byte = _mm512_set1_epi32(255);
        let mut rows = [_mm512_setzero_si512(); 8];
        // SAFETY: the caller's block is large enough; an index of one byte is below 256.
        unsafe {
            let block = block.add(QS + group * GROUP_BYTES);
            let indices = _mm512_loadu_si512(block.cast());
            let signs = masks_of(spread_avx512(_mm512_loadu_si512(block.add(SIGNS).cast())));
            for l in 0..4 {
                let index = _mm512_and_si512(_mm512_srlv_epi32(indices, _mm512_set1_epi32(8 * l as i32)), byte);
                let halves = GRID.entries_avx512(index);
                for (half, quants) in halves.into_iter().enumerate() {
                    rows[2 * l + half] = negated::<Self>(quants, signs[2 * l + half]);
                }
            }
        }
        rows
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        let (d, s) =
            unsafe { (f16_lanes(block), _mm512_loadu_si512(block.add(QS + group * GROUP_BYTES + SIGNS).cast())) };
        (odd_scale_avx512(d, _mm512_srli_epi32::<28>(s), 15, 0.125), _mm512_setzero_ps())
    }
}

//! IQ3_XXS: 256 weights in 8 groups of 32, `w = d * (s + 0.5) / 2 * q`, q an entry's quant or its negative.
//! Block: f16 d, 64 bytes of indices of 4 weights each, 8 dwords of signs and scales: 4 times 7 bits for
//! the signs of 8 weights, the eighth making the negatives even in number, and 4 bits s (ggml-common.h,
//! `block_iq3_xxs`; ggml-quants.c, `dequantize_row_iq3_xxs`).

use std::arch::x86_64::*;

use super::bits::masks_of;
use super::grids::*;
use super::q4_0::f16_lanes;
use super::{Format, GroupScales, LANES, f16_at};

/// The type; see the module.
pub struct Iq3Xxs;

static GRID: Grid<256, 4> = Grid::new();

/// Packed offsets of the indices, and of the signs and scales.
const QS: usize = 2 * LANES;
const SIGNS: usize = 66 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Iq3Xxs {
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 62;
    const QUANT_NMSE: f32 = 3.3e-2;
    const Q_MAX: i32 = 124;
    const HAS_MIN: bool = false;
    const CODEBOOK: Option<Codebook> = Some(Codebook {
        decoder: c"dequantize_row_iq3_xxs",
        // SAFETY: promised by the caller.
        read: |decode| unsafe {
            GRID.read::<Self>(decode, 62..=124, |block, index| {
                block[1] = 0x44; // 4.0
                block[2] = index as u8;
            })
        },
        is_there: || GRID.is_there(),
    });

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        for lane in 0..LANES {
            let signs = spread(dword(&block[SIGNS + group * 64..], lane));
            for r in 0..8 {
                let entry = GRID.entry(block[QS + (8 * group + r) * LANES + lane].into());
                store_signed::<Self>(&entry, signs, lane, 4 * r, out);
            }
        }
    }

    fn scales(block: &[u8], group: usize) -> GroupScales {
        let s = |lane| dword(&block[SIGNS + group * 64..], lane) >> 28;
        let scale = std::array::from_fn(|lane| odd_scale(f16_at(block, 2 * lane), s(lane), 0.25));
        GroupScales { scale, ..Default::default() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        // SAFETY: the caller's block is large enough; an index of one byte is below 256.
        unsafe {
            let signs = masks_of(spread_avx512(_mm512_loadu_si512(block.add(SIGNS + group * 64).cast())));
            std::array::from_fn(|r| {
                let indices = byte_lanes(block.add(QS + (8 * group + r) * LANES));
                negated::<Self>(GRID.entries_avx512(indices), signs[r])
            })
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        let (d, s) = unsafe { (f16_lanes(block), _mm512_loadu_si512(block.add(SIGNS + group * 64).cast())) };
        (odd_scale_avx512(d, _mm512_srli_epi32::<28>(s), 15, 0.25), _mm512_setzero_ps())
    }
}

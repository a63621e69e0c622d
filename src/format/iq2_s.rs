//! IQ2_S: 256 weights in 16 groups of 16, `w = d * (s + 0.5) / 4 * q`, q an entry's quant or its negative.
//! Block: f16 d, 32 bytes of indices of 8 weights each, 32 bytes of signs, one bit per weight, 8 bytes with
//! the upper two bits of four indices each, 8 bytes of scales, low nibbles first (ggml-common.h,
//! `block_iq2_s`; ggml-quants.c, `dequantize_row_iq2_s`).

use std::arch::x86_64::*;

use super::bits::masks_of;
use super::grids::*;
use super::iq2_xs::{nibble_scales, nibble_scales_avx512};
use super::{Format, GroupScales, LANES};

/// The type; see the module.
pub struct Iq2S;

static GRID: Grid<1024, 8> = Grid::new();

/// Packed offsets of the indices, the signs, the indices' upper bits and the scales.
const QS: usize = 2 * LANES;
const SIGNS: usize = 34 * LANES;
const QH: usize = 66 * LANES;
const SCALES: usize = 74 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Iq2S {
    const GROUP: usize = 16;
    const ZERO_POINT: i32 = 43;
    const QUANT_NMSE: f32 = 6.2e-2;
    const Q_MAX: i32 = 86;
    const HAS_MIN: bool = false;
    const CODEBOOK: Option<Codebook> = Some(Codebook {
        decoder: c"dequantize_row_iq2_s",
        // SAFETY: promised by the caller.
        read: |decode| unsafe {
            GRID.read::<Self>(decode, 43..=86, |block, index| {
                block[1] = 0x48; // 8.0
                block[2] = index as u8;
                block[66] = (index >> 8) as u8;
            })
        },
        is_there: || GRID.is_there(),
    });

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        for lane in 0..LANES {
            let at = SIGNS + (group * LANES + lane) * 2;
            let signs = u32::from(u16::from_le_bytes([block[at], block[at + 1]]));
            let high = usize::from(block[QH + group / 2 * LANES + lane]) >> (group % 2 * 4);
            for l in 0..2 {
                let low = usize::from(block[QS + (2 * group + l) * LANES + lane]);
                let entry = GRID.entry(low | (high >> (2 * l) & 3) << 8);
                store_signed::<Self>(&entry, signs, lane, 8 * l, out);
            }
        }
    }

    fn scales(block: &[u8], group: usize) -> GroupScales {
        GroupScales { scale: nibble_scales(block, SCALES, group), ..Default::default() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        let upper = _mm512_set1_epi32(0x300);
        let mut rows = [_mm512_setzero_si512(); 8];
        // SAFETY: the caller's block is large enough; an index of ten bits is below 1024.
        unsafe {
            let signs = masks_of(word_lanes(block.add(SIGNS + group * 2 * LANES)));
            let high = byte_lanes(block.add(QH + group / 2 * LANES));
            for l in 0..2 {
                let low = byte_lanes(block.add(QS + (2 * group + l) * LANES));
                let up = _mm512_set1_epi32(8 - (group % 2 * 4 + 2 * l) as i32);
                let high = _mm512_and_si512(_mm512_sllv_epi32(high, up), upper);
                let halves = GRID.entries_avx512(_mm512_or_si512(low, high));
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
        (unsafe { nibble_scales_avx512(block, SCALES, group) }, _mm512_setzero_ps())
    }
}

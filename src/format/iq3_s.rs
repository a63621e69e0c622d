//! IQ3_S: 256 weights in 8 groups of 32, `w = d * (2s + 1) * q`, q an entry's quant or its negative. Block:
//! f16 d, 64 bytes of indices of 4 weights each, 8 bytes with their ninth bits, 32 bytes of signs, one bit
//! per weight, 4 bytes of scales, low nibbles first (ggml-common.h, `block_iq3_s`; ggml-quants.c,
//! `dequantize_row_iq3_s`).

use std::arch::x86_64::*;

use super::bits::masks_avx512;
use super::grids::*;
use super::q4_0::f16_lanes;
use super::{Format, GroupScales, LANES, f16_at};

/// The type; see the module.
pub struct Iq3S;

static GRID: Grid<512, 4> = Grid::new();

/// Packed offsets of the indices, their ninth bits, the signs and the scales.
const QS: usize = 2 * LANES;
const QH: usize = 66 * LANES;
const SIGNS: usize = 74 * LANES;
const SCALES: usize = 106 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Iq3S {
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 15;
    const QUANT_NMSE: f32 = 1.9e-2;
    const Q_MAX: i32 = 30;
    const HAS_MIN: bool = false;
    const CODEBOOK: Option<Codebook> = Some(Codebook {
        decoder: c"dequantize_row_iq3_s",
        // SAFETY: promised by the caller.
        read: |decode| unsafe {
            GRID.read::<Self>(decode, 15..=30, |block, index| {
                block[1] = 0x3c; // 1.0
                block[2] = index as u8;
                block[66] = (index >> 8) as u8;
            })
        },
        is_there: || GRID.is_there(),
    });

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        for lane in 0..LANES {
            let signs = dword(&block[SIGNS + group * 64..], lane);
            let high = usize::from(block[QH + group * LANES + lane]);
            for r in 0..8 {
                let low = usize::from(block[QS + (8 * group + r) * LANES + lane]);
                let entry = GRID.entry(low | (high >> r & 1) << 8);
                store_signed::<Self>(&entry, signs, lane, 4 * r, out);
            }
        }
    }

    fn scales(block: &[u8], group: usize) -> GroupScales {
        let s = |lane| u32::from(block[SCALES + group / 2 * LANES + lane] >> (group % 2 * 4) & 15);
        let scale = std::array::from_fn(|lane| odd_scale(f16_at(block, 2 * lane), s(lane), 1.0));
        GroupScales { scale, ..Default::default() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        let ninth = _mm512_set1_epi32(256);
        // SAFETY: the caller's block is large enough; an index of nine bits is below 512.
        unsafe {
            let signs = masks_avx512(block.add(SIGNS + group * 64));
            let high = byte_lanes(block.add(QH + group * LANES));
            std::array::from_fn(|r| {
                let low = byte_lanes(block.add(QS + (8 * group + r) * LANES));
                let high = _mm512_and_si512(_mm512_sllv_epi32(high, _mm512_set1_epi32(8 - r as i32)), ninth);
                negated::<Self>(GRID.entries_avx512(_mm512_or_si512(low, high)), signs[r])
            })
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        let (d, s) = unsafe { (f16_lanes(block), byte_lanes(block.add(SCALES + group / 2 * LANES))) };
        let s = _mm512_srlv_epi32(s, _mm512_set1_epi32(group as i32 % 2 * 4));
        (odd_scale_avx512(d, s, 15, 1.0), _mm512_setzero_ps())
    }
}

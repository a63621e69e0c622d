//! IQ2_XS: 256 weights in 16 groups of 16, `w = d * (s + 0.5) / 4 * q`, q an entry's quant or its negative.
//! Block: f16 d, 32 words of 9 bits of index, for 8 weights, and 7 of signs as in IQ3_XXS, 8 bytes of
//! scales, low nibbles first (ggml-common.h, `block_iq2_xs`; ggml-quants.c, `dequantize_row_iq2_xs`).

use std::arch::x86_64::*;

use super::bits::masks_of;
use super::grids::*;
use super::q4_0::f16_lanes;
use super::{Format, GroupScales, LANES, f16_at};

/// The type; see the module.
pub struct Iq2Xs;

static GRID: Grid<512, 8> = Grid::new();

/// Packed offsets of the words and the scales.
const QS: usize = 2 * LANES;
const SCALES: usize = 66 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Iq2Xs {
    const GROUP: usize = 16;
    const ZERO_POINT: i32 = 43;
    const QUANT_NMSE: f32 = 9.0e-2;
    const Q_MAX: i32 = 86;
    const HAS_MIN: bool = false;
    const CODEBOOK: Option<Codebook> = Some(Codebook {
        decoder: c"dequantize_row_iq2_xs",
        // SAFETY: promised by the caller.
        read: |decode| unsafe {
            GRID.read::<Self>(decode, 43..=86, |block, index| {
                block[1] = 0x48; // 8.0
                block[2..4].copy_from_slice(&(index as u16).to_le_bytes());
            })
        },
        is_there: || GRID.is_there(),
    });
    // The two words of a group are one dword.

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        for lane in 0..LANES {
            let words = dword(&block[QS + group * 64..], lane);
            let signs = even(words >> 9 & 0x7f | words >> 17 & 0x7f00);
            for l in 0..2 {
                let entry = GRID.entry((words >> (16 * l) & 511) as usize);
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
        let (nine, seven) = (_mm512_set1_epi32(511), _mm512_set1_epi32(127));
        let mut rows = [_mm512_setzero_si512(); 8];
        // SAFETY: the caller's block is large enough; an index of nine bits is below 512.
        unsafe {
            let words = _mm512_loadu_si512(block.add(QS + group * 64).cast());
            let first = _mm512_and_si512(_mm512_srli_epi32::<9>(words), seven);
            let second = _mm512_slli_epi32::<8>(_mm512_srli_epi32::<25>(words));
            let signs = masks_of(even_avx512(_mm512_or_si512(first, second)));
            for l in 0..2 {
                let index = _mm512_and_si512(_mm512_srlv_epi32(words, _mm512_set1_epi32(16 * l as i32)), nine);
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
        (unsafe { nibble_scales_avx512(block, SCALES, group) }, _mm512_setzero_ps())
    }
}

/// Scales of group `group` of 16 weights from nibbles at `at`, low ones first; d comes first in the block.
pub(super) fn nibble_scales(block: &[u8], at: usize, group: usize) -> [f32; LANES] {
    let s = |lane| u32::from(block[at + group / 2 * LANES + lane] >> (group % 2 * 4) & 15);
    std::array::from_fn(|lane| odd_scale(f16_at(block, 2 * lane), s(lane), 0.125))
}

/// [`nibble_scales`] in registers.
///
/// # Safety
/// `block` must point to a packed block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn nibble_scales_avx512(block: *const u8, at: usize, group: usize) -> __m512 {
    // SAFETY: promised by the caller.
    let (d, s) = unsafe { (f16_lanes(block), byte_lanes(block.add(at + group / 2 * LANES))) };
    odd_scale_avx512(d, _mm512_srlv_epi32(s, _mm512_set1_epi32(group as i32 % 2 * 4)), 15, 0.125)
}

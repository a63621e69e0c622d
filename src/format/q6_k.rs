//! Q6_K: 256 weights in 16 groups of 16, `w = d * sc * (q - 32)`. Block: 128 bytes of low nibbles,
//! 64 bytes of high bit pairs, 16 signed scales, f16 d (ggml-common.h, `block_q6_K`).
//!
//! Each half of the block (128 weights) has four quarters of 32: quarter `q` takes its nibbles from
//! bytes `32 * (q % 2)..` (low ones for q < 2, high ones after) and its bit pair from bits `2q` of
//! the half's 32 high bytes.

use std::arch::x86_64::*;

use super::q4_0::f16_lanes;
use super::{Format, GroupScales, LANES, f16_at};

/// The type; see the module.
pub struct Q6K;

/// Packed offsets of the high bits, the scales and d.
const QH: usize = 128 * LANES;
const SCALES: usize = 192 * LANES;
const D: usize = 208 * LANES;

/// Where group `group` reads: packed offset of its nibbles, of its bit pairs, and its quarter.
#[inline]
fn place(group: usize) -> (usize, usize, usize) {
    let (half, quarter, sub) = (group / 8, group % 8 / 2, group % 2);
    ((half * 64 + quarter % 2 * 32 + sub * 16) * LANES, QH + (half * 32 + sub * 16) * LANES, quarter)
}

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Q6K {
    const GROUP: usize = 16;
    const ZERO_POINT: i32 = 32;
    const QUANT_NMSE: f32 = 3.1e-4;
    const Q_MAX: i32 = 63;
    const HAS_MIN: bool = false;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        let (low, high, quarter) = place(group);
        for (i, o) in out[..Self::GROUP * LANES].iter_mut().enumerate() {
            let nibble = block[low + i] >> (4 * (quarter / 2)) & 15;
            let pair = block[high + i] >> (2 * quarter) & 3;
            *o = (nibble | pair << 4) as i8 - 32;
        }
    }

    fn scales(block: &[u8], group: usize) -> GroupScales {
        let scale = std::array::from_fn(|lane| {
            f16_at(block, D + 2 * lane) * f32::from(block[SCALES + group * LANES + lane] as i8)
        });
        GroupScales { scale, ..Default::default() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        let (low, high, quarter) = place(group);
        let mask = _mm512_set1_epi8(15);
        let pair_mask = _mm512_set1_epi8(0x30);
        let mut rows = [_mm512_setzero_si512(); 8];
        for (r, row) in rows[..4].iter_mut().enumerate() {
            // SAFETY: four vectors from each place, inside the caller's block.
            let (l, h) = unsafe {
                (
                    _mm512_loadu_si512(block.add(low + 64 * r).cast()),
                    _mm512_loadu_si512(block.add(high + 64 * r).cast()),
                )
            };
            let nibble = if quarter < 2 { l } else { _mm512_srli_epi16::<4>(l) };
            let pair = match quarter {
                0 => _mm512_slli_epi16::<4>(h),
                1 => _mm512_slli_epi16::<2>(h),
                2 => h,
                _ => _mm512_srli_epi16::<2>(h),
            };
            *row = _mm512_or_si512(_mm512_and_si512(nibble, mask), _mm512_and_si512(pair, pair_mask));
        }
        rows
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        let (d, sc) = unsafe {
            (f16_lanes(block.add(D)), _mm512_cvtepi8_epi32(_mm_loadu_si128(block.add(SCALES + group * LANES).cast())))
        };
        (_mm512_mul_ps(d, _mm512_cvtepi32_ps(sc)), _mm512_setzero_ps())
    }
}

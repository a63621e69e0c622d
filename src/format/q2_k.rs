//! Q2_K: 256 weights in 16 groups of 16, `w = d * sc * q - dmin * m`. Block: 16 bytes, sc in the low
//! nibble and m in the high one, 64 bytes of bit pairs, f16 d, f16 dmin (ggml-common.h, `block_q2_K`).
//!
//! Each half of the block (128 weights) has four quarters of 32, which are bits `2q` of the half's 32
//! bytes.

use std::arch::x86_64::*;

use super::q4_0::f16_lanes;
use super::{Format, GroupScales, LANES, f16_at};

/// The type; see the module.
pub struct Q2K;

/// Packed offsets of the bit pairs, d and dmin.
const QS: usize = 16 * LANES;
const D: usize = 80 * LANES;
const D_MIN: usize = 82 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Q2K {
    const GROUP: usize = 16;
    const ZERO_POINT: i32 = 0;
    const QUANT_NMSE: f32 = 8.8e-2;
    const Q_MAX: i32 = 3;
    const HAS_MIN: bool = true;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        let place = Pairs::of(group);
        for (i, o) in out[..Self::GROUP * LANES].iter_mut().enumerate() {
            *o = place.pair(&block[QS..], i) as i8;
        }
    }

    fn scales(block: &[u8], group: usize) -> GroupScales {
        let byte = |lane: usize| block[group * LANES + lane];
        GroupScales {
            scale: std::array::from_fn(|lane| f16_at(block, D + 2 * lane) * f32::from(byte(lane) & 15)),
            min: std::array::from_fn(|lane| -(f16_at(block, D_MIN + 2 * lane) * f32::from(byte(lane) >> 4))),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        // SAFETY: the caller's block is large enough.
        unsafe { Pairs::of(group).vectors::<4>(block.add(QS)) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        let (d, dmin, byte) = unsafe {
            let byte = _mm512_cvtepu8_epi32(_mm_loadu_si128(block.add(group * LANES).cast()));
            (f16_lanes(block.add(D)), f16_lanes(block.add(D_MIN)), byte)
        };
        let sc = _mm512_cvtepi32_ps(_mm512_and_si512(byte, _mm512_set1_epi32(15)));
        let min = _mm512_mul_ps(dmin, _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(byte)));
        let sign = _mm512_set1_epi32(i32::MIN);
        (_mm512_mul_ps(d, sc), _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(min), sign)))
    }
}

/// Where 16 weights lie in a packed field of 64 bytes of bit pairs per row.
#[derive(Clone, Copy)]
pub(super) struct Pairs {
    at: usize,
    shift: usize,
}

impl Pairs {
    /// Weights `16 * group..` of the block.
    #[inline]
    pub(super) fn of(group: usize) -> Self {
        let (half, quarter, sub) = (group / 8, group % 8 / 2, group % 2);
        Self { at: (half * 32 + sub * 16) * LANES, shift: 2 * quarter }
    }

    /// The pair at one position of the group's layout.
    #[inline]
    pub(super) fn pair(self, bytes: &[u8], i: usize) -> u8 {
        bytes[self.at + i] >> self.shift & 3
    }

    /// [`Pairs::pair`] in the first `N` registers: 16 weights are 4, those of a whole quarter 8.
    ///
    /// # Safety
    /// `bytes` must point to the packed field.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn vectors<const N: usize>(self, bytes: *const u8) -> [__m512i; 8] {
        let (shift, mask) = (_mm512_set1_epi32(self.shift as i32), _mm512_set1_epi8(3));
        let mut rows = [_mm512_setzero_si512(); 8];
        for (r, row) in rows[..N].iter_mut().enumerate() {
            // SAFETY: inside the field.
            let v = unsafe { _mm512_loadu_si512(bytes.add(self.at + 64 * r).cast()) };
            *row = _mm512_and_si512(_mm512_srlv_epi32(v, shift), mask);
        }
        rows
    }
}

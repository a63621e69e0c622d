//! IQ2_K of ik_llama.cpp: 256 weights in 16 groups of 16, `w = d * (s - 8) * table[q]`. Block: f16 d, 16 bits that
//! choose between two tables, 8 bytes with s in nibbles, 64 bytes of bit pairs as in Q2_K (its ggml-common.h,
//! `block_iq2_k`).

use std::arch::x86_64::*;

use super::grids::byte_lanes;
use super::q2_k::Pairs;
use super::q4_0::f16_lanes;
use super::tables::{sixteen, unsigned};
use super::two_tables::{self, has_second, second_avx512};
use super::{Format, GroupScales, LANES, f16_at};

/// The type; see the module.
pub struct Iq2K;

/// Packed offsets of the scales and the bit pairs.
const SCALES: usize = 4 * LANES;
const QS: usize = 12 * LANES;

/// Both tables (`iq2nl_values`), twice.
const VALUES: [i8; 16] = [-31, -13, 1, 17, -26, -8, 6, 22, -31, -13, 1, 17, -26, -8, 6, 22];

// SAFETY: constants as in ik_llama.cpp's ggml-common.h.
unsafe impl Format for Iq2K {
    const GROUP: usize = 16;
    const ZERO_POINT: i32 = 32;
    const QUANT_NMSE: f32 = 8.8e-2;
    const Q_MIN: i32 = 1;
    const Q_MAX: i32 = 54;
    const HAS_MIN: bool = false;
    const STEP: i32 = 5;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        let place = Pairs::of(group);
        for (i, o) in out[..Self::GROUP * LANES].iter_mut().enumerate() {
            let second = u8::from(has_second(block, group, i));
            *o = VALUES[usize::from(place.pair(&block[QS..], i) | second << 2)];
        }
    }

    fn scales(block: &[u8], group: usize) -> GroupScales {
        let scale = std::array::from_fn(|lane| {
            let s = block[SCALES + group / 2 * LANES + lane] >> (group % 2 * 4) & 15;
            f16_at(block, 2 * lane) * (i32::from(s) - 8) as f32
        });
        GroupScales { scale, ..Default::default() }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        // SAFETY: the caller's block is large enough.
        unsafe { two_tables::quants_avx512::<Self>(block, group) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn first_quants_avx512(block: *const u8, group: usize) -> ([__m512i; 8], __mmask16) {
        const TABLE: [u8; 16] = unsigned(&VALUES, Iq2K::ZERO_POINT);
        let table = sixteen(&TABLE);
        // SAFETY: the caller's block is large enough.
        let (mut rows, second) = unsafe { (Pairs::of(group).vectors::<4>(block.add(QS)), second_avx512(block, group)) };
        for row in &mut rows[..4] {
            *row = _mm512_shuffle_epi8(table, *row);
        }
        (rows, second)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        let (d, s) = unsafe { (f16_lanes(block), byte_lanes(block.add(SCALES + group / 2 * LANES))) };
        let s = _mm512_srlv_epi32(s, _mm512_set1_epi32(group as i32 % 2 * 4));
        let s = _mm512_sub_epi32(_mm512_and_si512(s, _mm512_set1_epi32(15)), _mm512_set1_epi32(8));
        (_mm512_mul_ps(d, _mm512_cvtepi32_ps(s)), _mm512_setzero_ps())
    }
}

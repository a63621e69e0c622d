//! IQ3_K of ik_llama.cpp: 256 weights in 16 groups of 16, `w = d * (2s + 1) * table[q]`, negated where the group's sign
//! is set. Block: f16 d, 16 bits that choose between two tables, 16 bits of signs, 8 bytes with s in nibbles, 64 bytes
//! of bit pairs as in Q2_K, 32 of third bits as in Q3_K (its ggml-common.h, `block_iq3_k`).

use std::arch::x86_64::*;

use super::grids::{byte_lanes, odd_scale, odd_scale_avx512};
use super::q2_k::Pairs;
use super::q4_0::f16_lanes;
use super::tables::{sixteen, unsigned};
use super::two_tables::{self, bit_of, bits_avx512, has_second, second_avx512};
use super::{Format, GroupScales, LANES, f16_at};

/// The type; see the module.
pub struct Iq3K;

/// Packed offsets of the signs, the scales, the bit pairs and the third bits.
const SIGNS: usize = 4 * LANES;
const SCALES: usize = 6 * LANES;
const QS: usize = 14 * LANES;
const QH: usize = 78 * LANES;

/// Both tables (`iq3nl_values`).
const VALUES: [i8; 16] = [-63, -40, -23, -10, 1, 13, 28, 47, -59, -36, -19, -6, 5, 17, 32, 51];

// SAFETY: constants as in ik_llama.cpp's ggml-common.h.
unsafe impl Format for Iq3K {
    const GROUP: usize = 16;
    const ZERO_POINT: i32 = 64;
    const QUANT_NMSE: f32 = 1.8e-2;
    const Q_MIN: i32 = 1;
    const Q_MAX: i32 = 115;
    const HAS_MIN: bool = false;
    const STEP: i32 = 4;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        let place = Pairs::of(group);
        for (i, o) in out[..Self::GROUP * LANES].iter_mut().enumerate() {
            let third = block[QH + group % 2 * 16 * LANES + i] >> (group / 2) & 1;
            let second = u8::from(has_second(block, group, i));
            *o = VALUES[usize::from(place.pair(&block[QS..], i) | third << 2 | second << 3)];
        }
    }

    fn scales(block: &[u8], group: usize) -> GroupScales {
        let scale = std::array::from_fn(|lane| {
            let s = block[SCALES + group / 2 * LANES + lane] >> (group % 2 * 4) & 15;
            let sign = if bit_of(block, SIGNS, group, lane) { -1.0 } else { 1.0 };
            odd_scale(f16_at(block, 2 * lane), s.into(), sign)
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
        const TABLE: [u8; 16] = unsigned(&VALUES, Iq3K::ZERO_POINT);
        let (table, four) = (sixteen(&TABLE), _mm512_set1_epi8(4));
        // Brings the third bit to its place.
        let turn = _mm512_set1_epi32((2 - group as i32 / 2) & 31);
        // SAFETY: the caller's block is large enough.
        let (mut rows, second) = unsafe { (Pairs::of(group).vectors::<4>(block.add(QS)), second_avx512(block, group)) };
        for (r, row) in rows[..4].iter_mut().enumerate() {
            // SAFETY: 4 vectors of third bits for each half of 32 weights.
            let third = unsafe { _mm512_loadu_si512(block.add(QH + group % 2 * 16 * LANES + 64 * r).cast()) };
            let third = _mm512_and_si512(_mm512_rolv_epi32(third, turn), four);
            *row = _mm512_shuffle_epi8(table, _mm512_or_si512(*row, third));
        }
        (rows, second)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        let (d, s, signs) = unsafe {
            (f16_lanes(block), byte_lanes(block.add(SCALES + group / 2 * LANES)), bits_avx512(block, SIGNS, group))
        };
        let s = _mm512_srlv_epi32(s, _mm512_set1_epi32(group as i32 % 2 * 4));
        let scale = _mm512_castps_si512(odd_scale_avx512(d, s, 15, 1.0));
        let negated = _mm512_mask_xor_epi32(scale, signs, scale, _mm512_set1_epi32(i32::MIN));
        (_mm512_castsi512_ps(negated), _mm512_setzero_ps())
    }
}

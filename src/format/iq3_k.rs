//! IQ3_K of ik_llama.cpp: 256 weights in 16 groups of 16, `w = d * (2s + 1) * table[q]`, negated where the group's sign
//! is set. Block: f16 d, 16 bits that choose between two tables, 16 bits of signs, 8 bytes with s in nibbles, 64 bytes
//! of bit pairs as in Q2_K, 32 of third bits as in Q3_K (its ggml-common.h, `block_iq3_k`).

use std::arch::x86_64::*;

use super::lanes::*;
use super::lookup::{sixteen, unsigned};
use super::quants::{Bits, Pairs, put};
use super::scales::{GroupScales, ScaleReader, odd_scale, odd_scale_avx512};
use super::two_tables::{bit_of, bits_avx512, has_second, second_avx512};
use super::{Format, LANES};

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
    type Scales = Self;
    const GROUP: usize = 16;
    const ZERO_POINT: i32 = 64;
    const QUANT_NMSE: f32 = 1.8e-2;
    const Q_MIN: i32 = 1;
    const Q_MAX: i32 = 115;
    const STEP: i32 = 4;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        let (pairs, third) = (Pairs::of::<Self>(group), Bits::of::<Self>(group));
        put::<Self>(out, |i| {
            let second = u8::from(has_second(block, group, i));
            VALUES[usize::from(pairs.get(&block[QS..], i) | third.get(&block[QH..], i) << 2 | second << 3)]
        });
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn first_quants_avx512(block: *const u8, group: usize) -> ([__m512i; 8], __mmask16) {
        const TABLE: [u8; 16] = unsigned(&VALUES, Iq3K::ZERO_POINT);
        let (table, four) = (sixteen(&TABLE), _mm512_set1_epi8(4));
        let third_bits = Bits::of::<Self>(group);
        // Brings the third bit to bit 2.
        let turn = _mm512_set1_epi32((2 - third_bits.nth as i32) & 31);
        // SAFETY: a whole block, which has the field.
        let (mut rows, second) =
            unsafe { (Pairs::of::<Self>(group).vectors::<4>(block.add(QS)), second_avx512(block, group)) };
        for (r, row) in rows[..4].iter_mut().enumerate() {
            // SAFETY: a whole block, which has the field; a group has 4 vectors.
            let third = unsafe { third_bits.bytes(block.add(QH), r) };
            let third = _mm512_and_si512(_mm512_rolv_epi32(third, turn), four);
            *row = _mm512_shuffle_epi8(table, _mm512_or_si512(*row, third));
        }
        (rows, second)
    }
}

impl ScaleReader for Iq3K {
    fn read(block: &[u8], group: usize) -> GroupScales {
        GroupScales::of(|lane| {
            let sign = if bit_of(block, SIGNS, group, lane) { -1.0 } else { 1.0 };
            odd_scale(f16_at(block, 2 * lane), nibble_of_group(block, SCALES, group, lane).into(), sign)
        })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn read_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: a whole block, which has these fields, and more than 64 bytes behind the signs.
        let (d, s, signs) = unsafe {
            (f16_lanes(block), byte_lanes(block.add(SCALES + group / 2 * LANES)), bits_avx512(block, SIGNS, group))
        };
        let s = _mm512_srlv_epi32(s, _mm512_set1_epi32(group as i32 % 2 * 4));
        let scale = _mm512_castps_si512(odd_scale_avx512(d, s, 15, 1.0));
        let negated = _mm512_mask_xor_epi32(scale, signs, scale, _mm512_set1_epi32(i32::MIN));
        (_mm512_castsi512_ps(negated), _mm512_setzero_ps())
    }
}

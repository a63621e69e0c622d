//! IQ2_K of ik_llama.cpp: 256 weights in 16 groups of 16, `w = d * (s - 8) * table[q]`. Block: f16 d, 16 bits that
//! choose between two tables, 8 bytes with s in nibbles, 64 bytes of bit pairs as in Q2_K (its ggml-common.h,
//! `block_iq2_k`).

use std::arch::x86_64::*;

use super::lanes::*;
use super::lookup::{sixteen, unsigned};
use super::quants::{Pairs, put};
use super::scales::{GroupScales, ScaleReader, times};
use super::two_tables::{has_second, second_avx512};
use super::{Format, LANES};

/// The type; see the module.
pub struct Iq2K;

/// Packed offsets of the scales and the bit pairs.
const SCALES: usize = 4 * LANES;
const QS: usize = 12 * LANES;

/// Both tables (`iq2nl_values`), twice.
const VALUES: [i8; 16] = [-31, -13, 1, 17, -26, -8, 6, 22, -31, -13, 1, 17, -26, -8, 6, 22];

// SAFETY: constants as in ik_llama.cpp's ggml-common.h.
unsafe impl Format for Iq2K {
    type Scales = Self;
    const GROUP: usize = 16;
    const ZERO_POINT: i32 = 32;
    const QUANT_NMSE: f32 = 8.8e-2;
    const Q_MIN: i32 = 1;
    const Q_MAX: i32 = 54;
    const STEP: i32 = 5;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        let pairs = Pairs::of::<Self>(group);
        put::<Self>(out, |i| {
            let second = u8::from(has_second(block, group, i));
            VALUES[usize::from(pairs.get(&block[QS..], i) | second << 2)]
        });
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn first_quants_avx512(block: *const u8, group: usize) -> ([__m512i; 8], __mmask16) {
        const TABLE: [u8; 16] = unsigned(&VALUES, Iq2K::ZERO_POINT);
        let table = sixteen(&TABLE);
        // SAFETY: a whole block, which has the field.
        let (mut rows, second) =
            unsafe { (Pairs::of::<Self>(group).vectors::<4>(block.add(QS)), second_avx512(block, group)) };
        for row in &mut rows[..4] {
            *row = _mm512_shuffle_epi8(table, *row);
        }
        (rows, second)
    }
}

impl ScaleReader for Iq2K {
    fn read(block: &[u8], group: usize) -> GroupScales {
        let s = |lane| i32::from(nibble_of_group(block, SCALES, group, lane));
        GroupScales::of(|lane| f16_at(block, 2 * lane) * (s(lane) - 8) as f32)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn read_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: a whole block, which has these fields.
        let (d, s) = unsafe { (f16_lanes(block), byte_lanes(block.add(SCALES + group / 2 * LANES))) };
        let s = _mm512_srlv_epi32(s, _mm512_set1_epi32(group as i32 % 2 * 4));
        let s = _mm512_sub_epi32(_mm512_and_si512(s, _mm512_set1_epi32(15)), _mm512_set1_epi32(8));
        (times(d, s), _mm512_setzero_ps())
    }
}

//! IQ6_K of ik_llama.cpp: 256 weights in 16 groups of 16, `w = d * sc * table[q]`. Block: f16 d, 16 bits that choose
//! between two tables, 16 signed scales, 128 bytes of nibbles, 64 of high bit pairs (its ggml-common.h, `block_iq6_k`).
//!
//! 32 bytes of nibbles hold 64 weights, the first 32 in the low nibbles; each 32 bytes of pairs hold 128, quarter `q`
//! of them in bits `2q`.
//!
//! The table is what ik_llama.cpp multiplies with. Its decoder to floats (`dequantize_row_iq6_k`) takes the polynomial
//! itself, without rounding: up to half a unit of the table off the products of either.

use std::arch::x86_64::*;

use super::lanes::*;
use super::lookup::{sixteen, unsigned};
use super::quants::{Nibbles, Pairs, put};
use super::scales::{GroupScales, ScaleReader, times};
use super::two_tables::{second_avx512, step};
use super::{Format, LANES};

/// The type; see the module.
pub struct Iq6K;

/// Packed offsets of the scales, the nibbles and the pairs.
const SCALES: usize = 4 * LANES;
const QS: usize = 20 * LANES;
const QH: usize = 148 * LANES;

/// The first table (`iq6nl_values`): a polynomial of the index, rounded; here in units of 1e-7.
const VALUES: [i8; 64] = {
    let mut values = [0; 64];
    let mut i = 0;
    while i < 64 {
        let q = i as i64;
        let value = -1_270_000_000 + q * (62_568_000 + q * (-1_121_800 + q * 11_972));
        values[i] = (value + 5_000_000).div_euclid(10_000_000) as i8;
        i += 1;
    }
    values
};

// SAFETY: constants as in ik_llama.cpp's ggml-common.h.
unsafe impl Format for Iq6K {
    type Scales = Self;
    const GROUP: usize = 16;
    const ZERO_POINT: i32 = 128;
    const QUANT_NMSE: f32 = 2.3e-4;
    const Q_MIN: i32 = 1;
    const Q_MAX: i32 = 250;
    const STEP: i32 = 1;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        let (nibbles, pairs) = (Nibbles::<32>::of::<Self>(group), Pairs::of::<Self>(group));
        put::<Self>(out, |i| {
            let index = nibbles.get(&block[QS..], i) | pairs.get(&block[QH..], i) << 4;
            VALUES[usize::from(index)] + step::<Self>(block, group, i)
        });
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn first_quants_avx512(block: *const u8, group: usize) -> ([__m512i; 8], __mmask16) {
        const TABLE: [u8; 64] = unsigned(&VALUES, Iq6K::ZERO_POINT);
        let tables: [__m512i; 4] = std::array::from_fn(|i| sixteen(&TABLE[16 * i..]));
        let (nibbles, pairs) = (Nibbles::<32>::of::<Self>(group), Pairs::of::<Self>(group));
        let [even, odd] = [1u8, 2].map(|bit| _mm512_set1_epi8((bit << (2 * pairs.nth)) as i8));
        // SAFETY: a whole block, which has the field.
        let (mut rows, second) = unsafe { (nibbles.vectors::<4>(block.add(QS)), second_avx512(block, group)) };
        for (r, row) in rows[..4].iter_mut().enumerate() {
            let nibble = *row;
            // SAFETY: a whole block, which has the field; a group has 4 vectors.
            let h = unsafe { pairs.bytes(block.add(QH), r) };
            let (bit0, bit1) = (_mm512_test_epi8_mask(h, even), _mm512_test_epi8_mask(h, odd));
            let half =
                |first, second| _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(first, nibble), bit0, second, nibble);
            *row = _mm512_mask_blend_epi8(bit1, half(tables[0], tables[1]), half(tables[2], tables[3]));
        }
        (rows, second)
    }
}

impl ScaleReader for Iq6K {
    fn read(block: &[u8], group: usize) -> GroupScales {
        let sc = |lane| block[SCALES + group * LANES + lane] as i8;
        GroupScales::of(|lane| f16_at(block, 2 * lane) * f32::from(sc(lane)))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn read_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: a whole block, which has these fields.
        let (d, sc) = unsafe { (f16_lanes(block), signed_byte_lanes(block.add(SCALES + group * LANES))) };
        (times(d, sc), _mm512_setzero_ps())
    }
}

//! IQ5_K of ik_llama.cpp: 256 weights in 16 groups of 16, `w = d * (ls - 32) * table[q]`. Block: f16 d, 16 bits that
//! choose between two tables, 12 bytes of 6-bit scales, 128 bytes of nibbles, 32 of fifth bits (its ggml-common.h,
//! `block_iq5_k`).
//!
//! 32 bytes of nibbles hold 64 weights, the first 32 in the low nibbles; bit `b` of fifth-bit byte `j` belongs to
//! weight `32 * b + j`.

use std::arch::x86_64::*;

use super::lookup::{sixteen, unsigned};
use super::quants::{Bits, Nibbles, put};
use super::six_bit_scales::{self, SixBitScales};
use super::two_tables::{second_avx512, step};
use super::{Format, LANES};

/// The type; see the module.
pub struct Iq5K;

/// Packed offsets of the nibbles and the fifth bits.
const QS: usize = six_bit_scales::BYTES * LANES;
const QH: usize = QS + 128 * LANES;

/// The first table (`iq5nl_values`).
const VALUES: [i8; 32] = [
    -126, -114, -103, -92, -83, -74, -65, -57, -50, -43, -36, -30, -24, -18, -12, -6, -1, 5, 11, 17, 23, 29, 36, 43,
    51, 59, 68, 77, 87, 97, 109, 121,
];

// SAFETY: constants as in ik_llama.cpp's ggml-common.h.
unsafe impl Format for Iq5K {
    type Scales = SixBitScales;
    const GROUP: usize = 16;
    const ZERO_POINT: i32 = 128;
    const QUANT_NMSE: f32 = 1.0e-3;
    const Q_MIN: i32 = 2;
    const Q_MAX: i32 = 251;
    const STEP: i32 = 2;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        let (nibbles, fifth) = (Nibbles::<32>::of::<Self>(group), Bits::of::<Self>(group));
        put::<Self>(out, |i| {
            let index = nibbles.get(&block[QS..], i) | fifth.get(&block[QH..], i) << 4;
            VALUES[usize::from(index)] + step::<Self>(block, group, i)
        });
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn first_quants_avx512(block: *const u8, group: usize) -> ([__m512i; 8], __mmask16) {
        const TABLE: [u8; 32] = unsigned(&VALUES, Iq5K::ZERO_POINT);
        let [lower, upper] = [sixteen(&TABLE), sixteen(&TABLE[16..])];
        let (nibbles, fifth) = (Nibbles::<32>::of::<Self>(group), Bits::of::<Self>(group));
        // SAFETY: a whole block, which has the field.
        let (mut rows, second) = unsafe { (nibbles.vectors::<4>(block.add(QS)), second_avx512(block, group)) };
        for (r, row) in rows[..4].iter_mut().enumerate() {
            let value = _mm512_shuffle_epi8(lower, *row);
            // SAFETY: a whole block, which has the field; a group has 4 vectors.
            *row = _mm512_mask_shuffle_epi8(value, unsafe { fifth.mask(block.add(QH), r) }, upper, *row);
        }
        (rows, second)
    }
}

//! IQ4_K of ik_llama.cpp: 256 weights in 16 groups of 16, `w = d * (ls - 32) * table[q]`. Block: f16 d, 16 bits that
//! choose between two tables, 12 bytes of 6-bit scales, 128 bytes of nibbles: 16 for two groups, low nibbles first
//! (its ggml-common.h, `block_iq4_k`).

use std::arch::x86_64::*;

use super::lookup::{IQ4, sixteen, unsigned};
use super::quants::{Nibbles, put};
use super::six_bit_scales::{self, SixBitScales};
use super::two_tables::{second_avx512, step};
use super::{Format, LANES};

/// The type; see the module.
pub struct Iq4K;

/// Packed offset of the nibbles.
const QS: usize = six_bit_scales::BYTES * LANES;

// SAFETY: constants as in ik_llama.cpp's ggml-common.h.
unsafe impl Format for Iq4K {
    type Scales = SixBitScales;
    const GROUP: usize = 16;
    const ZERO_POINT: i32 = 128;
    const QUANT_NMSE: f32 = 4.2e-3;
    const Q_MIN: i32 = 1;
    const Q_MAX: i32 = 245;
    const STEP: i32 = 4;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        let nibbles = Nibbles::<16>::of::<Self>(group);
        put::<Self>(out, |i| IQ4[usize::from(nibbles.get(&block[QS..], i))] + step::<Self>(block, group, i));
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn first_quants_avx512(block: *const u8, group: usize) -> ([__m512i; 8], __mmask16) {
        const TABLE: [u8; 16] = unsigned(&IQ4, Iq4K::ZERO_POINT);
        let (nibbles, table) = (Nibbles::<16>::of::<Self>(group), sixteen(&TABLE));
        // SAFETY: a whole block, which has the field.
        let (mut rows, second) = unsafe { (nibbles.vectors::<4>(block.add(QS)), second_avx512(block, group)) };
        for row in &mut rows[..4] {
            *row = _mm512_shuffle_epi8(table, *row);
        }
        (rows, second)
    }
}

//! IQ4_K of ik_llama.cpp: 256 weights in 16 groups of 16, `w = d * (ls - 32) * table[q]`. Block: f16 d, 16 bits that
//! choose between two tables, 12 bytes of 6-bit scales, 128 bytes of nibbles: 16 for two groups, low nibbles first
//! (its ggml-common.h, `block_iq4_k`).

use std::arch::x86_64::*;

use super::tables::{IQ4, sixteen, unsigned};
use super::two_tables::{self, has_second, second_avx512, six_bits};
use super::{BlockScales, Format, GroupScales, LANES};

/// The type; see the module.
pub struct Iq4K;

/// Packed offset of the nibbles.
const QS: usize = six_bits::BYTES * LANES;

// SAFETY: constants as in ik_llama.cpp's ggml-common.h.
unsafe impl Format for Iq4K {
    const GROUP: usize = 16;
    const ZERO_POINT: i32 = 128;
    const QUANT_NMSE: f32 = 4.2e-3;
    const Q_MIN: i32 = 1;
    const Q_MAX: i32 = 245;
    const HAS_MIN: bool = false;
    const STEP: i32 = 4;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        for (i, byte) in block[QS + group / 2 * 16 * LANES..][..16 * LANES].iter().enumerate() {
            let step = if has_second(block, group, i) { Self::STEP as i8 } else { 0 };
            out[i] = IQ4[usize::from(byte >> (group % 2 * 4) & 15)] + step;
        }
    }

    fn scales(block: &[u8], group: usize) -> GroupScales {
        six_bits::scales(block, group)
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
        const TABLE: [u8; 16] = unsigned(&IQ4, Iq4K::ZERO_POINT);
        let (table, mask) = (sixteen(&TABLE), _mm512_set1_epi8(15));
        // SAFETY: the caller's block is large enough.
        let second = unsafe { second_avx512(block, group) };
        let mut rows = [_mm512_setzero_si512(); 8];
        for (r, row) in rows[..4].iter_mut().enumerate() {
            // SAFETY: four vectors for two groups, inside the caller's block.
            let v = unsafe { _mm512_loadu_si512(block.add(QS + group / 2 * 16 * LANES + 64 * r).cast()) };
            let v = if group.is_multiple_of(2) { v } else { _mm512_srli_epi16::<4>(v) };
            *row = _mm512_shuffle_epi8(table, _mm512_and_si512(v, mask));
        }
        (rows, second)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn scales_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block is large enough.
        unsafe { six_bits::scales_avx512(block, group) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn block_scales_avx512(block: *const u8, out: &mut BlockScales) {
        // SAFETY: the caller's block is large enough.
        unsafe { six_bits::block_scales_avx512::<Self>(block, out) }
    }
}

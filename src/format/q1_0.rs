//! Q1_0: 128 weights, `d` or `-d`. Block: f16 d, 16 bytes of bits, 1 for `d` (ggml-common.h, `block_q1_0`).

use std::arch::x86_64::*;

use super::quants::{bit, masks_avx512, put};
use super::scales::OneScale;
use super::{Format, LANES};

/// The type; see the module.
pub struct Q1_0;

/// Packed offset of the bits, and bytes of a group.
const QS: usize = 2 * LANES;
const GROUP_BYTES: usize = 4 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Q1_0 {
    type Scales = OneScale<0>;
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 1;
    /// Of weights that were not trained as binary: 0.36.
    const QUANT_NMSE: f32 = 0.0;
    const Q_MAX: i32 = 2;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        put::<Self>(out, |i| 2 * bit(&block[QS + group * GROUP_BYTES..], i) as i8 - 1);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        let two = _mm512_set1_epi8(2);
        // SAFETY: a whole block, with 4 bytes of bits per row and group.
        let set = unsafe { masks_avx512(block.add(QS + group * GROUP_BYTES)) };
        std::array::from_fn(|r| _mm512_maskz_mov_epi8(set[r], two))
    }
}

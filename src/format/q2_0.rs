//! Q2_0: 64 weights, `w = d * (q - 1)`. Block: f16 d, 16 bytes of four bit pairs each, the lowest first
//! (ggml-common.h, `block_q2_0`).

use std::arch::x86_64::*;

use super::lanes::byte_lanes;
use super::quants::put;
use super::scales::OneScale;
use super::{Format, LANES};

/// The type; see the module.
pub struct Q2_0;

/// Packed offset of the bit pairs, and bytes of a group.
const QS: usize = 2 * LANES;
const GROUP_BYTES: usize = 8 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Q2_0 {
    type Scales = OneScale<0>;
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 1;
    /// Of weights that were not trained as ternary: 0.52.
    const QUANT_NMSE: f32 = 0.0;
    const Q_MAX: i32 = 3;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        put::<Self>(out, |i| (block[QS + group * GROUP_BYTES + i / 4] >> (i % 4 * 2) & 3) as i8 - 1);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        let mask = _mm512_set1_epi8(3);
        std::array::from_fn(|r| {
            // Copies of the byte, shifted so that pair `i` is the lowest of byte `i`.
            // SAFETY: a whole block, with 8 bytes per row and group.
            let one = unsafe { byte_lanes(block.add(QS + group * GROUP_BYTES + r * LANES)) };
            let two = _mm512_or_si512(one, _mm512_slli_epi32::<12>(one));
            _mm512_and_si512(_mm512_or_si512(two, _mm512_slli_epi32::<6>(two)), mask)
        })
    }
}

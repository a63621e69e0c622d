//! Scales of 8-bit activations.

use std::arch::x86_64::*;
use std::ops::Range;

use super::rows::InputRow;

/// The scale and its inverse for a block whose largest magnitude has the bits `amax`.
#[inline]
pub(super) fn scale_of(amax: u32) -> (f32, f32) {
    const INFINITY: u32 = 0x7f80_0000;
    let value = f32::from_bits(amax);
    if amax >= INFINITY {
        (f32::NAN, 0.0)
    } else if value < 1e-30 {
        (0.0, 0.0)
    } else {
        (value / 127.0, 127.0 / value)
    }
}

/// Scale of some channels of a row, outliers left out by `mask`, and its inverse.
///
/// # Safety
/// The row must have the channels; AVX-512 needed.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn scale_of_pass(x: &InputRow, channels: Range<usize>, mask: &[u16]) -> (f32, f32) {
    let magnitude = _mm512_set1_epi32(0x7fff_ffff);
    let mut max = _mm512_setzero_si512();
    for c in channels.step_by(16) {
        // SAFETY: promised by the caller.
        let v = unsafe { _mm512_maskz_mov_ps(mask[c / 16], x.lanes(c)) };
        max = _mm512_max_epu32(max, _mm512_and_si512(_mm512_castps_si512(v), magnitude));
    }
    scale_of(_mm512_reduce_max_epu32(max))
}

//! The scale of activations that share one in 8 bits.

use std::arch::x86_64::*;
use std::ops::Range;

use super::rows::InputRow;

/// The scale `amax / 127` and its inverse; `amax` are the bits of the largest magnitude. NaN and infinity have the
/// scale NaN, so that results show them; below 1e-30 all counts as zero.
#[inline]
pub fn scale_of(amax: u32) -> (f32, f32) {
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

/// Scale and inverse for `channels` of a row, without those that `keep` leaves out.
///
/// # Safety
/// The row must have the channels, `keep` a bit for each; AVX-512 must be there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn scale_of_pass(x: &InputRow, channels: Range<usize>, keep: &[u16]) -> (f32, f32) {
    let magnitude = _mm512_set1_epi32(0x7fff_ffff);
    let mut max = _mm512_setzero_si512();
    for c in channels.step_by(16) {
        // SAFETY: the row has the channels.
        let v = unsafe { _mm512_maskz_mov_ps(keep[c / 16], x.lanes(c)) };
        max = _mm512_max_epu32(max, _mm512_and_si512(_mm512_castps_si512(v), magnitude));
    }
    scale_of(_mm512_reduce_max_epu32(max))
}

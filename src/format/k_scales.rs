//! The scales of Q4_K and Q5_K: `scale = d * sc[g]`, `min = -(dmin * m[g])` for 8 groups. A block begins with f16 d,
//! f16 dmin and 12 bytes (ggml-common.h, `K_SCALE_SIZE`) of 6-bit sc and m. Of groups 0..4, sc are the lower six bits
//! of bytes 0..4 and m of bytes 4..8; of groups 4..8, bytes 8..12 have the lower four bits of both, and the upper two
//! bits of bytes 0..8 are the upper two of sc and m.

use std::arch::x86_64::*;

use super::lanes::*;
use super::scales::{GroupScales, ScaleReader, negative, times};
use super::{BlockScales, Format, LANES};

/// Bytes of a plain block before its quants.
pub(super) const BYTES: usize = 16;
/// Where the packed 6-bit numbers start.
const SIX_BITS: usize = 4 * LANES;

/// The scales; see the module.
pub struct KScales;

impl ScaleReader for KScales {
    const HAS_MIN: bool = true;

    fn read(block: &[u8], group: usize) -> GroupScales {
        let byte = |j: usize, lane: usize| block[SIX_BITS + j * LANES + lane];
        let numbers = |lane: usize| {
            if group < 4 {
                return (byte(group, lane) & 63, byte(group + 4, lane) & 63);
            }
            let low = byte(group + 4, lane);
            (low & 15 | byte(group - 4, lane) >> 6 << 4, low >> 4 | byte(group, lane) >> 6 << 4)
        };
        GroupScales::with_min(
            |lane| f16_at(block, 2 * lane) * f32::from(numbers(lane).0),
            |lane| -(f16_at(block, 2 * LANES + 2 * lane) * f32::from(numbers(lane).1)),
        )
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn read_avx512(block: *const u8, group: usize) -> (__m512, __m512) {
        // SAFETY: a whole block; `j` is below 12.
        let byte = |j: usize| unsafe { byte_lanes(block.add(SIX_BITS + j * LANES)) };
        let (sc, m) = if group < 4 {
            let mask = _mm512_set1_epi32(63);
            (_mm512_and_si512(byte(group), mask), _mm512_and_si512(byte(group + 4), mask))
        } else {
            let high = |j: usize| _mm512_slli_epi32::<4>(_mm512_srli_epi32::<6>(byte(j)));
            let low = byte(group + 4);
            let nibble = _mm512_and_si512(low, _mm512_set1_epi32(15));
            let sc = if cfg!(mutant = "six-bits") { nibble } else { _mm512_or_si512(nibble, high(group - 4)) };
            (sc, _mm512_or_si512(_mm512_srli_epi32::<4>(low), high(group)))
        };
        // SAFETY: a whole block, which begins with d and dmin.
        let (d, dmin) = unsafe { (f16_lanes(block), f16_lanes(block.add(2 * LANES))) };
        (times(d, sc), negative(times(dmin, m)))
    }

    /// The six bits of four groups are put together at once.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn read_block_avx512<F: Format>(block: *const u8, out: &mut BlockScales) {
        let [six, four, upper] = [63, 15, 0x30].map(|mask| _mm512_set1_epi8(mask));
        // SAFETY: a whole block, which begins with d, dmin and the 12 bytes.
        let (d, dmin, [first, second, low]) = unsafe {
            let four_bytes = |j| dword_lanes(block.add(SIX_BITS + j * LANES));
            (f16_lanes(block), f16_lanes(block.add(2 * LANES)), [four_bytes(0), four_bytes(4), four_bytes(8)])
        };
        let high = |v| _mm512_and_si512(_mm512_srli_epi16::<2>(v), upper);
        let nibble = |v, high| _mm512_or_si512(_mm512_and_si512(v, four), high);
        let sc = [_mm512_and_si512(first, six), nibble(low, high(first))];
        let m = [_mm512_and_si512(second, six), nibble(_mm512_srli_epi16::<4>(low), high(second))];
        // SAFETY: vectors without padding; a quarter of one has a byte of every row.
        let [sc, m]: [[__m128i; 8]; 2] = unsafe { std::mem::transmute([sc, m]) };
        let minus_dmin = negative(dmin);
        for group in 0..8 {
            let min = times(minus_dmin, _mm512_cvtepu8_epi32(m[group]));
            out.set::<F>(group, times(d, _mm512_cvtepu8_epi32(sc[group])), min);
        }
    }
}

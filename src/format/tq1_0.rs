//! TQ1_0: 256 weights, `w = d * (q - 1)` with q of 0, 1, 2. Block: 48 bytes of five base-3 digits each,
//! 4 bytes of four digits, f16 d (ggml-common.h, `block_tq1_0`).
//!
//! A byte is a fraction of 256: digit `n` is the whole part of `3 * (byte * 3^n mod 256) / 256`. Weights
//! 0..160 are digits 0 to 4 of bytes 0..32, 160..240 those of bytes 32..48, 240..256 digits 0 to 3 of
//! bytes 48..52.

use std::arch::x86_64::*;

use super::lanes::dword_lanes;
use super::quants::put;
use super::scales::OneScale;
use super::{Format, LANES};

/// The type; see the module.
pub struct Tq1_0;

/// Powers of 3.
const POWERS: [u8; 5] = [1, 3, 9, 27, 81];

/// Packed offset of the bytes that vector `r` of group `group` comes from, and which digit of them it is.
#[inline]
fn vector_source(group: usize, r: usize) -> (usize, usize) {
    // Numbered by 4 weights: 8 vectors per digit, then 4, then 1.
    match group * 8 + r {
        v @ ..40 => (v % 8 * 64, v / 8),
        v @ ..60 => (32 * LANES + v % 4 * 64, (v - 40) / 4),
        v => (48 * LANES, v - 60),
    }
}

/// Cuts one digit out of every byte. A 16-bit lane has two bytes; each has a factor of its own.
struct Digit {
    even: __m512i,
    odd: __m512i,
}

impl Digit {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(number: usize) -> Self {
        /// For even and odd bytes, repeated in both halves of 32 bits.
        const FACTORS: [[i32; 2]; 5] = {
            let mut factors = [[0; 2]; 5];
            let mut i = 0;
            while i < 5 {
                let power = POWERS[i] as i32;
                factors[i] = [power * 0x0100_0100, power * 0x0001_0001];
                i += 1;
            }
            factors
        };
        let [even, odd] = FACTORS[number];
        Self { even: _mm512_set1_epi32(even), odd: _mm512_set1_epi32(odd) }
    }

    /// A byte times the power of 3 leaves its fraction in the high byte of a 16-bit lane; the whole part drops out.
    /// Three times the fraction has the digit above the lane: `mulhi` by 3 gives it, and by 3 * 256 gives it in the
    /// high byte.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn of(&self, v: __m512i) -> __m512i {
        let high = _mm512_set1_epi16(0xff00_u16 as i16);
        let even = _mm512_mulhi_epu16(_mm512_mullo_epi16(v, self.even), _mm512_set1_epi16(3));
        let odd = _mm512_mullo_epi16(_mm512_and_si512(v, high), self.odd);
        let odd = _mm512_mulhi_epu16(odd, _mm512_set1_epi16(3 << 8));
        // even, or the high byte of odd
        _mm512_ternarylogic_epi32::<0xf8>(even, odd, high)
    }
}

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Tq1_0 {
    type Scales = OneScale<52>;
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 1;
    /// Of weights that were not trained as ternary: 0.65.
    const QUANT_NMSE: f32 = 0.0;
    const Q_MAX: i32 = 2;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        put::<Self>(out, |i| {
            let (at, digit) = vector_source(group, i / 64);
            let fraction = block[at + i % 64].wrapping_mul(POWERS[digit]);
            ((u16::from(fraction) * 3) >> 8) as i8 - 1
        });
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        // SAFETY: a whole block, which begins with 52 bytes of digits per row.
        let load = |at: usize| unsafe { dword_lanes(block.add(at)) };
        // As in `vector_source`, but with digits that the compiler knows or that many vectors share.
        match group {
            0..=4 => {
                let digit = Digit::new(group);
                std::array::from_fn(|r| digit.of(load(64 * r)))
            }
            5 | 6 => {
                let digits = [Digit::new(2 * group - 10), Digit::new(2 * group - 9)];
                std::array::from_fn(|r| digits[r / 4].of(load(32 * LANES + 64 * (r % 4))))
            }
            _ => {
                let (digit, last) = (Digit::new(4), load(48 * LANES));
                std::array::from_fn(|r| {
                    if r < 4 { digit.of(load(32 * LANES + 64 * r)) } else { Digit::new(r - 4).of(last) }
                })
            }
        }
    }
}

//! IQ4_NL: 32 weights, `w = d * table[q]`. Block: f16 d, 16 bytes of nibbles as in Q4_0 (ggml-common.h,
//! `block_iq4_nl`).

use std::arch::x86_64::*;

use super::lookup::{IQ4, look_up, unsigned};
use super::quants::{both_nibbles, both_nibbles_avx512};
use super::scales::OneScale;
use super::{Format, LANES};

/// The type; see the module.
pub struct Iq4Nl;

/// Packed offset of the nibbles.
const QS: usize = 2 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Iq4Nl {
    type Scales = OneScale<0>;
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 128;
    const QUANT_NMSE: f32 = 5.8e-3;
    const Q_MIN: i32 = 1;
    const Q_MAX: i32 = 241;

    fn quants(block: &[u8], _group: usize, out: &mut [i8]) {
        both_nibbles(&block[QS..], |i, q| out[i] = IQ4[usize::from(q)]);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, _group: usize) -> [__m512i; 8] {
        const TABLE: [u8; 16] = unsigned(&IQ4, Iq4Nl::ZERO_POINT);
        // SAFETY: a whole block, with 16 bytes of nibbles per row.
        look_up(&TABLE, unsafe { both_nibbles_avx512::<4>(block.add(QS)) })
    }
}

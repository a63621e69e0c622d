//! Q4_K: 256 weights in 8 groups of 32, `w = d * sc * q - dmin * m`. Block: f16 d, f16 dmin, 12 bytes
//! of 6-bit scales and minima, 128 bytes of nibbles, 32 for two groups, the even one in the low nibbles
//! (ggml-common.h, `block_q4_K`).

use std::arch::x86_64::*;

use super::k_scales::{self, KScales};
use super::quants::{Nibbles, put};
use super::{Format, LANES};

/// The type; see the module.
pub struct Q4K;

/// Packed offset of the nibbles.
const QS: usize = k_scales::BYTES * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Q4K {
    type Scales = KScales;
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 0;
    const QUANT_NMSE: f32 = 5.0e-3;
    const Q_MAX: i32 = 15;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        let nibbles = Nibbles::<32>::of::<Self>(group);
        put::<Self>(out, |i| nibbles.get(&block[QS..], i) as i8);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        // SAFETY: a whole block, which has the field.
        unsafe { Nibbles::<32>::of::<Self>(group).vectors::<8>(block.add(QS)) }
    }
}

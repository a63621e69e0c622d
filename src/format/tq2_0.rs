//! TQ2_0: 256 weights, `w = d * (q - 1)`. Block: 64 bytes of bit pairs as in Q2_K, f16 d (ggml-common.h,
//! `block_tq2_0`). ggml's quantiser writes no 3, but a 3 stands for `2 * d`.

use std::arch::x86_64::*;

use super::Format;
use super::quants::{Pairs, put};
use super::scales::OneScale;

/// The type; see the module.
pub struct Tq2_0;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Tq2_0 {
    type Scales = OneScale<64>;
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 1;
    /// Of weights that were not trained as ternary: 0.65.
    const QUANT_NMSE: f32 = 0.0;
    const Q_MAX: i32 = 3;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        let pairs = Pairs::of::<Self>(group);
        put::<Self>(out, |i| pairs.get(block, i) as i8 - 1);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        // SAFETY: a whole block, which begins with the pairs.
        unsafe { Pairs::of::<Self>(group).vectors::<8>(block) }
    }
}

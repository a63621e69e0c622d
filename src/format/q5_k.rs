//! Q5_K: 256 weights in 8 groups of 32, `w = d * sc * q - dmin * m`. Block: f16 d, f16 dmin, 12 bytes
//! of 6-bit scales and minima, 32 bytes whose bit `g` is the fifth bit of group `g`, 128 bytes of
//! nibbles as in Q4_K (ggml-common.h, `block_q5_K`).

use std::arch::x86_64::*;

use super::k_scales::{self, KScales};
use super::quants::{Bits, Nibbles, put};
use super::{Format, LANES};

/// The type; see the module.
pub struct Q5K;

/// Packed offsets of the fifth bits and the nibbles.
const QH: usize = k_scales::BYTES * LANES;
const QS: usize = QH + 32 * LANES;

// SAFETY: constants as in ggml-common.h.
unsafe impl Format for Q5K {
    type Scales = KScales;
    const GROUP: usize = 32;
    const ZERO_POINT: i32 = 0;
    const QUANT_NMSE: f32 = 1.3e-3;
    const Q_MAX: i32 = 31;

    fn quants(block: &[u8], group: usize, out: &mut [i8]) {
        let (nibbles, fifth) = (Nibbles::<32>::of::<Self>(group), Bits::of::<Self>(group));
        put::<Self>(out, |i| (nibbles.get(&block[QS..], i) | fifth.get(&block[QH..], i) << 4) as i8);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quants_avx512(block: *const u8, group: usize) -> [__m512i; 8] {
        let (fifth, sixteen) = (Bits::of::<Self>(group), _mm512_set1_epi8(16));
        // SAFETY: a whole block, which has the field.
        let rows = unsafe { Nibbles::<32>::of::<Self>(group).vectors::<8>(block.add(QS)) };
        std::array::from_fn(|r| {
            // SAFETY: a whole block, which has the field; a group has 8 vectors.
            _mm512_mask_add_epi8(rows[r], unsafe { fifth.mask(block.add(QH), r) }, rows[r], sixteen)
        })
    }
}

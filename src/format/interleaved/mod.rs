//! Forms of the types that ik_llama.cpp interleaves by rows (`_R4`, `_R8`: what its `-rtr` makes). Blocks of 4 or 8
//! rows lie as one: first what every row has once, row by row, then quants, 4 bytes of each row in turn. Facts are from
//! its ggml-common.h and iqk_quantize.cpp.
//!
//! Every function here makes one packed block of 16 rows (see [`super`]) from interleaved ones: four of 4 rows, or two
//! of 8. `shuffles.rs` has what they share, `iq4.rs` and `k_quants.rs` the types.

mod iq4;
mod k_quants;
mod shuffles;

use super::WeightType;

/// The interleaved blocks that make up one packed block; if they have 8 rows each, the first two.
pub type Blocks = [*const u8; 4];

/// Rows that a block has in the interleaved form of a type; 1 if no such form is read here.
pub const fn interleave(ty: WeightType) -> usize {
    match ty {
        WeightType::Q4_0 | WeightType::Q8_0 | WeightType::IQ4_XS => 8,
        WeightType::IQ4_NL | WeightType::Q4_K | WeightType::Q5_K | WeightType::Q6_K | WeightType::IQ4_K => 4,
        _ => 1,
    }
}

/// Makes the packed block `out` of type `ty`.
///
/// # Safety
/// **Whole blocks**: each of the blocks must be readable for [`interleave`] plain blocks of the type, `out` writable
/// for 16 of them; AVX-512 F and BW must be there.
///
/// # Panics
/// If the type has no such form.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn pack(ty: WeightType, blocks: &Blocks, out: *mut u8) {
    // SAFETY: whole blocks.
    unsafe {
        match ty {
            WeightType::Q4_0 => shuffles::scale_and_quants_of_8_rows::<4>(blocks, out),
            WeightType::Q8_0 => shuffles::scale_and_quants_of_8_rows::<8>(blocks, out),
            WeightType::IQ4_NL => iq4::iq4_nl(blocks, out),
            WeightType::IQ4_XS => iq4::iq4_xs(blocks, out),
            WeightType::IQ4_K => iq4::iq4_k(blocks, out),
            WeightType::Q4_K => k_quants::q4_k(blocks, out),
            WeightType::Q5_K => k_quants::q5_k(blocks, out),
            WeightType::Q6_K => k_quants::q6_k(blocks, out),
            _ => panic!("{ty:?} has no interleaved form"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::LANES;
    use super::*;
    use crate::cpu;

    /// Given interleaved blocks with one bit set, then one bit of the packed block is set, for every bit another one.
    #[test]
    fn packing_moves_every_bit_to_a_place_of_its_own() {
        if cpu::isa() < cpu::Isa::Avx512 {
            println!("SKIPPED: no AVX-512");
            return;
        }
        let forms: Vec<_> = WeightType::ALL.iter().filter(|ty| interleave(**ty) > 1).collect();
        assert_eq!(forms.len(), 8);
        for ty in forms {
            let size = LANES * ty.info().bytes;
            let (mut from, mut taken) = (vec![0u8; size], vec![0u8; size]);
            for bit in 0..8 * size {
                from[bit / 8] = 1 << (bit % 8);
                let each = interleave(*ty) * ty.info().bytes;
                let blocks = std::array::from_fn(|i| from.as_ptr().wrapping_add(i * each % size));
                let mut packed = vec![0u8; size];
                // SAFETY: whole blocks: those in `from` and the packed one are 16 plain blocks.
                unsafe { pack(*ty, &blocks, packed.as_mut_ptr()) };
                assert_eq!(packed.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1, "{ty:?}, bit {bit}");
                for (taken, byte) in taken.iter_mut().zip(&packed) {
                    assert_eq!(*taken & byte, 0, "{ty:?}, bit {bit}");
                    *taken |= byte;
                }
                from[bit / 8] = 0;
            }
        }
    }
}

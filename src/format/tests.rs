//! Every type: the permutation is one, and the vector code reads what the portable code reads.

use super::*;
use crate::cpu;

/// A small deterministic generator (SplitMix64).
fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    };
    (0..len).map(|_| next() as u8).collect()
}

#[test]
fn every_packed_byte_has_exactly_one_plain_byte() {
    for ty in WeightType::ALL {
        let info = ty.info();
        let mut seen = vec![false; LANES * info.bytes];
        for lane in 0..LANES {
            for byte in 0..info.bytes {
                let i = info.layout.index(lane, byte);
                assert!(!std::mem::replace(&mut seen[i], true), "{ty:?}: two plain bytes at {i}");
            }
        }
        assert!(seen.iter().all(|s| *s), "{ty:?}");
    }
}

#[test]
fn scatter_and_gather_follow_the_index() {
    for ty in WeightType::ALL {
        let info = ty.info();
        let plain = random_bytes(1, info.bytes);
        for lane in [0, 7, 15] {
            let mut packed = vec![0; LANES * info.bytes];
            let mut back = vec![0; info.bytes];
            // SAFETY: the buffers have the block's sizes.
            unsafe {
                info.layout.scatter(packed.as_mut_ptr(), lane, plain.as_ptr());
                info.layout.gather(back.as_mut_ptr(), packed.as_ptr(), lane);
            }
            assert_eq!(back, plain);
            for (byte, value) in plain.iter().enumerate() {
                assert_eq!(packed[info.layout.index(lane, byte)], *value, "{ty:?} lane {lane} byte {byte}");
            }
        }
    }
}

#[test]
fn the_vector_code_agrees_with_the_portable_code_bit_for_bit() {
    if cpu::Avx512::new().is_none() {
        println!("SKIPPED: no AVX-512 VNNI");
        return;
    }
    for ty in WeightType::ALL {
        for seed in 0..20 {
            let block = random_bytes(seed, LANES * ty.info().bytes);
            // SAFETY: AVX-512 was found above.
            crate::with_format!(*ty, F => unsafe { compare::<F>(&block) });
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn compare<F: Format>(block: &[u8]) {
    for group in 0..F::BLOCK / F::GROUP {
        let mut portable = vec![0; LANES * F::GROUP];
        F::quants(block, group, &mut portable);
        // SAFETY: the block is whole; a vector has 64 bytes.
        let vectors: [[u8; 64]; 8] = unsafe { std::mem::transmute(F::quants_avx512(block.as_ptr(), group)) };
        let flat: Vec<i8> =
            vectors[..F::GROUP / 4].iter().flatten().map(|u| (i32::from(*u) - F::ZERO_POINT) as i8).collect();
        assert_eq!(flat, portable, "{:?} group {group}", F::TYPE);

        let expected = F::scales(block, group);
        // SAFETY: as above.
        let (scale, min): ([u32; 16], [u32; 16]) =
            unsafe { std::mem::transmute(F::scales_avx512(block.as_ptr(), group)) };
        for lane in 0..LANES {
            // Random f16 scales include NaN; NaN payloads are all we do not compare.
            let same = |a: f32, b: u32| a.to_bits() == b || a.is_nan() && f32::from_bits(b).is_nan();
            assert!(same(expected.scale[lane], scale[lane]), "{:?} group {group} lane {lane}", F::TYPE);
            assert!(same(expected.min[lane], min[lane]) || !F::HAS_MIN, "{:?} group {group} lane {lane}", F::TYPE);
        }
    }
}

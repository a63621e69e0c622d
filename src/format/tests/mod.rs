//! Every type: the permutation is one, and the vector code reads what the portable code reads.

mod examples;

use std::ffi::c_void;

use super::*;
use crate::cpu;
use crate::panel::weights::Shape;
use crate::testing::random::{Random, random_weights};
use crate::testing::reference;

/// Random bytes, the same for the same seed (SplitMix64).
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
                let i = info.fields.index(lane, byte);
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
                info.fields.scatter(packed.as_mut_ptr(), lane, plain.as_ptr());
                info.fields.gather(back.as_mut_ptr(), packed.as_ptr(), lane);
            }
            assert_eq!(back, plain);
            for (byte, value) in plain.iter().enumerate() {
                assert_eq!(packed[info.fields.index(lane, byte)], *value, "{ty:?} lane {lane} byte {byte}");
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
    for ty in stand_in::all_types() {
        for seed in 0..20 {
            let block = random_bytes(seed, LANES * ty.info().bytes);
            // SAFETY: a whole block; AVX-512 was found above.
            crate::with_format!(*ty, F => unsafe { compare::<F>(&block) });
        }
    }
}

/// Compares quants and scales in registers with those of the portable code.
///
/// # Safety
/// `block` must be a whole block.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn compare<F: Format>(block: &[u8]) {
    for group in 0..F::BLOCK / F::GROUP {
        let mut portable = vec![0; LANES * F::GROUP];
        F::quants(block, group, &mut portable);
        // SAFETY: a whole block; vectors without padding.
        let vectors: [[u8; 64]; 8] = unsafe { std::mem::transmute(F::quants_avx512(block.as_ptr(), group)) };
        let flat: Vec<i8> =
            vectors[..F::GROUP / 4].iter().flatten().map(|u| (i32::from(*u) - F::ZERO_POINT) as i8).collect();
        assert_eq!(flat, portable, "{:?} group {group}", F::TYPE);

        let expected = F::scales(block, group);
        // SAFETY: a whole block; vectors without padding.
        let (scale, min): ([u32; 16], [u32; 16]) =
            unsafe { std::mem::transmute(F::scales_avx512(block.as_ptr(), group)) };
        for lane in 0..LANES {
            // Random f16 scales may be NaN. Which NaN does not matter.
            let same = |a: f32, b: u32| a.to_bits() == b || a.is_nan() && f32::from_bits(b).is_nan();
            assert!(same(expected.scale[lane], scale[lane]), "{:?} group {group} lane {lane}", F::TYPE);
            assert!(same(expected.min[lane], min[lane]) || !F::HAS_MIN, "{:?} group {group} lane {lane}", F::TYPE);
        }
    }
    // SAFETY: a whole block.
    unsafe { compare_parts::<F>(block) };
}

/// Compares quants of the first table, and scales of the whole block, with those of each group.
///
/// # Safety
/// `block` must be a whole block.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn compare_parts<F: Format>(block: &[u8]) {
    let mut scales = BlockScales::new();
    // SAFETY: a whole block; all scales are written before they are read; vectors without padding.
    unsafe {
        F::block_scales_avx512(block.as_ptr(), &mut scales);
        for group in 0..F::BLOCK / F::GROUP {
            let [one, all]: [[[u32; 16]; 2]; 2] =
                std::mem::transmute([F::scales_avx512(block.as_ptr(), group), scales.get::<F>(group)]);
            let same = |a: &u32, b: &u32| a == b || f32::from_bits(*a).is_nan() && f32::from_bits(*b).is_nan();
            assert!(one[0].iter().zip(&all[0]).all(|(a, b)| same(a, b)), "{:?} group {group}", F::TYPE);
            assert!(one[1].iter().zip(&all[1]).all(|(a, b)| same(a, b)) || !F::HAS_MIN, "{:?} group {group}", F::TYPE);

            let whole: [[u8; 64]; 8] = std::mem::transmute(F::quants_avx512(block.as_ptr(), group));
            let (first, second) = F::first_quants_avx512(block.as_ptr(), group);
            let first: [[u8; 64]; 8] = std::mem::transmute(first);
            for (i, (whole, first)) in
                whole.iter().flatten().zip(first.iter().flatten()).enumerate().take(LANES * F::GROUP)
            {
                let step = if second >> (i % 64 / 4) & 1 == 1 { F::STEP } else { 0 };
                assert_eq!(i32::from(*whole), i32::from(*first) + step, "{:?} group {group}", F::TYPE);
            }
        }
    }
}

/// All weights of a plain block, read from lane 5 of a packed one whose other lanes hold other bytes.
fn decode(ty: WeightType, plain: &[u8]) -> Vec<f32> {
    let info = ty.info();
    let mut packed = vec![0xa5; LANES * info.bytes];
    assert_eq!(plain.len(), info.bytes);
    // SAFETY: the buffers have the block's sizes.
    unsafe { info.fields.scatter(packed.as_mut_ptr(), 5, plain.as_ptr()) };
    crate::with_format!(ty, F => decode_lane::<F>(&packed, 5))
}

fn decode_lane<F: Format>(packed: &[u8], lane: usize) -> Vec<f32> {
    let mut quants = vec![0; LANES * F::GROUP];
    let mut out = Vec::new();
    for group in 0..F::BLOCK / F::GROUP {
        F::quants(packed, group, &mut quants);
        let s = F::scales(packed, group);
        for k in 0..F::GROUP {
            let q = i32::from(quants[k / 4 * 64 + lane * 4 + k % 4]);
            assert!((F::Q_MIN..=F::Q_MAX).contains(&(q + F::ZERO_POINT)), "{:?}: {q}", F::TYPE);
            out.push(s.scale[lane] * q as f32 + s.min[lane]);
        }
    }
    out
}

/// Every type, block by block, against the reference, which does not use this code.
#[test]
fn random_blocks_mean_what_the_reference_says() {
    for ty in stand_in::all_types() {
        let shape = Shape::new(*ty, ty.info().block as i64, 1, 1).unwrap();
        for seed in 0..40 {
            let plain = random_weights(*ty, &shape, &mut Random(seed));
            let expected = reference::row(*ty, &plain);
            // The reference rounds in another order.
            let largest = expected.iter().fold(0f32, |most, w| most.max(w.abs()));
            for (i, (weight, expected)) in decode(*ty, &plain).into_iter().zip(expected).enumerate() {
                assert!((weight - expected).abs() <= 1e-6 * largest, "{ty:?} {i}: {weight} {expected}");
            }
        }
    }
}

/// Types with fields of indices, and no others, have a codebook; and the table's rows are the types.
#[test]
fn types_with_indices_have_a_codebook() {
    for ty in WeightType::ALL {
        let info = ty.info();
        assert_eq!(info.fields.iter().any(|f| f.kind == FieldKind::Indices), info.codebook.is_some(), "{ty:?}");
    }
    let rows = || ROWS.iter().map(|row| (row.number, row.name, row.bytes));
    assert!(rows().eq(WeightType::ALL.iter().map(|ty| (*ty as i32, ty.info().name, ty.info().bytes))));
    assert!(rows().is_sorted());
}

/// E8M0 and UE4M3 scales at the ends of their ranges; here they are half of what ggml says, for the tables are doubled.
#[test]
fn scales_of_8_bits_are_ggmls_at_the_ends_of_their_ranges() {
    let scale = |ty: WeightType, byte: u8| {
        let mut packed = vec![0; LANES * ty.info().bytes];
        packed[5] = byte;
        let all = crate::with_format!(ty, F => F::scales(&packed, 0).scale);
        assert!(all[4] == all[6], "{ty:?}: other lanes");
        all[5].to_bits()
    };
    for (e, bits) in [(0, 0x0020_0000), (1, 0x0040_0000), (2, 0x0080_0000), (127, 0x3f00_0000), (255, 0x7f00_0000)] {
        assert_eq!(scale(WeightType::MXFP4, e), bits, "2^({e} - 128)");
    }
    let floats = [(0, 0.0), (1, 2f32.powi(-10)), (7, 7.0 * 2f32.powi(-10)), (8, 2f32.powi(-7)), (0x38, 0.5)];
    // ggml reads 0x7f, which is NaN, as 0, and ignores a sign, which there should not be.
    let ends = [(0x7e, 224.0), (0x7f, 0.0), (0x80, 0.0), (0x81, 2f32.powi(-10)), (0xff, 240.0)];
    for (d, half) in floats.into_iter().chain(ends) {
        assert_eq!(f32::from_bits(scale(WeightType::NVFP4, d)), half, "half of {d:#x}");
    }
}

/// Given decoders that are not ggml's of the type, then no codebook is read off them.
#[test]
fn a_codebook_that_is_none_is_refused() {
    unsafe extern "C" fn nothing(_: *const c_void, _: *mut f32, _: i64) {}
    unsafe extern "C" fn half(x: *const c_void, y: *mut f32, n: i64) {
        // SAFETY: the stand-in gets what this decoder got; `y` has `n` weights.
        unsafe {
            stand_in::decoder(c"dequantize_row_iq2_xs")(x, y, n);
            std::slice::from_raw_parts_mut(y, n as usize).iter_mut().for_each(|w| *w *= 0.5);
        }
    }
    // A decoder of another type, whose indices are elsewhere.
    let other = stand_in::decoder(c"dequantize_row_iq2_xxs");
    for decode in [nothing, half, other] {
        let grid = codebook::Grid::<512, 8>::new();
        // SAFETY: no decoder here reads more than a block of the type, or writes more than its weights.
        let read = unsafe {
            grid.read::<Iq2Xs>(decode, 43..=86, |block, index| {
                block[1] = 0x48;
                block[2..4].copy_from_slice(&(index as u16).to_le_bytes());
            })
        };
        assert!(!read && !grid.is_there());
    }
}

//! Every type: the permutation is one, and the vector code reads what the portable code reads.

use std::ffi::c_void;

use super::*;
use crate::cpu;
use crate::panel::weights::Shape;
use crate::testing::random::{Random, random_weights};
use crate::testing::reference;

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
    for ty in stand_in::all_types() {
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
    // SAFETY: as above.
    unsafe { compare_parts::<F>(block) };
}

/// Quants without the step of the second table, and scales of the whole block.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn compare_parts<F: Format>(block: &[u8]) {
    let mut scales = BlockScales::new();
    // SAFETY: the block is whole; all scales are written before they are read.
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
    unsafe { info.layout.scatter(packed.as_mut_ptr(), 5, plain.as_ptr()) };
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

/// A block of zeros but for `bytes` (place, value) has `weights` (from, to, value; later ones overwrite).
fn example(ty: WeightType, bytes: &[(usize, u8)], weights: &[(usize, usize, f32)]) {
    let mut plain = vec![0; ty.info().bytes];
    for (at, byte) in bytes {
        plain[*at] = *byte;
    }
    let mut expected = vec![f32::NAN; ty.info().block];
    for (from, to, weight) in weights {
        expected[*from..*to].fill(*weight);
    }
    assert_eq!(decode(ty, &plain), expected, "{ty:?}");
}

/// Blocks worked out by hand. f16: 0x3800 is 0.5, 0x3c00 is 1, 0x4000 is 2, 0xbc00 is -1.
#[test]
fn blocks_mean_what_ggml_means_by_them() {
    // Fifth bits of weights 2 and 31; nibbles 1 and 3 of weights 2 and 18, 15 of weight 31.
    example(
        WeightType::Q5_0,
        &[(1, 0x38), (2, 0x04), (5, 0x80), (6 + 2, 0x31), (6 + 15, 0xf0)],
        &[(0, 32, -8.0), (2, 3, 0.5), (18, 19, -6.5), (31, 32, 7.5)],
    );
    // Fifth bits of weights 9 and 16; nibbles 2 and 4 of weights 9 and 25, 5 of weight 16.
    example(
        WeightType::Q5_1,
        &[(1, 0x38), (3, 0xbc), (5, 0x02), (6, 0x01), (8 + 9, 0x42), (8, 0x50)],
        &[(0, 32, -1.0), (9, 10, 8.0), (16, 17, 9.5), (25, 26, 1.0)],
    );
    // Groups 5 (scale 2, minimum 3) and 14 (1, 15): bits 4 of the first half's bytes, 6 of the second's.
    example(
        WeightType::Q2_K,
        &[(5, 0x32), (14, 0xf1), (16 + 16 + 7, 0x20), (16 + 32 + 2, 0xc0), (81, 0x3c), (83, 0x38)],
        &[(0, 256, 0.0), (80, 96, -1.5), (87, 88, 2.5), (224, 240, -7.5), (226, 227, -4.5)],
    );
    // Groups 6 (scale 5 + 3 * 16 - 32 = 21) and 9 (7 + 2 * 16 - 32 = 7); all others have -32.
    example(
        WeightType::Q3_K,
        &[
            (15, 0x08),
            (19, 0x10),
            (32 + 15, 0x40),
            (32 + 32 + 19, 0x02),
            (32 + 32 + 21, 0x03),
            (96 + 1, 0x70),
            (96 + 6, 0x05),
            (96 + 9, 0x20),
            (96 + 10, 0x0c),
            (109, 0x38),
        ],
        &[(0, 256, 64.0), (96, 112, -42.0), (111, 112, 10.5), (144, 160, -14.0), (147, 148, 7.0), (149, 150, -3.5)],
    );
    // Table entries 15 and 8 for weights 3 and 19, 7 for weight 28.
    example(
        WeightType::IQ4_NL,
        &[(1, 0x40), (2 + 3, 0x8f), (2 + 12, 0x70)],
        &[(0, 32, -254.0), (3, 4, 226.0), (19, 20, 2.0), (28, 29, -20.0)],
    );
    // Digits 1 2 0 1 2 are 140 of 243, 2 0 1 0 2 are 173, 1 0 2 2 0 are 105; as 256ths: 148, 183, 111.
    example(
        WeightType::TQ1_0,
        &[(17, 148), (32 + 9, 183), (48 + 2, 111), (53, 0x38)],
        &[
            (0, 256, -0.5),
            (17, 18, 0.0),
            (32 + 17, 32 + 18, 0.5),
            (96 + 17, 96 + 18, 0.0),
            (128 + 17, 128 + 18, 0.5),
            (160 + 9, 160 + 10, 0.5),
            (192 + 9, 192 + 10, 0.0),
            (224 + 9, 224 + 10, 0.5),
            (242, 243, 0.0),
            (250, 251, 0.5),
            (254, 255, 0.5),
        ],
    );
    // Pairs 3 0 1 2, from the lowest, of byte 20 of the second half; 1 of the second quarter of byte 31.
    example(
        WeightType::TQ2_0,
        &[(31, 0x04), (32 + 20, 0x93), (65, 0x38)],
        &[(0, 256, -0.5), (63, 64, 0.0), (148, 149, 1.0), (212, 213, 0.0), (244, 245, 0.5)],
    );
    // 2^(130 - 128) times table entries 15 and 9 for weights 5 and 21, 7 for weight 30.
    example(
        WeightType::MXFP4,
        &[(0, 130), (1 + 5, 0x9f), (1 + 14, 0x70)],
        &[(0, 32, 0.0), (5, 6, -48.0), (21, 22, -4.0), (30, 31, 48.0)],
    );
    // Group 2: 1.5 / 2 times table entries 14 and 2. Group 3: 2^-9 / 2 times 12.
    example(
        WeightType::NVFP4,
        &[(2, 0x3c), (3, 0x01), (4 + 16 + 1, 0x2e), (4 + 24 + 7, 0x70)],
        &[(0, 64, 0.0), (33, 34, -6.0), (41, 42, 1.5), (63, 64, 12.0 / 1024.0)],
    );
    // Bits 0 and 6 of byte 9, 7 of byte 15.
    example(
        WeightType::Q1_0,
        &[(1, 0x40), (2 + 9, 0x41), (2 + 15, 0x80)],
        &[(0, 128, -2.0), (72, 73, 2.0), (78, 79, 2.0), (127, 128, 2.0)],
    );
    // Pair 1 of byte 3; pairs 0 1 2 3 of byte 13.
    example(
        WeightType::Q2_0,
        &[(1, 0x40), (2 + 3, 0x08), (2 + 13, 0xe4)],
        &[(0, 64, -2.0), (13, 14, 2.0), (53, 54, 0.0), (54, 55, 2.0), (55, 56, 4.0)],
    );
}

/// The same for ik_llama.cpp's types.
#[test]
fn blocks_mean_what_ik_llama_means_by_them() {
    // Pairs of byte 3, from the lowest: weights 3, 19, 11, 27. Nibbles 5 and 7 of weights 3 and 19.
    example(
        WeightType::Q6_0,
        &[(1, 0x38), (2 + 3, 0xb1), (10 + 3, 0x75)],
        &[(0, 32, -16.0), (3, 4, -5.5), (11, 12, 8.0), (19, 20, -12.5), (27, 28, 0.0)],
    );
    // Group 5 (scale 11 - 8, second table), group 12 (1 - 8); all others have -8.
    example(
        WeightType::IQ2_K,
        &[(1, 0x38), (2, 0x20), (4 + 2, 0xb0), (4 + 6, 0x01), (12 + 16 + 7, 0x20), (12 + 32 + 4, 0x30)],
        &[(0, 256, 124.0), (80, 96, -39.0), (87, 88, 9.0), (192, 208, 108.5), (196, 197, -59.5)],
    );
    // Group 3 (scale 2 * 2 + 1, second table), group 10 (-(2 * 7 + 1)); all others have 1.
    example(
        WeightType::IQ3_K,
        &[
            (1, 0x38),
            (2, 0x08),
            (5, 0x04),
            (6 + 1, 0x20),
            (6 + 5, 0x07),
            (14 + 16 + 9, 0x08),
            (14 + 32 + 1, 0x08),
            (78 + 16 + 9, 0x02),
        ],
        &[(0, 256, -31.5), (48, 64, -147.5), (57, 58, 80.0), (160, 176, 472.5), (161, 162, 172.5)],
    );
    // Group 6 (scale 5 + 3 * 16 - 32, second table), group 9 (7 + 2 * 16 - 32); all others have -32.
    example(
        WeightType::IQ4_K,
        &[
            (1, 0x38),
            (2, 0x40),
            (4 + 1, 0x30),
            (4 + 2, 0x08),
            (8 + 3, 0x05),
            (8 + 4, 0x70),
            (16 + 48 + 2, 0x0f),
            (16 + 64 + 15, 0x80),
        ],
        &[(0, 256, 2032.0), (96, 112, -1291.5), (98, 99, 1228.5), (144, 160, -444.5), (159, 160, 3.5)],
    );
    // The same groups; fifth bits of the weights with nibbles.
    example(
        WeightType::IQ5_K,
        &[
            (1, 0x38),
            (2, 0x40),
            (4 + 1, 0x30),
            (4 + 2, 0x08),
            (8 + 3, 0x05),
            (8 + 4, 0x70),
            (16 + 32 + 2, 0xf0),
            (16 + 64 + 16 + 15, 0x08),
            (144 + 2, 0x08),
            (144 + 16 + 15, 0x10),
        ],
        &[(0, 256, 2016.0), (96, 112, -1302.0), (98, 99, 1291.5), (144, 160, -441.0), (159, 160, 178.5)],
    );
    // Groups 6 (scale 3, second table) and 9 (-2): pairs 3 and 2 of the weights with nibbles.
    example(
        WeightType::IQ6_K,
        &[
            (1, 0x38),
            (2, 0x40),
            (4 + 6, 3),
            (4 + 9, 0xfe),
            (20 + 32 + 2, 0xf0),
            (20 + 64 + 16 + 15, 0x01),
            (148 + 2, 0xc0),
            (148 + 32 + 16 + 15, 0x02),
        ],
        &[(0, 256, 0.0), (96, 112, -189.0), (98, 99, 183.0), (144, 160, 127.0), (159, 160, 0.0)],
    );
}

/// Every type, block by block, against the reference that knows nothing of this code.
#[test]
fn random_blocks_mean_what_the_reference_says() {
    for ty in stand_in::all_types() {
        let shape = Shape::new(*ty, ty.info().block as i64, 1, 1).unwrap();
        for seed in 0..40 {
            let plain = random_weights(*ty, &shape, &mut Random(seed));
            let expected = reference::row(*ty, &plain);
            // Single-precision numbers are added and multiplied in another order there.
            let largest = expected.iter().fold(0f32, |most, w| most.max(w.abs()));
            for (i, (weight, expected)) in decode(*ty, &plain).into_iter().zip(expected).enumerate() {
                assert!((weight - expected).abs() <= 1e-6 * largest, "{ty:?} {i}: {weight} {expected}");
            }
        }
    }
}

/// The table says which types are readable only with a host.
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

/// Exponents and small floats at the ends of their ranges, as bits of half the number.
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
    // 0x7f is no number, which ggml takes as 0; a sign, which there should not be, is ignored.
    let ends = [(0x7e, 224.0), (0x7f, 0.0), (0x80, 0.0), (0x81, 2f32.powi(-10)), (0xff, 240.0)];
    for (d, half) in floats.into_iter().chain(ends) {
        assert_eq!(f32::from_bits(scale(WeightType::NVFP4, d)), half, "half of {d:#x}");
    }
}

/// Decoders that are not what they should be.
#[test]
fn a_codebook_that_is_none_is_refused() {
    unsafe extern "C" fn nothing(_: *const c_void, _: *mut f32, _: i64) {}
    unsafe extern "C" fn half(x: *const c_void, y: *mut f32, n: i64) {
        // SAFETY: passed on; `n` weights.
        unsafe {
            stand_in::decoder(c"dequantize_row_iq2_xs")(x, y, n);
            std::slice::from_raw_parts_mut(y, n as usize).iter_mut().for_each(|w| *w *= 0.5);
        }
    }
    // Its indices have a tenth bit where these have signs.
    let other = stand_in::decoder(c"dequantize_row_iq2_xxs");
    for decode in [nothing, half, other] {
        let grid = grids::Grid::<512, 8>::new();
        // SAFETY: none reads more than a block or writes more than its weights.
        let read = unsafe {
            grid.read::<Iq2Xs>(decode, 43..=86, |block, index| {
                block[1] = 0x48;
                block[2..4].copy_from_slice(&(index as u16).to_le_bytes());
            })
        };
        assert!(!read && !grid.is_there());
    }
}

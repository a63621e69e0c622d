//! Blocks worked out by hand from the definition of each type.

use super::*;

/// A block of zeros but for some bytes, and what it stands for: bytes are (place, value); weights are (from, to,
/// value), later ones overwrite earlier ones. f16: 0x3800 is 0.5, 0x3c00 is 1, 0x4000 is 2, 0xbc00 is -1.
struct Example(WeightType, &'static [(usize, u8)], &'static [(usize, usize, f32)]);

impl Example {
    fn check(&self) {
        let Self(ty, bytes, weights) = *self;
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
}

const OF_GGML: &[Example] = &[
    // Fifth bits of weights 2 and 31; nibbles 1 and 3 of weights 2 and 18, 15 of weight 31.
    Example(
        WeightType::Q5_0,
        &[(1, 0x38), (2, 0x04), (5, 0x80), (6 + 2, 0x31), (6 + 15, 0xf0)],
        &[(0, 32, -8.0), (2, 3, 0.5), (18, 19, -6.5), (31, 32, 7.5)],
    ),
    // Fifth bits of weights 9 and 16; nibbles 2 and 4 of weights 9 and 25, 5 of weight 16.
    Example(
        WeightType::Q5_1,
        &[(1, 0x38), (3, 0xbc), (5, 0x02), (6, 0x01), (8 + 9, 0x42), (8, 0x50)],
        &[(0, 32, -1.0), (9, 10, 8.0), (16, 17, 9.5), (25, 26, 1.0)],
    ),
    // Groups 5 (scale 2, minimum 3) and 14 (1, 15): bits 4 of the first half's bytes, 6 of the second's.
    Example(
        WeightType::Q2_K,
        &[(5, 0x32), (14, 0xf1), (16 + 16 + 7, 0x20), (16 + 32 + 2, 0xc0), (81, 0x3c), (83, 0x38)],
        &[(0, 256, 0.0), (80, 96, -1.5), (87, 88, 2.5), (224, 240, -7.5), (226, 227, -4.5)],
    ),
    // Groups 6 (scale 5 + 3 * 16 - 32 = 21) and 9 (7 + 2 * 16 - 32 = 7); all others have -32.
    Example(
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
    ),
    // Table entries 15 and 8 for weights 3 and 19, 7 for weight 28.
    Example(
        WeightType::IQ4_NL,
        &[(1, 0x40), (2 + 3, 0x8f), (2 + 12, 0x70)],
        &[(0, 32, -254.0), (3, 4, 226.0), (19, 20, 2.0), (28, 29, -20.0)],
    ),
    // Digits 1 2 0 1 2 are 140 of 243, 2 0 1 0 2 are 173, 1 0 2 2 0 are 105; as 256ths: 148, 183, 111.
    Example(
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
    ),
    // Pairs 3 0 1 2, from the lowest, of byte 20 of the second half; 1 of the second quarter of byte 31.
    Example(
        WeightType::TQ2_0,
        &[(31, 0x04), (32 + 20, 0x93), (65, 0x38)],
        &[(0, 256, -0.5), (63, 64, 0.0), (148, 149, 1.0), (212, 213, 0.0), (244, 245, 0.5)],
    ),
    // 2^(130 - 128) times table entries 15 and 9 for weights 5 and 21, 7 for weight 30.
    Example(
        WeightType::MXFP4,
        &[(0, 130), (1 + 5, 0x9f), (1 + 14, 0x70)],
        &[(0, 32, 0.0), (5, 6, -48.0), (21, 22, -4.0), (30, 31, 48.0)],
    ),
    // Group 2: 1.5 / 2 times table entries 14 and 2. Group 3: 2^-9 / 2 times 12.
    Example(
        WeightType::NVFP4,
        &[(2, 0x3c), (3, 0x01), (4 + 16 + 1, 0x2e), (4 + 24 + 7, 0x70)],
        &[(0, 64, 0.0), (33, 34, -6.0), (41, 42, 1.5), (63, 64, 12.0 / 1024.0)],
    ),
    // Bits 0 and 6 of byte 9, 7 of byte 15.
    Example(
        WeightType::Q1_0,
        &[(1, 0x40), (2 + 9, 0x41), (2 + 15, 0x80)],
        &[(0, 128, -2.0), (72, 73, 2.0), (78, 79, 2.0), (127, 128, 2.0)],
    ),
    // Pair 1 of byte 3; pairs 0 1 2 3 of byte 13.
    Example(
        WeightType::Q2_0,
        &[(1, 0x40), (2 + 3, 0x08), (2 + 13, 0xe4)],
        &[(0, 64, -2.0), (13, 14, 2.0), (53, 54, 0.0), (54, 55, 2.0), (55, 56, 4.0)],
    ),
];

const OF_IK_LLAMA: &[Example] = &[
    // Pairs of byte 3, from the lowest: weights 3, 19, 11, 27. Nibbles 5 and 7 of weights 3 and 19.
    Example(
        WeightType::Q6_0,
        &[(1, 0x38), (2 + 3, 0xb1), (10 + 3, 0x75)],
        &[(0, 32, -16.0), (3, 4, -5.5), (11, 12, 8.0), (19, 20, -12.5), (27, 28, 0.0)],
    ),
    // Group 5 (scale 11 - 8, second table), group 12 (1 - 8); all others have -8.
    Example(
        WeightType::IQ2_K,
        &[(1, 0x38), (2, 0x20), (4 + 2, 0xb0), (4 + 6, 0x01), (12 + 16 + 7, 0x20), (12 + 32 + 4, 0x30)],
        &[(0, 256, 124.0), (80, 96, -39.0), (87, 88, 9.0), (192, 208, 108.5), (196, 197, -59.5)],
    ),
    // Group 3 (scale 2 * 2 + 1, second table), group 10 (-(2 * 7 + 1)); all others have 1.
    Example(
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
    ),
    // Group 6 (scale 5 + 3 * 16 - 32, second table), group 9 (7 + 2 * 16 - 32); all others have -32.
    Example(
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
    ),
    // The same groups; fifth bits of the weights with nibbles.
    Example(
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
    ),
    // Groups 6 (scale 3, second table) and 9 (-2): pairs 3 and 2 of the weights with nibbles.
    Example(
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
    ),
];

#[test]
fn blocks_mean_what_ggml_means_by_them() {
    OF_GGML.iter().for_each(Example::check);
}

#[test]
fn blocks_mean_what_ik_llama_means_by_them() {
    OF_IK_LLAMA.iter().for_each(Example::check);
}

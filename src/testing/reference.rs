//! Weights as numbers, by ggml's definition of each type, without this library's code. Tests and the benchmark share
//! this file: the module around it provides [`WeightType`], and decodes blocks of types with a codebook.

use super::{Field, FieldKind, WeightType, decode_codebook};

/// The values of the nibbles of IQ4_NL and IQ4_XS.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// The values of the lower three bits of nibbles of MXFP4 and NVFP4; the fourth bit is the sign.
const FP4: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Gives the scales of a block of random bytes a sane size, by the kinds of its fields. F16 and F32 come from `scale`;
/// E8M0 become `e8m0` to `e8m0 + 3`, UE4M3 about 1; an F16 in nibbles gets `nibbles` as its upper two.
pub fn set_scales(block: &mut [u8], fields: &[Field], e8m0: u8, nibbles: [u8; 2], mut scale: impl FnMut() -> f32) {
    for field in fields {
        let bytes = &mut block[field.offset..field.offset + field.len];
        match field.kind {
            FieldKind::F16 => bytes.chunks_exact_mut(2).for_each(|d| {
                d.copy_from_slice(&half::f16::from_f32(scale()).to_le_bytes());
            }),
            FieldKind::F32 => bytes.chunks_exact_mut(4).for_each(|d| d.copy_from_slice(&scale().to_le_bytes())),
            FieldKind::F16Nibbles => {
                [5, 7].iter().zip(nibbles).for_each(|(at, upper)| bytes[*at] = bytes[*at] & 15 | upper);
            }
            FieldKind::E8M0 => bytes.iter_mut().for_each(|e| *e = e8m0 + *e % 4),
            FieldKind::UE4M3 => bytes.iter_mut().for_each(|d| *d = 0x30 + *d % 16),
            FieldKind::U8 | FieldKind::Quants | FieldKind::Indices => {}
        }
    }
}

/// One plain row as numbers.
pub fn row(ty: WeightType, plain: &[u8]) -> Vec<f32> {
    let info = ty.info();
    let mut out = vec![0f32; plain.len() / info.bytes * info.block];
    for (block, out) in plain.chunks_exact(info.bytes).zip(out.chunks_exact_mut(info.block)) {
        match ty {
            WeightType::Q4_0 => q4(half(block, 0), -8.0 * half(block, 0), &block[2..], out),
            WeightType::Q4_1 => q4(half(block, 0), half(block, 2), &block[4..], out),
            WeightType::Q5_0 => q5(half(block, 0), -16.0 * half(block, 0), &block[2..], out),
            WeightType::Q5_1 => q5(half(block, 0), half(block, 2), &block[4..], out),
            WeightType::Q8_0 => {
                out.iter_mut().zip(&block[2..]).for_each(|(o, q)| *o = half(block, 0) * f32::from(*q as i8));
            }
            WeightType::Q2_K => q2_k(block, out),
            WeightType::Q3_K => q3_k(block, out),
            WeightType::Q4_K => q45_k(block, &[], &block[16..144], out),
            WeightType::Q5_K => q45_k(block, &block[16..48], &block[48..176], out),
            WeightType::Q6_K => q6_k(block, out),
            WeightType::IQ4_NL => nibbles(&block[2..], out, |q| half(block, 0) * f32::from(IQ4[usize::from(q)])),
            WeightType::IQ4_XS => iq4_xs(block, out),
            WeightType::TQ1_0 => tq1_0(block, out),
            WeightType::TQ2_0 => pairs(block, out, |_, q| half(block, 64) * (f32::from(q) - 1.0)),
            WeightType::MXFP4 => {
                let scale = 2f32.powi(i32::from(block[0]) - 127);
                nibbles(&block[1..17], out, |q| scale * fp4(q));
            }
            WeightType::NVFP4 => {
                for (g, out) in out.chunks_exact_mut(16).enumerate() {
                    // The exponent has a bias of 7; `set_scales` makes none that is 0.
                    let scale = (1.0 + f32::from(block[g] & 7) / 8.0) * 2f32.powi(i32::from(block[g] >> 3) - 7);
                    nibbles(&block[4 + 8 * g..12 + 8 * g], out, |q| scale * fp4(q));
                }
            }
            WeightType::Q1_0 => {
                for (j, o) in out.iter_mut().enumerate() {
                    *o = if block[2 + j / 8] >> (j % 8) & 1 == 1 { half(block, 0) } else { -half(block, 0) };
                }
            }
            WeightType::Q2_0 => {
                for (j, o) in out.iter_mut().enumerate() {
                    *o = half(block, 0) * (f32::from(block[2 + j / 4] >> (j % 4 * 2) & 3) - 1.0);
                }
            }
            WeightType::Q6_0 => {
                nibbles(&block[10..26], out, |q| half(block, 0) * (f32::from(q) - 32.0));
                for (j, o) in out.iter_mut().enumerate() {
                    *o += half(block, 0) * f32::from((block[2 + j % 8] >> (j / 8 % 2 * 4 + j / 16 * 2) & 3) << 4);
                }
            }
            WeightType::IQ2_K => iq2_k(block, out),
            WeightType::IQ3_K => iq3_k(block, out),
            WeightType::IQ4_K => iq4_k(block, out),
            WeightType::IQ5_K => iq5_k(block, out),
            WeightType::IQ6_K => iq6_k(block, out),
            _ => decode_codebook(ty, block, out),
        }
    }
    out
}

fn half(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Weights of bytes whose low nibbles are the first half of the weights, and high nibbles the second.
fn nibbles(quants: &[u8], out: &mut [f32], weight: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(out.len() / 2);
    for ((low, high), q) in low.iter_mut().zip(high).zip(quants) {
        (*low, *high) = (weight(q & 15), weight(q >> 4));
    }
}

fn q4(d: f32, min: f32, quants: &[u8], out: &mut [f32]) {
    nibbles(quants, out, |q| d * f32::from(q) + min);
}

/// 4 bytes of fifth bits, then nibbles as above.
fn q5(d: f32, min: f32, quants: &[u8], out: &mut [f32]) {
    q4(d, min, &quants[4..], out);
    for (j, o) in out.iter_mut().enumerate() {
        *o += d * f32::from((quants[j / 8] >> (j % 8) & 1) << 4);
    }
}

fn fp4(q: u8) -> f32 {
    if q < 8 { FP4[usize::from(q)] } else { -FP4[usize::from(q - 8)] }
}

/// 64 bytes of bit pairs: each half of the weights is 32 bytes, which hold its four quarters.
fn pairs(quants: &[u8], out: &mut [f32], weight: impl Fn(usize, u8) -> f32) {
    for (i, o) in out.iter_mut().enumerate() {
        *o = weight(i, quants[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3);
    }
}

/// 16 bytes of scales and minima, the pairs, then d and dmin.
fn q2_k(block: &[u8], out: &mut [f32]) {
    let (d, d_min) = (half(block, 80), half(block, 82));
    pairs(&block[16..], out, |i, q| {
        let s = block[i / 16];
        d * f32::from(s & 15) * f32::from(q) - d_min * f32::from(s >> 4)
    });
}

/// 32 bytes of high bits (4 if set), the pairs, 12 bytes of 6-bit scales, then d.
fn q3_k(block: &[u8], out: &mut [f32]) {
    let (d, s) = (half(block, 108), &block[96..108]);
    pairs(&block[32..], out, |i, q| {
        let g = i / 16;
        let scale = s[g % 8] >> (g / 8 * 4) & 15 | (s[8 + g % 4] >> (g / 4 * 2) & 3) << 4;
        let high = block[i % 32] >> (i / 32) & 1;
        d * (f32::from(scale) - 32.0) * (f32::from(q | high << 2) - 4.0)
    });
}

/// Bytes of base-3 digits: 32 and then 16 bytes of five digits, 4 bytes of four. The next digit is the whole part of
/// three times the byte, as a fraction of 256.
fn tq1_0(block: &[u8], out: &mut [f32]) {
    let (d, mut at) = (half(block, 52), 0);
    for (bytes, digits) in [(0..32, 5), (32..48, 5), (48..52, 4)] {
        let mut rest: Vec<u16> = block[bytes].iter().map(|b| u16::from(*b)).collect();
        for _ in 0..digits {
            for r in &mut rest {
                *r *= 3;
                out[at] = d * (f32::from(*r >> 8) - 1.0);
                *r &= 255;
                at += 1;
            }
        }
    }
}

/// 8 groups of 32 with 6-bit scales and minima; `high` holds the fifth bits of Q5_K.
fn q45_k(block: &[u8], high: &[u8], quants: &[u8], out: &mut [f32]) {
    let (d, d_min, s) = (half(block, 0), half(block, 2), &block[4..16]);
    for (g, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = if g < 4 {
            (s[g] & 63, s[g + 4] & 63)
        } else {
            ((s[g + 4] & 15) | (s[g - 4] >> 6 << 4), (s[g + 4] >> 4) | (s[g] >> 6 << 4))
        };
        for (j, o) in out.iter_mut().enumerate() {
            let low = (quants[g / 2 * 32 + j] >> (g % 2 * 4)) & 15;
            let bit = high.get(j).map_or(0, |h| (h >> g) & 1);
            *o = d * f32::from(scale) * f32::from(low | (bit << 4)) - d_min * f32::from(min);
        }
    }
}

/// 128 bytes of low nibbles, 64 of high bit pairs, 16 scales, then d.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let d = half(block, 208);
    for (i, o) in out.iter_mut().enumerate() {
        let (part, quarter, j) = (i / 128, i % 128 / 32, i % 32);
        let low = block[part * 64 + quarter % 2 * 32 + j] >> (quarter / 2 * 4) & 15;
        let high = block[128 + part * 32 + j] >> (quarter * 2) & 3;
        let scale = block[192 + i / 16] as i8;
        *o = d * f32::from(scale) * (f32::from(low | (high << 4)) - 32.0);
    }
}

/// 8 groups of 32 with 6-bit scales less 32; nibbles are indices into a table.
fn iq4_xs(block: &[u8], out: &mut [f32]) {
    let (d, high) = (half(block, 0), u16::from_le_bytes([block[2], block[3]]));
    for (g, out) in out.chunks_exact_mut(32).enumerate() {
        let low = u16::from(block[4 + g / 2] >> (g % 2 * 4) & 15);
        let scale = d * (f32::from(low | (high >> (2 * g) & 3) << 4) - 32.0);
        for (j, q) in block[8 + 16 * g..24 + 16 * g].iter().enumerate() {
            out[j] = scale * f32::from(IQ4[usize::from(q & 15)]);
            out[j + 16] = scale * f32::from(IQ4[usize::from(q >> 4)]);
        }
    }
}

/// What is added to the table's values for group `g`: `step` if its bit in the 16 bits behind d is set.
fn step(block: &[u8], g: usize, step: f32) -> f32 {
    if block[2 + g / 8] >> (g % 8) & 1 == 1 { step } else { 0.0 }
}

/// Nibble `g` of bytes that hold two each, the even one in the low nibble.
fn nibble(bytes: &[u8], g: usize) -> u8 {
    bytes[g / 2] >> (g % 2 * 4) & 15
}

/// Nibble of weight `i` of bytes of which 32 hold 64 weights, the first 32 in the low nibbles.
fn nibble_of_64(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15
}

/// Groups of 16 with 4-bit scales less 8; pairs are indices into a table.
fn iq2_k(block: &[u8], out: &mut [f32]) {
    pairs(&block[12..], out, |i, q| {
        let scale = half(block, 0) * (f32::from(nibble(&block[4..], i / 16)) - 8.0);
        scale * ([-31.0, -13.0, 1.0, 17.0][usize::from(q)] + step(block, i / 16, 5.0))
    });
}

/// Groups of 16 with odd scales and their signs; pairs and third bits are indices into a table.
fn iq3_k(block: &[u8], out: &mut [f32]) {
    const VALUES: [f32; 8] = [-63.0, -40.0, -23.0, -10.0, 1.0, 13.0, 28.0, 47.0];
    pairs(&block[14..], out, |i, q| {
        let g = i / 16;
        let scale = half(block, 0) * (2.0 * f32::from(nibble(&block[6..], g)) + 1.0);
        let third = block[78 + i % 32] >> (i / 32) & 1;
        let value = VALUES[usize::from(q | third << 2)] + step(block, g, 4.0);
        if block[4 + g / 8] >> (g % 8) & 1 == 1 { -scale * value } else { scale * value }
    });
}

/// The scales of IQ4_K and IQ5_K.
fn six_bits(block: &[u8], g: usize) -> f32 {
    let high = block[4 + g / 4] >> (g % 4 * 2) & 3;
    half(block, 0) * (f32::from(nibble(&block[8..], g) | high << 4) - 32.0)
}

/// Two groups of 16 in 16 bytes: the first in the low nibbles.
fn iq4_k(block: &[u8], out: &mut [f32]) {
    for (i, o) in out.iter_mut().enumerate() {
        let (g, byte) = (i / 16, block[16 + i / 32 * 16 + i % 16]);
        let value = f32::from(IQ4[usize::from(byte >> (g % 2 * 4) & 15)]) + step(block, g, 4.0);
        *o = six_bits(block, g) * value;
    }
}

/// Four groups of 16 in 32 bytes of nibbles, and fifth bits.
fn iq5_k(block: &[u8], out: &mut [f32]) {
    const VALUES: [i8; 32] = [
        -126, -114, -103, -92, -83, -74, -65, -57, -50, -43, -36, -30, -24, -18, -12, -6, -1, 5, 11, 17, 23, 29, 36,
        43, 51, 59, 68, 77, 87, 97, 109, 121,
    ];
    for (i, o) in out.iter_mut().enumerate() {
        let fifth = block[144 + i % 32] >> (i / 32) & 1;
        let value = VALUES[usize::from(nibble_of_64(&block[16..], i) | fifth << 4)];
        *o = six_bits(block, i / 16) * (f32::from(value) + step(block, i / 16, 2.0));
    }
}

/// Groups of 16 with 8-bit scales; nibbles and pairs are the argument of a polynomial, whose value is rounded.
fn iq6_k(block: &[u8], out: &mut [f32]) {
    pairs(&block[148..], out, |i, high| {
        let q = f64::from(nibble_of_64(&block[20..], i) | high << 4);
        let value = (-127.0 + q * (6.2568 + q * (q * 0.0011972 - 0.11218))).round() as f32;
        let scale = half(block, 0) * f32::from(block[4 + i / 16] as i8);
        scale * (value + step(block, i / 16, 1.0))
    });
}

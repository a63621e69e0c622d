//! Weights as numbers, by ggml's definition of each type and not by this library's code.

use ggml_amx::format::WeightType;

use crate::codebooks;

/// What the nibbles of IQ4_NL and IQ4_XS stand for.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// What the lower three bits of the nibbles of MXFP4 and NVFP4 stand for; the fourth is the sign.
const FP4: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

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
                    // The exponent has a bias of 7 and is not 0 here.
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
            _ => codebooks::decode(ty, block, out),
        }
    }
    out
}

fn half(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Low nibbles are the first half of the weights.
fn nibbles(quants: &[u8], out: &mut [f32], weight: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(out.len() / 2);
    for ((low, high), q) in low.iter_mut().zip(high).zip(quants) {
        (*low, *high) = (weight(q & 15), weight(q >> 4));
    }
}

fn q4(d: f32, min: f32, quants: &[u8], out: &mut [f32]) {
    nibbles(quants, out, |q| d * f32::from(q) + min);
}

/// 4 bytes of fifth bits, then nibbles.
fn q5(d: f32, min: f32, quants: &[u8], out: &mut [f32]) {
    q4(d, min, &quants[4..], out);
    for (j, o) in out.iter_mut().enumerate() {
        *o += d * f32::from((quants[j / 8] >> (j % 8) & 1) << 4);
    }
}

fn fp4(q: u8) -> f32 {
    if q < 8 { FP4[usize::from(q)] } else { -FP4[usize::from(q - 8)] }
}

/// 64 bytes of bit pairs: of each half of the weights four quarters in the same 32 bytes.
fn pairs(quants: &[u8], out: &mut [f32], weight: impl Fn(usize, u8) -> f32) {
    for (i, o) in out.iter_mut().enumerate() {
        *o = weight(i, quants[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3);
    }
}

/// 16 bytes of scales and minima, the pairs, then the common scales.
fn q2_k(block: &[u8], out: &mut [f32]) {
    let (d, d_min) = (half(block, 80), half(block, 82));
    pairs(&block[16..], out, |i, q| {
        let s = block[i / 16];
        d * f32::from(s & 15) * f32::from(q) - d_min * f32::from(s >> 4)
    });
}

/// 32 bytes of high bits (set: 4 more), the pairs, 12 bytes of 6-bit scales, then the common scale.
fn q3_k(block: &[u8], out: &mut [f32]) {
    let (d, s) = (half(block, 108), &block[96..108]);
    pairs(&block[32..], out, |i, q| {
        let g = i / 16;
        let scale = s[g % 8] >> (g / 8 * 4) & 15 | (s[8 + g % 4] >> (g / 4 * 2) & 3) << 4;
        let high = block[i % 32] >> (i / 32) & 1;
        d * (f32::from(scale) - 32.0) * (f32::from(q | high << 2) - 4.0)
    });
}

/// Bytes of base-3 digits: 32 and 16 of five, 4 of four; a digit is cut off the top of the byte.
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

/// 128 bytes of low nibbles, 64 of high bits, 16 scales, then the common scale.
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

/// 8 groups of 32: nibbles of a table, 6-bit scales less 32.
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

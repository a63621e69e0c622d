//! Weights as numbers, by ggml's definition of each type and not by this library's code.

use ggml_amx::format::WeightType;

/// What the nibbles of IQ4_XS stand for.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// One plain row as numbers.
pub fn row(ty: WeightType, plain: &[u8]) -> Vec<f32> {
    let info = ty.info();
    let mut out = vec![0f32; plain.len() / info.bytes * info.block];
    for (block, out) in plain.chunks_exact(info.bytes).zip(out.chunks_exact_mut(info.block)) {
        match ty {
            WeightType::Q4_0 => q4(half(block, 0), -8.0 * half(block, 0), &block[2..], out),
            WeightType::Q4_1 => q4(half(block, 0), half(block, 2), &block[4..], out),
            WeightType::Q8_0 => {
                out.iter_mut().zip(&block[2..]).for_each(|(o, q)| *o = half(block, 0) * f32::from(*q as i8));
            }
            WeightType::Q4_K => q45_k(block, &[], &block[16..144], out),
            WeightType::Q5_K => q45_k(block, &block[16..48], &block[48..176], out),
            WeightType::Q6_K => q6_k(block, out),
            WeightType::IQ4_XS => iq4_xs(block, out),
        }
    }
    out
}

fn half(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 16 bytes: low nibbles are the first half of the 32 weights.
fn q4(d: f32, min: f32, quants: &[u8], out: &mut [f32]) {
    for (j, q) in quants.iter().take(16).enumerate() {
        out[j] = d * f32::from(q & 15) + min;
        out[j + 16] = d * f32::from(q >> 4) + min;
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

//! Random weights and activations.

use ggml_amx::format::WeightType;
use ggml_amx::panel::weights::Shape;

/// A small generator: the same numbers in every run.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    fn normal(&mut self) -> f32 {
        (0..6).map(|_| (self.next() % 65536) as f32 / 65536.0 - 0.5).sum::<f32>() * 1.41
    }
}

/// Floats that begin with a cache line, as hosts' tensors do; on ordinary pages, as theirs are.
pub struct Floats {
    memory: Vec<f32>,
    start: usize,
    len: usize,
}

impl Floats {
    /// So many zeros.
    pub fn new(len: usize) -> Self {
        let memory = vec![0f32; len + 16];
        let start = memory.as_ptr().align_offset(64);
        Self { memory, start, len }
    }
}

impl std::ops::Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// Plain weights: random quants with f16 scales (or exponents) of a plausible size.
pub fn weights(shape: &Shape, random: &mut Random) -> Vec<u8> {
    use WeightType::*;
    let halves: &[usize] = match shape.ty {
        Q4_0 | Q5_0 | Q8_0 | IQ2_XXS | IQ2_XS | IQ3_XXS | IQ1_S | IQ4_NL | IQ3_S | IQ2_S | IQ4_XS | Q1_0 | Q2_0
        | Q6_0 | IQ2_K | IQ3_K | IQ4_K | IQ5_K | IQ6_K => &[0],
        Q4_1 | Q5_1 | Q4_K | Q5_K => &[0, 2],
        Q2_K => &[80, 82],
        Q3_K => &[108],
        Q6_K => &[208],
        TQ1_0 => &[52],
        TQ2_0 => &[64],
        IQ1_M | MXFP4 | NVFP4 => &[],
    };
    let mut plain = vec![0u8; shape.plain_size()];
    for bytes in plain.chunks_mut(2) {
        bytes.copy_from_slice(&(random.next() as u16).to_le_bytes()[..bytes.len()]);
    }
    if shape.ty == Q8_0 {
        // No quantiser gives -128, and ik_llama.cpp's kernels count on that.
        plain.iter_mut().filter(|b| **b == 0x80).for_each(|b| *b = 0x81);
    }
    for block in plain.chunks_exact_mut(shape.ty.info().bytes) {
        for at in halves {
            let d = half::f16::from_f32(0.001 * (0.6 + (random.next() % 800) as f32 / 1000.0));
            block[*at..at + 2].copy_from_slice(&d.to_le_bytes());
        }
        match shape.ty {
            // The upper nibbles of the last two words are the upper byte of d.
            IQ1_M => [(53, 0x40), (55, 0x10)].iter().for_each(|(at, d)| block[*at] = block[*at] & 15 | d),
            MXFP4 => block[0] = 118 + block[0] % 4,
            NVFP4 => block[..4].iter_mut().for_each(|d| *d = 0x30 + *d % 16),
            _ => {}
        }
    }
    plain
}

/// Normal activations: as they are (`smooth`), with 16 channels 30 times larger (`gate`, as inputs of attention and
/// gate), or with every 250th five times larger, at other channels in each row (`down`, as inputs of ffn_down: largest
/// magnitude about 10 times the root mean square, as on real models).
pub fn activations(kind: &str, m: usize, k: usize, random: &mut Random) -> Floats {
    const FIXED: usize = 16;
    let mut x = Floats::new(m * k);
    x.iter_mut().for_each(|x| *x = random.normal());
    for row in x.chunks_exact_mut(k).enumerate() {
        match kind {
            "gate" => (0..FIXED.min(k)).for_each(|i| row.1[i * (k / FIXED).max(1)] *= 30.0),
            "down" => (0..k / 250).for_each(|i| row.1[(i * 250 + row.0 * 61) % k] *= 5.0),
            _ => {}
        }
    }
    x
}

//! Random weights and activations.

use ggml_amx::format::WeightType;
use ggml_amx::panel::weights::Shape;

use crate::reference::set_scales;

/// A small random generator: the same numbers in every run.
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

/// Floats that begin with a cache line and lie on ordinary pages, as tensors of hosts do.
pub struct Floats {
    memory: Vec<f32>,
    start: usize,
    len: usize,
}

impl Floats {
    /// `len` zeros.
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

/// A scale of a plausible size.
fn scale(random: &mut Random) -> f32 {
    0.001 * (0.6 + (random.next() % 800) as f32 / 1000.0)
}

/// Plain weights: random quants with f16 scales (or exponents) of a plausible size.
pub fn weights(shape: &Shape, random: &mut Random) -> Vec<u8> {
    let mut plain = vec![0u8; shape.plain_size()];
    for bytes in plain.chunks_mut(2) {
        bytes.copy_from_slice(&(random.next() as u16).to_le_bytes()[..bytes.len()]);
    }
    if shape.ty == WeightType::Q8_0 {
        // ik_llama.cpp's kernels rely on there being no -128: quantisers make none.
        plain.iter_mut().filter(|b| **b == 0x80).for_each(|b| *b = 0x81);
    }
    for block in plain.chunks_exact_mut(shape.ty.info().bytes) {
        set_scales(block, &shape.ty.info().fields, 118, [0x40, 0x10], || scale(random));
    }
    plain
}

/// Normally distributed activations. `smooth`: nothing else. `gate`: 16 channels are 30 times larger, as in inputs of
/// attention and gate. `down`: every 250th activation is five times larger, in each row at other channels, as in inputs
/// of ffn_down (the largest magnitude is about 10 times the root mean square, as in real models).
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

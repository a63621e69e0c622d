//! Random weights and activations, and what they stand for in double precision.

use super::reference::set_scales;
use crate::format::{Format, LANES, WeightType};
use crate::panel::weights::Shape;

/// A small deterministic generator.
pub struct Random(pub u64);

impl Random {
    /// 31 random bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    /// Roughly normal: the sum of four uniform numbers.
    pub fn normal(&mut self) -> f32 {
        (0..4).map(|_| (self.next() % 65536) as f32 / 65536.0 - 0.5).sum()
    }
}

/// Random bytes with sane scales: f16 fields are made small, exponents and 8-bit floats about 1.
pub fn random_weights(ty: WeightType, shape: &Shape, random: &mut Random) -> Vec<u8> {
    let mut plain: Vec<u8> = (0..shape.plain_size()).map(|_| random.next() as u8).collect();
    for block in plain.chunks_exact_mut(ty.info().bytes) {
        set_scales(block, ty.info().fields, 126, [0x00, 0x20], || 0.01 + 0.01 * random.normal());
    }
    plain
}

/// What a packed matrix stands for, in double precision: `n` rows of `k`.
pub fn dequantise<F: Format>(shape: &Shape, packed: &[u8], out: &mut [f64]) {
    let mut quants = [0; LANES * 32];
    for row in 0..shape.n {
        let panel = &packed[row / LANES * shape.panel_bytes()..];
        for k in 0..shape.k {
            let block = &panel[k / F::BLOCK * LANES * F::BYTES..][..LANES * F::BYTES];
            let (group, lane, i) = (k % F::BLOCK / F::GROUP, row % LANES, k % F::GROUP);
            if i == 0 {
                F::quants(block, group, &mut quants);
            }
            let s = F::scales(block, group);
            let q = f64::from(quants[i / 4 * 64 + lane * 4 + i % 4]);
            out[row * shape.k + k] = f64::from(s.scale[lane]) * q + f64::from(s.min[lane]);
        }
    }
}

/// Squared error over squared size.
pub fn nmse(out: &[f32], reference: &[f64]) -> f64 {
    let error: f64 = out.iter().zip(reference).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    error / reference.iter().map(|b| b * b).sum::<f64>()
}

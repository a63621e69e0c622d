//! GGUF files of random weights, for programs that measure, and random numbers.

use std::{f64::consts::TAU, path::Path};

use super::{Entry, Info, types};
use crate::util::Result;

/// Numbers that are taken from the table at a time.
const RUN: usize = 64;

/// What a tensor holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Content {
    /// F32, all one.
    Ones,
    /// F32, normal with sigma 0.02.
    Normal32,
    /// F16, normal with sigma 0.02.
    Normal16,
}

/// One tensor: name, dimensions with the row length first, content.
pub type Tensor = (String, Vec<u64>, Content);

/// Writes a whole file. Random tensors are made of runs out of one table: as good as single numbers for
/// measuring, and faster.
pub fn write(file: &Path, metadata: &[Entry], tensors: &[Tensor]) -> Result<()> {
    let mut random = Normal::new(1);
    let normal: Vec<f32> = (0..65536).map(|_| (0.02 * random.next()) as f32).collect();
    let floats: Vec<u8> = normal.iter().flat_map(|v| v.to_le_bytes()).collect();
    let halves: Vec<u8> = normal.iter().flat_map(|v| half(*v).to_le_bytes()).collect();
    let ones = 1f32.to_le_bytes().repeat(RUN);
    let info = |(name, dimensions, content): &Tensor| {
        let ty = if *content == Content::Normal16 { types::F16 } else { types::F32 };
        Info { name: name.clone(), dimensions: dimensions.clone(), ty }
    };
    let infos: Vec<Info> = tensors.iter().map(info).collect();
    super::write(file, metadata, &infos, |index, out| {
        let (table, bytes) = match tensors[index].2 {
            Content::Ones => (&ones, 4),
            Content::Normal32 => (&floats, 4),
            Content::Normal16 => (&halves, 2),
        };
        let mut left = infos[index].bytes() as usize;
        while left > 0 {
            let length = left.min(RUN * bytes);
            let start = random.next_16() % (table.len() / bytes - RUN + 1) * bytes;
            out.put(&table[start..start + length])?;
            left -= length;
        }
        Ok(())
    })
}

/// Normal random numbers with sigma 1, always the same.
pub struct Normal(u64);

impl Normal {
    /// Another seed, other numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next_16(&mut self) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 48) as usize
    }

    /// The next number.
    pub fn next(&mut self) -> f64 {
        let mut uniform = || (self.next_16() as f64 + 0.5) / 65536.0;
        (-2.0 * uniform().ln()).sqrt() * (TAU * uniform()).cos()
    }
}

/// F16 of a finite number below 65504, rounded to nearest; what is too small becomes zero.
fn half(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude < 113 << 23 {
        return sign;
    }
    sign | ((magnitude + 0x1000 - (112 << 23)) >> 13) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_known_numbers() {
        for (value, wanted) in [(1.0, 0x3c00), (-2.0, 0xc000), (0.02, 0x251f), (1e-9, 0), (0.0, 0)] {
            assert_eq!(half(value), wanted, "{value}");
        }
    }

    #[test]
    fn the_numbers_are_normal() {
        let mut random = Normal::new(1);
        let numbers: Vec<f64> = (0..65536).map(|_| random.next()).collect();
        let mean = numbers.iter().sum::<f64>() / 65536.0;
        let sigma = (numbers.iter().map(|v| v * v).sum::<f64>() / 65536.0).sqrt();
        assert!(mean.abs() < 0.025 && (sigma - 1.0).abs() < 0.025, "{mean} {sigma}");
    }
}

//! Writes GGUF files of random weights: enough for programs that measure, and nothing more.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use crate::util::{Result, io};

/// Where tensor data must begin.
const ALIGNMENT: u64 = 32;
/// Numbers that are taken from the table at a time.
const RUN: usize = 64;

/// Metadata.
#[derive(Clone, Debug)]
pub enum Value {
    /// Unsigned, 32 bits.
    U32(u32),
    /// Float, 32 bits.
    F32(f32),
    /// Text.
    Text(&'static str),
}

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

/// Writes a whole file.
pub fn write(file: &Path, metadata: &[(String, Value)], tensors: &[Tensor]) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, io("write", file, File::create(file))?);
    let result =
        out.write_all(&header(metadata, tensors)).and_then(|()| data(&mut out, tensors)).and_then(|()| out.flush());
    io("write", file, result)
}

fn size(tensor: &Tensor) -> u64 {
    tensor.1.iter().product::<u64>() * if tensor.2 == Content::Normal16 { 2 } else { 4 }
}

/// Everything before the data, padded.
fn header(metadata: &[(String, Value)], tensors: &[Tensor]) -> Vec<u8> {
    let mut out = Vec::from(*b"GGUF");
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut out, key);
        match value {
            Value::U32(v) => out.extend([4, *v].map(u32::to_le_bytes).concat()),
            Value::F32(v) => out.extend([6u32.to_le_bytes(), v.to_le_bytes()].concat()),
            Value::Text(v) => {
                out.extend(8u32.to_le_bytes());
                text(&mut out, v);
            }
        }
    }
    let mut offset = 0u64;
    for tensor in tensors {
        let (name, dimensions, content) = tensor;
        text(&mut out, name);
        out.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|d| out.extend(d.to_le_bytes()));
        out.extend(u32::from(*content == Content::Normal16).to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += size(tensor).next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Random tensors are made of runs out of one table: as good as single numbers for measuring, and faster.
fn data(out: &mut impl Write, tensors: &[Tensor]) -> std::io::Result<()> {
    let mut random = Random(1);
    let normal = random.normal_table();
    let floats: Vec<u8> = normal.iter().flat_map(|v| v.to_le_bytes()).collect();
    let halves: Vec<u8> = normal.iter().flat_map(|v| half(*v).to_le_bytes()).collect();
    let ones = 1f32.to_le_bytes().repeat(RUN);
    for tensor in tensors {
        let (table, bytes) = match tensor.2 {
            Content::Ones => (&ones, 4),
            Content::Normal32 => (&floats, 4),
            Content::Normal16 => (&halves, 2),
        };
        let mut left = size(tensor) as usize;
        while left > 0 {
            let length = left.min(RUN * bytes);
            let start = random.next_16() % (table.len() / bytes - RUN + 1) * bytes;
            out.write_all(&table[start..start + length])?;
            left -= length;
        }
        let pad = size(tensor).next_multiple_of(ALIGNMENT) - size(tensor);
        out.write_all(&[0; ALIGNMENT as usize][..pad as usize])?;
    }
    Ok(())
}

struct Random(u64);

impl Random {
    fn next_16(&mut self) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 48) as usize
    }

    /// 65,536 normal numbers with sigma 0.02.
    fn normal_table(&mut self) -> Vec<f32> {
        let mut uniform = || (self.next_16() as f64 + 0.5) / 65536.0;
        let mut one = || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
        (0..65536).map(|_| (0.02 * one()) as f32).collect()
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
    fn a_small_file_has_the_layout_of_the_format() {
        let metadata = [("general.architecture".to_string(), Value::Text("llama")), ("x.n".into(), Value::U32(7))];
        let tensors = [("a".to_string(), vec![3], Content::Ones), ("b".to_string(), vec![4, 2], Content::Normal16)];
        let file = std::env::temp_dir().join(format!("xtask-gguf-{}", std::process::id()));
        write(&file, &metadata, &tensors).unwrap();
        let bytes = std::fs::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(bytes[..24], *b"GGUF\x03\0\0\0\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0");
        assert_eq!(bytes[24..32], 20u64.to_le_bytes());
        let start = header(&metadata, &tensors).len();
        assert_eq!((start % 32, bytes.len()), (0, start + 32 + 32));
        assert_eq!(bytes[start..start + 12], [1f32.to_le_bytes(); 3].concat());
        assert!(bytes[start + 12..start + 32].iter().all(|b| *b == 0));
        assert!(bytes[start + 32..start + 48].iter().any(|b| *b != 0));
    }

    #[test]
    fn halves_of_known_numbers() {
        for (value, wanted) in [(1.0, 0x3c00), (-2.0, 0xc000), (0.02, 0x251f), (1e-9, 0), (0.0, 0)] {
            assert_eq!(half(value), wanted, "{value}");
        }
    }

    #[test]
    fn the_table_is_normal() {
        let table = Random(1).normal_table();
        let mean = table.iter().sum::<f32>() / 65536.0;
        let sigma = (table.iter().map(|v| v * v).sum::<f32>() / 65536.0).sqrt();
        assert!(mean.abs() < 5e-4 && (sigma - 0.02).abs() < 5e-4, "{mean} {sigma}");
    }
}

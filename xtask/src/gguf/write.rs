//! Writes a GGUF file tensor by tensor.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use super::{ALIGNMENT, ALIGNMENT_KEY, Entry, Info, MAGIC, put_text};
use crate::util::{Result, io};

/// Where the data of one tensor goes, in as many pieces as it comes.
pub struct Writer {
    path: PathBuf,
    out: BufWriter<File>,
    left: u64,
}

impl Writer {
    /// The next piece.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or(format!("too much data for a tensor of {}", self.path.display()))?;
        io("write", &self.path, self.out.write_all(bytes))
    }
}

/// Writes a whole file; `data` gives the data of each tensor, in order.
pub fn write(
    path: &Path,
    metadata: &[Entry],
    tensors: &[Info],
    mut data: impl FnMut(usize, &mut Writer) -> Result<()>,
) -> Result<()> {
    let out = BufWriter::with_capacity(1 << 20, io("write", path, File::create(path))?);
    let mut writer = Writer { path: path.into(), out, left: 0 };
    let header = header(metadata, tensors);
    writer.left = header.len() as u64;
    writer.put(&header)?;
    for (index, info) in tensors.iter().enumerate() {
        writer.left = info.bytes();
        data(index, &mut writer)?;
        if writer.left > 0 {
            return Err(format!("{} bytes of {} are missing", writer.left, info.name));
        }
        writer.left = padded(info) - info.bytes();
        writer.put(&[0; ALIGNMENT as usize][..(padded(info) - info.bytes()) as usize])?;
    }
    io("write", path, writer.out.flush())
}

fn padded(info: &Info) -> u64 {
    info.bytes().next_multiple_of(ALIGNMENT)
}

/// Everything before the data, padded. Data is aligned our way, whatever the metadata's source did.
pub(super) fn header(metadata: &[Entry], tensors: &[Info]) -> Vec<u8> {
    let kept = || metadata.iter().filter(|(key, _)| key != ALIGNMENT_KEY);
    let mut out = Vec::from(*MAGIC);
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((kept().count() as u64).to_le_bytes());
    for (key, value) in kept() {
        put_text(&mut out, key);
        out.extend(value.kind.to_le_bytes());
        out.extend(&value.bytes);
    }
    let mut offset = 0u64;
    for info in tensors {
        put_text(&mut out, &info.name);
        out.extend((info.dimensions.len() as u32).to_le_bytes());
        info.dimensions.iter().for_each(|d| out.extend(d.to_le_bytes()));
        out.extend(info.ty.id.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += padded(info);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
    out
}

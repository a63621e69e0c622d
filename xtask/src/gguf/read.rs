//! Reads a GGUF file: metadata and tensor infos at once, data when asked for.

use std::{
    fs::File,
    io::{BufReader, Error, ErrorKind, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{ALIGNMENT, ALIGNMENT_KEY, Entry, Info, MAGIC, Value, by_id, kind};
use crate::util::{Result, io};

/// No text, list or count in a real file is longer.
const LONGEST: u64 = 1 << 28;

/// An open file.
pub struct Reader {
    path: PathBuf,
    file: File,
    /// Metadata in the order of the file.
    pub metadata: Vec<Entry>,
    /// Tensors in the order of the file.
    pub tensors: Vec<Info>,
    /// Where the data of each begins, from the beginning of the file.
    starts: Vec<u64>,
}

impl Reader {
    /// Reads everything but the data.
    pub fn open(path: &Path) -> Result<Self> {
        let file = io("open", path, File::open(path))?;
        let length = io("read", path, file.metadata())?.len();
        let mut input = Input { stream: BufReader::with_capacity(1 << 20, &file), at: 0 };
        let (metadata, mut located, alignment) = io("read", path, input.header())?;
        let begin = input.at.next_multiple_of(alignment);
        for (info, offset) in &mut located {
            *offset = offset.saturating_add(begin);
            if offset.saturating_add(info.bytes()) > length {
                return Err(format!("cannot read {}: it ends inside {}", path.display(), info.name));
            }
        }
        let (tensors, starts) = located.into_iter().unzip();
        Ok(Self { path: path.into(), file, metadata, tensors, starts })
    }

    /// A value of the metadata.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// A number that must be there.
    pub fn u32(&self, key: &str) -> Result<u32> {
        self.get(key).and_then(Value::as_u32).ok_or(format!("{} says no `{key}`", self.path.display()))
    }

    /// The data of one tensor.
    pub fn data(&self, index: usize) -> Result<Vec<u8>> {
        let mut data = vec![0; self.tensors[index].bytes() as usize];
        io("read", &self.path, self.file.read_exact_at(&mut data, self.starts[index]))?;
        Ok(data)
    }
}

struct Input<R> {
    stream: R,
    at: u64,
}

type Header = (Vec<Entry>, Vec<(Info, u64)>, u64);

impl<R: Read> Input<R> {
    fn header(&mut self) -> std::io::Result<Header> {
        if self.array::<4>()? != *MAGIC {
            return Err(wrong("it is no GGUF file"));
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(wrong(&format!("GGUF version {version} is unknown")));
        }
        let (tensors, entries) = (self.count()?, self.count()?);
        let metadata = (0..entries).map(|_| self.entry()).collect::<std::io::Result<Vec<_>>>()?;
        let tensors = (0..tensors).map(|_| self.info()).collect::<std::io::Result<Vec<_>>>()?;
        let alignment = metadata.iter().find(|(k, _)| k == ALIGNMENT_KEY).and_then(|(_, v)| v.as_u32());
        Ok((metadata, tensors, alignment.map_or(ALIGNMENT, u64::from).max(1)))
    }

    fn array<const N: usize>(&mut self) -> std::io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> std::io::Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> std::io::Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn count(&mut self) -> std::io::Result<u64> {
        let count = self.u64()?;
        if count > LONGEST { Err(wrong(&format!("a length of {count} makes no sense"))) } else { Ok(count) }
    }

    fn append(&mut self, count: u64, out: &mut Vec<u8>) -> std::io::Result<()> {
        let read = self.stream.by_ref().take(count).read_to_end(out)? as u64;
        self.at += read;
        if read == count { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }

    fn text(&mut self) -> std::io::Result<String> {
        let length = self.count()?;
        let mut bytes = Vec::new();
        self.append(length, &mut bytes)?;
        String::from_utf8(bytes).map_err(|_| wrong("a name is no text"))
    }

    fn entry(&mut self) -> std::io::Result<Entry> {
        let key = self.text()?;
        let kind = self.u32()?;
        let mut bytes = Vec::new();
        self.value(kind, &mut bytes)?;
        Ok((key, Value { kind, bytes }))
    }

    /// Appends one value as it lies in the file.
    fn value(&mut self, kind: u32, out: &mut Vec<u8>) -> std::io::Result<()> {
        match kind {
            0 | 1 | 7 => self.append(1, out),
            2 | 3 => self.append(2, out),
            kind::U32 | 5 | kind::F32 => self.append(4, out),
            10..=12 => self.append(8, out),
            kind::TEXT => {
                let length = self.count()?;
                out.extend(length.to_le_bytes());
                self.append(length, out)
            }
            kind::ARRAY => {
                let (of, count) = (self.u32()?, self.count()?);
                if of == kind::ARRAY {
                    return Err(wrong("lists of lists are unknown"));
                }
                out.extend(of.to_le_bytes());
                out.extend(count.to_le_bytes());
                (0..count).try_for_each(|_| self.value(of, out))
            }
            other => Err(wrong(&format!("metadata of kind {other} is unknown"))),
        }
    }

    fn info(&mut self) -> std::io::Result<(Info, u64)> {
        let name = self.text()?;
        let dimensions = match self.u32()? {
            n @ 1..=4 => (0..n).map(|_| self.u64()).collect::<std::io::Result<Vec<_>>>()?,
            n => return Err(wrong(&format!("{name} has {n} dimensions"))),
        };
        let id = self.u32()?;
        let ty = by_id(id).ok_or_else(|| wrong(&format!("{name} is of the unknown type {id}")))?;
        let elements = dimensions.iter().try_fold(1u64, |all, d| all.checked_mul(*d)).filter(|n| *n < 1 << 48);
        if elements.is_none() || dimensions[0] % ty.block != 0 {
            return Err(wrong(&format!("{name} has impossible dimensions {dimensions:?}")));
        }
        Ok((Info { name, dimensions, ty }, self.u64()?))
    }
}

fn wrong(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

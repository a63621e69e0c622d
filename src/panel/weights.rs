//! A packed weight tensor: its sizes, and reads and writes of any range of its plain bytes.
//!
//! The plain form is what a GGUF file has: slices (ne2 x ne3) of `n` rows of `k` weights. The packed form keeps every
//! slice apart and rounds its rows up to whole panels of 16: `[slice][panel][block along K][16 rows interleaved]`.

use crate::diag::{Error, Status};
use crate::format::{LANES, WeightType};

/// Shape of a packed tensor and all sizes that follow from it. None overflows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Weight type.
    pub ty: WeightType,
    /// Weights per row (ne0).
    pub k: usize,
    /// Rows of one slice (ne1).
    pub n: usize,
    /// Slices (ne2 * ne3).
    pub slices: usize,
    /// Bytes of one plain row.
    pub row_bytes: usize,
    /// Bytes of one plain slice.
    pub slice_plain: usize,
    /// Bytes of one packed slice.
    pub slice_packed: usize,
}

impl Shape {
    /// Checks a tensor's dimensions. Errors name the dimension that is wrong.
    pub fn new(ty: WeightType, k: i64, n: i64, slices: i64) -> Result<Self, Error> {
        let bad = |what: String| Error::new(Status::BadShape, what);
        let dim = |name: &str, v: i64| usize::try_from(v).map_err(|_| bad(format!("{name} is negative: {v}")));
        let (k, n, slices) = (dim("k", k)?, dim("n", n)?, dim("the number of slices", slices)?);
        let info = ty.info();
        if k % info.block != 0 {
            return Err(bad(format!("k = {k} is not a multiple of {}, the block of {}", info.block, info.name)));
        }
        let sizes = || {
            let row_bytes = (k / info.block).checked_mul(info.bytes)?;
            let slice_plain = row_bytes.checked_mul(n)?;
            let slice_packed = row_bytes.checked_mul(n.checked_next_multiple_of(LANES)?)?;
            slice_packed.checked_mul(slices).filter(|total| *total <= isize::MAX as usize)?;
            Some((row_bytes, slice_plain, slice_packed))
        };
        let (row_bytes, slice_plain, slice_packed) =
            sizes().ok_or_else(|| bad(format!("{slices} x {n} rows of {k} weights do not fit the address space")))?;
        Ok(Self { ty, k, n, slices, row_bytes, slice_plain, slice_packed })
    }

    /// Bytes of the tensor as a GGUF file has it.
    pub fn plain_size(&self) -> usize {
        self.slice_plain * self.slices
    }

    /// Bytes of the packed tensor.
    pub fn packed_size(&self) -> usize {
        self.slice_packed * self.slices
    }

    /// Bytes of one panel.
    pub fn panel_bytes(&self) -> usize {
        self.row_bytes * LANES
    }
}

/// A run of plain bytes inside one block.
struct Run {
    /// Offset of the packed block from the tensor's base.
    block: usize,
    /// Row within the panel.
    lane: usize,
    /// First byte within the plain block.
    byte: usize,
    /// Bytes.
    len: usize,
    /// Offset from the start of the range.
    at: usize,
}

impl Shape {
    /// Calls `f` for every run of the plain range `offset..offset + len`, in order.
    fn for_each_run(&self, offset: usize, len: usize, mut f: impl FnMut(Run)) {
        let block_bytes = self.ty.info().bytes;
        let mut at = 0;
        while at < len {
            let o = offset + at;
            let (slice, rest) = (o / self.slice_plain, o % self.slice_plain);
            let (row, rest) = (rest / self.row_bytes, rest % self.row_bytes);
            // The rest of this row is walked without dividing again.
            let (mut block, mut byte) = (rest / block_bytes, rest % block_bytes);
            let panel = slice * self.slice_packed + row / LANES * self.panel_bytes();
            let row_end = (at + self.row_bytes - rest).min(len);
            while at < row_end {
                let run = (block_bytes - byte).min(row_end - at);
                f(Run { block: panel + block * block_bytes * LANES, lane: row % LANES, byte, len: run, at });
                at += run;
                block += 1;
                byte = 0;
            }
        }
    }

    /// Whether the plain range lies inside the tensor.
    pub fn contains(&self, offset: usize, len: usize) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.plain_size())
    }

    /// Packs `plain` into the tensor at `base`, from plain byte `offset` on.
    ///
    /// # Safety
    /// `base` must be valid for [`Shape::packed_size`] bytes; the range must be inside the tensor; no other thread may
    /// read or write the same plain bytes meanwhile.
    pub unsafe fn write(&self, base: *mut u8, offset: usize, plain: &[u8]) {
        debug_assert!(self.contains(offset, plain.len()));
        let info = self.ty.info();
        self.for_each_run(offset, plain.len(), |run| {
            // SAFETY: the run's block lies inside the packed tensor, its bytes inside `plain`.
            unsafe {
                let block = base.add(run.block);
                if run.len == info.bytes {
                    info.layout.scatter(block, run.lane, plain.as_ptr().add(run.at));
                } else {
                    for i in 0..run.len {
                        *block.add(info.layout.index(run.lane, run.byte + i)) = plain[run.at + i];
                    }
                }
            }
        });
    }

    /// Reads plain bytes back: exactly what was written.
    ///
    /// # Safety
    /// As for [`Shape::write`], for reading.
    pub unsafe fn read(&self, base: *const u8, offset: usize, plain: &mut [u8]) {
        debug_assert!(self.contains(offset, plain.len()));
        let info = self.ty.info();
        self.for_each_run(offset, plain.len(), |run| {
            // SAFETY: the run's block lies inside the packed tensor.
            unsafe {
                let block = base.add(run.block);
                if run.len == info.bytes {
                    info.layout.gather(plain.as_mut_ptr().add(run.at), block, run.lane);
                } else {
                    for i in 0..run.len {
                        plain[run.at + i] = *block.add(info.layout.index(run.lane, run.byte + i));
                    }
                }
            }
        });
    }

    /// Sets `len` plain bytes from `offset` on to `value`.
    ///
    /// # Safety
    /// As for [`Shape::write`].
    pub unsafe fn fill(&self, base: *mut u8, offset: usize, len: usize, value: u8) {
        debug_assert!(self.contains(offset, len));
        let info = self.ty.info();
        self.for_each_run(offset, len, |run| {
            for i in 0..run.len {
                // SAFETY: the run's block lies inside the packed tensor.
                unsafe { *base.add(run.block + info.layout.index(run.lane, run.byte + i)) = value };
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_size_is_plain_size_plus_the_tail_of_every_slice() {
        let s = Shape::new(WeightType::Q4_0, 64, 33, 3).unwrap();
        assert_eq!((s.plain_size(), s.packed_size()), (3 * 33 * 36, 3 * 48 * 36));
    }

    #[test]
    fn bad_shapes_are_named() {
        let message = |k, n, s| Shape::new(WeightType::Q4_K, k, n, s).unwrap_err().message;
        assert!(message(32, 1, 1).contains("256"));
        assert!(message(-256, 1, 1).contains("negative"));
        assert!(message(256, i64::MAX, 1).contains("address space"));
        assert!(message(i64::MAX & !255, 1 << 40, 1 << 40).contains("address space"));
    }

    /// Given a random tensor, when random ranges are written in any order, then a shadow copy and the
    /// tensor agree at every later read: partial blocks, blocks, rows, slices.
    #[test]
    fn any_range_reads_back_what_was_written() {
        let mut state = 7u64;
        let mut random = move |below: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        };
        for ty in WeightType::ALL {
            let shape = Shape::new(*ty, 2 * ty.info().block as i64, 19, 2).unwrap();
            let mut packed = vec![0u8; shape.packed_size()];
            let mut shadow = vec![0u8; shape.plain_size()];
            for _ in 0..300 {
                let offset = random(shadow.len());
                let len = random(shadow.len() - offset) + 1;
                let len = if random(2) == 0 { len } else { len.min(100) };
                // SAFETY: the buffers have the shape's sizes and the range was cut to fit.
                unsafe {
                    match random(3) {
                        0 => {
                            let value = random(256) as u8;
                            shadow[offset..offset + len].fill(value);
                            shape.fill(packed.as_mut_ptr(), offset, len, value);
                        }
                        1 => {
                            let data: Vec<u8> = (0..len).map(|_| random(256) as u8).collect();
                            shadow[offset..offset + len].copy_from_slice(&data);
                            shape.write(packed.as_mut_ptr(), offset, &data);
                        }
                        _ => {
                            let mut data = vec![0; len];
                            shape.read(packed.as_ptr(), offset, &mut data);
                            assert_eq!(data, shadow[offset..offset + len], "{ty:?} {offset}+{len}");
                        }
                    }
                }
            }
        }
    }
}

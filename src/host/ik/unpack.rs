//! Rows of packed weights for the host's own kernels, for products that only the host can compute. A thread unpacks
//! some rows at a time and calls the host's kernel for those alone, as if there were no other threads.
//!
//! ```text
//! for each range of rows, of which thread ith of nth takes every nth:
//!     unpack its rows
//!     kernel(rows, thread 0 of 1)
//! ```

use libc::{c_long, c_void};

use super::calls::Share;
use super::packed::{self, PackedView};

/// Most bytes of a range of rows.
const RANGE_BYTES: usize = 256 << 10;
/// Ranges have a multiple of so many rows: whole groups of the rows that the host interleaves.
const RANGE_STEP: usize = 32;
/// As the last of so many threads the host's kernels have no rows to compute. A prime, so that they cut rows into
/// shares only.
const NO_SHARE: Share = (65_536, 65_537);

/// Some rows of a matrix.
#[derive(Clone, Copy)]
pub struct RowRange {
    /// Number of the matrix.
    pub matrix: usize,
    /// Its first row.
    pub first: usize,
    /// How many rows.
    pub rows: usize,
}

/// Calls the host's kernel for this thread's ranges of rows, one after another. There are `matrices` matrices of `n`
/// rows of `stride` bytes. Returns false as soon as the kernel does.
pub fn in_row_ranges(
    n: usize,
    stride: c_long,
    matrices: usize,
    (ith, nth): Share,
    mut kernel: impl FnMut(RowRange, Share) -> bool,
) -> bool {
    let step = (RANGE_BYTES / (stride as usize).max(1) / RANGE_STEP).clamp(1, 32) * RANGE_STEP;
    let per_matrix = n.div_ceil(step);
    let range = |i: usize| {
        let (matrix, first) = (i / per_matrix, i % per_matrix * step);
        RowRange { matrix, first, rows: step.min(n - first) }
    };
    let (ith, nth) = if cfg!(mutant = "whole-matrix") { (0, 1) } else { (ith, nth) };
    let mut mine = (ith as usize..per_matrix * matrices).step_by(nth as usize).map(range).peekable();
    if mine.peek().is_none() && n > 0 && matrices > 0 {
        // A thread without ranges must return the same as the others: it asks the kernel to compute nothing.
        return kernel(RowRange { matrix: 0, first: 0, rows: n.min(RANGE_STEP) }, NO_SHARE);
    }
    mine.all(|range| kernel(range, (0, 1)))
}

/// Weights as a kernel of the host gets them, which may be packed.
pub struct HostWeights {
    /// Where the host thinks they are.
    address: *const c_void,
    /// Bytes of a row.
    stride: usize,
    packed: Option<PackedView>,
    /// The rows that were unpacked last.
    plain: Vec<u8>,
}

impl HostWeights {
    pub fn new(address: *const c_void, stride: c_long) -> Self {
        Self { address, stride: stride as usize, packed: packed::view_at(address.cast()), plain: Vec::new() }
    }

    pub fn are_packed(&self) -> bool {
        self.packed.is_some()
    }

    /// These rows as plain bytes, good until the next call. Their matrix begins `skip` bytes behind the address.
    pub fn rows(&mut self, skip: usize, range: RowRange) -> *const c_void {
        let skip = skip + range.first * self.stride;
        let Some(PackedView { shape, base, offset }) = self.packed else { return self.address.wrapping_byte_add(skip) };
        self.plain.resize((range.rows * self.stride).min(shape.plain_size() - (offset + skip)), 0);
        // SAFETY: the bytes end inside the packed tensor, as the line above sees to.
        unsafe { shape.read(base, offset + skip, &mut self.plain) };
        self.plain.as_ptr().cast()
    }
}

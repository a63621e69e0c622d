//! Rows of packed weights for the host's own kernels, for products that only the host can compute. A thread unpacks a
//! block of rows and calls the host's kernel for those alone, as if there were no other threads.
//!
//! ```text
//! for each block of rows, of which thread ith of nth takes every nth:
//!     unpack its rows
//!     kernel(rows, thread 0 of 1)
//! ```

use libc::{c_long, c_void};

use super::calls::Share;
use super::packed::{self, PackedView};

/// Most bytes of a block.
const BLOCK_BYTES: usize = 256 << 10;
/// The rows of a block are a multiple of this, so that a block has whole groups of the rows that the host interleaves.
const BLOCK_STEP: usize = 32;
/// As the last of so many threads the host's kernels have no rows to compute. A prime, so that they cut rows into
/// shares only.
const NO_SHARE: Share = (65_536, 65_537);

/// Some rows of a matrix.
#[derive(Clone, Copy)]
pub struct RowBlock {
    /// Number of the matrix.
    pub matrix: usize,
    /// Its first row.
    pub first: usize,
    /// How many rows.
    pub rows: usize,
}

/// Calls the host's kernel for this thread's blocks of `matrices` matrices of `n` rows of `stride` bytes, one after
/// another. Returns false as soon as the kernel does.
pub fn in_blocks(
    n: usize,
    stride: c_long,
    matrices: usize,
    (ith, nth): Share,
    mut kernel: impl FnMut(RowBlock, Share) -> bool,
) -> bool {
    let step = (BLOCK_BYTES / (stride as usize).max(1) / BLOCK_STEP).clamp(1, 32) * BLOCK_STEP;
    let per_matrix = n.div_ceil(step);
    let block = |i: usize| {
        let (matrix, first) = (i / per_matrix, i % per_matrix * step);
        RowBlock { matrix, first, rows: step.min(n - first) }
    };
    let (ith, nth) = if cfg!(mutant = "whole-matrix") { (0, 1) } else { (ith, nth) };
    let mut mine = (ith as usize..per_matrix * matrices).step_by(nth as usize).map(block).peekable();
    if mine.peek().is_none() && n > 0 && matrices > 0 {
        // A thread without blocks must return the same as the others: it asks the kernel to compute nothing.
        return kernel(RowBlock { matrix: 0, first: 0, rows: n.min(BLOCK_STEP) }, NO_SHARE);
    }
    mine.all(|block| kernel(block, (0, 1)))
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

    /// The rows of a block as plain bytes, until the next call. The block's matrix begins `skip` bytes behind the
    /// address.
    pub fn rows(&mut self, skip: usize, block: RowBlock) -> *const c_void {
        let skip = skip + block.first * self.stride;
        let Some(PackedView { shape, base, offset }) = self.packed else { return self.address.wrapping_byte_add(skip) };
        self.plain.resize((block.rows * self.stride).min(shape.plain_size() - (offset + skip)), 0);
        // SAFETY: the bytes end inside the packed tensor, as the line above sees to.
        unsafe { shape.read(base, offset + skip, &mut self.plain) };
        self.plain.as_ptr().cast()
    }
}

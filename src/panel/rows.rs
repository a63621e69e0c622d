//! Where rows of f32 lie: activations and results.

use std::arch::x86_64::*;

/// Byte offsets of rows.
#[derive(Clone, Copy, Debug)]
pub enum RowOffsets {
    /// One every so many bytes.
    Strided(usize),
    /// Listed, row by row.
    Listed(*const usize),
}

impl RowOffsets {
    /// Offset of row `row`.
    ///
    /// # Safety
    /// A list must have the row.
    #[inline(always)]
    pub unsafe fn offset(self, row: usize) -> usize {
        match self {
            RowOffsets::Strided(stride) => row * stride,
            // SAFETY: promised by the caller.
            RowOffsets::Listed(offsets) => unsafe { *offsets.add(row) },
        }
    }

    /// The rows from `row` on, and the offset they count from.
    pub fn skip(self, row: usize) -> (usize, Self) {
        match self {
            RowOffsets::Strided(stride) => (row * stride, self),
            RowOffsets::Listed(offsets) => (0, RowOffsets::Listed(offsets.wrapping_add(row))),
        }
    }
}

/// f32 rows, any strides.
#[derive(Clone, Copy, Debug)]
pub struct InputRows {
    /// What the rows' offsets count from.
    pub data: *const u8,
    /// The rows.
    pub rows: RowOffsets,
    /// Bytes from one channel to the next.
    pub channel: usize,
}

impl InputRows {
    /// One row.
    ///
    /// # Safety
    /// It must exist.
    #[inline(always)]
    pub unsafe fn row(&self, row: usize) -> InputRow {
        // SAFETY: promised by the caller.
        InputRow { data: self.data.wrapping_add(unsafe { self.rows.offset(row) }), channel: self.channel }
    }
}

/// One row of f32.
#[derive(Clone, Copy, Debug)]
pub struct InputRow {
    /// Channel 0.
    pub data: *const u8,
    /// Bytes from one channel to the next.
    pub channel: usize,
}

impl InputRow {
    /// The value of a channel.
    ///
    /// # Safety
    /// The row must have it.
    #[inline]
    pub unsafe fn value(&self, channel: usize) -> f32 {
        // SAFETY: promised by the caller.
        unsafe { self.data.add(channel * self.channel).cast::<f32>().read_unaligned() }
    }

    /// 16 channels from `channel` on.
    ///
    /// # Safety
    /// The row must have them; AVX-512 must be there.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn lanes(&self, channel: usize) -> __m512 {
        // SAFETY: promised by the caller.
        unsafe {
            if self.channel == 4 {
                _mm512_loadu_ps(self.data.cast::<f32>().add(channel))
            } else {
                let values: [f32; 16] = std::array::from_fn(|i| self.value(channel + i));
                _mm512_loadu_ps(values.as_ptr())
            }
        }
    }
}

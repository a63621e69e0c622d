//! Where rows of f32 lie: activations and results.

use std::arch::x86_64::*;

/// Byte offsets of rows.
#[derive(Clone, Copy, Debug)]
pub enum RowOffsets {
    /// Rows at equal distances: bytes from one to the next.
    Strided(usize),
    /// A list with an offset for each row.
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
            // SAFETY: the list has the row.
            RowOffsets::Listed(offsets) => unsafe { *offsets.add(row) },
        }
    }

    /// The offset that the rows from `row` on count from, and those rows.
    pub fn skip(self, row: usize) -> (usize, Self) {
        match self {
            RowOffsets::Strided(stride) => (row * stride, self),
            RowOffsets::Listed(offsets) => (0, RowOffsets::Listed(offsets.wrapping_add(row))),
        }
    }
}

/// Rows of f32 activations, with any strides.
#[derive(Clone, Copy, Debug)]
pub struct InputRows {
    /// What the rows' offsets count from.
    pub data: *const u8,
    /// Offsets of the rows.
    pub rows: RowOffsets,
    /// Bytes from one channel to the next.
    pub channel: usize,
}

impl InputRows {
    /// One row.
    ///
    /// # Safety
    /// A list of rows must have it.
    #[inline(always)]
    pub unsafe fn row(&self, row: usize) -> InputRow {
        // SAFETY: the list has the row.
        InputRow { data: self.data.wrapping_add(unsafe { self.rows.offset(row) }), channel: self.channel }
    }
}

/// One row of f32 activations.
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
    /// The row must be readable and have the channel.
    #[inline]
    pub unsafe fn value(&self, channel: usize) -> f32 {
        // SAFETY: the row has the channel.
        unsafe { self.data.add(channel * self.channel).cast::<f32>().read_unaligned() }
    }

    /// 16 channels from `channel` on.
    ///
    /// # Safety
    /// The row must be readable and have them; AVX-512 must be there.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn lanes(&self, channel: usize) -> __m512 {
        // SAFETY: the row has the channels.
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

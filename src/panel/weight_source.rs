//! Rows of one weight matrix in any form that kernels read, so that a task can carry its weights as one value.

use super::decoded::DecodedRows;
use super::in_place::WeightRows;
use super::plain::PlainRows;
use super::requant;
use super::weight_sums::{SCRATCH_BYTES, WeightSums};
use crate::format::WeightType;
use crate::with_format;

/// Neighbouring rows of a weight matrix (columns of a product), by the form in which they are stored.
#[derive(Clone, Copy, Debug)]
pub enum WeightSource {
    /// Packed panels of a type.
    Packed(WeightType, PackedPanels),
    /// Rows of a packed type where the host has them.
    InPlace(WeightType, WeightRows),
    /// Rows of BF16 or F16.
    Plain(PlainRows),
    /// Rows that only the host can decode.
    Decoded(DecodedRows),
}

/// Neighbouring panels of a packed matrix.
#[derive(Clone, Copy, Debug)]
pub struct PackedPanels {
    /// First panel.
    pub data: *const u8,
    /// Bytes from one panel to the next.
    pub stride: usize,
}

impl PackedPanels {
    /// Address of panel `panel`.
    #[inline]
    pub fn panel(&self, panel: usize) -> *const u8 {
        self.data.wrapping_add(panel * self.stride)
    }
}

impl WeightSource {
    /// Decodes channels `from..from + len` (whole blocks) of rows `16 * panel..16 * panel + 16` to `out`: the 16 rows'
    /// weights of a channel lie side by side. Rows past the last repeat it.
    ///
    /// # Safety
    /// The rows must have the channels and be readable; `out` must be writable for 16 floats per channel and 64-byte
    /// aligned; `scratch` must be writable for what making panels of this form takes
    /// ([`packed_bytes`](super::in_place::packed_bytes), [`scratch_bytes`](super::decoded::scratch_bytes)) and 64-byte
    /// aligned; AVX-512 must be there.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn floats(&self, panel: usize, from: usize, len: usize, out: *mut f32, scratch: *mut u8) {
        // SAFETY: every form asks for no more than this function does.
        unsafe {
            match self {
                Self::Packed(ty, panels) => {
                    with_format!(*ty, F => requant::floats::<F>(panels.panel(panel), from, len, out));
                }
                Self::InPlace(ty, rows) => {
                    with_format!(*ty, F => rows.floats::<F>(panel, from, len, out, scratch));
                }
                Self::Plain(rows) => rows.floats(panel, from, len, out),
                Self::Decoded(rows) => rows.floats(panel, from, len, out, scratch.cast()),
            }
        }
    }

    /// Adds panel `panel`, of which `lanes` rows exist, to sums over rows. Of packed panels: what requantising costs
    /// (`is_measured`), the sizes of the rows (`is_sized`), or both; of other forms always both. Rows in place must
    /// have been packed first.
    ///
    /// # Safety
    /// The panel must exist and be readable; `scratch` be writable for [`SCRATCH_BYTES`], and behind them for what
    /// decoding takes ([`scratch_bytes`](super::decoded::scratch_bytes)), and 64-byte aligned; AVX-512 BF16 must be
    /// there.
    pub unsafe fn add_to(
        &self,
        sums: &mut WeightSums,
        panel: usize,
        lanes: usize,
        (is_measured, is_sized): (bool, bool),
        scratch: *mut u8,
    ) {
        // SAFETY: the panel exists, and the scratch has room for both parts.
        unsafe {
            match self {
                Self::Packed(ty, panels) => {
                    let panel = panels.panel(panel);
                    if is_measured {
                        with_format!(*ty, F => sums.add::<F>(panel, lanes, scratch));
                    }
                    if is_sized {
                        with_format!(*ty, F => sums.add_sizes::<F>(panel, lanes));
                    }
                }
                Self::InPlace(..) => unreachable!("rows in place are measured in panels"),
                Self::Plain(rows) => {
                    sums.add_floats(|from, len, out| rows.floats(panel, from, len, out), lanes, scratch);
                }
                Self::Decoded(rows) => {
                    let behind = scratch.add(SCRATCH_BYTES).cast();
                    sums.add_floats(|from, len, out| rows.floats(panel, from, len, out, behind), lanes, scratch);
                }
            }
        }
    }
}

//! Some neighbouring columns of a product: rows of a weight matrix, as kernels read them, however they are stored.

use super::decoded::DecodedRows;
use super::pack::WeightRows;
use super::plain::PlainRows;
use super::requant;
use super::weight_sums::{SCRATCH_BYTES, WeightSums};
use crate::format::WeightType;
use crate::with_format;

/// The columns; panel `p` has the 16 from `16 * p` on.
#[derive(Clone, Copy, Debug)]
pub enum Columns {
    /// Packed panels.
    Panels {
        /// Their type.
        ty: WeightType,
        /// The first.
        data: *const u8,
        /// Bytes from one to the next.
        panel_bytes: usize,
    },
    /// Rows in place, of a type that can be packed.
    InPlace(WeightType, WeightRows),
    /// Rows of 16-bit numbers.
    Plain(PlainRows),
    /// Rows that the host decodes.
    Decoded(DecodedRows),
}

impl Columns {
    /// The first panel, and bytes from one to the next; of others, nothing.
    pub fn panels(&self) -> (*const u8, usize) {
        match *self {
            Columns::Panels { data, panel_bytes, .. } => (data, panel_bytes),
            _ => (std::ptr::null(), 0),
        }
    }

    /// Channels `from..from + len` of a panel as floats, those of a channel side by side: 16 per channel at `scratch`, which
    /// has [`SCRATCH_BYTES`], and behind them what the rows' decoder needs.
    ///
    /// # Safety
    /// The panel must exist and have the channels: at most [`super::weight_sums::KC_ERROR`] of them, a multiple of 32 that
    /// starts at a block; AVX-512 needed.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn floats(&self, panel: usize, from: usize, len: usize, scratch: *mut u8) {
        let (out, behind) = (scratch.cast::<f32>(), scratch.wrapping_add(SCRATCH_BYTES));
        // SAFETY: the panel and its channels exist, and the scratch has room for both parts.
        unsafe {
            match self {
                Columns::Panels { ty, data, panel_bytes } => {
                    let panel = data.add(panel * panel_bytes);
                    with_format!(ty, F => requant::floats::<F>(panel, from, len, out));
                }
                Columns::InPlace(ty, rows) => {
                    with_format!(ty, F => rows.floats::<F>(panel, from, len, out, behind));
                }
                Columns::Plain(rows) => rows.floats(panel, from, len, out),
                Columns::Decoded(rows) => rows.floats(panel, from, len, out, behind.cast()),
            }
        }
    }

    /// Adds a panel, of which `lanes` columns exist, to sums over columns: what they measure, what size they have, or both.
    ///
    /// # Safety
    /// The panel must exist; `scratch` have [`SCRATCH_BYTES`], and behind them what the rows' decoder needs; AVX-512 BF16
    /// needed. Rows in place must have been packed first.
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
                Columns::Panels { ty, data, panel_bytes } => {
                    let panel = data.add(panel * panel_bytes);
                    if is_measured {
                        with_format!(ty, F => sums.add::<F>(panel, lanes, scratch));
                    }
                    if is_sized {
                        with_format!(ty, F => sums.add_sizes::<F>(panel, lanes));
                    }
                }
                Columns::InPlace(..) => unreachable!("rows in place are measured in panels"),
                Columns::Plain(rows) => {
                    sums.add_floats(|from, len, out| rows.floats(panel, from, len, out), lanes, scratch);
                }
                Columns::Decoded(rows) => {
                    let behind = scratch.add(SCRATCH_BYTES).cast();
                    sums.add_floats(|from, len, out| rows.floats(panel, from, len, out, behind), lanes, scratch);
                }
            }
        }
    }
}

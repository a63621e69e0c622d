//! The weight operand: a tensor, packed or plain, or any view of one.

use std::ops::Range;

use super::Stored;
use crate::cpu::Avx512;
use crate::format::LANES;
use crate::kernel::TILE_NR;
use crate::panel::decoded::DecodedRows;
use crate::panel::in_place::WeightRows;
use crate::panel::plain::PlainRows;
use crate::panel::weight_source::{PackedPanels, WeightSource};
use crate::panel::weights::Shape;
use crate::with_format;

/// src0 of a product. A view keeps the *plain* strides and offset that ggml gave it; this type maps them to where the
/// packed bytes are.
#[derive(Clone, Copy, Debug)]
pub struct Weights {
    /// How the tensor that owns the bytes is stored.
    pub stored: Stored,
    /// Its first byte.
    pub base: *const u8,
    /// Plain byte at which the view starts; 0 for the tensor itself.
    pub offset: usize,
    /// Elements per dimension of the view: K, N, batches.
    pub ne: [usize; 4],
    /// Plain bytes per step of dimensions 1 (rows), 2 and 3 (batches).
    pub nb: [usize; 3],
}

impl Weights {
    /// The whole of a packed tensor with `ne3` slices of slices.
    pub fn whole(shape: Shape, base: *const u8, ne: [usize; 4]) -> Self {
        Self {
            stored: Stored::Packed(shape),
            base,
            offset: 0,
            ne,
            nb: [shape.row_bytes, shape.slice_plain, shape.slice_plain * ne[2]],
        }
    }

    /// Plain bytes of one row of the view.
    pub(super) fn row_bytes(&self) -> usize {
        let stored = self.stored.info();
        self.ne[0] / stored.block * stored.bytes
    }

    /// Whether every byte the view reaches lies inside the tensor; views of plain ones are ggml's business.
    pub fn is_inside(&self) -> bool {
        let Stored::Packed(shape) = self.stored else { return true };
        if self.ne.contains(&0) {
            return true;
        }
        let mut end = Some(self.offset);
        for (ne, nb) in self.ne[1..].iter().zip(self.nb) {
            end = end.and_then(|e| (ne - 1).checked_mul(nb)?.checked_add(e));
        }
        end.and_then(|e| e.checked_add(self.row_bytes())).is_some_and(|e| e <= shape.plain_size())
    }

    fn plain_offset(&self, i2: usize, i3: usize, row: usize) -> usize {
        self.offset + row * self.nb[0] + i2 * self.nb[1] + i3 * self.nb[2]
    }

    /// The packed panel whose first lane is row `row` of batch (i2, i3), if from there on the view's
    /// rows are the tensor's rows: then kernels read the tensor itself.
    pub fn panels(&self, i2: usize, i3: usize, row: usize) -> Option<*const u8> {
        let Stored::Packed(s) = &self.stored else { return None };
        if s.plain_size() == 0 || self.ne[0] != s.k || self.nb[0] != s.row_bytes {
            return None;
        }
        let start = self.plain_offset(i2, i3, 0);
        let (slice, first) = (start / s.slice_plain, start % s.slice_plain / s.row_bytes);
        let whole = start.is_multiple_of(s.row_bytes) && first.is_multiple_of(LANES) && first + self.ne[1] <= s.n;
        whole.then(|| self.base.wrapping_add(slice * s.slice_packed + (first + row) / LANES * s.panel_bytes()))
    }

    /// Whether the rows of all batches are whole panels of the tensor.
    fn is_whole_panels(&self) -> bool {
        (0..self.ne[3]).all(|i3| (0..self.ne[2]).all(|i2| self.panels(i2, i3, 0).is_some()))
    }

    /// Scratch that [`Weights::each_run`] needs: two panels and one plain row to gather a view or plain rows,
    /// nothing for others. A multiple of 64.
    pub fn gather_bytes(&self) -> usize {
        if self.stored.info().shape.is_none() || self.stored.is_packed() && self.is_whole_panels() {
            return 0;
        }
        ((TILE_NR + 1) * self.row_bytes()).next_multiple_of(64)
    }

    /// Calls `run(weights, which)` for columns `cols` of batch (i2, i3), in as few runs as the view allows: one, or two
    /// panels at a time if they must be gathered first. Weights in place are packed so only if `panels` are needed of
    /// them.
    ///
    /// # Safety
    /// The view must be inside its tensor and readable; `cols` exist and start at a multiple of 32; `gathered` be
    /// writable for [`Weights::gather_bytes`].
    pub unsafe fn each_run(
        &self,
        (i2, i3): (usize, usize),
        cols: Range<usize>,
        panels: bool,
        gathered: *mut u8,
        mut run: impl FnMut(WeightSource, Range<usize>),
    ) {
        let (data, stride) = (self.base.wrapping_add(self.plain_offset(i2, i3, cols.start)), self.nb[0]);
        let (count, k) = (cols.len(), self.ne[0]);
        let shape = match self.stored {
            Stored::Packed(shape) => shape,
            Stored::InPlace { shape, .. } if panels => shape,
            Stored::InPlace { shape, interleave } => {
                return run(
                    WeightSource::InPlace(shape.ty, WeightRows { data, stride, rows: count, interleave }),
                    cols,
                );
            }
            Stored::Plain(ty) => return run(WeightSource::Plain(PlainRows { ty, data, stride, rows: count }), cols),
            Stored::Decoded(ty) => {
                return run(WeightSource::Decoded(DecodedRows { ty, data, stride, rows: count, k }), cols);
            }
        };
        let ty = shape.ty;
        if let Some(panels) = self.panels(i2, i3, cols.start) {
            return run(WeightSource::Packed(ty, PackedPanels { data: panels, stride: shape.panel_bytes() }), cols);
        }
        for first in cols.clone().step_by(TILE_NR) {
            let cols = first..cols.end.min(first + TILE_NR);
            // SAFETY: the columns are some of the view's, and two panels fit.
            let panel_bytes = unsafe { self.gather(&shape, (i2, i3), cols.clone(), gathered) };
            run(WeightSource::Packed(ty, PackedPanels { data: gathered, stride: panel_bytes }), cols);
        }
    }

    /// Packs up to 32 rows of the view into `out`; returns the bytes of one panel.
    ///
    /// # Safety
    /// As for [`Weights::each_run`]; the view must have the rows.
    unsafe fn gather(&self, shape: &Shape, (i2, i3): (usize, usize), rows: Range<usize>, out: *mut u8) -> usize {
        let row_bytes = self.row_bytes();
        let two_panels = Shape {
            k: self.ne[0],
            n: TILE_NR,
            slices: 1,
            row_bytes,
            slice_plain: TILE_NR * row_bytes,
            slice_packed: TILE_NR * row_bytes,
            ..*shape
        };
        if let Stored::InPlace { interleave, .. } = self.stored {
            let data = self.base.wrapping_add(self.plain_offset(i2, i3, rows.start));
            let rows = WeightRows { data, stride: self.nb[0], rows: rows.len(), interleave };
            // SAFETY: the rows are readable, `out` has two panels.
            unsafe { pack_rows(&two_panels, &rows, out) };
            return two_panels.panel_bytes();
        }
        let plain = out.wrapping_add(TILE_NR * row_bytes);
        for (i, row) in rows.enumerate() {
            // SAFETY: the row is inside the tensor; the plain row lies behind the two panels.
            unsafe {
                let plain = std::slice::from_raw_parts_mut(plain, row_bytes);
                shape.read(self.base, self.plain_offset(i2, i3, row), plain);
                two_panels.write(out, i * row_bytes, plain);
            }
        }
        two_panels.panel_bytes()
    }
}

/// Packs up to 32 rows into the two panels at `out`.
///
/// # Safety
/// The rows must be readable, `out` have room for the panels.
unsafe fn pack_rows(two_panels: &Shape, rows: &WeightRows, out: *mut u8) {
    // SAFETY: the rows are readable and the panels fit; AVX-512 is used only with its proof.
    unsafe {
        if Avx512::new().is_some() {
            let blocks = two_panels.k / two_panels.ty.info().block;
            for panel in 0..rows.rows.div_ceil(LANES) {
                let to = out.add(panel * two_panels.panel_bytes());
                with_format!(two_panels.ty, F => rows.pack::<F>(panel, 0, blocks, to));
            }
            return;
        }
        assert_eq!(rows.interleave, 1, "interleaved rows are read by AVX-512 only");
        for i in 0..rows.rows {
            let row = std::slice::from_raw_parts(rows.data.add(i * rows.stride), two_panels.row_bytes);
            two_panels.write(out, i * two_panels.row_bytes, row);
        }
    }
}

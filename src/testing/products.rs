//! Products by the kernels of exact weights, whatever would be chosen for them.

use crate::cpu::Isa;
use crate::format::ACT_BLOCK;
use crate::kernel::{Task, exact_weights};
use crate::panel::activations::ActivationLayout;
use crate::panel::rows::RowOffsets;
use crate::panel::weight_source::{PackedPanels, WeightSource};
use crate::panel::weights::Shape;

/// Packed weights times the rows `x`, with `isa`, which must be usable. The destination is wider than the result; the
/// rest of it must stay untouched.
pub fn exact_product(isa: Isa, shape: &Shape, packed: &[u8], x: &[f32]) -> Vec<f32> {
    let (k, n, group) = (shape.k, shape.n, shape.ty.info().group);
    let m = x.len() / k;
    let layout = ActivationLayout::new(m, k, group).unwrap();
    let mut memory = vec![0u8; layout.bytes + exact_weights::scratch_bytes(k, group) + 128];
    let base = memory.as_mut_ptr().wrapping_add(memory.as_ptr().align_offset(64));
    let width = n + 3;
    let mut out = vec![f32::NAN; m * width];
    // SAFETY: all buffers have the sizes that their layouts ask for; the instruction set is usable.
    unsafe {
        let act = layout.at(base);
        for row in 0..m {
            for block in 0..k / ACT_BLOCK {
                act.quantise(isa, row, block, x.as_ptr().add(row * k + block * ACT_BLOCK).cast(), 4);
            }
        }
        let panels = PackedPanels { data: packed.as_ptr(), stride: shape.panel_bytes() };
        let task = Task {
            weights: WeightSource::Packed(shape.ty, panels),
            k,
            cols: n,
            rows: 0..m,
            dst: out.as_mut_ptr(),
            dst_rows: RowOffsets::Strided(width * 4),
        };
        exact_weights::run(isa, &task, &act, base.add(layout.bytes));
    }
    for row in out.chunks(width) {
        assert!(row[n..].iter().all(|v| v.is_nan()), "{shape:?}: wrote past column {n}");
    }
    out.chunks(width).flat_map(|row| row[..n].to_vec()).collect()
}

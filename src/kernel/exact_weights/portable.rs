//! Plain Rust: the definition that the vector kernels are held to. Each group of weights is unpacked once for all rows.

use super::operands::Operands;
use crate::format::{ACT_BLOCK, Format, LANES};
use crate::panel::weight_source::PackedPanels;

/// # Safety
/// As for [`super::run`].
pub unsafe fn run<F: Format>(operands: &Operands<'_, PackedPanels>) {
    let Operands { task, act, weights } = operands;
    let block_bytes = LANES * F::BYTES;
    let mut quants = [0i8; LANES * ACT_BLOCK];
    for panel in 0..task.panel_count() {
        let lanes = (task.cols - panel * LANES).min(LANES);
        for block in 0..task.k / F::BLOCK {
            // SAFETY: a panel of a valid task has k / BLOCK packed blocks.
            let bytes =
                unsafe { std::slice::from_raw_parts(weights.panel(panel).add(block * block_bytes), block_bytes) };
            for group in 0..F::BLOCK / F::GROUP {
                F::quants(bytes, group, &mut quants);
                let scales = F::scales(bytes, group);
                let g = block * (F::BLOCK / F::GROUP) + group;
                for row in task.rows.clone() {
                    let tile = act.tile(row / LANES);
                    let lane = row % LANES;
                    let (b, within) = (g * F::GROUP / ACT_BLOCK, g * F::GROUP % ACT_BLOCK);
                    // SAFETY: the activations have the row and the group; the row's result has `lanes` columns here.
                    unsafe {
                        let q = std::slice::from_raw_parts(
                            tile.quants.add((b * tile.rows + lane) * ACT_BLOCK + within),
                            F::GROUP,
                        );
                        let d = *tile.scales.add(b * tile.rows + lane);
                        let ds = d * *tile.sums.add(g * tile.rows + lane) as f32;
                        let out = std::slice::from_raw_parts_mut(task.dst_row(row).add(panel * LANES), lanes);
                        for (n, out) in out.iter_mut().enumerate() {
                            let mut acc = if g == 0 { 0.0 } else { *out };
                            acc = (dot(q, &quants, n) as f32).mul_add(scales.scale[n] * d, acc);
                            if F::HAS_MIN {
                                acc = scales.min[n].mul_add(ds, acc);
                            }
                            *out = acc;
                        }
                    }
                }
            }
        }
    }
}

/// Dot product of one group of activations with the weights of one lane.
fn dot(q: &[i8], weights: &[i8], lane: usize) -> i32 {
    q.iter().enumerate().map(|(k, q)| i32::from(*q) * i32::from(weights[k / 4 * 64 + lane * 4 + k % 4])).sum()
}

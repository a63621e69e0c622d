//! Two products of the same activations made into one result: `activation(gate) * up`, as in the first half of a
//! gated feed-forward network. Block by block, so that what is combined is still in the caches.

use std::ops::Range;

use super::Weights;
use crate::cpu::{Avx512, Isa};
use crate::kernel::glu::{self, GluOp};
use crate::panel::rows::RowOffsets;

/// Fewest columns of a block: those of one column block of the tile GEMM where the caches are large.
const MIN_COLS: usize = 320;
/// Most rows of a block: more are computed in several turns, each of which makes panels of the weights again.
const MAX_ROWS: usize = 1024;
/// Results of `up` that are kept at a time, as long as that is enough for [`MIN_COLS`] columns of the rows.
const UP_RESULTS: usize = MIN_COLS * 512;

/// The second product, and what is made of both.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// Its weights: shape and type of the first one's.
    pub weights: Weights,
    /// What is applied to its results.
    pub op: GluOp,
    /// Above 1e-6: most that comes out of the activation function, and largest magnitude of `up`.
    pub limit: f32,
    /// Added to the results of `up` and `gate` beforehand.
    pub biases: Biases,
}

/// Vectors of f32, one per expert; null where there is none.
#[derive(Clone, Copy, Debug)]
pub struct Biases {
    /// First vectors.
    pub up: *const u8,
    /// For the gate.
    pub gate: *const u8,
    /// Bytes from one expert's to the next.
    pub nb: [usize; 2],
}

impl Biases {
    /// None.
    pub const NONE: Self = Self { up: std::ptr::null(), gate: std::ptr::null(), nb: [0; 2] };

    /// The biases of an expert from column `col` on.
    fn of(&self, expert: usize, col: usize) -> [*const f32; 2] {
        let at = |data: *const u8, nb: usize| match data.is_null() {
            true => std::ptr::null(),
            false => data.wrapping_add(expert * nb).cast::<f32>().wrapping_add(col),
        };
        [at(self.up, self.nb[0]), at(self.gate, self.nb[1])]
    }
}

/// Bytes of scratch for the results of `up`, a multiple of 64, where a piece has up to `rows` rows.
pub fn up_bytes(rows: usize) -> usize {
    (rows.min(MAX_ROWS) * MIN_COLS).max(UP_RESULTS) * 4
}

/// Cuts columns and rows into blocks whose results fit the room: rows of the same columns come one after the other.
pub fn blocks(cols: Range<usize>, rows: Range<usize>) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let cut =
        |all: Range<usize>, step: usize| all.clone().step_by(step).map(move |first| first..all.end.min(first + step));
    let step = (UP_RESULTS / rows.len().clamp(1, MAX_ROWS)).max(MIN_COLS) / MIN_COLS * MIN_COLS;
    cut(cols, step).flat_map(move |cols| cut(rows.clone(), MAX_ROWS).map(move |rows| (cols.clone(), rows)))
}

/// A block of results.
pub struct GatedBlock {
    /// Its columns.
    pub cols: Range<usize>,
    /// Its rows.
    pub rows: Range<usize>,
    /// Number of the expert.
    pub expert: usize,
    /// Results of `up`: rows of as many floats as there are columns.
    pub up: *const f32,
    /// Results of the gate in the first of the columns; replaced by what is made of both.
    pub dst: *mut f32,
    /// Their rows.
    pub dst_rows: RowOffsets,
}

impl Gate {
    /// Whether it goes with these weights.
    pub fn check(&self, up: &Weights) -> Result<(), String> {
        let [ours, of_up] = [&self.weights, up].map(|w| w.stored.info().name);
        if self.weights.ne == up.ne && ours == of_up {
            return Ok(());
        }
        Err(format!("gate and up differ: {ours} {:?}, {of_up} {:?}", self.weights.ne, up.ne))
    }

    /// Combines a block.
    ///
    /// # Safety
    /// Both products must be there, the biases as long as the rows.
    pub unsafe fn combine(&self, isa: Isa, block: &GatedBlock) {
        let [up_bias, gate_bias] = self.biases.of(block.expert, block.cols.start);
        let avx512 = if isa == Isa::Portable { None } else { Avx512::new() };
        for (i, row) in block.rows.clone().enumerate() {
            // SAFETY: both products of the row are there, and its biases.
            unsafe {
                let job = glu::GluTask {
                    op: self.op,
                    limit: self.limit,
                    up: block.up.add(i * block.cols.len()),
                    up_bias,
                    gate_bias,
                    dst: block.dst.byte_add(block.dst_rows.offset(row)),
                    len: block.cols.len(),
                };
                glu::run(avx512, &job);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_the_results_and_fit_the_room() {
        let cases = [(0..14336, 0..512), (64..96, 0..1), (0..7168, 32..33), (32..5000, 64..2148), (0..768, 0..100)];
        for (cols, rows) in cases {
            let mut seen = vec![0u8; cols.end * rows.end];
            for (c, r) in blocks(cols.clone(), rows.clone()) {
                assert!(c.start.is_multiple_of(32) && r.start.is_multiple_of(32), "{c:?} {r:?}");
                assert!(c.len() * r.len() * 4 <= up_bytes(rows.len()), "{c:?} {r:?}");
                r.for_each(|row| c.clone().for_each(|col| seen[row * cols.end + col] += 1));
            }
            let wanted = |i: usize| u8::from(cols.contains(&(i % cols.end)) && rows.contains(&(i / cols.end)));
            assert!(seen.iter().enumerate().all(|(i, count)| *count == wanted(i)), "{cols:?} {rows:?}");
        }
    }

    #[test]
    fn the_room_of_a_thread_is_bounded() {
        assert_eq!(up_bytes(usize::MAX), up_bytes(MAX_ROWS));
        assert!(up_bytes(usize::MAX) <= 2 << 20);
    }
}

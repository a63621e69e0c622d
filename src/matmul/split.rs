//! Cuts a product into pieces for threads: along columns (rows of the weight matrix) where there are enough of them, so
//! that every weight is read by one thread only; where columns are few, along rows of activations too.

use std::ops::Range;

use crate::dispatch::thresholds::PARTS_PER_THREAD;
use crate::kernel::TILE_NR;
use crate::panel::precision::TILE_MR;

/// What one kernel call computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Batch: `i2 + ne12 * i3`.
    pub batch: usize,
    /// Columns of the result; starts at a multiple of 32.
    pub cols: Range<usize>,
    /// Rows of the result; starts at a multiple of 32.
    pub rows: Range<usize>,
}

/// The equal share of `total` items for thread `index` of `count`.
pub fn share(total: usize, index: usize, count: usize) -> Range<usize> {
    // 128 bits: total * count may pass 64 for shapes from hostile files.
    let cut = |i: usize| (total as u128 * i as u128 / count as u128) as usize;
    cut(index)..cut(index + 1)
}

/// The grid of units that is shared out: batches x column units x row parts, rows fastest.
#[derive(Clone, Copy, Debug)]
pub struct Split {
    n: usize,
    m: usize,
    batches: usize,
    threads: usize,
    col_units: usize,
    row_parts: usize,
}

impl Split {
    /// For `batches` products of `n` columns and `m` rows on `threads` threads.
    pub fn new(n: usize, m: usize, batches: usize, threads: usize) -> Self {
        let col_units = n.div_ceil(TILE_NR);
        let (have, want) = ((col_units * batches).max(1), threads * PARTS_PER_THREAD);
        let row_parts =
            if threads == 1 || have >= want { 1 } else { want.div_ceil(have).min(m.div_ceil(TILE_MR)).max(1) };
        Self { n, m, batches, threads, col_units, row_parts }
    }

    /// Units of the grid.
    fn units(self) -> usize {
        let all = self.batches * self.col_units * self.row_parts;
        if cfg!(mutant = "split-last") { all - 1 } else { all }
    }

    /// The pieces of thread `index`: neighbouring column units of one batch and row part together.
    pub fn pieces(self, index: usize) -> impl Iterator<Item = Piece> {
        let mut at = if self.m == 0 { 0..0 } else { share(self.units(), index, self.threads) };
        std::iter::from_fn(move || {
            if at.is_empty() {
                return None;
            }
            let unit = at.start / self.row_parts;
            let (batch, col) = (unit / self.col_units, unit % self.col_units);
            let part = at.start % self.row_parts;
            // Without row parts, a run of columns is one piece.
            let cols = if self.row_parts == 1 { at.len().min(self.col_units - col) } else { 1 };
            at.start += cols;
            let steps = share(self.m.div_ceil(TILE_MR), part, self.row_parts);
            Some(Piece {
                batch,
                cols: col * TILE_NR..((col + cols) * TILE_NR).min(self.n),
                rows: steps.start * TILE_MR..(steps.end * TILE_MR).min(self.m),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_result_exactly_once_for_any_shape_and_thread_count() {
        for n in [1, 16, 31, 33, 576, 1000] {
            for m in [0, 1, 2, 31, 33, 64, 200] {
                for batches in [1, 3] {
                    for threads in [1, 2, 3, 7, 64] {
                        let mut count = vec![0u8; n * m * batches];
                        for thread in 0..threads {
                            for p in Split::new(n, m, batches, threads).pieces(thread) {
                                assert!(p.cols.start % 32 == 0 && p.rows.start % 32 == 0);
                                for row in p.rows.clone() {
                                    for col in p.cols.clone() {
                                        count[(p.batch * m + row) * n + col] += 1;
                                    }
                                }
                            }
                        }
                        assert!(count.iter().all(|c| *c == 1), "n {n} m {m} batches {batches} threads {threads}");
                    }
                }
            }
        }
    }

    #[test]
    fn many_columns_leave_rows_whole() {
        let pieces: Vec<_> = Split::new(4096, 512, 1, 2).pieces(1).collect();
        assert_eq!(pieces, [Piece { batch: 0, cols: 2048..4096, rows: 0..512 }]);
    }
}

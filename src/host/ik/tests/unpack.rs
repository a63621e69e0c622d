//! Products that the host computes with packed weights: which rows its kernel gets from which thread.

use std::cell::RefCell;
use std::ops::Range;

use libc::{c_int, c_long};

use super::PackedMatrix;
use crate::format::WeightType;
use crate::host::ik::calls::Share;
use crate::host::ik::kernels::{Mul4d, mul_mat_4d};
use crate::host::ik::unpack::{RowRange, in_row_ranges};
use crate::panel::weights::Shape;

/// The rows that a kernel of the host computes when it is called for a share of `rows` rows.
fn rows_of(rows: usize, (ith, nth): Share) -> Range<usize> {
    let each = rows.div_ceil(nth as usize);
    let first = (ith as usize * each).min(rows);
    first..rows.min(first + each)
}

// Weights per row, rows of weights, rows of activations per batch.
const K: c_long = 4096;
const N: c_long = 208;
const NY: c_long = 2;
// Matrices of weights.
const NE02: c_long = 2;
const NE03: c_long = 3;
// Batches of activations per matrix.
const R2: c_long = 2;
const R3: c_long = 1;

/// A product of batches: each of NE02 x NE03 matrices is multiplied with R2 x R3 batches of activations.
struct Batches {
    weights: PackedMatrix,
    /// How often each result was computed.
    seen: RefCell<Vec<u8>>,
    /// How many rows were unpacked.
    unpacked: RefCell<usize>,
}

impl Batches {
    fn new() -> Self {
        let shape = Shape::new(WeightType::Q8_0, K, N, NE02 * NE03).unwrap();
        let plain = (0..shape.plain_size()).map(|i| (i * 31 + i / 251) as u8).collect();
        let results = (N * NY * NE02 * R2 * NE03 * R3) as usize;
        let (seen, unpacked) = (RefCell::new(vec![0; results]), RefCell::new(0));
        Self { weights: PackedMatrix::of(shape, plain), seen, unpacked }
    }

    /// The arguments of thread `ith` of `nth`. The address of a batch's activations is the batch's number, results are
    /// from 0 on.
    fn args(&self, (ith, nth): Share) -> Mul4d {
        let (row, matrix) = (self.weights.shape.row_bytes as c_long, self.weights.shape.slice_plain as c_long);
        Mul4d {
            nx: N,
            ny: NY,
            ne00: K,
            ne02: NE02,
            ne03: NE03,
            ne12: NE02 * R2,
            ne13: NE03 * R3,
            nb02: matrix,
            nb03: matrix * NE02,
            nb12: 1,
            nb13: NE02 * R2,
            nb2: N * NY,
            nb3: N * NY * NE02 * R2,
            type_a: WeightType::Q8_0 as c_int,
            a: self.weights.base().cast(),
            stride_a: row,
            type_b: 8,
            b: std::ptr::null(),
            stride_b: 0,
            c: std::ptr::null_mut(),
            stride_c: N,
            ith,
            nth,
        }
    }

    /// The host's kernel: looks whether it got the right rows, and counts them and their results.
    fn kernel(&self, x: Mul4d) -> bool {
        let args = self.args((0, 1));
        let (row, matrix) = (self.weights.shape.row_bytes, self.weights.shape.slice_plain);
        let (batch, first) = (x.b as usize, x.c as usize / 4);
        let (i2, i3) = (batch as c_long % args.ne12, batch as c_long / args.ne12);
        for r in rows_of(x.nx as usize, (x.ith, x.nth)) {
            // SAFETY: the weights that the kernel is given have `x.nx` rows.
            let got = unsafe { std::slice::from_raw_parts(x.a.cast::<u8>().add(r * row), row) };
            let at = first - (i2 * args.nb2 + i3 * args.nb3) as usize + r;
            let of = (i2 / R2 + i3 / R3 * NE02) as usize * matrix + at * row;
            assert!(got == &self.weights.plain[of..of + row], "batch {batch}, row {at}");
            *self.unpacked.borrow_mut() += 1;
            for (i, y) in (0..x.ne12 * x.ne13).flat_map(|i| (0..x.ny).map(move |y| (i, y))) {
                let batch = (i % x.ne12) * x.nb2 + i / x.ne12 * x.nb3;
                self.seen.borrow_mut()[first + (batch + y * x.stride_c) as usize + r] += 1;
            }
        }
        true
    }
}

#[test]
fn threads_unpack_the_rows_they_need_and_no_others() {
    for nth in [1, 2, 7, 100] {
        let batches = Batches::new();
        let mut most = 0;
        for ith in 0..nth {
            // SAFETY: the product is in no run, and the kernel is the one above.
            assert_eq!(unsafe { mul_mat_4d(batches.args((ith, nth)), |x| batches.kernel(x)) }, Some(true));
            most = most.max(batches.unpacked.replace(0));
        }
        assert!(batches.seen.borrow().iter().all(|count| *count == 1), "{nth} threads");
        let all = (N * NE02 * NE03) as usize;
        assert!(most <= all / nth as usize + 64, "{nth} threads: one unpacked {most} of {all}");
    }
}

#[test]
fn a_kernel_that_refuses_is_believed_by_all_threads() {
    let refuse = |range: RowRange, share: Share| {
        // Threads without ranges ask for no rows.
        assert!(share == (0, 1) || rows_of(range.rows, share).is_empty());
        false
    };
    assert!((0..9).all(|ith| !in_row_ranges(96, 1 << 20, 1, (ith, 9), refuse)));
}

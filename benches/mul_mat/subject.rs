//! One weight matrix in the form of this library and of each host, and the numbers that it stands for.

use ggml_amx::cpu::memory::Region;
use ggml_amx::cpu::{self};
use ggml_amx::dispatch::Demand;
use ggml_amx::format::WeightType;
use ggml_amx::matmul::{Input, MatMul, Output, Settings, Stored, Thread, Weights};
use ggml_amx::panel::weights::Shape;

use crate::hosts::{Host, Matrix};
use crate::machine::{READ_PART, Spin};
use crate::options::Options;
use crate::{data, reference};

/// Bytes that pass between two uses of the same copy: more than a last-level cache holds.
const COLD: usize = 640 << 20;
/// Columns of the result that are compared with the reference, and rows.
const COLUMNS: usize = 64;
const ROWS: usize = 8;

/// Weights of one type and shape.
pub struct Subject<'h> {
    /// Type, N and K.
    pub shape: Shape,
    /// How many copies each way has.
    pub copies: usize,
    /// Whether ours stay as GGUF has them.
    pub in_place: bool,
    ours: Vec<Region>,
    /// In the forms of other hosts.
    pub matrices: Vec<Matrix<'h>>,
    /// Columns of the result, and the weights that make them.
    columns: Vec<(usize, Vec<f32>)>,
}

impl<'h> Subject<'h> {
    /// Random weights, packed by us and by the hosts.
    pub fn new(ty: WeightType, (n, k): (usize, usize), hosts: &'h [Host], o: &Options) -> Self {
        let shape = Shape::new(ty, k as i64, n as i64, 1).expect("K a multiple of the block");
        let plain = data::weights(&shape, &mut data::Random(3));
        let traffic = READ_PART + (1 + hosts.len()) * shape.packed_size();
        let copies = if o.warm { 1 } else { COLD.div_ceil(traffic) };
        let row = |n: usize| &plain[n * shape.row_bytes..(n + 1) * shape.row_bytes];
        let ours: Vec<Region> = (0..copies)
            .map(|_| {
                let region = Region::new(shape.packed_size()).expect("memory for the weights");
                for n in 0..n {
                    let (base, offset) = (region.base().as_ptr(), n * shape.row_bytes);
                    // SAFETY: the region has the packed size, which is not less than the plain one.
                    unsafe {
                        if o.in_place {
                            row(n).as_ptr().copy_to_nonoverlapping(base.add(offset), shape.row_bytes);
                        } else {
                            shape.write(base, offset, row(n));
                        }
                    }
                }
                region
            })
            .collect();
        let matrices = hosts.iter().filter_map(|h| h.matrix(ty, k, n, &plain, copies, o.threads)).collect();
        let columns = spread(n, COLUMNS).map(|c| (c, reference::row(ty, row(c)))).collect();
        Self { shape, copies, in_place: o.in_place, ours, matrices, columns }
    }

    /// Normalised mean square error of a result, on samples of rows and columns against sums in f64.
    pub fn nmse(&self, m: usize, x: &[f32], y: &[f32]) -> f64 {
        let (mut error, mut power) = (0.0, 0.0);
        for row in spread(m, ROWS) {
            let x = &x[row * self.shape.k..(row + 1) * self.shape.k];
            for (column, weights) in &self.columns {
                let sum: f64 = x.iter().zip(weights).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                error += (f64::from(y[row * self.shape.n + column]) - sum).powi(2);
                power += sum.powi(2);
            }
        }
        error / power
    }

    fn weights(&self, region: &Region) -> Weights {
        let whole = Weights::whole(self.shape, region.base().as_ptr(), [self.shape.k, self.shape.n, 1, 1]);
        if self.in_place {
            Weights { stored: Stored::InPlace { shape: self.shape, interleave: 1 }, ..whole }
        } else {
            whole
        }
    }

    /// The same product by this library.
    pub fn ours(&self, m: usize, x: &[f32], y: *mut f32, threads: usize, exact: bool) -> Ours {
        let (n, k) = (self.shape.n, self.shape.k);
        let of_copy = |region: &Region| MatMul {
            gate: None,
            weights: self.weights(region),
            input: Input { data: x.as_ptr().cast(), ne: [k, m, 1, 1], nb: [4, 4 * k, 0, 0] },
            output: Output { data: y.cast(), nb: [4 * n, 0, 0] },
        };
        let products: Vec<MatMul> = self.ours.iter().map(of_copy).collect();
        let work = Region::new(products[0].work_size(threads).expect("a work buffer")).expect("memory for it");
        Ours {
            products,
            work,
            settings: Settings { isa: cpu::isa(), demand: if exact { Demand::Bf16 } else { Demand::Auto } },
        }
    }
}

/// This library's operation on every copy of the weights.
pub struct Ours {
    products: Vec<MatMul>,
    work: Region,
    settings: Settings,
}

// SAFETY: the operation gives every thread its own part; the rest is read.
unsafe impl Sync for Ours {}

impl Ours {
    /// This thread's part.
    ///
    /// # Safety
    /// All threads must call it alike; activations and result must be there.
    pub unsafe fn run(&self, copy: usize, index: usize, count: usize, spin: &Spin) {
        let wait = || spin.wait();
        let thread = Thread { index, count, barrier: &wait };
        // SAFETY: buffers have the sizes that the operation asked for; all threads come here (`run`'s contract).
        unsafe { self.products[copy].run(self.settings, &thread, self.work.base().as_ptr()) };
    }
}

/// At most `count` of `0..n`, evenly, the first and the last among them.
fn spread(n: usize, count: usize) -> impl Iterator<Item = usize> {
    let count = count.min(n);
    (0..count).map(move |i| if count == 1 { 0 } else { i * (n - 1) / (count - 1) })
}

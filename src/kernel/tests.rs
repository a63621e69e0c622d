//! Every kernel against an f64 reference and against the portable kernel, bit for bit, on odd shapes.

use super::exact_weights::KC_UNPACKED;
use crate::cpu::{self, Isa};
use crate::format::WeightType;
use crate::format::stand_in::all_types;
use crate::panel::weights::Shape;
use crate::testing::bound;
use crate::testing::products::exact_product;
use crate::testing::random::{Random, dequantise, random_weights};
use crate::with_format;

struct Case {
    shape: Shape,
    packed: Vec<u8>,
    x: Vec<f32>,
    m: usize,
}

impl Case {
    fn new(ty: WeightType, k: usize, n: usize, m: usize) -> Self {
        let mut random = Random(k as u64 * 31 + n as u64 * 7 + m as u64);
        let shape = Shape::new(ty, k as i64, n as i64, 1).unwrap();
        let plain = random_weights(ty, &shape, &mut random);
        let mut packed = vec![0; shape.packed_size()];
        // SAFETY: the buffer has the packed size.
        unsafe { shape.write(packed.as_mut_ptr(), 0, &plain) };
        let x = (0..m * k).map(|_| random.normal()).collect();
        Self { shape, packed, x, m }
    }

    fn run(&self, isa: Isa) -> Vec<f32> {
        exact_product(isa, &self.shape, &self.packed, &self.x)
    }

    /// Exact weights times exact activations in f64.
    fn reference(&self) -> Vec<f64> {
        let (k, n) = (self.shape.k, self.shape.n);
        let mut weights = vec![0f64; k * n];
        with_format!(self.shape.ty, F => dequantise::<F>(&self.shape, &self.packed, &mut weights));
        let dot = |m: usize, n: usize| (0..k).map(|i| weights[n * k + i] * f64::from(self.x[m * k + i])).sum();
        (0..self.m).flat_map(|m| (0..n).map(move |n| (m, n))).map(|(m, n)| dot(m, n)).collect()
    }
}

/// Random weights of a shape, packed, and their exact product with `x` (m rows) in f64.
pub fn weights_and_reference(ty: WeightType, k: usize, n: usize, m: usize, x: &[f32]) -> (Shape, Vec<u8>, Vec<f64>) {
    let case = Case { x: x.to_vec(), ..Case::new(ty, k, n, m) };
    let reference = case.reference();
    (case.shape, case.packed, reference)
}

/// Only activations are rounded, to 8 bits per 32: the errors are those of the reference itself.
#[test]
fn the_portable_kernel_has_the_error_of_int8_activations() {
    for ty in all_types() {
        let case = Case::new(*ty, 512, bound::OUTPUTS, 5);
        let judge = bound::Matrix::packed(&case.shape, &case.packed);
        for (i, row) in judge.measure(&case.x, &case.run(Isa::Portable)).iter().enumerate() {
            assert_eq!(row.judge(0.0), Ok(()), "{ty:?} row {i}");
            let (e, e8) = (row.nmse(), row.e8());
            assert!(e < 1.01 * e8 && e > 0.99 * e8, "{ty:?} row {i}: {e:e}, 8 bits per 32: {e8:e}");
        }
    }
}

#[test]
fn all_instruction_sets_agree_bit_for_bit() {
    let best = cpu::isa();
    for isa in [Isa::Avx512, Isa::Amx] {
        if isa > best {
            println!("SKIPPED: no {}", isa.name());
            continue;
        }
        for ty in all_types() {
            let block = ty.info().block;
            for (k, n) in [(block, 1), (3 * block, 16), (2 * block, 33), (5 * block, 48), (block, 100)] {
                for m in [1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 32, 33, 50, 64] {
                    let case = Case::new(*ty, k, n, m);
                    let (a, b) = (case.run(Isa::Portable), case.run(isa));
                    let same = a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{ty:?} {} k {k} n {n} m {m}", isa.name());
                }
            }
        }
    }
}

#[test]
fn rows_of_more_than_one_kc_block_agree_too() {
    let best = cpu::isa();
    if best == Isa::Portable {
        println!("SKIPPED: no AVX-512 VNNI");
        return;
    }
    for ty in [WeightType::Q4_1, WeightType::Q6_K] {
        let case = Case::new(ty, KC_UNPACKED + 512, 17, 9);
        let a = case.run(Isa::Portable);
        for isa in [Isa::Avx512, Isa::Amx].into_iter().filter(|i| *i <= best) {
            assert_eq!(a, case.run(isa), "{ty:?} {}", isa.name());
        }
    }
}

//! Every kernel against an f64 reference and against the portable kernel, bit for bit, on odd shapes.

use super::exact_weights::{KC_UNPACKED, run, scratch_bytes};
use super::*;
use crate::cpu::{self, Isa};
use crate::format::stand_in::all_types;
use crate::format::{ACT_BLOCK, Format, LANES, WeightType};
use crate::panel::activations::ActivationLayout;
use crate::panel::rows::RowOffsets;
use crate::panel::weight_source::{PackedPanels, WeightSource};
use crate::panel::weights::Shape;
use crate::testing::bound;
use crate::testing::reference::set_scales;
use crate::with_format;

/// A small deterministic generator.
pub struct Random(pub u64);

impl Random {
    /// 31 random bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    /// Roughly normal: the sum of four uniform numbers.
    pub fn normal(&mut self) -> f32 {
        (0..4).map(|_| (self.next() % 65536) as f32 / 65536.0 - 0.5).sum()
    }
}

/// Random bytes with sane scales by the kinds of fields: f16 numbers are made small, exponents and 8-bit floats about 1.
pub fn random_weights(ty: WeightType, shape: &Shape, random: &mut Random) -> Vec<u8> {
    let mut plain: Vec<u8> = (0..shape.plain_size()).map(|_| random.next() as u8).collect();
    for block in plain.chunks_exact_mut(ty.info().bytes) {
        set_scales(block, ty.info().fields, 126, [0x00, 0x20], || 0.01 + 0.01 * random.normal());
    }
    plain
}

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

    /// The product with `isa`; the destination is wider than the result and must stay untouched there.
    fn run(&self, isa: Isa) -> Vec<f32> {
        let (k, n, m) = (self.shape.k, self.shape.n, self.m);
        let group = self.shape.ty.info().group;
        let layout = ActivationLayout::new(m, k, group).unwrap();
        let mut memory = vec![0u8; layout.bytes + scratch_bytes(k, group) + 128];
        let base = memory.as_mut_ptr().wrapping_add(memory.as_ptr().align_offset(64));
        let width = n + 3;
        let mut out = vec![f32::NAN; m * width];
        // SAFETY: all buffers have the sizes their layouts ask for; the caller chose a usable isa.
        unsafe {
            let act = layout.at(base);
            for row in 0..m {
                for block in 0..k / ACT_BLOCK {
                    act.quantise(isa, row, block, self.x.as_ptr().add(row * k + block * ACT_BLOCK).cast(), 4);
                }
            }
            let panels = PackedPanels { data: self.packed.as_ptr(), stride: self.shape.panel_bytes() };
            let task = Task {
                weights: WeightSource::Packed(self.shape.ty, panels),
                k,
                cols: n,
                rows: 0..m,
                dst: out.as_mut_ptr(),
                dst_rows: RowOffsets::Strided(width * 4),
            };
            run(isa, &task, &act, base.add(layout.bytes));
        }
        for row in out.chunks(width) {
            assert!(row[n..].iter().all(|v| v.is_nan()), "{:?}: wrote past column {n}", self.shape);
        }
        out.chunks(width).flat_map(|row| row[..n].to_vec()).collect()
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

/// What a packed matrix stands for, in double precision: `n` rows of `k`.
pub fn dequantise<F: Format>(shape: &Shape, packed: &[u8], out: &mut [f64]) {
    let mut quants = [0; LANES * 32];
    for row in 0..shape.n {
        let panel = &packed[row / LANES * shape.panel_bytes()..];
        for k in 0..shape.k {
            let block = &panel[k / F::BLOCK * LANES * F::BYTES..][..LANES * F::BYTES];
            let (group, lane, i) = (k % F::BLOCK / F::GROUP, row % LANES, k % F::GROUP);
            if i == 0 {
                F::quants(block, group, &mut quants);
            }
            let s = F::scales(block, group);
            let q = f64::from(quants[i / 4 * 64 + lane * 4 + i % 4]);
            out[row * shape.k + k] = f64::from(s.scale[lane]) * q + f64::from(s.min[lane]);
        }
    }
}

/// Random weights of a shape, packed, and their exact product with `x` (m rows) in f64.
pub fn weights_and_reference(ty: WeightType, k: usize, n: usize, m: usize, x: &[f32]) -> (Shape, Vec<u8>, Vec<f64>) {
    let case = Case { x: x.to_vec(), ..Case::new(ty, k, n, m) };
    let reference = case.reference();
    (case.shape, case.packed, reference)
}

/// Squared error over squared size.
pub fn nmse(out: &[f32], reference: &[f64]) -> f64 {
    let error: f64 = out.iter().zip(reference).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    error / reference.iter().map(|b| b * b).sum::<f64>()
}

/// Nothing is rounded but activations, to 8 bits per 32: the errors are those of the judge's own reference.
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
fn rows_longer_than_a_chunk_agree_too() {
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

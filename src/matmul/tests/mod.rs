//! Whole operations, judged element by element.
//!
//! `shapes`: batches, broadcast, strides, views and thread counts. `tile_gemm`: what tiles may lose. `bound`: the
//! promise of the header. `experts`: MUL_MAT_ID. `fused`: weights in place, and gates. `forms`: weights that the host
//! decodes, and f32 rows.

mod bound;
mod experts;
mod forms;
mod fused;
mod shapes;
mod tile_gemm;

use std::sync::Barrier;

use super::*;
use crate::cpu::{self, Amx};
use crate::dispatch::thresholds;
use crate::format::WeightType;
use crate::kernel::tests::weights_and_reference;
use crate::panel::plain::{self, PlainType};
use crate::panel::weights::Shape;
use crate::testing::bound::Matrix;
use crate::testing::random::{Random, nmse};

/// Whether the tests here meet the tile unit; they say so if not.
fn has_amx() -> bool {
    let has = Amx::new().is_some();
    if !has {
        println!("SKIPPED: no AMX");
    }
    has
}

/// Rows from which on the tile GEMM may take the weights of an operation.
fn min_tile_m(op: &MatMul) -> usize {
    op.weights.stored.info().storage.weight_type().map_or(1, thresholds::min_tile_m)
}

fn demand(exact: bool) -> Demand {
    if exact { Demand::Bf16 } else { Demand::Auto }
}

/// Uniform between -1 and 1.
fn uniform(random: &mut Random) -> f32 {
    (random.next() % 2001) as f32 / 1000.0 - 1.0
}

/// Q8_0 weights (d = 1/64) as plain bytes, and what they stand for.
fn weights(k: usize, rows: usize, random: &mut Random) -> (Vec<u8>, Vec<f32>) {
    let (mut plain, mut values) = (Vec::new(), Vec::new());
    for _ in 0..rows * k / 32 {
        plain.extend_from_slice(&half::f16::from_f32(1.0 / 64.0).to_le_bytes());
        for _ in 0..32 {
            let q = (random.next() % 255) as i64 as i32 - 127;
            plain.push(q as i8 as u8);
            values.push(q as f32 / 64.0);
        }
    }
    (plain, values)
}

/// Random numbers in a plain type, as bytes, and what they stand for.
fn plain_weights(ty: &PlainType, len: usize, random: &mut Random) -> (Vec<u8>, Vec<f32>) {
    let convert = |v: f32| match ty.name {
        "f16" => (half::f16::from_f32(v).to_le_bytes(), half::f16::from_f32(v).to_f32()),
        _ => (half::bf16::from_f32(v).to_le_bytes(), half::bf16::from_f32(v).to_f32()),
    };
    let (bytes, values): (Vec<[u8; 2]>, _) = (0..len).map(|_| convert(0.02 * random.normal())).unzip();
    (bytes.concat(), values)
}

/// Largest NMSE of a product with weights of a plain type: what rounding activations to the type costs.
fn plain_limit(ty: &PlainType) -> f64 {
    if ty.name == "f16" { 4e-8 } else { 4e-6 }
}

/// Plain weights, packed.
fn packed(shape: &Shape, plain: &[u8]) -> Vec<u8> {
    let mut packed = vec![0; shape.packed_size()];
    // SAFETY: the buffer has the packed size.
    unsafe { shape.write(packed.as_mut_ptr(), 0, plain) };
    packed
}

fn pack(ty: WeightType, k: usize, n: usize, slices: usize, plain: &[u8]) -> (Shape, Vec<u8>) {
    let shape = Shape::new(ty, k as i64, n as i64, slices as i64).unwrap();
    let packed = packed(&shape, plain);
    (shape, packed)
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// `m` rows of `x` times a matrix; where results go is set when it runs.
fn dense(weights: Weights, x: &[f32], m: usize) -> MatMul {
    let [k, n, ..] = weights.ne;
    MatMul {
        gate: None,
        weights,
        input: Input { data: x.as_ptr().cast(), ne: [k, m, 1, 1], nb: [4, 4 * k, 0, 0] },
        output: Output { data: std::ptr::null_mut(), nb: [4 * n, 0, 0] },
    }
}

/// `per_token` rows of `x` per token times the matrices of the experts that tokens chose: `used` of them each, in rows
/// of `stride` numbers.
fn moe(
    weights: Weights,
    (x, per_token): (&[f32], usize),
    (ids, used, stride): (&[i32], usize, usize),
    out: &mut [f32],
) -> ExpertMul {
    let ([k, n, ..], tokens) = (weights.ne, ids.len() / stride);
    ExpertMul {
        gate: None,
        weights,
        input: Input {
            data: x.as_ptr().cast(),
            ne: [k, per_token, tokens, 1],
            nb: [4, 4 * k, 4 * k * per_token, 4 * k * per_token * tokens],
        },
        choices: Choices { data: ids.as_ptr().cast(), used, tokens, nb: [4, 4 * stride], skip_others: false },
        output: Output { data: out.as_mut_ptr().cast(), nb: [4 * n, 4 * n * used, 4 * n * used * tokens] },
    }
}

/// Calls `run` on `threads` threads, each with its number and a barrier for all.
fn on_threads(threads: usize, run: impl Fn(&Thread<'_>) + Sync) {
    let barrier = Barrier::new(threads);
    std::thread::scope(|scope| {
        for index in 0..threads {
            let (barrier, run) = (&barrier, &run);
            scope.spawn(move || {
                let wait = || {
                    barrier.wait();
                };
                run(&Thread { index, count: threads, barrier: &wait });
            });
        }
    });
}

/// An operation and its work buffer, for several threads.
struct Shared(Op, *mut u8);

// SAFETY: the threads of one operation share its pointers by design; each has its own part of the result.
unsafe impl Sync for Shared {}

impl Shared {
    fn run(&self, settings: Settings, thread: &Thread<'_>) {
        // SAFETY: the buffers of the test have the sizes asked for.
        unsafe { self.0.run(settings, thread, self.1) }
    }
}

/// Computes an operation on `threads` threads.
fn run(op: Op, settings: Settings, threads: usize) {
    op.check().unwrap();
    let mut work = vec![0u8; op.work_size(threads).unwrap()];
    let shared = Shared(op, work.as_mut_ptr());
    on_threads(threads, |thread| shared.run(settings, thread));
}

/// The `len` results of a product, which lie on cache lines as a host's do.
fn results(op: &MatMul, settings: Settings, threads: usize, len: usize) -> Vec<f32> {
    let mut memory = vec![f32::NAN; len + 16];
    let at = memory.as_ptr().align_offset(64);
    let out = &mut memory[at..at + len];
    let output = Output { data: out.as_mut_ptr().cast(), ..op.output };
    run(Op::Dense(MatMul { output, ..*op }), settings, threads);
    out.to_vec()
}

/// The results on `threads` threads with every usable instruction set, which must agree: those of the best.
fn compute(op: &MatMul, threads: usize, len: usize) -> Vec<f32> {
    let mut first: Option<Vec<f32>> = None;
    for isa in [Isa::Portable, Isa::Avx512, Isa::Amx] {
        if isa > cpu::isa() {
            println!("SKIPPED: no {}", isa.name());
            continue;
        }
        let out = results(op, Settings { isa, demand: Demand::Auto }, threads, len);
        // Below the tile GEMM all kernels give the same bits; above, requantised weights differ a little.
        match &first {
            None => first = Some(out),
            Some(a) if op.input.ne[1] < min_tile_m(op) || a.iter().all(|v| *v == 0.0) => {
                assert!(same_bits(a, &out), "{}", isa.name());
            }
            Some(a) => {
                let reference: Vec<f64> = a.iter().map(|v| f64::from(*v)).collect();
                let e = nmse(&out, &reference);
                assert!(e < 3e-4, "{}: {e:e}", isa.name());
                first = Some(out);
            }
        }
    }
    first.unwrap()
}

/// The results by the tile GEMM on 2 threads.
fn gemm(op: &MatMul, exact: bool, len: usize) -> Vec<f32> {
    results(op, Settings { isa: Isa::Amx, demand: demand(exact) }, 2, len)
}

/// Activations of a kind, `m` rows of `k`.
fn activations(kind: &str, m: usize, k: usize) -> Vec<f32> {
    let mut random = Random(77);
    let mut x: Vec<f32> =
        (0..m * k).map(|_| uniform(&mut random) + uniform(&mut random) + uniform(&mut random)).collect();
    for row in 0..m {
        for i in 0..(k / 200).max(1) {
            match kind {
                "fixed outliers" => x[row * k + i * 199 + 3] *= 30.0,
                "moving outliers" => x[row * k + (i * 199 + row * 61) % k] *= 30.0,
                _ => {}
            }
        }
    }
    x
}

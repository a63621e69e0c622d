//! Whole operations: batches, broadcast, strides, views and thread counts give the bits of the plain
//! case, element by element.

mod bound;
mod experts;
mod fused;

use std::sync::Barrier;

use super::*;
use crate::cpu::{self, Amx};
use crate::dispatch::thresholds;
use crate::format::WeightType;
use crate::kernel::tests::{Random, nmse, weights_and_reference};
use crate::panel::plain::{self, PlainType};
use crate::panel::weights::Shape;
use crate::testing::bound::Matrix;

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

fn pack(ty: WeightType, k: usize, n: usize, slices: usize, plain: &[u8]) -> (Shape, Vec<u8>) {
    let shape = Shape::new(ty, k as i64, n as i64, slices as i64).unwrap();
    let mut packed = vec![0; shape.packed_size()];
    // SAFETY: the buffer has the packed size.
    unsafe { shape.write(packed.as_mut_ptr(), 0, plain) };
    (shape, packed)
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// Runs the operation on `threads` threads with every usable instruction set; results must agree. Gives
/// those of the best.
fn compute(op: &MatMul, threads: usize, len: usize) -> Vec<f32> {
    op.check().unwrap();
    let mut first: Option<Vec<f32>> = None;
    for isa in [Isa::Portable, Isa::Avx512, Isa::Amx] {
        if isa > cpu::isa() {
            println!("SKIPPED: no {}", isa.name());
            continue;
        }
        let mut work = vec![0u8; op.work_size(threads).unwrap()];
        let mut out = vec![f32::NAN; len];
        let barrier = Barrier::new(threads);
        let (work, data) = (work.as_mut_ptr() as usize, out.as_mut_ptr() as usize);
        let input = (op.input.data as usize, op.weights.base as usize);
        std::thread::scope(|scope| {
            for index in 0..threads {
                let (barrier, mut op) = (&barrier, Portable(*op));
                scope.spawn(move || {
                    let op = op.get();
                    op.output.data = data as *mut u8;
                    (op.input.data, op.weights.base) = (input.0 as *const u8, input.1 as *const u8);
                    let wait = || {
                        barrier.wait();
                    };
                    // SAFETY: buffers outlive the scope and have the sizes asked for.
                    unsafe {
                        op.run(
                            Settings { isa, demand: Demand::Auto },
                            &Thread { index, count: threads, barrier: &wait },
                            work as *mut u8,
                        )
                    };
                });
            }
        });
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

/// Lets an operation cross to another thread; its pointers are set anew there.
struct Portable(MatMul);

// SAFETY: only sizes are used before the pointers are replaced.
unsafe impl Send for Portable {}

impl Portable {
    fn get(&mut self) -> &mut MatMul {
        &mut self.0
    }
}

fn close(a: f32, b: f64, scale: f64) -> bool {
    (f64::from(a) - b).abs() <= 0.02 * scale
}

#[test]
fn batches_broadcast_and_strides_are_ggmls() {
    let (k, n, m) = (64, 35, 5);
    let mut random = Random(3);
    for (w2, w3, x2, x3) in [(1, 1, 1, 1), (2, 1, 4, 1), (1, 2, 3, 4), (2, 3, 4, 3)] {
        let (plain, values) = weights(k, n * w2 * w3, &mut random);
        let (shape, packed) = pack(WeightType::Q8_0, k, n, w2 * w3, &plain);
        // Batches interleaved within rows: ggml's permute(0, 2, 1, 3) of a contiguous tensor.
        let x: Vec<f32> = (0..k * m * x2 * x3).map(|_| uniform(&mut random)).collect();
        let nb = [4, 4 * k * x2, 4 * k, 4 * k * x2 * m];
        let op = MatMul {
            gate: None,
            weights: Weights::whole(shape, packed.as_ptr(), [k, n, w2, w3]),
            input: Input { data: x.as_ptr().cast(), ne: [k, m, x2, x3], nb },
            output: Output { data: std::ptr::null_mut(), nb: [4 * n, 4 * n * m, 4 * n * m * x2] },
        };
        for threads in [1, 3, 9] {
            let out = compute(&op, threads, n * m * x2 * x3);
            for i3 in 0..x3 {
                for i2 in 0..x2 {
                    let slice = i2 / (x2 / w2) + i3 / (x3 / w3) * w2;
                    for row in 0..m {
                        for col in 0..n {
                            let w = &values[(slice * n + col) * k..][..k];
                            let a = &x[(row * nb[1] + i2 * nb[2] + i3 * nb[3]) / 4..][..k];
                            let expected: f64 = w.iter().zip(a).map(|(w, a)| f64::from(w * a)).sum();
                            let got = out[((i3 * x2 + i2) * m + row) * n + col];
                            assert!(
                                close(got, expected, (k as f64).sqrt()),
                                "{got} {expected} at {col} {row} {i2} {i3}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn views_give_the_bits_of_a_tensor_of_their_own() {
    let (k, n, m) = (96, 70, 33);
    let mut random = Random(4);
    let (plain, _) = weights(k, n, &mut random);
    let (shape, packed) = pack(WeightType::Q8_0, k, n, 1, &plain);
    let x: Vec<f32> = (0..k * m).map(|_| uniform(&mut random)).collect();
    let row = shape.row_bytes;
    // Rows 16..48 (whole panels), 3..68 (not), every third row, and the middle third of every row.
    let views = [(16 * row, k, 32, row), (3 * row, k, 65, row), (row, k, 23, 3 * row), (34, 32, n, row)];
    for (offset, vk, vn, nb1) in views {
        let bytes = vk / 32 * 34;
        let own: Vec<u8> = (0..vn).flat_map(|r| plain[offset + r * nb1..][..bytes].to_vec()).collect();
        let (own_shape, own_packed) = pack(WeightType::Q8_0, vk, vn, 1, &own);
        let op = |weights| MatMul {
            gate: None,
            weights,
            input: Input { data: x.as_ptr().cast(), ne: [vk, m, 1, 1], nb: [4, 4 * k, 0, 0] },
            output: Output { data: std::ptr::null_mut(), nb: [4 * vn, 0, 0] },
        };
        let view = Weights {
            stored: Stored::Packed(shape),
            base: packed.as_ptr(),
            offset,
            ne: [vk, vn, 1, 1],
            nb: [nb1, nb1 * vn, nb1 * vn],
        };
        assert!(view.is_inside());
        let expected = compute(&op(Weights::whole(own_shape, own_packed.as_ptr(), [vk, vn, 1, 1])), 2, vn * m);
        assert!(same_bits(&compute(&op(view), 2, vn * m), &expected), "offset {offset}");
    }
}

#[test]
fn strided_elements_and_no_rows_at_all() {
    let (k, n) = (64, 20);
    let mut random = Random(5);
    let (plain, _) = weights(k, n, &mut random);
    let (shape, packed) = pack(WeightType::Q8_0, k, n, 1, &plain);
    let x: Vec<f32> = (0..k * 6).map(|_| uniform(&mut random)).collect();
    let transposed: Vec<f32> = (0..6 * k).map(|i| x[i % 6 * k + i / 6]).collect();
    let op = |x: &[f32], m, nb0, nb1| MatMul {
        gate: None,
        weights: Weights::whole(shape, packed.as_ptr(), [k, n, 1, 1]),
        input: Input { data: x.as_ptr().cast(), ne: [k, m, 1, 1], nb: [nb0, nb1, 0, 0] },
        output: Output { data: std::ptr::null_mut(), nb: [4 * n, 0, 0] },
    };
    assert_eq!(compute(&op(&transposed, 6, 24, 4), 2, 6 * n), compute(&op(&x, 6, 4, 4 * k), 2, 6 * n));
    assert!(compute(&op(&x, 0, 4, 4 * k), 3, 0).is_empty());
    // No channels: the sums are empty. No columns: there is nothing.
    for (ne, len) in [([0, n, 1, 1], 6 * n), ([k, 0, 1, 1], 0)] {
        let shape = Shape::new(WeightType::Q8_0, ne[0] as i64, ne[1] as i64, 1).unwrap();
        let mut op = op(&x, 6, 4, 4 * k);
        op.input.ne[0] = ne[0];
        op.weights = Weights::whole(shape, packed.as_ptr(), ne);
        assert_eq!(compute(&op, 3, len), vec![0.0; len]);
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let shape = Shape::new(WeightType::Q8_0, 64, 4, 2).unwrap();
    let op = |x_ne| MatMul {
        gate: None,
        weights: Weights::whole(shape, std::ptr::null(), [64, 4, 2, 1]),
        input: Input { data: std::ptr::null(), ne: x_ne, nb: [4; 4] },
        output: Output { data: std::ptr::null_mut(), nb: [16; 3] },
    };
    assert!(op([32, 1, 2, 1]).check().unwrap_err().contains("K differs"));
    assert!(op([64, 1, 3, 1]).check().unwrap_err().contains("batches"));
    assert!(op([64, 1 << 60, 2, 1]).check().unwrap_err().contains("address space"));
}

/// A product by the tile GEMM on 2 threads.
fn gemm(op: &MatMul, exact: bool, len: usize) -> Vec<f32> {
    let mut work = vec![0u8; op.work_size(2).unwrap()];
    // Aligned to a cache line, as hosts' results are.
    let mut memory = vec![f32::NAN; len + 16];
    let at = memory.as_ptr().align_offset(64);
    let out = &mut memory[at..at + len];
    let barrier = Barrier::new(2);
    let mut op = *op;
    op.output.data = out.as_mut_ptr().cast();
    let (shared, work) = (&Shared(op), work.as_mut_ptr() as usize);
    std::thread::scope(|scope| {
        for index in 0..2 {
            let barrier = &barrier;
            scope.spawn(move || {
                let wait = || {
                    barrier.wait();
                };
                let settings = Settings { isa: Isa::Amx, demand: demand(exact) };
                // SAFETY: buffers outlive the scope and have the sizes asked for.
                unsafe { shared.get().run(settings, &Thread { index, count: 2, barrier: &wait }, work as *mut u8) };
            });
        }
    });
    out.to_vec()
}

struct Shared(MatMul);

// SAFETY: the operation gives every thread its own part of the result.
unsafe impl Sync for Shared {}

impl Shared {
    fn get(&self) -> &MatMul {
        &self.0
    }
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

#[test]
fn the_tile_gemm_keeps_the_promised_bound_for_every_type_and_odd_shapes() {
    if Amx::new().is_none() {
        println!("SKIPPED: no AMX");
        return;
    }
    for ty in crate::format::stand_in::all_types() {
        let b = ty.info().block;
        let shapes = [
            (b, 9, 32),
            (3 * b, 33, 33),
            (4352, 48, 50),
            (1280, 300, 300),
            (b, 25, 11),
            (4352, 70, 16),
            (1280, 64, 31),
        ];
        for (k, n, m) in shapes {
            for kind in ["smooth", "fixed outliers", "moving outliers"] {
                let x = activations(kind, m, k);
                let (shape, packed, reference) = weights_and_reference(*ty, k, n, m, &x);
                let op = MatMul {
                    gate: None,
                    weights: Weights::whole(shape, packed.as_ptr(), [k, n, 1, 1]),
                    input: Input { data: x.as_ptr().cast(), ne: [k, m, 1, 1], nb: [4, 4 * k, 0, 0] },
                    output: Output { data: std::ptr::null_mut(), nb: [4 * n, 0, 0] },
                };
                let judge = Matrix::packed(&shape, &packed);
                let verdict = judge.judge(ty.info().quant_nmse, &x, &gemm(&op, false, n * m));
                assert_eq!(verdict, Ok(()), "{ty:?} k {k} n {n} m {m} {kind}");
                let exact = nmse(&gemm(&op, true, n * m), &reference);
                assert!(exact < 2e-5, "{ty:?} k {k} n {n} m {m} {kind}, exact: {exact:e}");
            }
        }
    }
}

#[test]
fn plain_weights_are_as_good_as_their_type_for_odd_shapes_batches_and_views() {
    if Amx::new().is_none() {
        println!("SKIPPED: no AMX");
        return;
    }
    for ty in plain::TYPES {
        let shapes = [(32, 1, 16), (96, 33, 33), (4352, 48, 50), (1280, 300, 300), (3104, 17, 17), (2048, 70, 64)];
        for ((k, n, m), batches) in shapes.into_iter().zip([1, 4, 1, 1, 2, 1]) {
            for kind in ["smooth", "moving outliers"] {
                let x = activations(kind, batches * m, k);
                // Two batches share a matrix; its rows are the first k of a few more weights.
                let (matrices, row) = (batches.div_ceil(2), k + 7);
                let (bytes, values) = plain_weights(ty, row * n * matrices, &mut Random(k as u64));
                let op = MatMul {
                    gate: None,
                    weights: Weights {
                        stored: Stored::Plain(ty),
                        base: bytes.as_ptr(),
                        offset: 0,
                        ne: [k, n, matrices, 1],
                        nb: [2 * row, 2 * row * n, 2 * row * n * matrices],
                    },
                    input: Input { data: x.as_ptr().cast(), ne: [k, m, batches, 1], nb: [4, 4 * k, 4 * k * m, 0] },
                    output: Output { data: std::ptr::null_mut(), nb: [4 * n, 4 * n * m, 0] },
                };
                op.check().unwrap();
                let dot = |i: usize| -> f64 {
                    let (col, row_of_x) = (i % n, i / n);
                    let w = &values[(row_of_x / m * matrices / batches * n + col) * row..][..k];
                    w.iter().zip(&x[row_of_x * k..]).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
                };
                let reference: Vec<f64> = (0..n * m * batches).map(dot).collect();
                let e = nmse(&gemm(&op, false, reference.len()), &reference);
                let limit = plain_limit(ty);
                assert!(e < limit, "{} k {k} n {n} m {m} batches {batches} {kind}: {e:e}", ty.name);
            }
        }
    }
}

#[test]
fn activations_that_are_not_finite_give_results_that_are_not() {
    if Amx::new().is_none() {
        println!("SKIPPED: no AMX");
        return;
    }
    for m in [12, 40] {
        not_finite(m);
    }
}

fn not_finite(m: usize) {
    let (k, n) = (256, 40);
    let mut x = activations("smooth", m, k);
    x[5 * k + 17] = f32::NAN;
    x[9 * k + 200] = f32::INFINITY;
    let (shape, packed, _) = weights_and_reference(WeightType::Q8_0, k, n, m, &x);
    let op = MatMul {
        gate: None,
        weights: Weights::whole(shape, packed.as_ptr(), [k, n, 1, 1]),
        input: Input { data: x.as_ptr().cast(), ne: [k, m, 1, 1], nb: [4, 4 * k, 0, 0] },
        output: Output { data: std::ptr::null_mut(), nb: [4 * n, 0, 0] },
    };
    let check = |op: &MatMul, exact| {
        for (row, out) in gemm(op, exact, n * m).chunks(n).enumerate() {
            let broken = row == 5 || row == 9;
            let name = op.weights.stored.info().name;
            assert!(out.iter().all(|v| v.is_finite() != broken), "{name}: row {row}, exact {exact}");
        }
    };
    check(&op, false);
    check(&op, true);
    for ty in plain::TYPES {
        let (bytes, _) = plain_weights(ty, k * n, &mut Random(1));
        let (stored, base, nb) = (Stored::Plain(ty), bytes.as_ptr(), [2 * k, 2 * k * n, 2 * k * n]);
        check(&MatMul { weights: Weights { stored, base, nb, ..op.weights }, ..op }, false);
    }
}

/// Given enough results that they are written past the caches, and rows that are not whole cache
/// lines, then results are the same.
#[test]
fn large_results_are_the_same_wherever_they_are_written() {
    if Amx::new().is_none() {
        println!("SKIPPED: no AMX");
        return;
    }
    let (k, n, m) = (256, 1040, 600);
    let x = activations("smooth", m, k);
    let (shape, packed, reference) = weights_and_reference(WeightType::Q4_0, k, n, m, &x);
    for stride in [4 * n, 4 * n + 4] {
        let op = MatMul {
            gate: None,
            weights: Weights::whole(shape, packed.as_ptr(), [k, n, 1, 1]),
            input: Input { data: x.as_ptr().cast(), ne: [k, m, 1, 1], nb: [4, 4 * k, 0, 0] },
            output: Output { data: std::ptr::null_mut(), nb: [stride, 0, 0] },
        };
        let out = gemm(&op, false, stride / 4 * m);
        let rows: Vec<f32> = out.chunks(stride / 4).flat_map(|row| row[..n].to_vec()).collect();
        assert!(nmse(&rows, &reference) < 2e-4);
        let past_the_end = out.chunks(stride / 4).flat_map(|row| &row[n..]);
        assert!(past_the_end.clone().all(|v| v.is_nan()), "{past_the_end:?}");
    }
}

//! What the tile GEMM may lose, for every type, odd shapes, and numbers that are not finite.

use super::*;

#[test]
fn the_tile_gemm_keeps_the_promised_bound_for_every_type_and_odd_shapes() {
    if !has_amx() {
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
                let op = dense(Weights::whole(shape, packed.as_ptr(), [k, n, 1, 1]), &x, m);
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
    if !has_amx() {
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
    if !has_amx() {
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
    let op = dense(Weights::whole(shape, packed.as_ptr(), [k, n, 1, 1]), &x, m);
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
    if !has_amx() {
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

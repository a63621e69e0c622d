//! Batches, broadcast, strides, views and thread counts give the bits of the plain case, element by element.

use super::*;

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

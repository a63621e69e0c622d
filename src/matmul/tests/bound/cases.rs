//! Weights and rows that have broken a bound before, one test each.

use super::*;

/// Weights by ggml's own rules for Q4_0 and Q8_0.
fn quantised(ty: WeightType, weights: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for block in weights.chunks(32) {
        let largest = block.iter().copied().fold(0f32, |a, b| if b.abs() > a.abs() { b } else { a });
        let scale = half::f16::from_f32(if ty == WeightType::Q4_0 { largest / -8.0 } else { largest.abs() / 127.0 });
        let (d, mut q) = (scale.to_f32(), [0i32; 32]);
        q.iter_mut().zip(block).for_each(|(q, w)| *q = if d == 0.0 { 0 } else { (w / d).round() as i32 });
        bytes.extend_from_slice(&scale.to_le_bytes());
        if ty == WeightType::Q4_0 {
            let nibble = |q: i32| (q + 8).clamp(0, 15) as u8;
            bytes.extend((0..16).map(|i| nibble(q[i]) | nibble(q[i + 16]) << 4));
        } else {
            bytes.extend(q.map(|q| q.clamp(-127, 127) as i8 as u8));
        }
    }
    bytes
}

/// Quantises weights, multiplies, and judges every row; the largest NMSE comes back.
fn judged(ty: WeightType, weights: &[f32], k: usize, x: &[f32], what: &str) -> f64 {
    let (n, m) = (weights.len() / k, x.len() / k);
    let (shape, packed) = pack(ty, k, n, 1, &quantised(ty, weights));
    let op = dense(Weights::whole(shape, packed.as_ptr(), [k, n, 1, 1]), x, m);
    let out = gemm(&op, false, n * m);
    let matrix = Matrix::packed(&shape, &packed);
    if let Err(why) = matrix.judge(ty.info().quant_nmse, x, &out) {
        panic!("{ty:?}, {what}: {why}");
    }
    matrix.measure(x, &out).iter().map(|row| row.nmse()).fold(0.0, f64::max)
}

/// Few quants are all rounded to the same side, and their errors go with those of the activations: channels of a column
/// that is much larger than the others must not lend that to a row that does not see it.
#[test]
fn single_channels_beside_one_large_column_keep_their_bound() {
    if !has_amx() {
        return;
    }
    let mut random = source(0x0c);
    for ty in [WeightType::TQ1_0, WeightType::TQ2_0, WeightType::Q2_0] {
        let (k, n, at) = (512, OUTPUTS, scale_at(ty).unwrap());
        let shape = Shape::new(ty, k as i64, n as i64, 1).unwrap();
        for large in [30.0, 300.0] {
            let mut plain = random_weights(ty, &shape, &mut random);
            for data in plain[5 * shape.row_bytes..6 * shape.row_bytes].chunks_exact_mut(ty.info().bytes) {
                let scale = half::f16::from_le_bytes([data[at], data[at + 1]]).to_f32() * large;
                data[at..at + 2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
            }
            let packed = packed(&shape, &plain);
            // A row for every channel, of a size that BF16 rounds badly.
            let x: Vec<f32> = (0..k * k).map(|i| if i / k == i % k { 1.0039 } else { 0.0 }).collect();
            let op = dense(Weights::whole(shape, packed.as_ptr(), [k, n, 1, 1]), &x, k);
            let out = gemm(&op, true, n * k);
            let judged = Matrix::packed(&shape, &packed).judge(ty.info().quant_nmse, &x, &out);
            assert_eq!(judged, Ok(()), "{ty:?} {large}");
        }
    }
}

/// Given channels of weights of different size and activations that make up for it, as a norm that was folded into the
/// weights leaves them, then every row of a prompt keeps its bound.
#[test]
fn channels_of_different_size_keep_the_bound() {
    if !has_amx() {
        return;
    }
    let (k, n, m) = (4096, OUTPUTS, 64);
    let mut random = Random(1);
    for ty in [WeightType::Q4_0, WeightType::Q8_0] {
        // 32 of 1,024 channels times a number; or log-normal channels, or blocks of them.
        let some = |factor: f32| (0..k).map(|c| if c % 1024 < 32 { factor } else { 1.0 }).collect::<Vec<f32>>();
        let mut log_normal = |sigma: f32, equal: usize| {
            let of_blocks: Vec<f32> = (0..k / equal).map(|_| (sigma * gauss(&mut random)).exp()).collect();
            (0..k).map(|c| of_blocks[c / equal]).collect::<Vec<f32>>()
        };
        let factors = [
            ("some times 4", some(4.0)),
            ("some times 32", some(32.0)),
            ("some times 100", some(100.0)),
            ("log-normal channels, 0.5", log_normal(0.5, 1)),
            ("log-normal channels, 1.5", log_normal(1.5, 1)),
            ("log-normal blocks, 1.5", log_normal(1.5, 32)),
        ];
        for (what, f) in factors {
            let weights: Vec<f32> = (0..n * k).map(|i| 0.02 * gauss(&mut random) * f[i % k]).collect();
            let x: Vec<f32> = (0..m * k).map(|i| gauss(&mut random) / f[i % k]).collect();
            judged(ty, &weights, k, &x, what);
        }
    }
}

/// Given blocks that have one weight each, halfway between two steps of their column, and rows that are large there and
/// nowhere else, then every row keeps its bound: errors are not those of the block on average.
#[test]
fn errors_of_single_channels_are_not_averaged_away() {
    if !has_amx() {
        return;
    }
    let (k, n, m) = (4096, 4 * OUTPUTS, 48);
    let mut random = Random(5);
    let single = |block: usize| !block.is_multiple_of(8);
    let channel = |block: usize| 32 * block + block * 7 % 32;
    let mut plain = Vec::new();
    for block in (0..n).flat_map(|_| 0..k / 32) {
        let scale = if single(block) { 0.3465 } else { 1.0 };
        plain.extend_from_slice(&half::f16::from_f32(scale).to_le_bytes());
        let mut q = [8u8; 32];
        if single(block) {
            q[channel(block) % 32] = if random.next().is_multiple_of(2) { 7 } else { 9 };
        } else {
            q.iter_mut().for_each(|q| *q = random.next() as u8 % 16);
        }
        plain.extend((0..16).map(|i| q[i] | q[i + 16] << 4));
    }
    let (shape, packed) = pack(WeightType::Q4_0, k, n, 1, &plain);
    let mut x = vec![0f32; m * k];
    for row in x.chunks_mut(k) {
        (0..k / 32).filter(|b| single(*b)).for_each(|b| row[channel(b)] = pick(&mut random, &[-1.0, 1.0]));
    }
    let op = dense(Weights::whole(shape, packed.as_ptr(), [k, n, 1, 1]), &x, m);
    let out = gemm(&op, false, n * m);
    Matrix::packed(&shape, &packed).judge(WeightType::Q4_0.info().quant_nmse, &x, &out).unwrap();
}

/// Given weights that are much alike in every block, by a minimum of its own, and rows in which that cancels, then
/// every row keeps its bound: what is left of the result is small.
#[test]
fn what_neighbouring_channels_have_in_common_may_cancel() {
    if !has_amx() {
        return;
    }
    let (k, n, m) = (4096, 2 * OUTPUTS, 64);
    let mut random = Random(6);
    let mut plain = Vec::new();
    for _ in 0..n * k / 32 {
        for value in [0.05, gauss(&mut random)] {
            plain.extend_from_slice(&half::f16::from_f32(value).to_le_bytes());
        }
        plain.extend((0..16).map(|_| random.next() as u8));
    }
    let (shape, packed) = pack(WeightType::Q4_1, k, n, 1, &plain);
    let sign = |i: usize| if i.is_multiple_of(2) { 1.0 } else { -1.0 };
    let x: Vec<f32> = (0..m * k).map(|i| sign(i) + 0.02 * gauss(&mut random)).collect();
    let op = dense(Weights::whole(shape, packed.as_ptr(), [k, n, 1, 1]), &x, m);
    let out = gemm(&op, false, n * m);
    Matrix::packed(&shape, &packed).judge(WeightType::Q4_1.info().quant_nmse, &x, &out).unwrap();
}

/// Given a row with massive activations among ordinary ones, then it keeps its bound wherever it stands.
#[test]
fn sinks_keep_the_bound_wherever_they_stand() {
    if !has_amx() {
        return;
    }
    let (k, n, m) = (1024, OUTPUTS, 200);
    let mut random = Random(2);
    for ty in [WeightType::Q4_0, WeightType::Q8_0] {
        let weights: Vec<f32> = (0..n * k).map(|_| 0.02 * gauss(&mut random)).collect();
        let base: Vec<f32> = (0..m).flat_map(|_| draw_row(Kind::Fixed(30.0), k, &mut random)).collect();
        for row in [0, 1, 2, 3, 4, 101] {
            let mut x = base.clone();
            let sink = &mut x[row * k..(row + 1) * k];
            sink.iter_mut().for_each(|x| *x *= 0.1);
            (sink[500], sink[700]) = (100.0, -70.0);
            judged(ty, &weights, k, &x, &format!("sink at row {row}"));
        }
    }
}

/// Given a row that takes the outlier channels away from its neighbours, then these keep their bounds.
#[test]
fn neighbours_that_take_the_outlier_channels_harm_nobody() {
    if !has_amx() {
        return;
    }
    let (k, n, m) = (4096, OUTPUTS, 256);
    let mut random = Random(3);
    let weights: Vec<f32> = (0..n * k).map(|_| 0.02 * gauss(&mut random)).collect();
    let mut x: Vec<f32> = (0..m * k).map(|_| gauss(&mut random)).collect();
    x.iter_mut().enumerate().filter(|(i, _)| i % k % 128 == 5).for_each(|(_, x)| *x *= 30.0);
    (0..32).for_each(|i| x[4 * k + i * 128 + 64] = 3000.0);
    judged(WeightType::Q4_0, &weights, k, &x, "one row with 32 channels of 3000");
    // The same with heavy-tailed neighbours of calm rows.
    let heavy =
        |i: usize, random: &mut Random| if (i / k).is_multiple_of(2) { 1.0 } else { (1.5 * gauss(random)).exp() };
    let x: Vec<f32> = (0..m * k).map(|i| gauss(&mut random) * heavy(i, &mut random)).collect();
    judged(WeightType::Q4_0, &weights, k, &x, "heavy tails in every second row");
}

/// Given a row that tiles are not good enough for among rows that they are, then it alone is computed in another way.
#[test]
fn a_row_beyond_its_bound_goes_another_way_alone() {
    if !has_amx() {
        return;
    }
    let (k, n, m) = (1024, 4 * OUTPUTS, 200);
    let mut random = Random(9);
    let shape = Shape::new(WeightType::Q4_0, k as i64, n as i64, 1).unwrap();
    let plain = random_weights(WeightType::Q4_0, &shape, &mut random);
    let packed = packed(&shape, &plain);
    let matrix = Matrix::packed(&shape, &packed);
    let mut x: Vec<f32> = (0..m).flat_map(|_| draw_row(Kind::Gauss, k, &mut random)).collect();
    // Not among the rows that are looked at.
    x[3 * k..4 * k].iter_mut().for_each(|x| *x *= 0.1);
    (x[3 * k + 500], x[3 * k + 700]) = (100.0, -70.0);
    let op = dense(Weights::whole(shape, packed.as_ptr(), [k, n, 1, 1]), &x, m);
    let out = gemm(&op, false, n * m);
    let rows = matrix.measure(&x, &out);
    assert!(rows[3].nmse() < 1e-10, "computed by floats: {:e}", rows[3].nmse());
    assert!(rows.iter().enumerate().all(|(i, r)| i == 3 || r.nmse() > 1e-5), "int8 as before");
}

/// Given NaN among the scales of a file, in every way to write it, then it is in the results for any number of rows.
#[test]
fn a_scale_that_is_nan_is_in_the_results_for_any_number_of_rows() {
    if !has_amx() {
        return;
    }
    for ty in all_types().iter().copied() {
        let Some(at) = scale_at(ty) else { continue };
        let (k, n) = (2 * ty.info().block.max(128), 48);
        let shape = Shape::new(ty, k as i64, n as i64, 1).unwrap();
        for bits in [0xffffu16, 0x7fff, 0x7e00, 0xfe00, 0x7c01, 0xfc01] {
            let mut plain = random_weights(ty, &shape, &mut Random(4));
            let broken = shape.row_bytes * 5 + ty.info().bytes + at;
            plain[broken..broken + 2].copy_from_slice(&bits.to_le_bytes());
            let packed = packed(&shape, &plain);
            for (m, exact) in [(1, false), (1, true), (40, false), (40, true)] {
                let (x, _) = draw_activations(m, &vec![1.0; k], &mut Random(m as u64));
                let x: Vec<f32> = x.iter().map(|v| v.clamp(-9.0, 9.0) + 0.1).collect();
                let op = dense(Weights::whole(shape, packed.as_ptr(), [k, n, 1, 1]), &x, m);
                for (i, v) in gemm(&op, exact, n * m).iter().enumerate() {
                    assert_eq!(v.is_nan(), i % n == 5, "{ty:?} {bits:#x} M {m} exact {exact}: column {}", i % n);
                }
            }
        }
    }
}

/// With the user's demand for it, then a row's bits are the same alone and among any others.
#[test]
fn exact_rows_depend_neither_on_their_number_nor_on_their_neighbours() {
    if !has_amx() {
        return;
    }
    let mut random = Random(31);
    for ty in [WeightType::Q4_0, WeightType::Q8_0, WeightType::Q6_K, WeightType::IQ4_K, WeightType::TQ2_0] {
        let (k, n, m) = (4096 + 256, 72, 90);
        let shape = Shape::new(ty, k as i64, n as i64, 1).unwrap();
        let (plain, factors, _) = draw_weights(ty, &shape, &mut random);
        let packed = packed(&shape, &plain);
        let (x, _) = draw_activations(m, &factors, &mut random);
        let product = |rows: std::ops::Range<usize>| {
            let op = dense(Weights::whole(shape, packed.as_ptr(), [k, n, 1, 1]), &x[rows.start * k..], rows.len());
            gemm(&op, true, n * rows.len())
        };
        let all = product(0..m);
        for rows in [0..1, 1..2, 5..14, 7..24, 3..36, 40..90, 89..90] {
            assert!(same_bits(&product(rows.clone()), &all[rows.start * n..rows.end * n]), "{ty:?} rows {rows:?}");
        }
    }
}

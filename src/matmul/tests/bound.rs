//! The promise of the header: every row of a product keeps its bound, whatever weights, activations and neighbours are.
//! Adversarial weights and rows are drawn at random; each row of each result is judged.
//!
//! `GGML_AMX_TEST_ROWS` rows are judged, by default as many as take some seconds. `GGML_AMX_TEST_SEED`, a number, draws
//! others.

use super::experts::on_threads;
use super::*;
use crate::format::FieldKind;
use crate::format::stand_in::all_types;
use crate::testing::bound::{Matrix, OUTPUTS};
use crate::testing::random::random_weights;

/// Rows judged if the environment does not say how many.
const ROWS: usize = 6000;

/// Uniform in 0..1.
fn unit(random: &mut Random) -> f32 {
    (random.next() % (1 << 24)) as f32 / (1 << 24) as f32
}

/// One of these.
fn pick<T: Copy>(random: &mut Random, of: &[T]) -> T {
    of[random.next() as usize % of.len()]
}

/// A standard normal number.
fn gauss(random: &mut Random) -> f32 {
    (-2.0 * (1.0 - unit(random)).ln()).sqrt() * (std::f32::consts::TAU * unit(random)).cos()
}

/// Where a type's blocks have a scale in F16 that a factor is put into; none in types with codebooks, and Q2_K.
fn scale_at(ty: WeightType) -> Option<usize> {
    let fields = ty.info().fields;
    let left_out = ty == WeightType::Q2_K || fields.iter().any(|f| f.kind == FieldKind::Indices);
    fields.iter().find(|f| f.kind == FieldKind::F16 && !left_out).map(|f| f.offset)
}

/// What is done to random weights. Factors are of channels: activations get the inverse.
#[derive(Clone, Copy, Debug)]
enum Weighting {
    /// Nothing.
    As,
    /// Blocks of channels, in some of them.
    Channels(f32),
    /// Every block of every row by a factor of its own, exp(sigma z).
    Blocks(f32),
    /// One row of weights.
    OneRow(f32),
    /// One scale for all blocks: rounding has no luck.
    SameScale(f32),
}

/// Weights of a type, and the factors of blocks of channels.
fn draw_weights(ty: WeightType, shape: &Shape, random: &mut Random) -> (Vec<u8>, Vec<f32>, Weighting) {
    let (block, bytes) = (ty.info().block, ty.info().bytes);
    let mut plain = random_weights(ty, shape, random);
    let mut factors = vec![1.0; shape.k];
    let (big, sigma, scale) =
        (pick(random, &[4.0, 30.0, 300.0]), pick(random, &[0.5, 1.5]), 0.01 * (1.0 + unit(random)));
    let all = [
        Weighting::As,
        Weighting::As,
        Weighting::Channels(big),
        Weighting::Blocks(sigma),
        Weighting::OneRow(big),
        Weighting::SameScale(scale),
    ];
    let weighting = pick(random, &all);
    let Some(at) = scale_at(ty) else { return (plain, factors, Weighting::As) };
    let chosen: Vec<bool> = (0..shape.k / block).map(|_| random.next().is_multiple_of(8)).collect();
    if let Weighting::Channels(f) = weighting {
        factors.iter_mut().enumerate().filter(|(c, _)| chosen[c / block]).for_each(|(_, factor)| *factor = f);
    }
    let row = random.next() as usize % shape.n;
    for (i, data) in plain.chunks_exact_mut(bytes).enumerate() {
        let (n, b) = (i / (shape.k / block), i % (shape.k / block));
        let old = half::f16::from_le_bytes([data[at], data[at + 1]]).to_f32();
        let new = match weighting {
            Weighting::As => old,
            Weighting::Channels(_) => old * factors[b * block],
            Weighting::Blocks(sigma) => old * (sigma * gauss(random)).exp(),
            Weighting::OneRow(f) => {
                if n == row {
                    old * f
                } else {
                    old
                }
            }
            Weighting::SameScale(scale) => scale,
        };
        data[at..at + 2].copy_from_slice(&half::f16::from_f32(new).to_le_bytes());
    }
    (plain, factors, weighting)
}

/// What a row of activations is like.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Gauss,
    Laplace,
    /// Log-normal sizes.
    Heavy,
    /// Few channels, the same in all rows, by a factor.
    Fixed(f32),
    /// Few channels of its own.
    Sink(f32),
    OneChannel,
    /// All of one magnitude, which BF16 rounds badly.
    OneMagnitude,
    /// Halves of steps.
    Halves,
    /// None below zero.
    Positive,
    Zeros,
}

fn draw_row(kind: Kind, k: usize, random: &mut Random) -> Vec<f32> {
    let sign = |random: &mut Random| if random.next().is_multiple_of(2) { 1.0 } else { -1.0 };
    let mut x: Vec<f32> = (0..k)
        .map(|c| match kind {
            Kind::Gauss | Kind::Sink(_) => gauss(random),
            Kind::Fixed(f) => gauss(random) * if c % 61 == 7 { f } else { 1.0 },
            Kind::Positive => gauss(random).abs(),
            Kind::Laplace => sign(random) * -(1.0 - unit(random)).ln(),
            Kind::Heavy => gauss(random) * (1.5 * gauss(random)).exp(),
            Kind::OneMagnitude => sign(random) * 1.0039,
            Kind::Halves => sign(random) * if c % 32 == 0 { 127.0 } else { (random.next() % 8) as f32 + 0.499 },
            Kind::OneChannel | Kind::Zeros => 0.0,
        })
        .collect();
    match kind {
        Kind::Sink(f) => (0..2).for_each(|_| x[random.next() as usize % k] = f * sign(random)),
        Kind::OneChannel => x[random.next() as usize % k] = gauss(random),
        _ => {}
    }
    x
}

/// Activations: most rows of one kind, some of any other, each of any size.
fn draw_activations(m: usize, factors: &[f32], random: &mut Random) -> (Vec<f32>, Kind) {
    let f = pick(random, &[10.0, 100.0, 3000.0]);
    let all = [
        Kind::Gauss,
        Kind::Laplace,
        Kind::Heavy,
        Kind::Fixed(f),
        Kind::Sink(f),
        Kind::Positive,
        Kind::OneChannel,
        Kind::OneMagnitude,
        Kind::Halves,
        Kind::Zeros,
    ];
    let common = pick(random, &all[..7]);
    let sizes = pick(random, &[&[1.0][..], &[1.0], &[1e-3, 1.0, 1e3], &[1e-41, 1e-20, 1.0, 1e20, 1e30]]);
    let mut x = Vec::with_capacity(m * factors.len());
    for _ in 0..m {
        let kind = if random.next().is_multiple_of(6) { pick(random, &all) } else { common };
        let size = pick(random, sizes);
        let row = draw_row(kind, factors.len(), random);
        x.extend(row.iter().zip(factors).map(|(x, f)| x * size / f));
    }
    (x, common)
}

/// A number that the environment may set.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{name}={v} is no number")))
}

fn wanted() -> usize {
    number("GGML_AMX_TEST_ROWS").map_or(ROWS, |rows| rows as usize)
}

/// What is drawn: the same in every run that does not ask for something else.
fn source(own: u64) -> Random {
    Random(own ^ number("GGML_AMX_TEST_SEED").unwrap_or(0).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// `m` rows of `x` times a matrix.
fn dense(weights: Weights, x: &[f32], m: usize) -> MatMul {
    let [k, n, ..] = weights.ne;
    MatMul {
        gate: None,
        weights,
        input: Input { data: x.as_ptr().cast(), ne: [k, m, 1, 1], nb: [4, 4 * k, 0, 0] },
        output: Output { data: std::ptr::null_mut(), nb: [4 * n, 0, 0] },
    }
}

/// Whether the tests here meet the tile unit; they say so if not.
fn has_amx() -> bool {
    let has = Amx::new().is_some();
    if !has {
        println!("SKIPPED: no AMX");
    }
    has
}

/// Channels of rows, a multiple of the block: mostly few, for there are to be many rows.
fn draw_k(ty: WeightType, random: &mut Random) -> usize {
    let k = match random.next() % 64 {
        0 => 32768,
        1..4 => 4096 + 32 * (random.next() as usize % 8),
        4..16 => 1024 + 32 * (random.next() as usize % 40),
        _ => 32 * (1 + random.next() as usize % 24),
    };
    k.next_multiple_of(ty.info().block)
}

#[test]
fn every_row_keeps_its_bound_whatever_weights_rows_and_neighbours_are() {
    if !has_amx() {
        return;
    }
    let (rows, types) = (wanted(), all_types());
    let mut random = source(0x5eed);
    let mut done = 0;
    while done < rows {
        let ty = pick(&mut random, types);
        let (k, n) = (draw_k(ty, &mut random), OUTPUTS + pick(&mut random, &[0, 0, 1, 80, 512, 1280]));
        let shape = Shape::new(ty, k as i64, n as i64, 1).unwrap();
        let (plain, factors, weighting) = draw_weights(ty, &shape, &mut random);
        let mut packed = vec![0; shape.packed_size()];
        // SAFETY: the buffer has the packed size.
        unsafe { shape.write(packed.as_mut_ptr(), 0, &plain) };
        let matrix = Matrix::packed(&shape, &packed);
        for _ in 0..8 {
            let m = pick(&mut random, &[1, 2, 7, 9, 11, 16, 17, 32, 33, 40, 64, 100, 300]);
            let (x, kind) = draw_activations(m, &factors, &mut random);
            let (in_place, exact) = (random.next().is_multiple_of(2), random.next().is_multiple_of(4));
            let whole = Weights::whole(shape, packed.as_ptr(), [k, n, 1, 1]);
            let stored = Stored::InPlace { shape, interleave: 1 };
            let weights = if in_place { Weights { stored, base: plain.as_ptr(), ..whole } } else { whole };
            let op = dense(weights, &x, m);
            let out = gemm(&op, exact, n * m);
            if let Err(why) = matrix.judge(ty.info().quant_nmse, &x, &out) {
                panic!("{ty:?} K {k} N {n} M {m} {weighting:?} {kind:?} in place {in_place} exact {exact}: {why}");
            }
            done += m;
        }
    }
    println!("{done} rows judged");
}

/// Few quants are all rounded to the same side, and their errors go with those of the activations: channels of a column that
/// is much larger than the others must not lend that to a row that does not see it.
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
            let mut packed = vec![0; shape.packed_size()];
            // SAFETY: the buffer has the packed size.
            unsafe { shape.write(packed.as_mut_ptr(), 0, &plain) };
            // A row for every channel, of a size that BF16 rounds badly.
            let x: Vec<f32> = (0..k * k).map(|i| if i / k == i % k { 1.0039 } else { 0.0 }).collect();
            let op = dense(Weights::whole(shape, packed.as_ptr(), [k, n, 1, 1]), &x, k);
            let out = gemm(&op, true, n * k);
            let judged = Matrix::packed(&shape, &packed).judge(ty.info().quant_nmse, &x, &out);
            assert_eq!(judged, Ok(()), "{ty:?} {large}");
        }
    }
}

#[test]
fn every_row_of_every_expert_keeps_its_bound() {
    if !has_amx() {
        return;
    }
    let (rows, types) = (wanted() / 4, all_types());
    let mut random = source(0xe4be27);
    let mut done = 0;
    while done < rows {
        let ty = pick(&mut random, types);
        let (k, n) = (draw_k(ty, &mut random).min(4096), pick(&mut random, &[OUTPUTS, OUTPUTS, 768]));
        let experts = 1 + random.next() as usize % 5;
        let used = 1 + random.next() as usize % experts;
        let per_token = pick(&mut random, &[1, used]);
        let shape = Shape::new(ty, k as i64, n as i64, experts as i64).unwrap();
        let one = Shape::new(ty, k as i64, n as i64, 1).unwrap();
        // Experts are drawn apart; activations suit the first one's channels.
        let drawn: Vec<_> = (0..experts).map(|_| draw_weights(ty, &one, &mut random)).collect();
        let plain = drawn.iter().flat_map(|d| d.0.clone()).collect::<Vec<u8>>();
        let mut packed = vec![0; shape.packed_size()];
        // SAFETY: the buffer has the packed size.
        unsafe { shape.write(packed.as_mut_ptr(), 0, &plain) };
        let matrices: Vec<_> = packed.chunks(shape.slice_packed).map(|p| Matrix::packed(&one, p)).collect();
        for _ in 0..4 {
            let tokens = pick(&mut random, &[1, 5, 20, 60, 200]);
            let (x, kind) = draw_activations(tokens * per_token, &drawn[0].1, &mut random);
            let skew = random.next().is_multiple_of(2);
            let ids: Vec<i32> = (0..tokens)
                .flat_map(|_| {
                    let first = if skew { 0 } else { random.next() as usize };
                    (0..used).map(move |i| ((first + i) % experts) as i32)
                })
                .collect();
            let mut out = vec![f32::NAN; n * used * tokens];
            let exact = random.next().is_multiple_of(4);
            let op = ExpertMul {
                gate: None,
                weights: Weights::whole(shape, packed.as_ptr(), [k, n, experts, 1]),
                input: Input {
                    data: x.as_ptr().cast(),
                    ne: [k, per_token, tokens, 1],
                    nb: [4, 4 * k, 4 * k * per_token, 4 * k * per_token * tokens],
                },
                choices: Choices { data: ids.as_ptr().cast(), used, tokens, nb: [4, 4 * used], skip_others: false },
                output: Output { data: out.as_mut_ptr().cast(), nb: [4 * n, 4 * n * used, 4 * n * used * tokens] },
            };
            op.check().unwrap();
            let mut work = vec![0u8; op.work_size(2).unwrap()];
            let shared = experts::Shared(&op, work.as_mut_ptr());
            on_threads(2, |thread| shared.run(Settings { isa: Isa::Amx, demand: demand(exact) }, thread));
            for (i, (id, out)) in ids.iter().zip(out.chunks(n)).enumerate() {
                let x = &x[(i / used * per_token + i % used % per_token) * k..][..k];
                if let Err(why) = matrices[*id as usize].judge(ty.info().quant_nmse, x, out) {
                    let weighting = drawn[*id as usize].2;
                    panic!(
                        "{ty:?} K {k} tokens {tokens} expert {id} of {experts} {weighting:?} {kind:?} exact {exact}: {why}"
                    );
                }
            }
            done += ids.len();
        }
    }
    println!("{done} rows judged");
}

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

/// Given weights that are much alike in every block, by a minimum of its own, and rows in which that cancels, then every row
/// keeps its bound: what is left of the result is small.
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
    let mut packed = vec![0; shape.packed_size()];
    // SAFETY: the buffer has the packed size.
    unsafe { shape.write(packed.as_mut_ptr(), 0, &plain) };
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
            let mut packed = vec![0; shape.packed_size()];
            // SAFETY: the buffer has the packed size.
            unsafe { shape.write(packed.as_mut_ptr(), 0, &plain) };
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
        let mut packed = vec![0; shape.packed_size()];
        // SAFETY: the buffer has the packed size.
        unsafe { shape.write(packed.as_mut_ptr(), 0, &plain) };
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

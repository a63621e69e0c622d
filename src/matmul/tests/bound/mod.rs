//! The promise of the header: every row of a product keeps its bound, whatever weights, activations and neighbours are.
//! `random` draws adversarial weights and rows; `cases` has those that have broken a bound before. Each row of each
//! result is judged.
//!
//! `GGML_AMX_TEST_ROWS` rows are judged at random, by default as many as take some seconds. `GGML_AMX_TEST_SEED`, a
//! number, draws others.

mod cases;
mod random;

use super::*;
use crate::format::FieldKind;
use crate::format::stand_in::all_types;
use crate::testing::bound::OUTPUTS;
use crate::testing::random::random_weights;

/// A number that the environment may set.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{name}={v} is no number")))
}

/// What is drawn: the same in every run that does not ask for something else.
fn source(own: u64) -> Random {
    Random(own ^ number("GGML_AMX_TEST_SEED").unwrap_or(0).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

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

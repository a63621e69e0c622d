//! Every row of results is within its bound (docs/numerics.md).

use super::*;

/// The NMSE that every row may have, also if that of the host's kind is less than half of it. Of one BF16 each for
/// weights and values, and outputs of about the same size.
pub const FLOOR: f64 = 1e-5;
/// The same for any outputs: also where a few are much larger than all others, or where all values are the same and
/// halfway between two BF16 numbers. Values then have errors of 2^-8, weights half of that.
const WORST: f64 = 4e-5;
/// The same with two BF16 each.
pub const TWO_PLANES: f64 = 1e-9;
/// Times the square of R ([`operands::Expected::scores`]): what is added for the error of scores. Queries and keys have
/// 16 bits.
const SCORES: f64 = 1e-10;

/// Holds every row of results to its bound: squared errors over squared sizes, of so many draws that there are [`POOL`]
/// outputs. A row's size is no less than what it would be if its summands had random signs.
fn check(case: Case, threads: &[usize]) {
    let [_, dv] = case.widths;
    // For every row: size, errors of the host's kind, with one BF16 and with two, and R.
    let mut sums = vec![[0f64; 5]; case.rows().count()];
    for draw in 0..case.draws() {
        let operands = Operands::new(case, draw);
        let want = operands.expected(Kind::Definition);
        let host = operands.expected(Kind::Host).results;
        let [auto, two_planes] = [false, true].map(|two_planes| {
            let mut all = threads.iter().map(|threads| operands.compute(two_planes, *threads));
            let first = all.next().expect("a thread count");
            let first_bits = bits(&first, dv);
            assert!(all.all(|other| bits(&other, dv) == first_bits), "{case:?}: other bits with other threads");
            first
        });
        for (i, sums) in sums.iter_mut().enumerate() {
            let row = i * dv..(i + 1) * dv;
            let error = |c: usize, got: f64| (got - want.results[c]).powi(2);
            sums[0] += row.clone().map(|c| want.results[c].powi(2)).sum::<f64>().max(want.sizes[i]);
            sums[1] += row.clone().map(|c| error(c, host[c])).sum::<f64>();
            sums[2] += row.clone().map(|c| error(c, auto[c].into())).sum::<f64>();
            sums[3] += row.clone().map(|c| error(c, two_planes[c].into())).sum::<f64>();
            sums[4] = want.scores[i].max(sums[4]);
        }
    }
    let even = !matches!(case.numbers, Numbers::Tails | Numbers::Outlier | Numbers::Alike);
    for ([size, host, auto, two_planes, scores], row) in sums.into_iter().zip(case.rows()) {
        if size == 0.0 {
            // The row sees no key.
            assert_eq!([auto, two_planes], [0.0; 2], "{case:?}: row {row:?}");
            continue;
        }
        for (error, floor) in [(auto, if even { FLOOR } else { WORST }), (two_planes, TWO_PLANES)] {
            let [error, host] = [error / size, host / size];
            let allowed = floor.max(2.0 * host) + SCORES * scores * scores;
            assert!(
                error <= allowed,
                "{case:?}: row {row:?} has {error:e}, allowed {allowed:e}, the host's kind {host:e}"
            );
        }
    }
}

/// Given shapes, masks and storages of all kinds, then every row is within its bound, whatever the thread count.
#[test]
fn rows_are_those_of_the_definition() {
    if is_skipped() {
        return;
    }
    let cases = [
        PLAIN,
        Case { sight: Sight::Causal, keys: 300, tokens: 300, ..PLAIN },
        Case { widths: [128, 128], heads: [8, 1], sight: Sight::Causal, tokens: 33, keys: 256, ..PLAIN },
        Case { widths: [80, 80], heads: [3, 3], tokens: 7, keys: 37, ..PLAIN },
        Case { widths: [96, 48], heads: [6, 2], tokens: 17, keys: 1, ..PLAIN },
        Case { widths: [576, 512], heads: [16, 1], tokens: 9, keys: 200, sight: Sight::Causal, ..PLAIN },
        Case { widths: [72, 8], heads: [1, 1], tokens: 1, keys: 129, ..PLAIN },
        Case { sequences: [4, 2], sight: Sight::Causal, keys: 65, ..PLAIN },
        Case { softcap: 3.0, sight: Sight::Causal, ..PLAIN },
        Case { sinks: true, sight: Sight::Causal, ..PLAIN },
        Case { sinks: true, sight: Sight::Blind, ..PLAIN },
        Case { element: Element::Bf16, ..PLAIN },
        Case { element: Element::F32, ..PLAIN },
        Case { element: THIRTIETHS, tokens: 100, keys: 333, ..PLAIN },
        Case { element: EIGHT_BITS, sight: Sight::Causal, ..PLAIN },
        Case { sight: Sight::Biased, keys: 515, ..PLAIN },
        Case { sight: Sight::Islands, keys: 900, ..PLAIN },
        Case { sight: Sight::Blind, ..PLAIN },
    ];
    for case in cases {
        check(case, &[1, 3]);
    }
}

/// The same for random cases.
#[test]
fn rows_of_any_numbers_are_within_the_bound() {
    if is_skipped() {
        return;
    }
    for case in random_cases(1, 100) {
        check(case, &[1]);
    }
}

/// The bound is not too wide: results with a slightly wrong scale break it.
#[test]
fn the_bound_sees_a_score_that_is_off() {
    if is_skipped() {
        return;
    }
    let operands = Operands::new(PLAIN, 0);
    let want = operands.expected(Kind::Definition).results;
    let off = Operands { scale: operands.scale * 1.005, ..operands };
    let error = nmse(&off.compute(true, 1), &want);
    assert!(error > FLOOR, "{error:e}");
}

/// By default a single token is left to the host. By how much its result differs from that of the same token among
/// others, which is ours.
#[test]
fn the_hosts_kind_of_row_is_near() {
    if is_skipped() {
        return;
    }
    for (element, range) in [(Element::F16, 1e-6..FLOOR), (Element::Bf16, 1e-6..FLOOR), (EIGHT_BITS, 1e-6..1e-4)] {
        let operands = Operands::new(Case { element, ..PLAIN }, 0);
        let host = operands.expected(Kind::Host).results;
        let error = nmse(&operands.compute(false, 1), &host);
        assert!(range.contains(&error), "{element:?}: {error:e}");
    }
}

/// Given scores of any size, then the row is that of the definition: no score is mistaken for "no score yet".
#[test]
fn scores_may_be_of_any_size() {
    if is_skipped() {
        return;
    }
    for size in [1e4f32, 1e30, 2e38] {
        for sign in [1.0, -1.0] {
            let mut operands =
                Operands::new(Case { heads: [1, 1], element: Element::F32, keys: 3, tokens: 1, ..PLAIN }, 0);
            operands.scale = 1.0;
            operands.q.fill(0.0);
            operands.q[0] = sign;
            // Key 1 is nearer to zero than the others, which are the same.
            for (key, part) in [0.9, 0.8, 0.9].into_iter().enumerate() {
                operands.cache[0][4 * 64 * key..][..4].copy_from_slice(&(part * size).to_le_bytes());
            }
            let want = operands.expected(Kind::Definition).results;
            assert!(nmse(&operands.compute(false, 1), &want) <= WORST, "{size}, {sign}");
        }
    }
}

/// Given sinks of minus infinity, then results are those without sinks, for tokens that see nothing too.
#[test]
fn sinks_may_be_nothing() {
    if is_skipped() {
        return;
    }
    let without = Operands::new(Case { sight: Sight::Blind, ..PLAIN }, 0);
    let mut with = Operands { case: Case { sinks: true, ..without.case }, ..without.clone() };
    with.sinks.fill(f32::NEG_INFINITY);
    assert_eq!(bits(&with.compute(false, 1), 64), bits(&without.compute(false, 1), 64));
}

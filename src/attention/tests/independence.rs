//! What a row does not depend on, to the last bit; and where NaN and infinity go.

use super::bound::{FLOOR, TWO_PLANES};
use super::storage::{can_be_nan, row_bytes, stored};
use super::*;

/// What memory may hold that is not initialised, or another user's.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Poison {
    /// Nothing but NaN.
    Nan,
    /// NaN in one channel.
    OneNan,
    Infinity,
    NegativeInfinity,
    /// The largest finite numbers.
    Huge,
    Bytes,
}

const POISONS: [Poison; 6] =
    [Poison::Nan, Poison::OneNan, Poison::Infinity, Poison::NegativeInfinity, Poison::Huge, Poison::Bytes];

impl Operands {
    /// Overwrites row `row` of a cache (0: keys, 1: values).
    fn poison(&mut self, which: usize, row: usize, poison: Poison, random: &mut Random) {
        let (width, element) = (self.case.widths[which], self.case.element);
        let bytes = row_bytes(element, width);
        let row = &mut self.cache[which][row * bytes..][..bytes];
        let all = |v: f32| stored(&vec![v; width], element);
        match (poison, element) {
            // One block.
            (Poison::OneNan, Element::Decoded(_)) => row[..2].fill(0xff),
            (Poison::OneNan, element) => {
                let size = row_bytes(element, 1);
                row[width / 2 * size..][..size].fill(0xff);
            }
            (Poison::Nan, _) => row.fill(0xff),
            (Poison::Infinity, _) => row.copy_from_slice(&all(f32::INFINITY)),
            (Poison::NegativeInfinity, _) => row.copy_from_slice(&all(f32::NEG_INFINITY)),
            (Poison::Huge, Element::F16) => row.copy_from_slice(&all(65504.0)),
            (Poison::Huge, Element::Bf16) => row.copy_from_slice(&all(3.38e38)),
            (Poison::Huge, _) => row.copy_from_slice(&all(f32::MAX)),
            (Poison::Bytes, _) => row.fill_with(|| random.next() as u8),
        }
    }

    /// The operation of some of the tokens alone.
    fn only(&self, tokens: &[usize]) -> Self {
        let Case { widths: [dk, _], keys, heads, sequences, tokens: all, .. } = self.case;
        let row = dk * heads[0];
        let q = (0..sequences[0])
            .flat_map(|sequence| tokens.iter().map(move |token| sequence * all + token))
            .flat_map(|token| self.q[token * row..][..row].iter().copied())
            .collect();
        let mask = tokens.iter().flat_map(|token| self.mask[2 * token * keys..][..2 * keys].iter().copied()).collect();
        let case = Case { tokens: tokens.len(), ..self.case };
        Self { case, q, mask, ..self.clone() }
    }
}

/// Given keys and values of any bytes, then rows that do not see them keep their bits, and rows that see NaN are NaN.
#[test]
fn what_the_mask_hides_does_not_matter() {
    if is_skipped() {
        return;
    }
    let (mut hidden, mut reached) = (0, 0);
    for (number, case) in random_cases(2, 150).enumerate() {
        let mut random = Random(number as u64);
        let clean = Operands::new(case, 0);
        let mut operands = clean.clone();
        let [_, dv] = case.widths;
        let two_planes = number % 2 == 0;
        let threads = 1 + number % 3;
        let poison = POISONS[number / 2 % POISONS.len()];
        // Every fourth key at random, or one, or all that one token does not see.
        let token = random.next() as usize % case.tokens;
        let one = random.next() as usize % case.keys;
        let chosen: Vec<bool> = (0..case.keys)
            .map(|key| match number % 3 {
                0 => random.next().is_multiple_of(4),
                1 => key == one,
                _ => clean.mask(token, key) == f32::NEG_INFINITY,
            })
            .collect();
        // 0: keys alone, 1: values alone, 2: both.
        let which = random.next() as usize % 3;
        // All heads of the cache, or only the first one.
        let heads = if random.next().is_multiple_of(2) { case.heads[1] } else { 1 };
        let mut poisoned = vec![false; case.keys * case.heads[1] * case.sequences[1]];
        for (row, poisoned) in poisoned.iter_mut().enumerate() {
            if row % case.heads[1] < heads && chosen[row / case.heads[1] % case.keys] {
                *poisoned = true;
                (0..2)
                    .filter(|cache| which != 1 - cache)
                    .for_each(|cache| operands.poison(cache, row, poison, &mut random));
            }
        }
        let (before, after) = (clean.compute(two_planes, threads), operands.compute(two_planes, threads));
        let rows = bits(&before, dv).into_iter().zip(bits(&after, dv)).enumerate();
        for ((index, (before, after)), row @ [_, token, _]) in rows.zip(case.rows()) {
            let seen = (0..case.keys).filter(|key| clean.mask(token, *key) != f32::NEG_INFINITY);
            let sees = seen.filter(|key| poisoned[clean.cache_row(row, *key)]).count();
            let what =
                || format!("{case:?}, {poison:?}, operands {which}, two planes {two_planes}: row {index}, {row:?}");
            if sees == 0 {
                hidden += usize::from(poisoned.contains(&true));
                assert!(before == after, "{}: changed by what it does not see", what());
            } else if poison == Poison::Nan && can_be_nan(case.element) {
                reached += 1;
                assert!(after.iter().all(|v| f32::from_bits(*v).is_nan()), "{}: NaN is lost", what());
            }
        }
    }
    assert!(hidden > 1000 && reached > 200, "{hidden} rows did not see, {reached} did");
}

/// Given a value that is not finite, then the same channel of the rows that see it is not finite, even if its weight is
/// 0; all other results keep their bits.
#[test]
fn values_that_are_not_finite_stay_in_their_channels() {
    if is_skipped() {
        return;
    }
    for element in [Element::F16, Element::Bf16, Element::F32] {
        for (value, two_planes) in
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().flat_map(|v| [(v, false), (v, true)])
        {
            // Token 39 is far below the largest score at key 35; channel 37 is in the second block.
            let case = Case { element, sight: Sight::Causal, keys: 40, heads: [1, 1], spread: 30.0, ..PLAIN };
            let clean = Operands::new(case, 0);
            let mut operands = clean.clone();
            let size = row_bytes(element, 1);
            operands.cache[1][(35 * 64 + 37) * size..][..size].copy_from_slice(&stored(&[value], element));
            let (before, after) = (clean.compute(two_planes, 1), operands.compute(two_planes, 1));
            for (i, (before, after)) in before.iter().zip(&after).enumerate() {
                if i / 64 >= 35 && i % 64 == 37 {
                    assert!(!after.is_finite(), "{element:?}, {value}, two planes {two_planes}: token {}", i / 64);
                } else {
                    assert_eq!(before.to_bits(), after.to_bits(), "{element:?}, {value}, two planes {two_planes}: {i}");
                }
            }
        }
    }
}

/// Given queries that are not finite, then only their own rows are not finite, and only if they see a key.
#[test]
fn queries_that_are_not_finite_stay_in_their_rows() {
    if is_skipped() {
        return;
    }
    for (number, case) in random_cases(3, 40).enumerate() {
        let ([dk, dv], two_planes) = (case.widths, number % 2 == 0);
        let clean = Operands::new(case, 0);
        let mut operands = clean.clone();
        let bad = |index: usize| index % 5 == number % 5;
        for index in (0..case.rows().count()).filter(|index| bad(*index)) {
            operands.q[index * dk + number % dk] = [f32::NAN, f32::INFINITY][number / 2 % 2];
        }
        let (before, after) = (clean.compute(two_planes, 1), operands.compute(two_planes, 1));
        let rows = bits(&before, dv).into_iter().zip(bits(&after, dv)).enumerate();
        for ((index, (before, after)), [_, token, _]) in rows.zip(case.rows()) {
            let blind = (0..case.keys).all(|key| clean.mask(token, key) == f32::NEG_INFINITY);
            if !bad(index) || blind {
                assert!(before == after, "{case:?}: row {index} depends on another one's query");
            } else if number / 2 % 2 == 0 {
                assert!(after.iter().all(|v| f32::from_bits(*v).is_nan()), "{case:?}: row {index} has lost its NaN");
            }
        }
    }
}

/// Given other tokens beside it or none, and other thread counts, then a row has the same bits.
#[test]
fn rows_do_not_depend_on_others_or_on_their_number() {
    if is_skipped() {
        return;
    }
    for (number, case) in random_cases(4, 60).enumerate() {
        let two_planes = number % 2 == 0;
        let all = Operands::new(case, 0);
        let [_, dv] = case.widths;
        let mut random = Random(number as u64);
        let want = bits(&all.compute(two_planes, 2), dv);
        let some: Vec<usize> = (0..case.tokens).filter(|_| random.next().is_multiple_of(3)).collect();
        let one = random.next() as usize % case.tokens;
        for (tokens, threads) in [(vec![one], 1), (vec![one], 64), (some, 3), ((0..case.tokens).rev().collect(), 1)] {
            if tokens.is_empty() {
                continue;
            }
            let part = all.only(&tokens);
            for (got, [sequence, token, head]) in
                bits(&part.compute(two_planes, threads), dv).into_iter().zip(part.case.rows())
            {
                let index = (sequence * case.tokens + tokens[token]) * case.heads[0] + head;
                assert!(
                    got == want[index],
                    "{case:?}: token {} of {} among {tokens:?}, two planes {two_planes}",
                    tokens[token],
                    case.tokens
                );
            }
        }
    }
}

/// The bits of a row do depend on where its keys lie in the cache: by no more than its error.
#[test]
fn the_place_of_keys_is_felt_no_more_than_the_error() {
    if is_skipped() {
        return;
    }
    for two_planes in [false, true] {
        let here = Operands::new(Case { sight: Sight::Holes(50), keys: 200, ..PLAIN }, 0);
        // Key 0 moves 77 places up, and so do all others.
        let moved = |bytes: &[u8], size: usize| [&bytes[123 * size..], &bytes[..123 * size]].concat();
        let cache = [0, 1].map(|which| moved(&here.cache[which], 2 * row_bytes(Element::F16, 64)));
        let mask = here.mask.chunks_exact(2 * 200).flat_map(|row| moved(row, 2)).collect();
        let there = Operands { cache, mask, ..here.clone() };
        let first: Vec<f64> = here.compute(two_planes, 1).into_iter().map(f64::from).collect();
        let error = nmse(&there.compute(two_planes, 1), &first);
        let range = if two_planes { 1e-13..TWO_PLANES } else { 1e-8..FLOOR };
        assert!(range.contains(&error), "two planes {two_planes}: {error:e}");
    }
}

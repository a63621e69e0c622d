//! Attention against its definition in f64, row by row ([`bound`]), and what a row does not depend on
//! ([`independence`]): keys and values that its mask hides, whatever their bytes, other queries, the number of tokens
//! and of threads.

mod bound;
mod independence;
mod operands;
mod storage;
mod tile_unit;

use super::*;
use crate::cpu;
use crate::testing::random::{Random, nmse};
use operands::{Kind, Operands};
use storage::{EIGHT_BITS, THIRTIETHS};

/// Outputs that the error of a row is taken over. Heads with fewer channels are drawn as often as that needs.
const POOL: usize = 256;

/// Which keys a token sees; the mask of others is minus infinity.
#[derive(Clone, Copy, Debug)]
enum Sight {
    /// All; there is no mask.
    All,
    /// Those up to itself: key 0 is token 0.
    Causal,
    /// The last so many of those up to itself.
    Window(usize),
    /// Each with this probability in percent.
    Holes(u64),
    /// Those of its own sequence, of so many that share the cache, in random order.
    Sequences(usize),
    /// All; scores of keys that are farther away are lowered more.
    Biased,
    /// None for every third token, as [`Sight::Causal`] for others.
    Blind,
    /// The first 20 keys and some in the middle.
    Islands,
}

/// Which numbers queries, keys and values are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Numbers {
    Normal,
    /// Cubes of normal numbers.
    Tails,
    /// One channel of keys is large and nearly the same for all of them.
    Shared,
    /// One channel of queries, keys and values is 30 times the others.
    Outlier,
    /// All queries have the same magnitude, just below halfway between two BF16 numbers.
    Coarse,
    /// All values are the same, just below halfway between two BF16 numbers.
    Alike,
    /// Magnitudes about 1e-20 (values and queries) and 1e20 (keys); F32 caches only.
    Distant,
}

/// An operation on random numbers.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// Channels of K and V.
    widths: [usize; 2],
    tokens: usize,
    keys: usize,
    /// Of Q, and of the cache.
    heads: [usize; 2],
    /// Of Q, and of the cache.
    sequences: [usize; 2],
    element: Element,
    softcap: f32,
    sinks: bool,
    sight: Sight,
    numbers: Numbers,
    /// Standard deviation of the scores of normal numbers.
    spread: f32,
    seed: u64,
}

const PLAIN: Case = Case {
    widths: [64, 64],
    tokens: 40,
    keys: 96,
    heads: [4, 2],
    sequences: [1, 1],
    element: Element::F16,
    softcap: 0.0,
    sinks: false,
    sight: Sight::All,
    numbers: Numbers::Normal,
    spread: 1.0,
    seed: 1,
};

impl Case {
    fn mask(&self, token: usize, key: usize) -> f32 {
        let of = |sees: bool| if sees { 0.0 } else { f32::NEG_INFINITY };
        // A random number that depends on its arguments alone.
        let hash = |a: usize, b: usize| Random(self.seed ^ ((a * 65_537 + b) as u64) << 20).next();
        match self.sight {
            Sight::All => 0.0,
            Sight::Causal => of(key <= token),
            Sight::Window(width) => of(key <= token && key + width > token),
            Sight::Holes(percent) => of(hash(token, key) % 100 < percent),
            Sight::Sequences(count) => of(hash(0, key) as usize % count == token % count),
            Sight::Biased => -(token.abs_diff(key) as f32) / 8.0,
            Sight::Blind => of(!token.is_multiple_of(3) && key <= token),
            Sight::Islands => of(key < 20 || (700..720 + token).contains(&key)),
        }
    }

    fn has_mask(&self) -> bool {
        !matches!(self.sight, Sight::All)
    }

    fn draws(&self) -> usize {
        POOL.div_ceil(self.widths[1])
    }

    /// Sequence, token and head of every row of results, in the order of memory.
    fn rows(&self) -> impl Iterator<Item = [usize; 3]> {
        let Case { tokens, heads, sequences, .. } = *self;
        (0..sequences[0] * tokens * heads[0]).map(move |i| [i / heads[0] / tokens, i / heads[0] % tokens, i % heads[0]])
    }
}

/// Bits of every row of results.
fn bits(results: &[f32], width: usize) -> Vec<Vec<u32>> {
    results.chunks_exact(width).map(|row| row.iter().map(|v| v.to_bits()).collect()).collect()
}

/// Whether the test is skipped: there is no AMX.
fn is_skipped() -> bool {
    let skipped = cpu::isa() < cpu::Isa::Amx;
    if skipped {
        println!("SKIPPED: no AMX");
    }
    skipped
}

/// Cases of shapes, storages, masks and numbers of all kinds, as many as `GGML_AMX_TEST_ROUNDS` says times `count`.
fn random_cases(seed: u64, count: u64) -> impl Iterator<Item = Case> {
    let rounds = std::env::var("GGML_AMX_TEST_ROUNDS").map_or(1, |v| v.parse().expect("a number"));
    (0..count * rounds).map(move |number| {
        let mut random = Random((seed << 32 | number).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut of = |count: usize| random.next() as usize % count;
        let [heads, sequences] =
            [[[1, 1], [4, 2], [3, 3], [8, 1], [6, 2], [16, 1]][of(6)], [[1, 1], [1, 1], [2, 2], [4, 2]][of(4)]];
        let width = [8, 24, 40, 64, 72, 96, 128, 192, 576];
        let dk = width[of(9)];
        let dv = [dk, width[of(9)]][of(2)];
        let element = [Element::F16, Element::F16, Element::Bf16, Element::F32, EIGHT_BITS, THIRTIETHS][of(6)];
        let numbers = match (of(8), element) {
            (0, Element::F32) => Numbers::Distant,
            (1, _) => Numbers::Tails,
            (2, _) => Numbers::Shared,
            (3, _) => Numbers::Outlier,
            (4, _) => Numbers::Coarse,
            (5, _) => Numbers::Alike,
            _ => Numbers::Normal,
        };
        let (few, many) = (1 + of(20), 1 + of(130));
        let tokens = [1, 2, few, many][of(4)];
        let keys = [1 + of(40), 1 + of(300), 128, 256][of(4)];
        let sight = match of(9) {
            0 => Sight::All,
            1 | 2 => Sight::Causal,
            3 => Sight::Window(1 + of(60)),
            4 => Sight::Holes(5 + of(90) as u64),
            5 => Sight::Biased,
            6 => Sight::Blind,
            7 => Sight::Islands,
            _ => Sight::Sequences(2 + of(4)),
        };
        let spread = [0.3, 1.0, 3.0, 10.0][of(4)];
        let (softcap, sinks) = ([0.0, 0.0, 3.0, 30.0][of(4)], of(3) == 0);
        let mut case = Case {
            widths: [dk, dv],
            tokens,
            keys,
            heads,
            sequences,
            element,
            softcap,
            sinks,
            sight,
            numbers,
            spread,
            seed: number,
        };
        // Multiplications of the references: not too many.
        let work = |c: &Case| c.rows().count() * c.keys * (dk + dv) * c.draws();
        while work(&case) > 20_000_000 && case.tokens > 1 {
            case.tokens = case.tokens.div_ceil(2);
        }
        while work(&case) > 20_000_000 {
            case.keys = case.keys.div_ceil(2);
        }
        case
    })
}

/// Given shapes that do not fit, then the message names them.
#[test]
fn shapes_that_do_not_fit_are_named() {
    let operands = Operands::new(PLAIN, 0);
    let mut out = vec![0.0; 64 * 40 * 4];
    let good = operands.attention(&mut out);
    assert_eq!(good.check(), Ok(()));
    let with = |change: &dyn Fn(&mut Attention)| {
        let mut bad = good;
        change(&mut bad);
        bad.check().unwrap_err()
    };
    assert!(with(&|a| a.k.ne[0] = 32).contains("64 channels of queries, 32 of keys"));
    assert!(with(&|a| a.v.ne[1] = 95).contains("[95, 2, 1]"));
    assert!(with(&|a| a.q.ne[2] = 5).contains("do not divide [5, 1]"));
    assert!(with(&|a| a.q.element = Element::F16).contains("F32"));
    assert!(
        with(&|a| {
            a.v.ne[0] = 1025;
        })
        .contains("1025")
    );
    assert!(with(&|a| a.q.ne[1] = usize::MAX / 2).contains("address space"));
}

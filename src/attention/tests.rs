//! Attention against its definition in f64, row by row; and what a row does not depend on: keys and values that its mask
//! hides, whatever their bytes, other queries, the number of tokens and of threads.

use std::sync::Barrier;

use half::{bf16, f16};

use super::*;
use crate::cpu;
use crate::kernel::tile_gemm::{SAME, accumulate};
use crate::testing::random::Random;

/// Outputs over which the error of a row is taken: as many draws of the same case as that needs.
const POOL: usize = 256;

/// Which keys a token sees; what is not seen has minus infinity in the mask.
#[derive(Clone, Copy, Debug)]
enum Sight {
    /// All; there is no mask.
    All,
    /// Those up to itself; the first key is token 0.
    Causal,
    /// The last so many of those.
    Window(usize),
    /// Each with this probability in percent.
    Holes(u64),
    /// Those of its own sequence, one of so many in the same cache, in no order.
    Sequences(usize),
    /// All, the less the farther away.
    Biased,
    /// Every third token nothing, others as [`Sight::Causal`].
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
    /// One channel of keys is large and nearly the same for all, queries have some of it.
    Shared,
    /// One channel of queries, keys and values is 30 times the others.
    Outlier,
    /// Queries of one magnitude just below the middle of two BF16 numbers.
    Coarse,
    /// All values are the same, just below the middle of two BF16 numbers.
    Alike,
    /// Magnitudes about 1e-20 (values and queries) and 1e20 (keys); F32 caches only.
    Distant,
}

/// What a test is made of.
#[derive(Clone, Copy, Debug)]
struct Case {
    widths: [usize; 2],
    tokens: usize,
    keys: usize,
    heads: [usize; 2],
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
        // Random, but the same for the same token and key.
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

    /// Sequence, token and head of every row of results, as they lie in memory.
    fn rows(&self) -> impl Iterator<Item = [usize; 3]> {
        let Case { tokens, heads, sequences, .. } = *self;
        (0..sequences[0] * tokens * heads[0]).map(move |i| [i / heads[0] / tokens, i / heads[0] % tokens, i % heads[0]])
    }
}

unsafe extern "C" fn thirtieths(x: *const libc::c_void, y: *mut f32, count: i64) {
    for i in 0..count as usize {
        // SAFETY: one signed byte per number.
        unsafe { *y.add(i) = f32::from(*x.cast::<i8>().add(i)) / 30.0 };
    }
}

/// Blocks of 32 bytes behind a half float, as in Q8_0.
unsafe extern "C" fn eight_bits(x: *const libc::c_void, y: *mut f32, count: i64) {
    for i in 0..count as usize {
        // SAFETY: whole blocks.
        unsafe {
            let block = x.cast::<u8>().add(i / 32 * 34);
            let scale = f16::from_le_bytes([*block, *block.add(1)]).to_f32();
            *y.add(i) = f32::from(*block.add(2 + i % 32).cast::<i8>()) * scale;
        }
    }
}

const THIRTIETHS: Element = Element::Decoded(thirtieths);
const EIGHT_BITS: Element = Element::Decoded(eight_bits);

fn is_eight_bits(element: Element) -> bool {
    matches!(element, Element::Decoded(f) if std::ptr::fn_addr_eq(f, eight_bits as crate::panel::decoded::ToFloat))
}

fn can_be_nan(element: Element) -> bool {
    !matches!(element, Element::Decoded(_)) || is_eight_bits(element)
}

/// Bytes of a row of `width` numbers.
fn row_bytes(element: Element, width: usize) -> usize {
    match element {
        Element::F32 => 4 * width,
        Element::F16 | Element::Bf16 => 2 * width,
        Element::Decoded(_) if is_eight_bits(element) => width.div_ceil(32) * 34,
        Element::Decoded(_) => width,
    }
}

/// A row in the storage of an element.
fn stored(row: &[f32], element: Element) -> Vec<u8> {
    match element {
        Element::F32 => row.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Element::F16 => row.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Element::Bf16 => row.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        Element::Decoded(_) if is_eight_bits(element) => row
            .chunks(32)
            .flat_map(|block| {
                let scale = f16::from_f32(block.iter().fold(0f32, |a, v| a.max(v.abs())) / 127.0);
                let quant = |v: f32| if scale == f16::ZERO { 0 } else { (v / scale.to_f32()).round() as i8 as u8 };
                let mut bytes = scale.to_le_bytes().to_vec();
                bytes.extend((0..32).map(|i| block.get(i).map_or(0, |v| quant(*v))));
                bytes
            })
            .collect(),
        Element::Decoded(_) => row.iter().map(|v| (v * 30.0).clamp(-127.0, 127.0) as i8 as u8).collect(),
    }
}

/// The numbers that stored rows stand for.
fn read(bytes: &[u8], element: Element, width: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for row in bytes.chunks_exact(row_bytes(element, width)) {
        match element {
            Element::F32 => out.extend(row.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()))),
            Element::F16 => out.extend(row.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())),
            Element::Bf16 => out.extend(row.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())),
            Element::Decoded(to_float) => {
                let mut floats = vec![0.0; width];
                // SAFETY: a row of the type.
                unsafe { to_float(row.as_ptr().cast(), floats.as_mut_ptr(), width as i64) };
                out.extend(floats);
            }
        }
    }
    out
}

/// How a reference computes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// As the definition says.
    Definition,
    /// As a host: queries in the storage of keys (8 bits per 32 for those that are decoded), everything else in f32.
    Host,
}

/// What a reference says.
struct Expected {
    results: Vec<f64>,
    /// Of every row, what the sum of squares would be if its summands had random signs.
    sizes: Vec<f64>,
    /// Of every row, the largest root of the sum of squares of what a score that it sees is the sum of.
    scores: Vec<f64>,
}

/// The operation's operands in memory.
#[derive(Clone)]
struct Operands {
    case: Case,
    q: Vec<f32>,
    cache: [Vec<u8>; 2],
    mask: Vec<u8>,
    sinks: Vec<f32>,
    scale: f32,
}

impl Operands {
    fn new(case: Case, draw: usize) -> Self {
        let mut random = Random(case.seed << 8 | draw as u64);
        let Case { widths: [dk, dv], tokens, keys, heads, sequences, element, numbers, .. } = case;
        let mut row = |width: usize, which: usize| -> Vec<f32> {
            let mut row: Vec<f32> = (0..width).map(|_| random.normal() * 3f32.sqrt()).collect();
            match numbers {
                Numbers::Normal => {}
                Numbers::Tails => row.iter_mut().for_each(|v| *v = *v * *v * *v / 15f32.sqrt()),
                Numbers::Shared if which == 1 => row[width / 2] = 40.0 + row[width / 2] / 8.0,
                Numbers::Shared => {}
                Numbers::Outlier => row[width / 3] *= 30.0,
                Numbers::Coarse if which == 0 => row.iter_mut().for_each(|v| *v = 1.0039f32.copysign(*v)),
                Numbers::Coarse => {}
                Numbers::Alike if which == 2 => row.fill(1.0039),
                Numbers::Alike => {}
                Numbers::Distant => row.iter_mut().for_each(|v| *v *= if which == 1 { 1e20 } else { 1e-20 }),
            }
            row
        };
        let q = (0..tokens * heads[0] * sequences[0]).flat_map(|_| row(dk, 0)).collect();
        let mut cache = |width: usize, which: usize| {
            (0..keys * heads[1] * sequences[1]).flat_map(|_| stored(&row(width, which), element)).collect()
        };
        let cache = [cache(dk, 1), cache(dv, 2)];
        let mask = (0..tokens * keys).flat_map(|i| f16::from_f32(case.mask(i / keys, i % keys)).to_le_bytes());
        let sinks = (0..heads[0]).map(|_| random.normal() * 4.0).collect();
        // Hosts divide the scale by the soft cap.
        let cap = if case.softcap > 0.0 { case.softcap } else { 1.0 };
        let scale = case.spread / (dk as f32).sqrt() / cap;
        Self { case, q, cache, mask: mask.collect(), sinks, scale }
    }

    /// Rows of K and V lie head by head in every token, as in a host's cache.
    fn attention(&self, out: &mut [f32]) -> Attention {
        let Case { widths: [dk, dv], tokens, keys, heads, sequences, element, softcap, sinks, .. } = self.case;
        let cache = |which: usize, width: usize| {
            let row = row_bytes(element, width);
            Heads {
                data: self.cache[which].as_ptr(),
                element,
                ne: [width, keys, heads[1], sequences[1]],
                nb: [row * heads[1], row, row * heads[1] * keys],
            }
        };
        Attention {
            q: Heads {
                data: self.q.as_ptr().cast(),
                element: Element::F32,
                ne: [dk, tokens, heads[0], sequences[0]],
                nb: [4 * dk * heads[0], 4 * dk, 4 * dk * heads[0] * tokens],
            },
            k: cache(0, dk),
            v: cache(1, dv),
            mask: self.case.has_mask().then_some(Mask { data: self.mask.as_ptr(), stride: 2 * keys }),
            sinks: if sinks { self.sinks.as_ptr() } else { std::ptr::null() },
            scale: self.scale,
            softcap,
            output: Output {
                data: out.as_mut_ptr().cast(),
                nb: [4 * dv, 4 * dv * heads[0], 4 * dv * heads[0] * tokens],
            },
        }
    }

    /// Number of the row of a cache that a row of results finds key `key` in.
    fn place(&self, [sequence, _, head]: [usize; 3], key: usize) -> usize {
        let Case { keys, heads, sequences, .. } = self.case;
        let sequence = sequence / (sequences[0] / sequences[1]);
        (sequence * keys + key) * heads[1] + head / (heads[0] / heads[1])
    }

    fn mask(&self, token: usize, key: usize) -> f32 {
        let at = 2 * (token * self.case.keys + key);
        f16::from_le_bytes([self.mask[at], self.mask[at + 1]]).to_f32()
    }

    fn expected(&self, kind: Kind) -> Expected {
        let Case { widths: [dk, dv], keys, softcap, .. } = self.case;
        let caches = [(0, dk), (1, dv)].map(|(which, width)| read(&self.cache[which], self.case.element, width));
        // What a host keeps of a number between steps.
        let kept = |v: f64| if kind == Kind::Host { f64::from(v as f32) } else { v };
        let mut out = Expected { results: Vec::new(), sizes: Vec::new(), scores: Vec::new() };
        for (index, row @ [_, token, head]) in self.case.rows().enumerate() {
            let q = &self.q[index * dk..][..dk];
            let q = match (kind, self.case.element) {
                (Kind::Definition, _) | (_, Element::F32) => q.to_vec(),
                (_, Element::Decoded(_)) => read(&stored(q, EIGHT_BITS), EIGHT_BITS, dk),
                (_, element) => read(&stored(q, element), element, dk),
            };
            let seen: Vec<usize> = (0..keys).filter(|key| self.mask(token, *key) != f32::NEG_INFINITY).collect();
            let score = |key: &usize| {
                let k = &caches[0][self.place(row, *key) * dk..][..dk];
                let dot = q.iter().zip(k).fold(0.0, |sum, (a, b)| kept(sum + f64::from(*a) * f64::from(*b)));
                let mut score = kept(dot * f64::from(self.scale));
                if softcap > 0.0 {
                    score = kept(f64::from(softcap) * score.tanh());
                }
                kept(score + f64::from(self.mask(token, *key)))
            };
            let scores: Vec<f64> = seen.iter().map(score).collect();
            let sink = if self.case.sinks { f64::from(self.sinks[head]) } else { f64::NEG_INFINITY };
            let max = scores.iter().fold(sink, |a, b| a.max(*b));
            let weights: Vec<f64> = scores.iter().map(|s| kept((s - max).exp())).collect();
            let total = weights.iter().fold(if self.case.sinks { (sink - max).exp() } else { 0.0 }, |a, b| kept(a + b));
            let value = |key: usize, c: usize| f64::from(caches[1][self.place(row, key) * dv + c]);
            let squares = |key: usize| (0..dv).map(|c| value(key, c).powi(2)).sum::<f64>();
            let size: f64 = seen.iter().zip(&weights).map(|(key, w)| w * w * squares(*key)).sum();
            out.sizes.push(if total > 0.0 { size / total.powi(2) } else { 0.0 });
            let spans = seen.iter().map(|key| {
                let k = &caches[0][self.place(row, *key) * dk..][..dk];
                q.iter().zip(k).map(|(a, b)| (f64::from(*a) * f64::from(*b)).powi(2)).sum::<f64>().sqrt()
            });
            let cap = if softcap > 0.0 { f64::from(softcap) } else { 1.0 };
            out.scores.push(spans.fold(0.0, f64::max) * f64::from(self.scale) * cap);
            out.results.extend((0..dv).map(|c| {
                let sum = seen.iter().zip(&weights).fold(0.0, |sum, (key, w)| kept(sum + w * value(*key, c)));
                if total > 0.0 { sum / total } else { 0.0 }
            }));
        }
        out
    }

    fn compute(&self, exact: bool, threads: usize) -> Vec<f32> {
        let [_, dv] = self.case.widths;
        let mut out = vec![f32::NAN; dv * self.case.tokens * self.case.heads[0] * self.case.sequences[0]];
        let attention = self.attention(&mut out);
        attention.check().unwrap();
        // Whatever is read before it is written is NaN.
        let mut work = vec![0xffu8; attention.work_size(threads).unwrap()];
        let barrier = Barrier::new(threads);
        let address = (work.as_mut_ptr() as usize, std::ptr::from_ref(&attention) as usize);
        std::thread::scope(|scope| {
            for index in 0..threads {
                let barrier = &barrier;
                scope.spawn(move || {
                    let wait = || {
                        barrier.wait();
                    };
                    let thread = Thread { index, count: threads, barrier: &wait };
                    // SAFETY: the operation outlives the threads; its memory has the sizes that it says.
                    unsafe {
                        let attention = &*(address.1 as *const Attention);
                        attention.run(Amx::new().unwrap(), exact, &thread, address.0 as *mut u8);
                    }
                });
            }
        });
        out
    }
}

/// Bits of every row of results.
fn bits(results: &[f32], width: usize) -> Vec<Vec<u32>> {
    results.chunks_exact(width).map(|row| row.iter().map(|v| v.to_bits()).collect()).collect()
}

/// Without AMX there is nothing to test.
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
        // What the references take.
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

/// What a row's NMSE may be where it is more than twice that of the host's kind, over outputs of about the same size: one
/// BF16 each for weights and values.
const FLOOR: f64 = 1e-5;
/// The same for any outputs, also for a few that are much larger than all others, or values that are all the same and
/// halfway between two BF16 numbers: errors of 2^-8 by the values, and half that by the weights.
const WORST: f64 = 4e-5;
/// With two BF16 each.
const EXACT: f64 = 1e-9;
/// What is added for the error of scores: times the square of [`Expected::scores`]. Queries and keys have 16 bits.
const SCORES: f64 = 1e-10;

/// Holds every row of results to its bound: squared errors over squared sizes of as many draws as have [`POOL`] outputs.
/// A row's size is no less than what its summands would have with random signs.
fn check(case: Case, threads: &[usize]) {
    let [_, dv] = case.widths;
    // Of every row: size, errors of the host's kind, with one BF16 and with two.
    let mut sums = vec![[0f64; 5]; case.rows().count()];
    for draw in 0..case.draws() {
        let operands = Operands::new(case, draw);
        let want = operands.expected(Kind::Definition);
        let host = operands.expected(Kind::Host).results;
        let [auto, exact] = [false, true].map(|exact| {
            let mut all = threads.iter().map(|threads| operands.compute(exact, *threads));
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
            sums[3] += row.clone().map(|c| error(c, exact[c].into())).sum::<f64>();
            sums[4] = want.scores[i].max(sums[4]);
        }
    }
    let even = !matches!(case.numbers, Numbers::Tails | Numbers::Outlier | Numbers::Alike);
    for ([size, host, auto, exact, scores], row) in sums.into_iter().zip(case.rows()) {
        if size == 0.0 {
            // Nothing seen, nothing said.
            assert_eq!([auto, exact], [0.0; 2], "{case:?}: row {row:?}");
            continue;
        }
        for (error, floor) in [(auto, if even { FLOOR } else { WORST }), (exact, EXACT)] {
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

/// The bound is not one that anything keeps: results a little off break it.
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

/// A single token is the host's by default: by how much it differs from the same one among others.
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

fn nmse(results: &[f32], expected: &[f64]) -> f64 {
    let error: f64 = results.iter().zip(expected).map(|(r, e)| (f64::from(*r) - e).powi(2)).sum();
    error / expected.iter().map(|e| e * e).sum::<f64>()
}

/// What uninitialised or foreign memory may hold.
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
    /// Overwrites the row of a cache that a row of results finds key `key` in.
    fn poison(&mut self, which: usize, place: usize, poison: Poison, random: &mut Random) {
        let (width, element) = (self.case.widths[which], self.case.element);
        let bytes = row_bytes(element, width);
        let row = &mut self.cache[which][place * bytes..][..bytes];
        let all = |v: f32| stored(&vec![v; width], element);
        match (poison, element) {
            // One block, or one number.
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

/// Given keys and values of any bytes, then rows that do not see them have the bits that they have without, and rows that
/// see NaN are NaN.
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
        let exact = number % 2 == 0;
        let threads = 1 + number % 3;
        let poison = POISONS[number / 2 % POISONS.len()];
        // Every key with a quarter's probability, or one that somebody does not see, or all that a token does not see.
        let token = random.next() as usize % case.tokens;
        let one = random.next() as usize % case.keys;
        let chosen: Vec<bool> = (0..case.keys)
            .map(|key| match number % 3 {
                0 => random.next().is_multiple_of(4),
                1 => key == one,
                _ => clean.mask(token, key) == f32::NEG_INFINITY,
            })
            .collect();
        let which = random.next() as usize % 3;
        // All heads of the cache, or only the first.
        let heads = if random.next().is_multiple_of(2) { case.heads[1] } else { 1 };
        let mut poisoned = vec![false; case.keys * case.heads[1] * case.sequences[1]];
        for (place, poisoned) in poisoned.iter_mut().enumerate() {
            if place % case.heads[1] < heads && chosen[place / case.heads[1] % case.keys] {
                *poisoned = true;
                (0..2)
                    .filter(|cache| which != 1 - cache)
                    .for_each(|cache| operands.poison(cache, place, poison, &mut random));
            }
        }
        let (before, after) = (clean.compute(exact, threads), operands.compute(exact, threads));
        let rows = bits(&before, dv).into_iter().zip(bits(&after, dv)).enumerate();
        for ((index, (before, after)), row @ [_, token, _]) in rows.zip(case.rows()) {
            let seen = (0..case.keys).filter(|key| clean.mask(token, *key) != f32::NEG_INFINITY);
            let sees = seen.filter(|key| poisoned[clean.place(row, *key)]).count();
            let what = || format!("{case:?}, {poison:?}, operands {which}, exact {exact}: row {index}, {row:?}");
            if sees == 0 {
                hidden += usize::from(poisoned.contains(&true));
                assert!(before == after, "{}: another one without being seen", what());
            } else if poison == Poison::Nan && can_be_nan(case.element) {
                reached += 1;
                assert!(after.iter().all(|v| f32::from_bits(*v).is_nan()), "{}: NaN is lost", what());
            }
        }
    }
    assert!(hidden > 1000 && reached > 200, "{hidden} rows did not see, {reached} did");
}

/// Given values that are not finite, then they are in their channels, and in no others, of the rows that see them; also
/// where their weight is nothing.
#[test]
fn values_that_are_not_finite_stay_in_their_channels() {
    if is_skipped() {
        return;
    }
    for element in [Element::F16, Element::Bf16, Element::F32] {
        for (value, exact) in
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().flat_map(|v| [(v, false), (v, true)])
        {
            // Token 39 is far below the largest score at key 35; channel 37 is in the second block.
            let case = Case { element, sight: Sight::Causal, keys: 40, heads: [1, 1], spread: 30.0, ..PLAIN };
            let clean = Operands::new(case, 0);
            let mut operands = clean.clone();
            let size = row_bytes(element, 1);
            operands.cache[1][(35 * 64 + 37) * size..][..size].copy_from_slice(&stored(&[value], element));
            let (before, after) = (clean.compute(exact, 1), operands.compute(exact, 1));
            for (i, (before, after)) in before.iter().zip(&after).enumerate() {
                if i / 64 >= 35 && i % 64 == 37 {
                    assert!(!after.is_finite(), "{element:?}, {value}, exact {exact}: token {}", i / 64);
                } else {
                    assert_eq!(before.to_bits(), after.to_bits(), "{element:?}, {value}, exact {exact}: {i}");
                }
            }
        }
    }
}

/// Given queries that are not finite, then only their own rows are not, and only if they see something.
#[test]
fn queries_that_are_not_finite_stay_in_their_rows() {
    if is_skipped() {
        return;
    }
    for (number, case) in random_cases(3, 40).enumerate() {
        let ([dk, dv], exact) = (case.widths, number % 2 == 0);
        let clean = Operands::new(case, 0);
        let mut operands = clean.clone();
        let bad = |index: usize| index % 5 == number % 5;
        for index in (0..case.rows().count()).filter(|index| bad(*index)) {
            operands.q[index * dk + number % dk] = [f32::NAN, f32::INFINITY][number / 2 % 2];
        }
        let (before, after) = (clean.compute(exact, 1), operands.compute(exact, 1));
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

/// Given other tokens around it, none at all among them, and other thread counts, then a row has the same bits.
#[test]
fn rows_do_not_depend_on_others_or_on_their_number() {
    if is_skipped() {
        return;
    }
    for (number, case) in random_cases(4, 60).enumerate() {
        let exact = number % 2 == 0;
        let all = Operands::new(case, 0);
        let [_, dv] = case.widths;
        let mut random = Random(number as u64);
        let want = bits(&all.compute(exact, 2), dv);
        let some: Vec<usize> = (0..case.tokens).filter(|_| random.next().is_multiple_of(3)).collect();
        let one = random.next() as usize % case.tokens;
        for (tokens, threads) in [(vec![one], 1), (vec![one], 64), (some, 3), ((0..case.tokens).rev().collect(), 1)] {
            if tokens.is_empty() {
                continue;
            }
            let part = all.only(&tokens);
            for (got, [sequence, token, head]) in
                bits(&part.compute(exact, threads), dv).into_iter().zip(part.case.rows())
            {
                let index = (sequence * case.tokens + tokens[token]) * case.heads[0] + head;
                assert!(
                    got == want[index],
                    "{case:?}: token {} of {} among {tokens:?}, exact {exact}",
                    tokens[token],
                    case.tokens
                );
            }
        }
    }
}

/// The place of keys in the cache is what the bits of a row do depend on: by no more than its error.
#[test]
fn the_place_of_keys_is_felt_no_more_than_the_error() {
    if is_skipped() {
        return;
    }
    for exact in [false, true] {
        let here = Operands::new(Case { sight: Sight::Holes(50), keys: 200, ..PLAIN }, 0);
        // Key 0 moves 77 places up, and so do all others.
        let moved = |bytes: &[u8], size: usize| [&bytes[123 * size..], &bytes[..123 * size]].concat();
        let cache = [0, 1].map(|which| moved(&here.cache[which], 2 * row_bytes(Element::F16, 64)));
        let mask = here.mask.chunks_exact(2 * 200).flat_map(|row| moved(row, 2)).collect();
        let there = Operands { cache, mask, ..here.clone() };
        let first: Vec<f64> = here.compute(exact, 1).into_iter().map(f64::from).collect();
        let error = nmse(&there.compute(exact, 1), &first);
        let range = if exact { 1e-13..EXACT } else { 1e-8..FLOOR };
        assert!(range.contains(&error), "exact {exact}: {error:e}");
    }
}

/// 32 x 32 BF16 with a 64-byte line for every row or, as columns, for every pair of channels.
#[derive(Clone)]
#[repr(align(64))]
struct TileBytes([u16; 2 * SIDE * SIDE]);

impl TileBytes {
    /// Two steps of 32 channels of 32 rows.
    fn rows(number: impl Fn(usize, usize) -> bf16) -> Self {
        Self(std::array::from_fn(|i| number(i / 32 % 32, i / 1024 * 32 + i % 32).to_bits()))
    }

    /// The same of 32 columns.
    fn columns(number: impl Fn(usize, usize) -> bf16) -> Self {
        Self(std::array::from_fn(|i| {
            let (half, pair, lane) = (i / 512 % 2, i / 32 % 16, i % 32);
            number(half * 16 + lane / 2, i / 1024 * 32 + 2 * pair + lane % 2).to_bits()
        }))
    }
}

/// What everything here relies on: the tile unit adds up products as they are; a row or a column that is not finite is
/// so alone, and the others keep their bits; numbers too small to be normal are zero.
#[test]
fn products_of_tiles_keep_rows_and_columns_apart() {
    let Some(proof) = Amx::new() else {
        assert!(is_skipped());
        return;
    };
    let mut random = Random(11);
    let [a, b] = [(); 2].map(|()| (0..32 * 64).map(|_| bf16::from_f32(random.normal())).collect::<Vec<_>>());
    #[repr(align(64))]
    struct Sums([f32; SIDE * SIDE]);
    let product = |left: &TileBytes, right: &TileBytes, fresh: bool| {
        let mut sums = Sums([if fresh { f32::NAN } else { 3.0 }; SIDE * SIDE]);
        let _tiles = TileUnit::enter_full(proof);
        // Every channel twice, the second time with the roles of both steps in turn.
        let steps = [[0, 0], [2048, 2048], [SAME, 0], [0, SAME]];
        let (to, left, right) = (sums.0.as_mut_ptr().cast(), left.0.as_ptr().cast(), right.0.as_ptr().cast());
        // SAFETY: two steps of tiles each, full tiles configured.
        unsafe {
            if fresh {
                accumulate::<true>(to, left, right, &steps)
            } else {
                accumulate::<false>(to, left, right, &steps)
            }
        }
        sums.0
    };
    let left = |row: usize, channel: usize| a[row * 64 + channel];
    let right = |column: usize, channel: usize| b[column * 64 + channel];
    let clean = product(&TileBytes::rows(left), &TileBytes::columns(right), true);
    let added = product(&TileBytes::rows(left), &TileBytes::columns(right), false);
    for (i, (got, added)) in clean.into_iter().zip(added).enumerate() {
        let dot = |from: usize, to: usize| -> f64 {
            (0..32).map(|c| left(i / 32, from + c).to_f64() * right(i % 32, to + c).to_f64()).sum()
        };
        let want = dot(0, 0) + dot(32, 32) + dot(32, 0) + dot(0, 0);
        assert!(
            (f64::from(got) - want).abs() < 1e-5 && (f64::from(added) - want - 3.0).abs() < 1e-5,
            "{i}: {got}, {want}"
        );
    }
    let bad_left = |row: usize, channel: usize| match (row, channel) {
        (5, 40) => bf16::NAN,
        (23, 1) => bf16::INFINITY,
        _ => left(row, channel),
    };
    let bad_right =
        |column: usize, channel: usize| if (column, channel) == (9, 3) { bf16::NAN } else { right(column, channel) };
    let bad = product(&TileBytes::rows(bad_left), &TileBytes::columns(bad_right), true);
    for (i, (bad, clean)) in bad.into_iter().zip(clean).enumerate() {
        match (i / 32, i % 32) {
            (5, _) | (_, 9) => assert!(bad.is_nan(), "row {}, column {}: {bad}", i / 32, i % 32),
            (23, _) => assert!(!bad.is_finite(), "row 23, column {}: {bad}", i % 32),
            _ => assert_eq!(bad.to_bits(), clean.to_bits(), "row {}, column {}", i / 32, i % 32),
        }
    }
    let tiny = |_: usize, _: usize| bf16::from_bits(1);
    let large = |_: usize, _: usize| bf16::from_f32(1e30);
    assert_eq!(product(&TileBytes::rows(tiny), &TileBytes::columns(large), true), [0.0; SIDE * SIDE]);
}

/// Given scores of any size, then the row is that of the definition: nothing is taken for "no score yet".
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

/// Given shapes that do not fit, then the complaint names them.
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

//! The operands of a case in memory, what the references make of them, and what the operation does.

use std::sync::Barrier;

use half::f16;

use super::storage::{EIGHT_BITS, read, row_bytes, stored};
use super::*;

/// How a reference computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// As the definition says.
    Definition,
    /// As a host: queries in the storage of keys (8 bits per 32 if keys are decoded), everything else in f32.
    Host,
}

/// What a reference gives.
pub struct Expected {
    pub results: Vec<f64>,
    /// For every row, what the sum of squares of its results would be if their summands had random signs.
    pub sizes: Vec<f64>,
    /// For every row, the largest R of a score that it sees: the root of the sum of squares of the products that the
    /// score is the sum of.
    pub scores: Vec<f64>,
}

/// The operation's operands in memory.
#[derive(Clone)]
pub struct Operands {
    pub case: Case,
    pub q: Vec<f32>,
    pub cache: [Vec<u8>; 2],
    pub mask: Vec<u8>,
    pub sinks: Vec<f32>,
    pub scale: f32,
}

impl Operands {
    pub fn new(case: Case, draw: usize) -> Self {
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
        // A host divides the scale by the soft cap.
        let cap = if case.softcap > 0.0 { case.softcap } else { 1.0 };
        let scale = case.spread / (dk as f32).sqrt() / cap;
        Self { case, q, cache, mask: mask.collect(), sinks, scale }
    }

    /// The operation. Rows of K and V lie head by head in every token, as in a host's cache.
    pub fn attention(&self, out: &mut [f32]) -> Attention {
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

    /// The row of a cache that has key `key` for a row of results.
    pub fn cache_row(&self, [sequence, _, head]: [usize; 3], key: usize) -> usize {
        let Case { keys, heads, sequences, .. } = self.case;
        let sequence = sequence / (sequences[0] / sequences[1]);
        (sequence * keys + key) * heads[1] + head / (heads[0] / heads[1])
    }

    pub fn mask(&self, token: usize, key: usize) -> f32 {
        let at = 2 * (token * self.case.keys + key);
        f16::from_le_bytes([self.mask[at], self.mask[at + 1]]).to_f32()
    }

    pub fn expected(&self, kind: Kind) -> Expected {
        let Case { widths: [dk, dv], keys, softcap, .. } = self.case;
        let caches = [(0, dk), (1, dv)].map(|(which, width)| read(&self.cache[which], self.case.element, width));
        // A host rounds to f32 after every step.
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
                let k = &caches[0][self.cache_row(row, *key) * dk..][..dk];
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
            let value = |key: usize, c: usize| f64::from(caches[1][self.cache_row(row, key) * dv + c]);
            let squares = |key: usize| (0..dv).map(|c| value(key, c).powi(2)).sum::<f64>();
            let size: f64 = seen.iter().zip(&weights).map(|(key, w)| w * w * squares(*key)).sum();
            out.sizes.push(if total > 0.0 { size / total.powi(2) } else { 0.0 });
            let spans = seen.iter().map(|key| {
                let k = &caches[0][self.cache_row(row, *key) * dk..][..dk];
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

    pub fn compute(&self, two_planes: bool, threads: usize) -> Vec<f32> {
        let [_, dv] = self.case.widths;
        let mut out = vec![f32::NAN; dv * self.case.tokens * self.case.heads[0] * self.case.sequences[0]];
        let attention = self.attention(&mut out);
        attention.check().unwrap();
        // A number that is read before it is written is NaN.
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
                    // SAFETY: operands: those of the case; the work buffer has the size asked for. Both outlive the
                    // threads.
                    unsafe {
                        let attention = &*(address.1 as *const Attention);
                        attention.run(Amx::new().unwrap(), two_planes, &thread, address.0 as *mut u8);
                    }
                });
            }
        });
        out
    }
}

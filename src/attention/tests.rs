use std::sync::Barrier;

use half::{bf16, f16};

use super::*;
use crate::cpu;
use crate::kernel::tests::Random;

/// What a test is made of.
#[derive(Clone, Copy)]
struct Case {
    widths: [usize; 2],
    tokens: usize,
    keys: usize,
    heads: [usize; 2],
    sequences: [usize; 2],
    element: Element,
    softcap: f32,
    sinks: bool,
    mask: fn(usize, usize) -> f32,
    masked: bool,
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
    mask: |_, _| 0.0,
    masked: false,
};

/// Each token sees itself and those before; the first key is token 0.
fn causal(token: usize, key: usize) -> f32 {
    if key <= token { 0.0 } else { f32::NEG_INFINITY }
}

unsafe extern "C" fn thirds(x: *const libc::c_void, y: *mut f32, count: i64) {
    for i in 0..count as usize {
        // SAFETY: one signed byte per number.
        unsafe { *y.add(i) = f32::from(*x.cast::<i8>().add(i)) / 3.0 };
    }
}

/// Numbers in the storage of an element, and what they are.
fn stored(values: &[f32], element: Element) -> (Vec<u8>, Vec<f32>) {
    match element {
        Element::F32 => (values.iter().flat_map(|v| v.to_le_bytes()).collect(), values.to_vec()),
        Element::F16 => {
            let halves: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
            (halves.iter().flat_map(|v| v.to_le_bytes()).collect(), halves.iter().map(|v| v.to_f32()).collect())
        }
        Element::Bf16 => {
            let halves: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
            (halves.iter().flat_map(|v| v.to_le_bytes()).collect(), halves.iter().map(|v| v.to_f32()).collect())
        }
        Element::Decoded(_) => {
            let bytes: Vec<i8> = values.iter().map(|v| (v * 30.0).clamp(-127.0, 127.0) as i8).collect();
            (bytes.iter().map(|b| *b as u8).collect(), bytes.iter().map(|b| f32::from(*b) / 3.0).collect())
        }
    }
}

fn bytes_of(element: Element) -> usize {
    match element {
        Element::F32 => 4,
        Element::F16 | Element::Bf16 => 2,
        Element::Decoded(_) => 1,
    }
}

/// The operation's operands in memory, and its exact result.
struct Operands {
    case: Case,
    q: Vec<f32>,
    cache: [(Vec<u8>, Vec<f32>); 2],
    mask: Vec<u8>,
    sinks: Vec<f32>,
    scale: f32,
}

impl Operands {
    fn new(case: Case) -> Self {
        let mut random = Random(case.tokens as u64 * 7 + case.keys as u64);
        let Case { widths: [dk, dv], tokens, keys, heads, sequences, element, .. } = case;
        let mut numbers = |count: usize| (0..count).map(|_| random.normal() * 3f32.sqrt()).collect::<Vec<f32>>();
        let q = numbers(dk * tokens * heads[0] * sequences[0]);
        let cache = [dk, dv].map(|width| stored(&numbers(width * keys * heads[1] * sequences[1]), element));
        let mask = (0..tokens * keys).flat_map(|i| f16::from_f32((case.mask)(i / keys, i % keys)).to_le_bytes());
        let sinks = numbers(heads[0]).iter().map(|s| s * 2.0).collect();
        Self { case, q, cache, mask: mask.collect(), sinks, scale: 1.0 / (dk as f32).sqrt() }
    }

    /// Rows of K and V lie head by head in every token, as in a host's cache.
    fn attention(&self, out: &mut [f32]) -> Attention {
        let Case { widths: [dk, dv], tokens, keys, heads, sequences, element, softcap, sinks, masked, .. } = self.case;
        let cache = |which: usize, width: usize| {
            let row = width * bytes_of(element);
            Heads {
                data: self.cache[which].0.as_ptr(),
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
            mask: masked.then_some(Mask { data: self.mask.as_ptr(), stride: 2 * keys }),
            sinks: if sinks { self.sinks.as_ptr() } else { std::ptr::null() },
            scale: self.scale,
            softcap,
            output: Output {
                data: out.as_mut_ptr().cast(),
                nb: [4 * dv, 4 * dv * heads[0], 4 * dv * heads[0] * tokens],
            },
        }
    }

    fn expected(&self) -> Vec<f64> {
        let Case { widths: [dk, dv], tokens, keys, heads, sequences, softcap, .. } = self.case;
        let mut out = Vec::new();
        for (sequence, token, head) in
            (0..sequences[0] * tokens * heads[0]).map(|i| (i / heads[0] / tokens, i / heads[0] % tokens, i % heads[0]))
        {
            let q = &self.q[((sequence * tokens + token) * heads[0] + head) * dk..][..dk];
            let place = |key: usize| {
                let sequence = sequence / (sequences[0] / sequences[1]);
                (sequence * keys + key) * heads[1] + head / (heads[0] / heads[1])
            };
            let scores: Vec<f64> = (0..keys)
                .map(|key| {
                    let k = &self.cache[0].1[place(key) * dk..][..dk];
                    let dot: f64 = q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    let mut score = dot * f64::from(self.scale);
                    if softcap > 0.0 {
                        score = f64::from(softcap) * score.tanh();
                    }
                    score + if self.case.masked { f64::from((self.case.mask)(token, key)) } else { 0.0 }
                })
                .collect();
            let sink = if self.case.sinks { f64::from(self.sinks[head]) } else { f64::NEG_INFINITY };
            let max = scores.iter().fold(sink, |a, b| a.max(*b));
            let weights: Vec<f64> = scores.iter().map(|s| if s.is_finite() { (s - max).exp() } else { 0.0 }).collect();
            let total = weights.iter().sum::<f64>() + if self.case.sinks { (sink - max).exp() } else { 0.0 };
            out.extend((0..dv).map(|c| {
                let sum: f64 =
                    (0..keys).map(|key| weights[key] * f64::from(self.cache[1].1[place(key) * dv + c])).sum();
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
        let mut work = vec![0xa5u8; attention.work_size(threads).unwrap()];
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

/// Squared error over squared size.
fn error(results: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(results.len(), expected.len());
    let (mut wrong, mut size) = (0.0, 0.0);
    for (r, e) in results.iter().zip(expected) {
        wrong += (f64::from(*r) - e).powi(2);
        size += e * e;
    }
    wrong / size
}

/// Given shapes, masks and storages of all kinds, then results are those of the definition, whatever the thread count.
#[test]
fn results_are_those_of_the_definition() {
    if cpu::isa() < cpu::Isa::Amx {
        println!("SKIPPED: no AMX");
        return;
    }
    let cases = [
        PLAIN,
        Case { masked: true, mask: causal, keys: 300, tokens: 300, ..PLAIN },
        Case { widths: [128, 128], heads: [8, 1], masked: true, mask: causal, tokens: 33, keys: 256, ..PLAIN },
        Case { widths: [80, 80], heads: [3, 3], tokens: 7, keys: 37, ..PLAIN },
        Case { widths: [96, 48], heads: [6, 2], tokens: 17, keys: 1, ..PLAIN },
        Case { widths: [576, 512], heads: [16, 1], tokens: 9, keys: 200, masked: true, mask: causal, ..PLAIN },
        Case { widths: [72, 8], heads: [1, 1], tokens: 1, keys: 129, ..PLAIN },
        Case { sequences: [4, 2], masked: true, mask: causal, keys: 65, ..PLAIN },
        Case { softcap: 3.0, masked: true, mask: causal, ..PLAIN },
        Case { sinks: true, masked: true, mask: causal, ..PLAIN },
        Case { element: Element::Bf16, ..PLAIN },
        Case { element: Element::F32, ..PLAIN },
        Case { element: Element::Decoded(thirds), tokens: 100, keys: 333, ..PLAIN },
        Case { masked: true, keys: 515, mask: |t, k| -(t.abs_diff(k) as f32) / 8.0, ..PLAIN },
        // A window, and whole blocks that nobody sees in the middle.
        Case {
            masked: true,
            keys: 900,
            mask: |t, k| if k < 20 || (700..720 + t).contains(&k) { 0.0 } else { f32::NEG_INFINITY },
            ..PLAIN
        },
        // Tokens that see nothing.
        Case { masked: true, mask: |t, k| if t % 3 == 0 { f32::NEG_INFINITY } else { causal(t, k) }, ..PLAIN },
    ];
    for (number, case) in cases.into_iter().enumerate() {
        let operands = Operands::new(case);
        let expected = operands.expected();
        for threads in [1, 3] {
            for (exact, allowed) in [(false, 4e-5), (true, 1e-9)] {
                let error = error(&operands.compute(exact, threads), &expected);
                assert!(error <= allowed, "case {number}, {threads} threads, exact {exact}: {error:e}");
            }
        }
    }
}

/// Given numbers that are not, then results are not either, but for queries that do not see them.
#[test]
fn nan_reaches_the_results_that_see_it() {
    if cpu::isa() < cpu::Isa::Amx {
        println!("SKIPPED: no AMX");
        return;
    }
    for which in 0..2 {
        let mut operands = Operands::new(Case { masked: true, mask: causal, keys: 40, heads: [1, 1], ..PLAIN });
        // Channel 5 of key 35: in the second sub-block.
        operands.cache[which].0[(35 * 64 + 5) * 2..][..2].copy_from_slice(&f16::NAN.to_le_bytes());
        let out = operands.compute(false, 1);
        assert!(out[..32 * 64].iter().all(|v| v.is_finite()), "operand {which}");
        assert!((35..40).all(|token| out[token * 64..][..64].iter().any(|v| v.is_nan())), "operand {which}");
    }
}

/// Given shapes that do not fit, then the complaint names them.
#[test]
fn shapes_that_do_not_fit_are_named() {
    let operands = Operands::new(PLAIN);
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

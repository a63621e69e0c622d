//! One product by this library and each host in turns, in one process, on the same threads.

use std::time::Instant;

use ggml_amx::cpu::Amx;

use crate::data::Floats;
use crate::machine::{self, PEAK_TDPS, READ_PART, Reader, Spin, TDP_MACS};
use crate::options::Options;
use crate::subject::{Ours, Subject};

/// What a thread saw in one repetition: seconds, of ours first and then of each host.
#[derive(Clone)]
struct Times {
    peak: f64,
    read: f64,
    products: Vec<f64>,
}

/// What a thread returns. Only the first one compares results.
struct Seen {
    nmse: Vec<f64>,
    times: Vec<Times>,
}

/// One way to compute the product, over all repetitions.
pub struct Way {
    /// `ours`, or a host.
    pub name: String,
    /// The form of its weights.
    pub form: String,
    /// Seconds.
    pub times: Vec<f64>,
    /// Against sums in f64.
    pub nmse: f64,
}

/// Everything about one product.
pub struct Measured {
    /// Ours first.
    pub ways: Vec<Way>,
    /// Multiply-adds per second of the tile unit, all threads, per repetition; empty without AMX.
    pub peaks: Vec<f64>,
    /// Bytes per second of plain reads, per repetition.
    pub reads: Vec<f64>,
}

struct Shared<'a> {
    subject: &'a Subject<'a>,
    ours: Ours,
    reader: &'a Reader,
    spin: Spin,
    reps: usize,
    m: usize,
    x: &'a [f32],
    y: *mut f32,
    y_len: usize,
    /// Copies and parts of memory go on from product to product.
    first: usize,
}

// SAFETY: the threads write their own parts of the result, and the first one reads it behind barriers.
unsafe impl Sync for Shared<'_> {}

/// Measures M rows of `x`; `first` counts repetitions since the start of the program.
pub fn measure(subject: &Subject<'_>, m: usize, x: &[f32], reader: &Reader, o: &Options, first: usize) -> Measured {
    let mut y = Floats::new(m * subject.shape.n);
    for matrix in &subject.matrices {
        // SAFETY: x holds m rows and more, y holds m rows, both live to the end of this function.
        unsafe { matrix.prepare(m, x.as_ptr(), y.as_mut_ptr()) };
    }
    let shared = Shared {
        subject,
        ours: subject.ours(m, x, y.as_mut_ptr(), o.threads, o.exact),
        reader,
        spin: Spin::new(o.threads),
        reps: o.reps,
        m,
        x,
        y: y.as_mut_ptr(),
        y_len: y.len(),
        first,
    };
    let proof = Amx::new();
    let seen: Vec<Seen> = std::thread::scope(|scope| {
        let s = &shared;
        let start = |i| scope.spawn(move || Seen { nmse: s.warm_up(i), times: s.repetitions(i, proof) });
        let threads: Vec<_> = (0..o.threads).map(start).collect();
        threads.into_iter().map(|t| t.join().expect("no panic")).collect()
    });
    summary(subject, &seen, proof.is_some(), o.reps)
}

impl Shared<'_> {
    fn product(&self, way: usize, copy: usize, index: usize) {
        // SAFETY: all threads come here with the same arguments; measure() made the buffers.
        unsafe {
            match way.checked_sub(1) {
                None => self.ours.run(copy, index, self.spin.count(), &self.spin),
                Some(host) => self.subject.matrices[host].run(copy, index, self.spin.count(), &self.spin),
            }
        }
    }

    /// Runs each way once and compares the results; the first thread gets the errors.
    fn warm_up(&self, index: usize) -> Vec<f64> {
        let mut errors = Vec::new();
        for way in 0..=self.subject.matrices.len() {
            if index == 0 {
                // SAFETY: the others wait at the barrier.
                unsafe { std::slice::from_raw_parts_mut(self.y, self.y_len) }.fill(f32::NAN);
            }
            self.spin.wait();
            self.product(way, self.first % self.subject.copies, index);
            self.spin.wait();
            if index == 0 {
                // SAFETY: the others wait at the barrier.
                let y = unsafe { std::slice::from_raw_parts(self.y, self.y_len) };
                errors.push(self.subject.nmse(self.m, self.x, y));
            }
            self.spin.wait();
        }
        errors
    }

    /// All repetitions; who comes first changes from one to the next. The peak is measured around our
    /// product, the reads right before it.
    fn repetitions(&self, index: usize, proof: Option<Amx>) -> Vec<Times> {
        let ways = 1 + self.subject.matrices.len();
        let window = || {
            self.spin.wait();
            proof.map_or(0.0, machine::peak)
        };
        let mut all = Vec::new();
        for rep in 0..self.reps {
            let turn = self.first + rep + 1;
            let mut times = Times { peak: 0.0, read: 0.0, products: vec![0.0; ways] };
            for way in (0..ways).map(|i| (i + turn) % ways) {
                if way == 0 {
                    times.peak = window();
                    self.spin.wait();
                    times.read = self.reader.read(turn, index, self.spin.count());
                }
                self.spin.wait();
                let start = Instant::now();
                self.product(way, turn % self.subject.copies, index);
                self.spin.wait();
                times.products[way] = start.elapsed().as_secs_f64();
                if way == 0 {
                    times.peak = f64::midpoint(times.peak, window());
                }
            }
            all.push(times);
        }
        all
    }
}

/// Joins what the threads saw: a product ends when its last thread ends.
fn summary(subject: &Subject<'_>, seen: &[Seen], tiles: bool, reps: usize) -> Measured {
    let threads = |rep: usize| seen.iter().map(move |s| &s.times[rep]);
    let slowest = |rep: usize, of: &dyn Fn(&Times) -> f64| threads(rep).map(of).fold(0.0, f64::max);
    let way = |i: usize| Way {
        name: if i == 0 { "ours".into() } else { subject.matrices[i - 1].host.name.clone() },
        form: if i == 0 {
            if subject.in_place { "in place" } else { "packed" }.into()
        } else {
            subject.matrices[i - 1].form()
        },
        times: (0..reps).map(|rep| slowest(rep, &|t| t.products[i])).collect(),
        nmse: seen[0].nmse[i],
    };
    let peak = |rep| threads(rep).map(|t| PEAK_TDPS as f64 * TDP_MACS / t.peak).sum();
    Measured {
        ways: (0..=subject.matrices.len()).map(way).collect(),
        peaks: if tiles { (0..reps).map(peak).collect() } else { Vec::new() },
        reads: (0..reps).map(|rep| READ_PART as f64 / slowest(rep, &|t| t.read)).collect(),
    }
}

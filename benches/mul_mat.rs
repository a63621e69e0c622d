//! MUL_MAT as the host sees it (quantising the activations included), beside what the machine can do at
//! that moment: a TDPBSSD loop in windows of 4 ms around every repetition, and plain reads of the weights.
//! Machines are shared and clocks move, so only the ratios of one run mean anything.
//!
//! `cargo bench --bench mul_mat -- [--types q4_0,q8_0] [--m 1,512] [--shapes 4096x4096,14336x4096]
//! [--threads 2] [--reps 7] [--exact] [--kind gate|down|smooth]`; shapes are N x K.

use std::arch::asm;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use ggml_amx::cpu::memory::Region;
use ggml_amx::cpu::tile::Tiles;
use ggml_amx::cpu::{self, Amx, Isa};
use ggml_amx::format::WeightType;
use ggml_amx::matmul::{Input, MatMul, Output, Settings, Thread, Weights};
use ggml_amx::panel::weights::Shape;

/// TDPBSSD of full tiles in a peak window: about 4 ms.
const PEAK_TDPS: usize = 720_000;
/// Multiply-adds of one.
const TDP_MACS: f64 = 16.0 * 16.0 * 64.0;

/// Waits by spinning, as hosts' barriers do.
struct Spin {
    arrived: AtomicUsize,
    count: usize,
}

impl Spin {
    fn wait(&self) {
        let ticket = self.arrived.fetch_add(1, Ordering::AcqRel);
        let all = (ticket / self.count + 1) * self.count;
        while self.arrived.load(Ordering::Acquire) < all {
            std::hint::spin_loop();
        }
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    fn normal(&mut self) -> f32 {
        (0..6).map(|_| (self.next() % 65536) as f32 / 65536.0 - 0.5).sum::<f32>() * 1.41
    }
}

struct Options {
    types: Vec<WeightType>,
    rows: Vec<usize>,
    shapes: Vec<(usize, usize)>,
    threads: usize,
    reps: usize,
    exact: bool,
    kind: String,
}

fn options() -> Options {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned();
    let list = |name: &str, default: &str| -> Vec<String> {
        value(name).unwrap_or_else(|| default.to_string()).split(',').map(str::to_string).collect()
    };
    let number = |s: &String| s.parse().unwrap_or_else(|_| panic!("{s} is not a number"));
    let of_name =
        |s: &String| *WeightType::ALL.iter().find(|t| t.info().name.eq_ignore_ascii_case(s)).expect("a weight type");
    let shape = |s: &String| {
        let (n, k) = s.split_once('x').expect("shapes are NxK");
        (number(&n.to_string()), number(&k.to_string()))
    };
    Options {
        types: list("--types", "q4_0,q4_1,q8_0,q4_K,q5_K,q6_K,iq4_xs").iter().map(of_name).collect(),
        rows: list("--m", "1,2,4,8,16,32,64,128,512").iter().map(number).collect(),
        shapes: list("--shapes", "4096x4096,14336x4096,4096x14336").iter().map(shape).collect(),
        threads: number(&value("--threads").unwrap_or("2".into())),
        reps: number(&value("--reps").unwrap_or("7".into())),
        exact: args.iter().any(|a| a == "--exact"),
        kind: value("--kind").unwrap_or("gate".into()),
    }
}

/// Random quants with f16 scales of a plausible size.
fn weights(shape: &Shape, random: &mut Random) -> Region {
    let info = shape.ty.info();
    let halves: &[usize] = match shape.ty {
        WeightType::Q4_1 | WeightType::Q4_K | WeightType::Q5_K => &[0, 2],
        WeightType::Q6_K => &[208],
        _ => &[0],
    };
    let mut row = vec![0u8; shape.row_bytes];
    let region = Region::new(shape.packed_size()).expect("memory for the weights");
    for n in 0..shape.n {
        row.iter_mut().for_each(|b| *b = random.next() as u8);
        for block in row.chunks_exact_mut(info.bytes) {
            for at in halves {
                let d = half::f16::from_f32(0.001 * (0.6 + (random.next() % 800) as f32 / 1000.0));
                block[*at..at + 2].copy_from_slice(&d.to_le_bytes());
            }
        }
        // SAFETY: the region has the packed size.
        unsafe { shape.write(region.base().as_ptr(), n * shape.row_bytes, &row) };
    }
    region
}

/// Normal activations: as they are, with 0.4 % of the channels 30 times larger (inputs of attention and
/// gate), or with as many that move from row to row (inputs of ffn_down).
fn activations(kind: &str, m: usize, k: usize, random: &mut Random) -> Vec<f32> {
    let mut x: Vec<f32> = (0..m * k).map(|_| random.normal()).collect();
    for row in 0..m {
        for i in 0..k / 250 {
            match kind {
                "gate" => x[row * k + i * 250 + 7] *= 30.0,
                "down" => x[row * k + (i * 250 + row * 61) % k] *= 12.0,
                _ => {}
            }
        }
    }
    x
}

/// What a thread saw in one repetition: seconds.
#[derive(Clone, Copy, Default)]
struct Times {
    peak: f64,
    read: f64,
    product: f64,
}

struct Shared {
    op: MatMul,
    work: *mut u8,
    region: (*const u8, usize),
    spin: Spin,
    settings: Settings,
    reps: usize,
}

// SAFETY: the operation gives every thread its own part; the rest is read.
unsafe impl Sync for Shared {}

/// Seconds for a window of TDPBSSD.
fn peak(proof: Amx) -> f64 {
    let _tiles = Tiles::enter_full(proof);
    let start = Instant::now();
    for _ in 0..PEAK_TDPS / 8 {
        // SAFETY: full tiles are configured; results are thrown away.
        unsafe {
            asm!(
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm7",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm7",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                options(nostack, preserves_flags)
            );
        }
    }
    start.elapsed().as_secs_f64()
}

/// Seconds to read this thread's share of the weights, 8 streams of 64-bit sums.
fn read(region: (*const u8, usize), index: usize, count: usize) -> f64 {
    let words = region.1 / 8 / count / 64 * 64;
    // SAFETY: the share lies inside the region, which is 64-byte aligned.
    let words = unsafe { std::slice::from_raw_parts(region.0.cast::<u64>().add(index * words), words) };
    let start = Instant::now();
    let mut sums = [0u64; 64];
    for chunk in words.chunks_exact(64) {
        for (s, w) in sums.iter_mut().zip(chunk) {
            *s ^= w;
        }
    }
    std::hint::black_box(sums);
    start.elapsed().as_secs_f64()
}

impl Shared {
    fn run(&self, index: usize, proof: Option<Amx>) -> Vec<Times> {
        let count = self.spin.count;
        let wait = || self.spin.wait();
        let window = || {
            wait();
            proof.map_or(0.0, peak)
        };
        let mut all = Vec::new();
        for _ in 0..self.reps {
            let before = window();
            wait();
            let read = read(self.region, index, count);
            wait();
            let start = Instant::now();
            // SAFETY: buffers have the sizes asked for and outlive the threads.
            unsafe { self.op.run(self.settings, &Thread { index, count, barrier: &wait }, self.work) };
            wait();
            let product = start.elapsed().as_secs_f64();
            all.push(Times { peak: (before + window()) / 2.0, read, product });
        }
        all
    }
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

fn measure(ty: WeightType, n: usize, k: usize, m: usize, o: &Options, region: &Region, shape: &Shape) {
    let mut random = Random(9);
    let x = activations(&o.kind, m, k, &mut random);
    let mut out = vec![0f32; m * n];
    let op = MatMul {
        weights: Weights::whole(*shape, region.base().as_ptr(), [k, n, 1, 1]),
        input: Input { data: x.as_ptr().cast(), ne: [k, m, 1, 1], nb: [4, 4 * k, 0, 0] },
        output: Output { data: out.as_mut_ptr().cast(), nb: [4 * n, 0, 0] },
    };
    let size = op.work_size(o.threads).expect("a work buffer");
    let work = Region::new(size).expect("memory for the work buffer");
    let shared = Shared {
        op,
        work: work.base().as_ptr(),
        region: (region.base().as_ptr(), shape.packed_size()),
        spin: Spin { arrived: AtomicUsize::new(0), count: o.threads },
        settings: Settings { isa: cpu::isa(), exact: o.exact },
        reps: o.reps,
    };
    let proof = Amx::new().filter(|_| cpu::isa() == Isa::Amx);
    let times: Vec<Vec<Times>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..o.threads)
            .map(|i| {
                let s = &shared;
                scope.spawn(move || s.run(i, proof))
            })
            .collect();
        threads.into_iter().map(|t| t.join().expect("no panic")).collect()
    });
    let each = |f: &dyn Fn(&[Times]) -> f64| {
        median((0..o.reps).map(|r| f(&times.iter().map(|t| t[r]).collect::<Vec<_>>())).collect())
    };
    let product = |t: &[Times]| t.iter().map(|t| t.product).fold(0.0, f64::max);
    let peak_rate = |t: &[Times]| t.iter().map(|t| PEAK_TDPS as f64 * TDP_MACS / t.peak.max(1e-12)).sum::<f64>();
    let read_rate = |t: &[Times]| shape.packed_size() as f64 / t.iter().map(|t| t.read).fold(0.0, f64::max);
    let macs = m as f64 * n as f64 * k as f64;
    println!(
        "{:>7} {:>13} {:>5} {:>10.3} ms {:>6.1} % of peak {:>6.1} % of read bandwidth   (peak {:.1} TOPS, read {:.1} GB/s)",
        ty.info().name,
        format!("{n}x{k}"),
        m,
        1e3 * each(&product),
        100.0 * each(&|t| macs / product(t) / peak_rate(t)),
        100.0 * each(&|t| shape.packed_size() as f64 / product(t) / read_rate(t)),
        2e-12 * each(&peak_rate),
        1e-9 * each(&read_rate),
    );
}

fn main() {
    let o = options();
    println!(
        "{} threads, activations: {}, precision: {}, instruction set: {}",
        o.threads,
        o.kind,
        if o.exact { "exact" } else { "auto" },
        cpu::isa().name()
    );
    for (n, k) in &o.shapes {
        for ty in &o.types {
            let shape = Shape::new(*ty, *k as i64, *n as i64, 1).expect("K a multiple of the block");
            let region = weights(&shape, &mut Random(3));
            for m in &o.rows {
                measure(*ty, *n, *k, *m, &o, &region, &shape);
            }
        }
    }
}

//! Results of every kernel, compared with hashes that were recorded once: no change of the code may change a bit.
//!
//! The data are made here and nowhere else, of integers, so that nothing that moves in the library moves them. A line
//! of `hashes.txt` is a type, a kernel, K x N x M and the hash of the results; lines `type` say which bytes of a block
//! are scales, as `byte & mask | value`, so that no result is NaN. The kernels of exact weights have one hash for all
//! instruction sets, for they agree; tiles are computed on AMX alone (or in software, with `--cfg amx_emulator`).
//!
//! With `GGML_AMX_RECORD=1` the file is written anew, where there are all instruction sets; a type that is new gets its scales
//! by the kinds of its fields.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::products::exact_product;
use crate::cpu::{self, Isa};
use crate::dispatch::{Demand, thresholds};
use crate::format::stand_in::all_types;
use crate::format::{Field, FieldKind, WeightType};
use crate::matmul::{Input, MatMul, Output, Settings, Stored, Thread, Weights};
use crate::panel::plain::{self, PlainType};
use crate::panel::weights::Shape;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/testing/hashes.txt");

/// SplitMix64.
struct Fixed(u64);

impl Fixed {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Random bytes, in blocks of `bytes` with these scales.
    fn weights(&mut self, len: usize, bytes: usize, scales: &[[usize; 3]]) -> Vec<u8> {
        let mut plain: Vec<u8> = (0..len).map(|_| self.next() as u8).collect();
        for block in plain.chunks_exact_mut(bytes) {
            scales.iter().for_each(|[at, mask, value]| block[*at] = block[*at] & *mask as u8 | *value as u8);
        }
        plain
    }

    /// Multiples of 1/256 between -4 and 4; every 64th channel is 16 times as large.
    fn activations(&mut self, m: usize, k: usize) -> Vec<f32> {
        let size = |i: usize| if i % k % 64 == 5 { 16.0 } else { 1.0 };
        (0..m * k).map(|i| ((self.next() % 2049) as f32 / 256.0 - 4.0) * size(i)).collect()
    }
}

/// FNV-1a of the bits.
fn hash(out: &[f32]) -> u64 {
    let bytes = out.iter().flat_map(|v| v.to_bits().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// A product: its size, weights as GGUF has them and packed, activations.
struct Case {
    k: usize,
    n: usize,
    m: usize,
    plain: Vec<u8>,
    packed: Vec<u8>,
    x: Vec<f32>,
}

impl Case {
    fn new([k, n, m]: [usize; 3], plain: impl Fn(&mut Fixed) -> Vec<u8>) -> Self {
        let mut fixed = Fixed((k << 20 | n << 10 | m) as u64);
        let (plain, x) = (plain(&mut fixed), fixed.activations(m, k));
        Self { k, n, m, plain, packed: Vec::new(), x }
    }

    fn packed(ty: WeightType, size: [usize; 3], scales: &[[usize; 3]]) -> (Self, Shape) {
        let shape = Shape::new(ty, size[0] as i64, size[1] as i64, 1).unwrap();
        let mut case = Self::new(size, |fixed| fixed.weights(shape.plain_size(), ty.info().bytes, scales));
        case.packed = vec![0; shape.packed_size()];
        // SAFETY: the buffer has the packed size.
        unsafe { shape.write(case.packed.as_mut_ptr(), 0, &case.plain) };
        (case, shape)
    }

    /// The kernels of exact weights, without what chooses between kernels.
    fn kernel(&self, isa: Isa, shape: &Shape) -> u64 {
        hash(&exact_product(isa, shape, &self.packed, &self.x))
    }

    /// A whole operation on one thread.
    fn operation(&self, isa: Isa, demand: Demand, stored: Stored) -> u64 {
        let (k, n, m) = (self.k, self.n, self.m);
        let mut out = vec![f32::NAN; m * n];
        let base = if matches!(stored, Stored::Packed(_)) { &self.packed } else { &self.plain };
        let row = self.plain.len() / n;
        let op = MatMul {
            gate: None,
            weights: Weights {
                stored,
                base: base.as_ptr(),
                offset: 0,
                ne: [k, n, 1, 1],
                nb: [row, self.plain.len(), self.plain.len()],
            },
            input: Input { data: self.x.as_ptr().cast(), ne: [k, m, 1, 1], nb: [4, 4 * k, 0, 0] },
            output: Output { data: out.as_mut_ptr().cast(), nb: [4 * n, 0, 0] },
        };
        op.check().unwrap();
        let mut work = vec![0u8; op.work_size(1).unwrap()];
        let thread = Thread { index: 0, count: 1, barrier: &|| {} };
        // SAFETY: buffers have the sizes asked for.
        unsafe { op.run(Settings { isa, demand }, &thread, work.as_mut_ptr()) };
        hash(&out)
    }
}

/// Kernel, K x N x M and instruction set, and the hash of the results.
type Results = Vec<(String, Isa, u64)>;

const DEMANDS: [(Demand, &str); 3] = [(Demand::Auto, "auto"), (Demand::Bf16, "exact"), (Demand::F32, "floats")];

/// All kernels on weights of a packed type.
fn of_packed(ty: WeightType, scales: &[[usize; 3]]) -> Results {
    let mut results = Vec::new();
    let block = ty.info().block;
    let isas = || [Isa::Portable, Isa::Avx512, Isa::Amx].into_iter().filter(|isa| *isa <= cpu::isa());
    for size in [[block, 1, 2], [3 * block, 33, 1], [2 * block, 17, 5], [5 * block, 47, 3], [3 * block, 37, 19]] {
        let (case, shape) = Case::packed(ty, size, scales);
        let [k, n, m] = size;
        for isa in isas() {
            results.push((format!("packed {k}x{n}x{m}"), isa, case.kernel(isa, &shape)));
            if m < thresholds::min_tile_m(ty) {
                let stored = Stored::InPlace { shape, interleave: 1 };
                results.push((format!("in-place {k}x{n}x{m}"), isa, case.operation(isa, Demand::Auto, stored)));
            }
        }
    }
    for size in [[512, 33, 1], [1280, 35, 37]] {
        let (case, shape) = Case::packed(ty, size, scales);
        let [k, n, m] = size;
        for (demand, name) in DEMANDS {
            let places = [("packed", Stored::Packed(shape)), ("in-place", Stored::InPlace { shape, interleave: 1 })];
            for (place, stored) in places.into_iter().filter(|_| cpu::isa() == Isa::Amx) {
                let hash = case.operation(Isa::Amx, demand, stored);
                results.push((format!("{name}-{place} {k}x{n}x{m}"), Isa::Amx, hash));
            }
        }
    }
    results
}

/// Tiles of weights that are stored plain. Bytes are such that F16 and BF16 are of a sane size.
fn of_plain(ty: &'static PlainType) -> Results {
    let mut results = Vec::new();
    for [k, n, m] in [[96, 33, 1], [1280, 35, 37]] {
        let case = Case::new([k, n, m], |fixed| fixed.weights(2 * k * n, 2, &[[1, 0x81, 0x3c]]));
        for (demand, name) in DEMANDS.into_iter().filter(|_| cpu::isa() == Isa::Amx) {
            let hash = case.operation(Isa::Amx, demand, Stored::Plain(ty));
            results.push((format!("{name}-plain {k}x{n}x{m}"), Isa::Amx, hash));
        }
    }
    results
}

/// `hashes.txt`: scales by type, hashes by type, kernel and size.
struct Recorded {
    scales: BTreeMap<String, Vec<[usize; 3]>>,
    hashes: BTreeMap<String, u64>,
}

impl Recorded {
    fn read(text: &str) -> Self {
        let (mut scales, mut hashes) = (BTreeMap::new(), BTreeMap::new());
        let hex = |s: &str| usize::from_str_radix(s, 16).unwrap();
        let scale = |s: &str| {
            let (at, rest) = s.split_once('&').unwrap();
            let (mask, value) = rest.split_once('|').unwrap();
            [at.parse().unwrap(), hex(mask), hex(value)]
        };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            match line.strip_prefix("type ") {
                Some(rest) => {
                    let mut words = rest.split(' ');
                    scales.insert(words.next().unwrap().to_string(), words.map(scale).collect());
                }
                None => {
                    let (what, hash) = line.rsplit_once(' ').unwrap();
                    hashes.insert(what.to_string(), u64::from_str_radix(hash, 16).unwrap());
                }
            }
        }
        Self { scales, hashes }
    }
}

/// The bytes of a block that are scales, for a type that the file does not have yet.
fn scales_by_kind(ty: WeightType) -> Vec<[usize; 3]> {
    let of_field = |f: &Field| {
        let every = |step: usize, mask, value| {
            let first = f.offset + step - 1;
            (first..f.offset + f.len).step_by(step).map(|at| [at, mask, value]).collect()
        };
        match f.kind {
            FieldKind::F16 => every(2, 0x83, 0x20),
            FieldKind::F32 => every(4, 0x80, 0x3c),
            FieldKind::E8M0 => every(1, 0x03, 0x7c),
            FieldKind::UE4M3 => every(1, 0x0f, 0x30),
            FieldKind::F16Nibbles => vec![[f.offset + 5, 0x0f, 0x00], [f.offset + 7, 0x0f, 0x20]],
            FieldKind::U8 | FieldKind::Quants | FieldKind::Indices => Vec::new(),
        }
    };
    ty.info().fields.iter().flat_map(of_field).collect()
}

#[test]
fn results_have_the_bits_that_were_recorded() {
    let text = std::fs::read_to_string(FILE).unwrap();
    let mut recorded = Recorded::read(&text);
    let record = std::env::var_os("GGML_AMX_RECORD").is_some();
    if cpu::isa() < Isa::Amx {
        assert!(!record, "to record, build with RUSTFLAGS='--cfg amx_emulator'");
        println!("SKIPPED: no AMX");
    }
    for ty in WeightType::ALL.iter().filter(|_| record) {
        recorded.scales.entry(ty.info().name.to_string()).or_insert_with(|| scales_by_kind(*ty));
    }
    let (mut found, mut wrong) = (BTreeMap::new(), String::new());
    let packed = all_types().iter().map(|ty| {
        let name = ty.info().name;
        let scales = recorded.scales.get(name).unwrap_or_else(|| panic!("{FILE} has no line `type {name}`: record it"));
        (name, of_packed(*ty, scales))
    });
    let plain = plain::TYPES.into_iter().map(|ty| (ty.name, of_plain(ty)));
    for (name, results) in packed.chain(plain) {
        for (kernel, isa, hash) in results {
            let what = format!("{name} {kernel}");
            let expected = *if record {
                found.entry(what.clone()).or_insert(hash)
            } else {
                recorded.hashes.get(&what).unwrap_or(&0)
            };
            if hash != expected {
                writeln!(wrong, "{what} on {}: {hash:016x}, recorded {expected:016x}", isa.name()).unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "other bits (type, kernel, KxNxM, instruction set):\n{wrong}");
    if record {
        let mut text = "# Hashes of results: see hashes.rs.\n".to_string();
        for (name, scales) in &recorded.scales {
            let scales = scales.iter().map(|[at, mask, value]| format!(" {at}&{mask:02x}|{value:02x}"));
            writeln!(text, "type {name}{}", scales.collect::<String>()).unwrap();
        }
        found.iter().for_each(|(what, hash)| writeln!(text, "{what} {hash:016x}").unwrap());
        std::fs::write(FILE, text).unwrap();
    }
}

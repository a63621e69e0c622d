//! Times of MUL_MAT as a host sees it (quantising the activations included), beside what the machine can do at
//! that moment: a TDPBSSD loop of 4 ms before and after every repetition, and plain reads of memory.
//! Products of hosts (`--host`, see `benches/hosts`) are measured in turns with this library's, on the same
//! threads. Machines are shared and clocks change, so only ratios within one run mean anything.
//!
//! `cargo bench --bench mul_mat -- [--types q4_0,q8_0] [--m 1,512] [--shapes 4096x4096,14336x4096]
//! [--threads 2] [--reps 7] [--exact] [--kind gate|down|smooth] [--warm] [--in-place]
//! [--host NAME=PATH] [--json FILE]`;
//! shapes are N x K. `cargo xtask bench` builds the hosts and draws the results.
//!
//! Weights come from memory: there are so many copies that caches do not hold them, and each repetition uses the next
//! one (`--warm`: only one copy). `--in-place`: this library's weights stay as GGUF has them, and are packed on the
//! way.
//!
//! `--facts` measures nothing: it prints how each weight type is stored and multiplied, one JSON object a line.

mod codebooks;
mod data;
mod facts;
mod hosts;
mod machine;
mod measure;
mod options;
mod record;
#[path = "../../src/testing/reference.rs"]
mod reference;
mod subject;

use std::fs::File;
use std::io::Write;
use std::process::ExitCode;

use codebooks::decode as decode_codebook;
use ggml_amx::cpu;
use ggml_amx::format::{Field, FieldKind, WeightType};
use hosts::Host;
use machine::Reader;
use options::Options;
use subject::Subject;

/// A result with a larger NMSE is wrong (8-bit activations with outliers have 1e-3).
const WRONG: f64 = 0.05;

fn main() -> ExitCode {
    match Options::read().and_then(|o| run(&o)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("mul_mat: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(o: &Options) -> Result<(), String> {
    if o.facts {
        facts::lines().iter().for_each(|line| println!("{line}"));
        return Ok(());
    }
    let hosts = o.hosts.iter().map(|h| Host::load(h)).collect::<Result<Vec<Host>, _>>()?;
    let types = o.types()?;
    let io = |e: std::io::Error| e.to_string();
    let mut json = o.json.as_ref().map(File::create).transpose().map_err(io)?;
    println!(
        "{} threads, activations: {}, precision: {}, instruction set: {}, weights {}",
        o.threads,
        o.kind,
        if o.exact { "exact" } else { "auto" },
        cpu::isa().name(),
        if o.warm { "as the cache has them" } else { "from memory" }
    );
    let reader = Reader::new();
    let mut repetitions = 0;
    let most = o.rows.iter().copied().max().unwrap_or(1);
    for (n, k) in &o.shapes {
        let x = data::activations(&o.kind, most, *k, &mut data::Random(9));
        for ty in &types {
            let subject = Subject::new(*ty, (*n, *k), &hosts, o);
            for m in &o.rows {
                let measured = measure::measure(&subject, *m, &x, &reader, o, repetitions);
                repetitions += o.reps + 1;
                let (text, object) = record::lines(&subject, *m, &measured, o);
                println!("{text}");
                if let Some(way) = measured.ways.iter().find(|w| !w.nmse.lt(&WRONG)) {
                    return Err(format!("{}: this is not the product (NMSE {})", way.name, way.nmse));
                }
                if let Some(file) = &mut json {
                    writeln!(file, "{object}").map_err(io)?;
                }
            }
        }
    }
    Ok(())
}

//! `cargo xtask verify`: is the text a model writes through this library as good as through the host's plain path?
//!
//! For every weight type: quantise SmolLM2, turn the quantised weights back into F32, and record the F32
//! model's logits over English text. That is the truth both ways are measured against, so the type's own
//! quantisation error is in neither number: what is left is the arithmetic.
//! `--upcycled`: the same truth, that of the dense model; what is measured is a mixture of experts that equals it.
//!
//! `--host ik`: the same in ik_llama.cpp, with weights where they are and with packed ones; then a long text is
//! generated while this library searches every result for NaN.

mod bench;
mod generate;
mod models;
mod upcycle;
mod widen;

use std::path::{Path, PathBuf};

use bench::Bench;
pub use models::quantisable;
use models::{Model, Models};

use crate::{
    cache::{self, Cache},
    cpu,
    host::{self, Host, Kind},
    program::Settings,
    score::{self, Row, Twins},
    util::Result,
};

/// Tokens per chunk; the host scores the second half of each.
const CONTEXT: usize = 512;
/// Fewer chunks than this say nothing.
const MIN_CHUNKS: usize = 8;

/// What to measure.
pub struct Options {
    /// GGUF weight types; empty: the default ones.
    pub types: Vec<String>,
    /// A mixture of experts in the place of the dense model.
    pub upcycled: bool,
    /// Everything in BF16 on the tile unit; its KL divergence may be a tenth of the host's.
    pub exact: bool,
    /// In ik_llama.cpp.
    pub is_ik: bool,
    /// Length of the text.
    pub tokens: usize,
    /// End with one line of JSON.
    pub json: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { types: Vec::new(), upcycled: false, exact: false, is_ik: false, tokens: 8192, json: false }
    }
}

impl Options {
    fn types(&self, host: &Host) -> Vec<String> {
        let default: &[&str] = match (self.upcycled, self.is_ik) {
            (true, _) => &["Q4_0", "Q4_K"],
            (false, false) => &["Q4_1", "Q4_0", "Q8_0", "Q6_K"],
            (false, true) => &["Q4_1", "Q4_0", "Q8_0", "Q6_K", "IQ4_K"],
        };
        match self.types.first().map(String::as_str) {
            None => default.iter().map(ToString::to_string).collect(),
            Some("ALL") => models::types_of(host),
            Some(_) => self.types.clone(),
        }
    }
}

/// How it ended, when nothing failed.
pub enum Outcome {
    /// All limits hold.
    Passed,
    /// This machine cannot run it.
    Skipped(String),
}

/// One mode of this library.
struct Mode<'a> {
    /// Follows the type's name in the table.
    name: &'static str,
    settings: Settings<'a>,
}

/// Measures, prints the table, and fails when a limit does.
pub fn run(options: &Options) -> Result<Outcome> {
    let cpu = cpu::detect();
    let asked = std::env::var("GGML_AMX_ISA").ok().filter(|v| !v.is_empty());
    let isa = asked.or_else(|| (!cpu.amx).then(|| "avx512".to_string()));
    if !cpu.amx && !cpu.avx512_vnni && isa.as_deref() != Some("portable") {
        return Ok(Outcome::Skipped("this CPU has neither AMX nor AVX-512 VNNI".into()));
    }
    let settings = Settings { isa: isa.as_deref(), exact: options.exact, ..Settings::default() };
    let modes = if options.is_ik {
        vec![
            Mode { name: " in place", settings },
            Mode { name: " in place, -rtr", settings: Settings { repacked: true, ..settings } },
            Mode { name: " packed", settings: Settings { packed: true, ..settings } },
        ]
    } else {
        vec![Mode { name: "", settings }]
    };
    let chunks = (options.tokens / CONTEXT).max(MIN_CHUNKS);
    let host = host::ensure(if options.is_ik { Kind::IkOurs } else { Kind::Llama })?;
    let cache = Cache::open()?;
    let bench = Bench::new(&cache, &host, chunks)?;
    let (mut rows, mut twins, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    for name in options.types(&host) {
        println!("  {name}");
        let measured =
            if options.upcycled { upcycled(&bench, &name, &modes, &mut twins) } else { dense(&bench, &name, &modes) };
        match measured {
            Ok(measured) => rows.extend(measured),
            Err(why) => failures.push(format!("{name}: {why}")),
        }
    }
    show(options, isa.as_deref(), chunks, &rows, &twins);
    failures.extend(rows.iter().flat_map(score::judge));
    failures.extend(twins.iter().filter_map(score::judge_twins));
    if options.json {
        println!("{}", score::json(&rows));
    }
    if failures.is_empty() { Ok(Outcome::Passed) } else { Err(failures.join("\n")) }
}

fn show(options: &Options, isa: Option<&str>, chunks: usize, rows: &[Row], twins: &[Twins]) {
    println!("\n{}", score::show(rows));
    println!(
        "  {} tokens of English, contexts of {CONTEXT}; this library on {}{}; truth: the same {}weights in F32",
        chunks * CONTEXT,
        isa.unwrap_or("amx"),
        if options.exact { " (exact)" } else { "" },
        if options.upcycled { "dense " } else { "" }
    );
    println!("  in type: matrices' weights in this type; in AMX: matrices in the AMX buffer");
    if options.is_ik {
        println!("  host: ik_llama.cpp without this library; no NaN in {} tokens of each row", generate::TOKENS);
    }
    if options.upcycled {
        println!("\n{}", score::show_twins(twins));
        println!("  {} experts that equal the dense network, against it, both in F32 on the host", upcycle::EXPERTS);
    }
}

/// Calls `work` with a mixture of experts that equals the dense model, in one weight type.
pub fn with_experts<T>(host: &Host, name: &str, run: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let cache = Cache::open()?;
    let models = Models { cache: &cache, host };
    let experts = models.experts(&models.dense(name)?, name)?;
    let done = run(&experts.file);
    cache::remove(&experts.file)?;
    done
}

/// The dense model in types that are mixed within each layer: keys and gates in F32, the output of attention in Q6_0.
pub fn mixed(host: &Host) -> Result<PathBuf> {
    let cache = Cache::open()?;
    Models { cache: &cache, host }.mixed()
}

/// A fork of ik_llama.cpp against ik_llama.cpp as it is: a dense model and a mixture of experts.
pub fn in_fork(fork: &Host, settings: Settings<'_>) -> Result<()> {
    let cache = Cache::open()?;
    let bench = Bench::new(&cache, fork, MIN_CHUNKS)?;
    let modes = [Mode { name: ", asked by function", settings }];
    let (mut rows, mut twins) = (dense(&bench, "Q4_0", &modes)?, Vec::new());
    rows.extend(upcycled(&bench, "Q4_0", &modes, &mut twins)?);
    println!("\n{}", score::show(&rows));
    let failures: Vec<String> = rows.iter().flat_map(score::judge).collect();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

/// The dense model in one weight type, and the same weights in F32 at `to`.
pub fn in_f32(cache: &Cache, host: &Host, name: &str, to: &Path) -> Result<PathBuf> {
    let models = Models { cache, host };
    let model = models.dense(name)?;
    models.in_f32(&model.file, to)?;
    Ok(model.file)
}

fn dense(bench: &Bench<'_>, name: &str, modes: &[Mode<'_>]) -> Result<Vec<Row>> {
    let model = bench.models.dense(name)?;
    let base = bench.reference(&model)?;
    let rows = measure(bench, name, &model, &base, modes);
    cache::remove(&base)?;
    rows
}

fn upcycled(bench: &Bench<'_>, name: &str, modes: &[Mode<'_>], twins: &mut Vec<Twins>) -> Result<Vec<Row>> {
    let dense = bench.models.dense(name)?;
    let base = bench.reference(&dense)?;
    twins.push(Twins { name: name.to_string(), score: bench.twins(&dense, &base)? });
    let experts = bench.models.experts(&dense, name)?;
    let rows = measure(bench, &format!("{name} x {}", upcycle::EXPERTS), &experts, &base, modes);
    cache::remove(&base)?;
    cache::remove(&experts.file)?;
    rows
}

/// The host's plain path once, this library in every mode.
fn measure(bench: &Bench<'_>, name: &str, model: &Model, base: &Path, modes: &[Mode<'_>]) -> Result<Vec<Row>> {
    let plain = bench.plain(model, base)?;
    let one = |mode: &Mode<'_>| {
        let (ours, held) = bench.ours(model, base, mode.settings)?;
        if bench.models.host.kind.is_ik() {
            generate::without_nan(bench, model, mode.settings)?;
        }
        let max_kld_ratio = if mode.settings.exact { score::MAX_KLD_RATIO_EXACT } else { score::MAX_KLD_RATIO };
        Ok(Row { name: format!("{name}{}", mode.name), ours, plain, in_type: model.in_type, held, max_kld_ratio })
    };
    modes.iter().map(one).collect()
}

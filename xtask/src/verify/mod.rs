//! `cargo xtask verify`: is the text a model writes through this library as good as through the host's plain path?
//!
//! For every weight type: quantise SmolLM2, turn the quantised weights back into F32, and record the F32
//! model's logits over English text. That is the truth both ways are measured against, so the type's own
//! quantisation error is in neither number: what is left is the arithmetic.
//!
//! `--upcycled`: the truth stays that of the dense model; a mixture of experts that equals it is measured.

mod bench;
mod models;
mod upcycle;
mod widen;

use bench::Bench;
pub use models::ALL as TYPES;

use crate::{
    cache::{self, Cache},
    cpu,
    host::{self, Kind},
    program::Way,
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
    /// Everything in BF16 on the tile unit, which must come ten times nearer.
    pub exact: bool,
    /// Length of the text.
    pub tokens: usize,
    /// End with one line of JSON.
    pub json: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { types: Vec::new(), upcycled: false, exact: false, tokens: 8192, json: false }
    }
}

impl Options {
    fn types(&self) -> Vec<String> {
        let default: &[&str] = if self.upcycled { &["Q4_0", "Q4_K"] } else { &["Q4_1", "Q4_0", "Q8_0", "Q6_K"] };
        match self.types.first().map(String::as_str) {
            None => default.iter().map(ToString::to_string).collect(),
            Some("ALL") => models::ALL.map(String::from).into(),
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

/// Measures, prints the table, and fails when a limit does.
pub fn run(options: &Options) -> Result<Outcome> {
    let cpu = cpu::detect();
    let asked = std::env::var("GGML_AMX_ISA").ok().filter(|v| !v.is_empty());
    let isa = asked.or_else(|| (!cpu.amx).then(|| "avx512".to_string()));
    let way = if options.exact { Way::Exact } else { Way::Ours(isa.as_deref()) };
    if !cpu.amx && !cpu.avx512_vnni && isa.as_deref() != Some("portable") {
        return Ok(Outcome::Skipped("this CPU has neither AMX nor AVX-512 VNNI".into()));
    }
    let chunks = (options.tokens / CONTEXT).max(MIN_CHUNKS);
    let host = host::ensure(Kind::Llama)?;
    let cache = Cache::open()?;
    let bench = Bench::new(&cache, &host, chunks)?;
    let (mut rows, mut twins, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    for name in options.types() {
        println!("  {name}");
        let row = if options.upcycled { upcycled(&bench, &name, way, &mut twins) } else { dense(&bench, &name, way) };
        match row {
            Ok(mut row) => {
                row.max_kld_ratio = if options.exact { score::MAX_KLD_RATIO_EXACT } else { score::MAX_KLD_RATIO };
                rows.push(row);
            }
            Err(why) => failures.push(format!("{name}: {why}")),
        }
    }
    println!("\n{}", score::show(&rows));
    let isa = isa.as_deref().unwrap_or("amx");
    println!(
        "  {} tokens of English, contexts of {CONTEXT}; this library on {isa}{}; truth: the same {}weights in F32",
        chunks * CONTEXT,
        if options.exact { " (exact)" } else { "" },
        if options.upcycled { "dense " } else { "" }
    );
    println!("  in type: matrices' weights in this type; in AMX: matrices in the AMX buffer");
    if options.upcycled {
        println!("\n{}", score::show_twins(&twins));
        println!("  {} experts that equal the dense network, against it, both in F32 on the host", upcycle::EXPERTS);
    }
    failures.extend(rows.iter().flat_map(score::judge));
    failures.extend(twins.iter().filter_map(score::judge_twins));
    if options.json {
        println!("{}", score::json(&rows));
    }
    if failures.is_empty() { Ok(Outcome::Passed) } else { Err(failures.join("\n")) }
}

fn dense(bench: &Bench<'_>, name: &str, way: Way<'_>) -> Result<Row> {
    let model = bench.models.dense(name)?;
    let base = bench.reference(&model)?;
    let plain = bench.plain(&model, &base)?;
    let (ours, held) = bench.ours(&model, &base, way)?;
    cache::remove(&base)?;
    Ok(Row { name: name.to_string(), ours, plain, in_type: model.in_type, held, max_kld_ratio: score::MAX_KLD_RATIO })
}

fn upcycled(bench: &Bench<'_>, name: &str, way: Way<'_>, twins: &mut Vec<Twins>) -> Result<Row> {
    let dense = bench.models.dense(name)?;
    let base = bench.reference(&dense)?;
    twins.push(Twins { name: name.to_string(), score: bench.twins(&dense, &base)? });
    let experts = bench.models.experts(&dense, name)?;
    let plain = bench.plain(&experts, &base)?;
    let (ours, held) = bench.ours(&experts, &base, way)?;
    cache::remove(&base)?;
    cache::remove(&experts.file)?;
    Ok(Row {
        name: format!("{name} x {}", upcycle::EXPERTS),
        ours,
        plain,
        in_type: experts.in_type,
        held,
        max_kld_ratio: score::MAX_KLD_RATIO,
    })
}

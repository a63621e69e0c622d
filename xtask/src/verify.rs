//! `cargo xtask verify`: is the text a model writes through this library as good as through the host's plain path?
//!
//! For every weight type: quantise SmolLM2, turn the quantised weights back into F32, and record the F32
//! model's logits over English text. That is the truth both ways are measured against, so the type's own
//! quantisation error is in neither number: what is left is the arithmetic.

use std::path::{Path, PathBuf};

use crate::{
    cache::{self, Cache},
    cpu, fetch,
    host::{self, Host, Kind},
    program::{self, Way},
    score::{self, Row, Score},
    text,
    util::{self, Result, io},
};

/// Tokens per chunk; the host scores the second half of each.
const CONTEXT: usize = 512;
/// Fewer chunks than this say nothing.
const MIN_CHUNKS: usize = 8;

/// What to measure.
pub struct Options {
    /// GGUF weight types.
    pub types: Vec<String>,
    /// Length of the text.
    pub tokens: usize,
    /// Everything in BF16 on the tile unit, which must come ten times nearer.
    pub exact: bool,
    /// End with one line of JSON.
    pub json: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            types: ["Q4_1", "Q4_0", "Q8_0", "Q6_K"].map(String::from).into(),
            tokens: 8192,
            exact: false,
            json: false,
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
    if !cpu.amx && !cpu.avx512_vnni && isa.as_deref() != Some("portable") {
        return Ok(Outcome::Skipped("this CPU has neither AMX nor AVX-512 VNNI".into()));
    }
    let chunks = (options.tokens / CONTEXT).max(MIN_CHUNKS);
    let host = host::ensure(Kind::Llama)?;
    let cache = Cache::open()?;
    let bench = Bench::new(&cache, &host, chunks)?;
    let mut rows = Vec::new();
    for name in &options.types {
        println!("  {name}");
        let model = bench.model(name)?;
        let base = bench.reference(name, &model)?;
        let plain = bench.plain(name, &model, &base)?;
        let way = if options.exact { Way::Exact } else { Way::Ours(isa.as_deref()) };
        let ours = bench.ours(name, &model, &base, way)?;
        cache::remove(&base)?;
        let max_kld_ratio = if options.exact { score::MAX_KLD_RATIO_EXACT } else { score::MAX_KLD_RATIO };
        rows.push(Row { name: name.clone(), ours, plain, max_kld_ratio });
    }
    println!("\n{}", score::show(&rows));
    let isa = isa.as_deref().unwrap_or("amx");
    println!(
        "  {} tokens of English, contexts of {CONTEXT}; this library on {isa}{}; truth: the same weights in F32",
        chunks * CONTEXT,
        if options.exact { " (exact)" } else { "" }
    );
    let failures: Vec<String> = rows.iter().flat_map(score::judge).collect();
    if options.json {
        println!("{}", score::json(&rows));
    }
    if failures.is_empty() { Ok(Outcome::Passed) } else { Err(failures.join("\n")) }
}

/// The host, the text and the directory for what need not be measured twice.
struct Bench<'a> {
    cache: &'a Cache,
    host: &'a Host,
    text: PathBuf,
    dir: String,
    chunks: usize,
    threads: String,
}

impl<'a> Bench<'a> {
    fn new(cache: &'a Cache, host: &'a Host, chunks: usize) -> Result<Self> {
        let prose = text::prose(&host.source)?;
        let who = [fetch::HOST.requirement, &host.compiler.label, &cpu::detect().model, &chunks.to_string(), &prose];
        let key = cache::fnv(who.join("\n").bytes()) >> 32;
        let dir = format!("verify/{key:08x}");
        let text = cache.once(&format!("{dir}/text.txt"), |to| io("write", to, std::fs::write(to, &prose)))?;
        Ok(Self { cache, host, text, dir, chunks, threads: cpu::detect().threads.to_string() })
    }

    /// The model in this weight type.
    fn model(&self, name: &str) -> Result<PathBuf> {
        let q4_1 = fetch::model(self.cache)?;
        if name == "Q4_1" {
            return Ok(q4_1);
        }
        let file = format!("models/SmolLM2-135M-Instruct.{name}.gguf");
        self.cache.once(&file, |to| self.quantise(&q4_1, to, name, &["--pure"]))
    }

    /// Logits of the same weights in F32; made anew each time, because they take 400 MB.
    fn reference(&self, name: &str, model: &Path) -> Result<PathBuf> {
        println!("    F32 reference");
        let base = self.cache.path(format!("{}/logits", self.dir));
        let f32 = self.cache.path(format!("{}/f32.gguf", self.dir));
        cache::remove(&base)?;
        self.quantise(model, &f32, "F32", &[])?;
        let (_, log) = self.perplexity(&f32, &base, Way::Plain, &[], &format!("verify-{name}-f32"))?;
        cache::remove(&f32)?;
        let wanted = format!("over {} chunks", self.chunks);
        if log.contains(&wanted) { Ok(base) } else { Err(format!("the text is too short for {} chunks", self.chunks)) }
    }

    /// The host's plain path on the quantised weights (made once).
    fn plain(&self, name: &str, model: &Path, base: &Path) -> Result<Score> {
        let report = self.cache.once(&format!("{}/{name}.plain.txt", self.dir), |to| {
            println!("    host's plain path");
            let (report, log) =
                self.perplexity(model, base, Way::Plain, &["--kl-divergence"], &format!("verify-{name}-plain"))?;
            if program::amx_line(&log).is_some() {
                return Err("the host's plain run used an AMX buffer: no reference".into());
            }
            score::parse(&report)?;
            io("write", to, std::fs::write(to, report))
        })?;
        score::parse(&io("read", &report, std::fs::read_to_string(&report))?)
    }

    fn ours(&self, name: &str, model: &Path, base: &Path, way: Way<'_>) -> Result<Score> {
        println!("    this library");
        let label = format!("verify-{name}-ours");
        let (report, log) = self.perplexity(model, base, way, &["--kl-divergence"], &label)?;
        if program::amx_line(&log).is_none() {
            let said = program::our_lines(&log).join("\n    | ");
            return Err(format!(
                "{name}: the AMX buffer was not used\n    | {said}\n  log: {}",
                cache::log(&label)?.display()
            ));
        }
        score::parse(&report)
            .map_err(|e| format!("{name}: {e}\n  log: {}", cache::log(&label).unwrap_or_default().display()))
    }

    fn quantise(&self, from: &Path, to: &Path, kind: &str, extra: &[&str]) -> Result<()> {
        let mut command = program::command(self.host, "llama-quantize", Way::HostBest)?;
        command.arg("--allow-requantize").args(extra).arg(from).arg(to).args([kind, &self.threads]);
        util::capture(&mut command, &cache::log(&format!("quantize-{kind}"))?).map(|_| ())
    }

    /// Standard output and log of one llama-perplexity run.
    fn perplexity(
        &self,
        model: &Path,
        base: &Path,
        way: Way<'_>,
        extra: &[&str],
        label: &str,
    ) -> Result<(String, String)> {
        let mut command = program::command(self.host, "llama-perplexity", way)?;
        command.arg("-m").arg(model).arg("-f").arg(&self.text).arg("--kl-divergence-base").arg(base).args(extra);
        command.args([
            "-c",
            &CONTEXT.to_string(),
            "--chunks",
            &self.chunks.to_string(),
            "-t",
            &self.threads,
            "-lv",
            "4",
        ]);
        let output = program::run_proved(self.host, command, way, &cache::log(label)?)?;
        Ok((output.stdout, output.stderr))
    }
}

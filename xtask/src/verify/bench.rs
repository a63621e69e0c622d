//! The runs of llama-perplexity.

use std::path::{Path, PathBuf};

use super::{CONTEXT, models::Model, models::Models};
use crate::{
    cache::{self, Cache},
    cpu, fetch,
    host::Host,
    products::{self, Floor},
    program::{self, Settings, Way},
    score::{self, Score},
    text,
    util::{Result, io},
};

/// The host, the text and the directory for what need not be measured twice.
pub struct Bench<'a> {
    pub models: Models<'a>,
    pub text: PathBuf,
    dir: String,
    chunks: usize,
    pub threads: String,
}

impl<'a> Bench<'a> {
    pub fn new(cache: &'a Cache, host: &'a Host, chunks: usize) -> Result<Self> {
        let prose = text::prose(&fetch::source(cache)?)?;
        let who = [host.requirement(), &host.compiler.label, &cpu::detect().model, &chunks.to_string(), &prose];
        let key = cache::fnv(who.join("\n").bytes()) >> 32;
        let dir = format!("verify/{key:08x}");
        let text = cache.once(&format!("{dir}/text.txt"), |to| io("write", to, std::fs::write(to, &prose)))?;
        Ok(Self { models: Models { cache, host }, text, dir, chunks, threads: cpu::detect().threads.to_string() })
    }

    /// Logits of the same weights in F32; made anew each time, because they take 400 MB.
    pub fn reference(&self, model: &Model) -> Result<PathBuf> {
        println!("    F32 reference");
        let [base, f32] = ["logits", "f32.gguf"].map(|file| self.models.cache.path(format!("{}/{file}", self.dir)));
        cache::remove(&base)?;
        self.models.in_f32(&model.file, &f32)?;
        let (_, log) = self.perplexity(&f32, &base, Way::Plain, &[], &format!("{}.f32", model.label))?;
        cache::remove(&f32)?;
        let wanted = format!("over {} chunks", self.chunks);
        if log.contains(&wanted) { Ok(base) } else { Err(format!("the text is too short for {} chunks", self.chunks)) }
    }

    /// The host's plain path on the quantised weights (made once).
    pub fn plain(&self, model: &Model, base: &Path) -> Result<Score> {
        self.once(&format!("{}.plain", model.label), |label| {
            println!("    host's plain path");
            self.score_plain(&model.file, base, label)
        })
    }

    /// How the mixture of experts in F32 differs from the dense model in F32, both on the host (made once). In
    /// F32, because rounded activations take another course after the smallest difference.
    pub fn twins(&self, dense: &Model, base: &Path) -> Result<Score> {
        self.once(&format!("{}.twins", dense.label), |label| {
            println!("    experts in F32");
            let file = self.models.cache.path(format!("{}/twin.gguf", self.dir));
            self.models.experts_in_f32(dense, &file)?;
            let report = self.score_plain(&file, base, label);
            cache::remove(&file)?;
            report
        })
    }

    /// The report that is kept under this name.
    fn once(&self, name: &str, make: impl FnOnce(&str) -> Result<String>) -> Result<Score> {
        let report = self.models.cache.once(&format!("{}/{name}.txt", self.dir), |to| {
            let report = make(name)?;
            score::parse(&report)?;
            io("write", to, std::fs::write(to, report))
        })?;
        score::parse(&io("read", &report, std::fs::read_to_string(&report))?)
    }

    fn score_plain(&self, model: &Path, base: &Path, label: &str) -> Result<String> {
        let (report, log) = self.perplexity(model, base, Way::Plain, &["--kl-divergence"], label)?;
        if program::amx_line(&log).is_some() || !products::none(&log) {
            return Err("this library was at work in the host's plain run: no reference".into());
        }
        Ok(report)
    }

    /// This library's report, and how much of the model's matrices it had packed, in percent; None in ik_llama.cpp with
    /// weights in place, where it packs nothing.
    pub fn ours(&self, model: &Model, base: &Path, settings: Settings<'_>) -> Result<(Score, Option<f64>)> {
        println!("    this library{}", settings.place().replace('-', ", "));
        let label = format!("{}.ours{}", model.label, settings.place());
        let (report, log) = self.perplexity(&model.file, base, Way::Ours(settings), &["--kl-divergence"], &label)?;
        let is_ik = self.models.host.kind.is_ik();
        let score = score::parse(&report)?;
        Floor::new(self.models.host, &settings, &model.file, self.chunks, 0)?.check(&log)?;
        if is_ik && !settings.packed {
            return Ok((score, None));
        }
        let held = program::held(&log).unwrap_or(0.0);
        if held == 0.0 {
            println!("    nothing packed; log: {}", cache::log(&format!("verify-{label}"))?.display());
            program::our_lines(&log).iter().for_each(|line| println!("    | {line}"));
        }
        if is_ik && held == 0.0 && model.may_stay {
            return Ok((score, None));
        }
        // ik_llama.cpp has no second copy of the embeddings to multiply with.
        let wanted = if is_ik { model.matrices - model.embeddings } else { model.matrices };
        Ok((score, Some(100.0 * held / wanted)))
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
        let host = self.models.host;
        let mut command = program::command(host, "llama-perplexity", way)?;
        command.arg("-m").arg(model).arg("-f").arg(&self.text).arg("--kl-divergence-base").arg(base).args(extra);
        command.args(["-c", &CONTEXT.to_string(), "--chunks", &self.chunks.to_string(), "-t", &self.threads]);
        if !host.kind.is_ik() {
            command.args(["-lv", "4"]);
        }
        let log = cache::log(&format!("verify-{label}"))?;
        let output = program::run_proved(host, command, way, &log)?;
        Ok((output.stdout, output.stderr))
    }
}

//! What one host is asked: are its structs found, do bytes come back from buffers, are products right, and are a real
//! model's logits.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Bench, hosts::Made};
use crate::{
    cache,
    products::{self, Floor, Products},
    program::{self, Settings},
    util::{self, Result, io},
};

/// Our mean KL divergence may be this many times the host's, or within three standard errors of it.
const MAX_KLD_RATIO: f64 = 1.1;

impl Bench {
    /// The program, in an environment without settings from outside; standard output and error.
    fn call(&self, made: &Made, ours: bool, arguments: &[&str], more: &[PathBuf]) -> Result<util::Output> {
        let mut command = match &made.loader {
            None => Command::new(&self.program),
            Some(dir) => {
                let mut loader = Command::new(dir.join("ld-linux-x86-64.so.2"));
                loader.arg("--library-path").arg(dir).arg(&self.program);
                loader
            }
        };
        program::clean(&mut command);
        command.args(arguments).args(&made.libraries).args(more);
        // Hosts also look for backends in the directory where they are started.
        command.current_dir(self.base.parent().unwrap_or(Path::new("/")));
        let (report, value) = products::REPORT;
        command.env(report, value).envs(self.isa.as_ref().map(|isa| ("GGML_AMX_ISA", isa)));
        if !ours {
            command.env("GGML_AMX_MODE", "off").env("ANY_HOST_PLAIN", "1");
        }
        util::capture(&mut command, &cache::log("matrix")?)
    }

    /// Logits of a model, written to a file: how many words there are. All products must have been this library's, or
    /// none.
    pub(super) fn logits(&self, made: &Made, llama: &Path, model: &Path, to: &Path, ours: bool) -> Result<usize> {
        let settings = Settings { isa: self.isa.as_deref(), ..Settings::default() };
        let floor = Floor::of(false, &settings, model, 1, 0)?;
        let [model, text, to] = [model, &self.text, to].map(|path| path.display().to_string());
        let more = [llama.to_path_buf()];
        let output = self.call(made, ours, &["logits", &model, &text, &to], &more)?;
        if ours {
            floor.check(&output.stderr)?;
        } else if !products::none(&output.stderr) {
            return Err("products were this library's where none should be".into());
        }
        let words = output.stdout.lines().find_map(|line| line.strip_prefix("logits: ")?.split_whitespace().nth(3));
        words.and_then(|words| words.parse().ok()).ok_or("no logits were written".into())
    }

    /// Fills the cells behind the first three.
    pub(super) fn check(&self, made: &Made, cells: &mut Vec<String>) -> Result<()> {
        cells[1].clone_from(&made.version);
        let output = self.call(made, true, &["products"], &[])?;
        let said = |what: &str| output.stdout.lines().find_map(|line| line.strip_prefix(what));
        if said("proof: ggml").is_some_and(|version| !version.trim().is_empty() && made.version.is_empty()) {
            cells[1] = said("proof: ggml").unwrap_or_default().trim().to_string();
        }
        let found = |what: &str| said(what).map(|rest| rest.trim().to_string()).ok_or(format!("no line `{what}`"));
        found("proof:")?;
        cells.push("found".into());
        found("contract of buffers:")?;
        cells.push("right".into());
        let nmse = found("products:")?;
        cells.push(nmse.rsplit(' ').next().unwrap_or_default().to_string());
        some_ours(&output.stderr)?;
        let Some(llama) = &made.llama else { return Ok(()) };
        let dir = self.base.parent().ok_or("the base lies in a directory")?;
        let [ours, theirs] = [dir.join("ours"), dir.join("theirs")];
        self.logits(made, llama, &self.model, &ours, true)?;
        self.logits(made, llama, &self.model, &theirs, false)?;
        let [kld, host] = [self.divergence(&ours)?, self.divergence(&theirs)?];
        cells.push(format!("{:.5} / {:.5}", mean(&kld), mean(&host)));
        let differences: Vec<f64> = kld.iter().zip(&host).map(|(ours, theirs)| ours - theirs).collect();
        let mean_difference = mean(&differences);
        let squares: Vec<f64> = differences.iter().map(|d| (d - mean_difference).powi(2)).collect();
        let error = (mean(&squares) / differences.len() as f64).sqrt();
        if mean(&kld) > MAX_KLD_RATIO * mean(&host) && mean_difference > 3.0 * error {
            return Err(format!("mean KL divergence {:.6}, the host's {:.6}", mean(&kld), mean(&host)));
        }
        Ok(())
    }

    /// KL divergence of each token's distribution to that of the weights in F32.
    fn divergence(&self, file: &Path) -> Result<Vec<f64>> {
        let rows = |path: &Path| -> Result<Vec<Vec<f64>>> {
            let bytes = io("read", path, fs::read(path))?;
            let floats: Vec<f32> =
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            Ok(floats.chunks_exact(self.words).map(log_softmax).collect())
        };
        let (base, found) = (rows(&self.base)?, rows(file)?);
        if base.len() != found.len() {
            return Err(format!("{} rows of logits, not {}", found.len(), base.len()));
        }
        let one = |(p, q): (&Vec<f64>, &Vec<f64>)| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum();
        let all: Vec<f64> = base.iter().zip(&found).map(one).collect();
        if all.iter().all(|kld: &f64| kld.is_finite()) { Ok(all) } else { Err("a logit is NaN or infinite".into()) }
    }
}

/// This library must have multiplied (the program compares every product itself).
fn some_ours(log: &str) -> Result<()> {
    match Products::of(log).map(|products| products.matrices(&[])) {
        Some(count) if count > 0 => Ok(()),
        _ => Err("no product was this library's".into()),
    }
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let most = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|v| (f64::from(*v) - most).exp()).sum();
    row.iter().map(|v| f64::from(*v) - most - sum.ln()).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_and_equal_ones_do_not_diverge() {
        let row = log_softmax(&[1.0, 2.0, -3.0, 100.0]);
        assert!((row.iter().map(|p| p.exp()).sum::<f64>() - 1.0).abs() < 1e-12);
        let other = log_softmax(&[2.0, 3.0, -2.0, 101.0]);
        let kld: f64 = row.iter().zip(&other).map(|(p, q)| p.exp() * (p - q)).sum();
        assert!(kld.abs() < 1e-12);
    }
}

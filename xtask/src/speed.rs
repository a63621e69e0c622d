//! Tokens per second of several ways to run the same host, measured in turns: A B A B ...

use std::path::Path;

use crate::{
    cache,
    host::Host,
    products::Floor,
    program::{self, Way},
    util::Result,
};

/// Tokens that llama-bench computes at once if it is not told.
const UBATCH: u32 = 512;

/// What llama-bench is asked for.
pub struct Plan {
    /// Prompt length, in tokens.
    pub prompt: u32,
    /// Tokens to generate; 0: none.
    pub generation: u32,
    /// Tokens of the prompt that are computed at once, if not the host's default.
    pub batch: Option<u32>,
    /// How often every way has its turn.
    pub rounds: usize,
    /// Repetitions of either test in a turn.
    pub repetitions: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Self { prompt: 512, generation: 64, batch: None, rounds: 5, repetitions: 2 }
    }
}

/// Tokens per second of one way to run.
#[derive(Default)]
pub struct Samples {
    /// Prompt processing.
    pub prompt: Vec<f64>,
    /// Generation.
    pub generation: Vec<f64>,
}

/// The samples of one test.
pub type Of = fn(&Samples) -> &[f64];

/// The two tests of a default plan, by name.
pub const TESTS: [(&str, Of); 2] = [("prompt (pp512)", |s| &s.prompt), ("generation (tg64)", |s| &s.generation)];

impl Samples {
    /// The last ones, `prompt/generation`.
    fn last(&self) -> String {
        let last: Vec<String> =
            [&self.prompt, &self.generation].into_iter().filter_map(|s| s.last()).map(|v| format!("{v:.1}")).collect();
        last.join("/")
    }
}

/// Runs all ways in turns; the proof of what was loaded, and of how much this library computed, is part of every run.
pub fn interleaved(host: &Host, model: &Path, ways: &[Way<'_>], threads: usize, plan: &Plan) -> Result<Vec<Samples>> {
    let mut all: Vec<Samples> = ways.iter().map(|_| Samples::default()).collect();
    let [prompt, generation] = [plan.prompt, plan.generation].map(|n| n.to_string());
    for round in 1..=plan.rounds {
        for (i, (way, samples)) in ways.iter().zip(&mut all).enumerate() {
            let mut command = program::command(host, "llama-bench", *way)?;
            command.arg("-m").arg(model).args(["-o", "json", "-t", &threads.to_string()]);
            command.args(["-p", &prompt, "-n", &generation, "-r", &plan.repetitions.to_string()]);
            if let Some(batch) = plan.batch {
                command.args(["-ub", &batch.to_string()]);
            }
            let log = cache::log(&format!("bench-{i}"))?;
            let output = program::run_proved(host, command, *way, &log)?;
            let one = parse(&output.stdout);
            let generated = if plan.generation > 0 { plan.repetitions } else { 0 };
            if one.prompt.len() != plan.repetitions || one.generation.len() != generated {
                return Err(format!("llama-bench printed no samples: see {}", log.display()));
            }
            if let Way::Ours(settings) = way {
                let batches = plan.repetitions * plan.prompt.div_ceil(plan.batch.unwrap_or(UBATCH)) as usize;
                let tokens = plan.repetitions * plan.generation as usize;
                Floor::new(host, settings, model, batches, tokens)?.check(&output.stderr)?;
            }
            samples.prompt.extend(one.prompt);
            samples.generation.extend(one.generation);
        }
        // Printed at once: a run that fails later has still shown these.
        println!(
            "    round {round} of {}: {}",
            plan.rounds,
            all.iter().map(Samples::last).collect::<Vec<_>>().join(", ")
        );
    }
    Ok(all)
}

/// One short verbose run: does this way really keep weights in an AMX buffer?
pub fn amx_buffer_used(host: &Host, model: &Path, way: Way<'_>, threads: usize) -> Result<bool> {
    Ok(program::held(&short_log(host, model, way, threads)?).is_some())
}

/// What a short run logs.
pub fn short_log(host: &Host, model: &Path, way: Way<'_>, threads: usize) -> Result<String> {
    let mut command = program::command(host, "llama-bench", way)?;
    command.arg("-m").arg(model).args(["-v", "-p", "64", "-n", "2", "-r", "1", "-t", &threads.to_string()]);
    Ok(program::run_proved(host, command, way, &cache::log("bench-check")?)?.stderr)
}

/// llama-bench's JSON: one object per test, `n_prompt` before `samples_ts`, one field per line.
fn parse(json: &str) -> Samples {
    let mut samples = Samples::default();
    let mut is_prompt = false;
    for line in json.lines().map(str::trim) {
        if let Some(n) = line.strip_prefix("\"n_prompt\":") {
            is_prompt = n.trim().trim_end_matches(',') != "0";
        } else if let Some(list) = line.strip_prefix("\"samples_ts\":") {
            let numbers = list.trim().trim_matches(|c: char| "[], ".contains(c));
            let values = numbers.split(',').filter_map(|v| v.trim().parse::<f64>().ok());
            if is_prompt { &mut samples.prompt } else { &mut samples.generation }.extend(values);
        }
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_go_to_the_test_they_belong_to() {
        let json = "[\n  {\n    \"n_prompt\": 512,\n    \"n_gen\": 0,\n    \"samples_ts\": [ 181.356, 197.691 ]\n  },\n  \
            {\n    \"n_prompt\": 0,\n    \"n_gen\": 64,\n    \"samples_ts\": [ 97.5656, 95.2818 ]\n  }\n]\n";
        let samples = parse(json);
        assert_eq!(samples.prompt, [181.356, 197.691]);
        assert_eq!(samples.generation, [97.5656, 95.2818]);
        assert_eq!(samples.last(), "197.7/95.3");
        assert_eq!(Samples { generation: Vec::new(), ..samples }.last(), "197.7");
    }
}

//! A long text from ik_llama.cpp while this library searches every result it writes for NaN.

use super::{bench::Bench, models::Model};
use crate::{
    cache,
    products::Floor,
    program::{self, Settings, Way},
    util::{Result, io},
};

/// Length of the text.
pub const TOKENS: usize = 2000;
/// Bytes of the prompt: long enough for the paths that take many rows.
const PROMPT: usize = 2500;

/// Generates, at random but always the same; a NaN ends the program.
pub fn without_nan(bench: &Bench<'_>, model: &Model, settings: Settings<'_>) -> Result<()> {
    println!("    {TOKENS} tokens without NaN");
    let text = io("read", &bench.text, std::fs::read_to_string(&bench.text))?;
    let host = bench.models.host;
    let way = Way::Ours(Settings { checked: true, ..settings });
    let mut command = program::command(host, "llama-cli", way)?;
    command.arg("-m").arg(&model.file).args(["-p", &text[..PROMPT.min(text.len())], "--no-display-prompt"]);
    command.args(["-n", &TOKENS.to_string(), "-c", "4096", "--ignore-eos", "--temp", "1", "--seed", "1"]);
    command.args(["-t", &bench.threads]);
    let log = cache::log(&format!("generate-{}{}", model.label, settings.place()))?;
    let output = program::run_proved(host, command, way, &log)?;
    let floor = Floor::new(host, &settings, &model.file, 1, TOKENS - 1)?;
    floor.check(&output.stderr).map_err(|why| format!("{why}: see {}", log.display()))?;
    if let Some(line) = program::our_lines(&output.stderr).iter().find(|l| l.contains("NaN")) {
        return Err(format!("{line}: see {}", log.display()));
    }
    match runs(&output.stderr) {
        Some(n) if n + 1 >= TOKENS => Ok(()),
        n => Err(format!("{} of {TOKENS} tokens were generated: see {}", n.unwrap_or(0), log.display())),
    }
}

/// Tokens that were generated one by one, as llama-cli counts them at its end.
fn runs(log: &str) -> Option<usize> {
    let line = log.lines().find(|l| l.contains(" eval time =") && !l.contains("prompt eval"))?;
    line.split_once('/')?.1.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runs_of_llama_cli_are_counted() {
        let log = "llama_print_timings: prompt eval time =     193.19 ms /   540 tokens (    0.36 ms per token)\n\
            llama_print_timings:        eval time =    9193.19 ms /  1999 runs   (    4.60 ms per token)\n";
        assert_eq!(runs(log), Some(1999));
        assert_eq!(runs("nothing"), None);
    }
}

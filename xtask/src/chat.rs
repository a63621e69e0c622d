//! One question to a real chat model, through the host's own program.

use std::path::Path;

use crate::{
    cache, cpu,
    host::Host,
    program::{self, Way},
    util::{self, Result},
};

/// The question, and a word that belongs in the answer of any model that computes correctly. Asked for one
/// sentence, because at temperature 0 a model this small falls into loops in longer answers, on every path
/// of the host too, and the last digit of a logit decides whether it does.
pub const QUESTION: &str = "What is the capital of France? Answer in one sentence.";
const EXPECTED: &str = "Paris";

/// What the program answered.
pub struct Answer {
    /// The generated text.
    pub text: String,
    /// Everything the host and this library logged.
    pub log: String,
    /// The command with its environment, to be repeated in a shell.
    pub command: String,
}

/// The question inside the model's chat template.
pub fn templated() -> String {
    format!("<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n")
}

/// Asks at temperature 0, one turn, nothing interactive.
pub fn ask(host: &Host, model: &Path, way: Way<'_>) -> Result<Answer> {
    let threads = cpu::detect().threads.to_string();
    let name = if host.kind.is_ik() { "llama-cli" } else { "llama-completion" };
    let mut command = program::command(host, name, way)?;
    command.arg("-m").arg(model).args(["--temp", "0", "--seed", "1", "-n", "96", "-c", "2048", "-t", &threads]);
    command.arg("--no-display-prompt");
    if host.kind.is_ik() {
        // Its program has no mode for a conversation of one turn.
        command.args(["-p", &templated()]);
    } else {
        // -fit off: without it this library's first line comes in a trial load, whose log is muted.
        command.args(["-p", QUESTION, "-fit", "off", "-cnv", "-st", "--jinja", "-lv", "4"]);
    }
    let shown = util::shown_with_environment(&command);
    let output = program::run_proved(host, command, way, &cache::log("chat")?)?;
    let text = output.stdout.trim().trim_end_matches("[end of text]").trim().to_string();
    Ok(Answer { text, log: output.stderr, command: shown })
}

/// Why this text is no answer; None if it is one.
pub fn garbage(text: &str) -> Option<String> {
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    let often = words.iter().map(|w| words.iter().filter(|v| *v == w).count()).max().unwrap_or(0);
    let plain = text.chars().filter(|c| c.is_ascii_alphabetic() || c.is_ascii_whitespace()).count();
    if words.is_empty() {
        Some("the generated text is empty".into())
    } else if words.len() < 5 {
        Some(format!("the generated text has only {} words", words.len()))
    } else if plain * 10 < text.chars().count() * 7 {
        Some("the generated text is not made of words".into())
    } else if often * 10 > words.len() * 4 {
        Some("the generated text repeats one word".into())
    } else if !text.contains(EXPECTED) {
        Some(format!("the generated text does not name {EXPECTED}"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_passes_and_noise_does_not() {
        assert_eq!(garbage("The capital of France is Paris. It is known for its museums."), None);
        assert!(garbage("").is_some());
        assert!(garbage("Paris Paris Paris Paris Paris Paris").is_some());
        assert!(garbage("Paris @@@@ ### ((((( ]]]]] ///// 0000 ---- ++++").is_some());
        assert!(garbage("The capital of this country is a city by a river in the north.").is_some());
    }
}

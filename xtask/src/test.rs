//! `cargo xtask test`: every check of the project, in one order, with one last line that counts them.

use std::{
    io::Write,
    process::ExitCode,
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::{
    c_tests, cache, cmake_tests, demo,
    host::{self, Kind},
    ik,
    util::{self, Result},
    verify,
};

/// What the steps of a test run share.
pub struct Options {
    /// Leave out everything that needs a real host.
    pub quick: bool,
    skips: Mutex<Vec<String>>,
}

impl Options {
    /// No skips yet.
    pub fn new(quick: bool) -> Self {
        Self { quick, skips: Mutex::default() }
    }

    /// Records a check inside a step that could not run; the summary lists it by name.
    pub fn skip(&self, name: &str, why: &str) {
        println!("SKIPPED {name}: {why}");
        self.note_skip(format!("{name}: {why}"));
    }

    fn note_skip(&self, line: String) {
        let mut skips = self.skips.lock().expect("no step panics");
        if !skips.contains(&line) {
            skips.push(line);
        }
    }
}

/// One line of the summary.
struct Step {
    name: &'static str,
    /// Needs a real host: left out by `--quick`.
    host: bool,
    run: fn(&Options) -> Result<()>,
}

const STEPS: [Step; 11] = [
    Step { name: "format", host: false, run: |_| util::run_shown(util::cargo().args(["fmt", "--all", "--check"])) },
    Step { name: "clippy", host: false, run: clippy },
    Step { name: "rust tests", host: false, run: |o| rust_tests(o, None) },
    Step { name: "rust tests, AVX-512", host: false, run: |o| rust_tests(o, Some("avx512")) },
    Step { name: "rust tests, portable", host: false, run: |o| rust_tests(o, Some("portable")) },
    Step { name: "C tests", host: false, run: c_tests::run },
    Step { name: "CMake modules", host: false, run: |_| cmake_tests::run() },
    Step {
        name: "hosts",
        host: true,
        run: |_| [Kind::Llama, Kind::Static, Kind::Dl].into_iter().try_for_each(|k| host::ensure(k).map(|_| ())),
    },
    Step { name: "demo", host: true, run: |_| demo::run(true) },
    Step { name: "verify", host: true, run: |o| verify_step(o, &verify::Options::default()) },
    Step { name: "ik_llama.cpp", host: true, run: ik_step },
];

/// Runs the steps up to the first failure, and prints the summary last.
pub fn run(options: &Options) -> ExitCode {
    let start = Instant::now();
    let mut lines: Vec<(&str, &str, Duration)> = Vec::new();
    let mut failure = None;
    for (n, step) in STEPS.iter().enumerate() {
        if failure.is_some() {
            options.note_skip(format!("{}: not run after the failure", step.name));
            continue;
        }
        if options.quick && step.host {
            options.skip(step.name, "--quick");
            continue;
        }
        println!("\n=== {} of {}: {}", n + 1, STEPS.len(), step.name);
        let begin = Instant::now();
        let outcome = (step.run)(options);
        lines.push((step.name, if outcome.is_ok() { "passed" } else { "FAILED" }, begin.elapsed()));
        if let Err(why) = outcome {
            println!("\nFAILED {}: {why}", step.name);
            failure = Some((step.name, why));
        }
    }
    println!("\n=== Summary");
    for (name, verdict, time) in &lines {
        println!("  {verdict}  {:>7}  {name}", util::seconds(*time));
    }
    let skips = options.skips.lock().expect("no step panics");
    for skip in skips.iter() {
        println!("  SKIPPED          {skip}");
    }
    println!("  in all  {:>7}", util::seconds(start.elapsed()));
    if let Some((name, why)) = &failure {
        println!("  first failure: {name}: {}", why.lines().next().unwrap_or_default());
    }
    let failed = usize::from(failure.is_some());
    println!("{} passed, {failed} failed, {} skipped", lines.len() - failed, skips.len());
    let _ = std::io::stdout().flush();
    ExitCode::from(u8::from(failure.is_some()))
}

fn clippy(_: &Options) -> Result<()> {
    util::run_shown(util::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

/// All Rust tests below a ceiling for the instruction set. Tests that could not run say SKIPPED.
fn rust_tests(options: &Options, isa: Option<&str>) -> Result<()> {
    let mut cargo = util::cargo();
    cargo.args(["test", "--workspace", "--release", "--", "--show-output"]);
    match isa {
        Some(isa) => cargo.env("GGML_AMX_ISA", isa),
        None => cargo.env_remove("GGML_AMX_ISA"),
    };
    let log = cache::log(&format!("rust-tests-{}", isa.unwrap_or("all")))?;
    let output = util::capture(&mut cargo, &log).map_err(|e| {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        format!("{}\n{e}", failures(&text))
    })?;
    let results = || output.stdout.lines().filter(|l| l.starts_with("test result:"));
    let count = |word: &str| results().filter_map(|l| before(l, word)).sum::<usize>();
    println!("  {} tests passed, {} ignored, in {} programs", count(" passed"), count(" ignored"), results().count());
    let label = isa.map_or(String::new(), |isa| format!(" (GGML_AMX_ISA={isa})"));
    for line in output.stdout.lines().filter(|l| l.contains("SKIPPED")) {
        println!("  {}", line.trim());
        options
            .note_skip(format!("{}{label}", line.trim().trim_start_matches("SKIPPED").trim_start_matches([':', ' '])));
    }
    if count(" passed") == 0 { Err("no Rust test ran".into()) } else { Ok(()) }
}

/// The number in front of a word: 12 in `ok. 12 passed; 0 failed`.
fn before(line: &str, word: &str) -> Option<usize> {
    line.split(word).next()?.rsplit(' ').next()?.parse().ok()
}

/// The part of a test log that a human wants to see.
fn failures(log: &str) -> String {
    let wanted = |l: &&str| l.ends_with("FAILED") || l.contains("panicked at") || l.starts_with("error");
    log.lines().filter(wanted).take(30).collect::<Vec<_>>().join("\n")
}

fn verify_step(options: &Options, what: &verify::Options) -> Result<()> {
    match verify::run(what)? {
        verify::Outcome::Passed => {}
        verify::Outcome::Skipped(why) => options.skip("verify", &why),
    }
    Ok(())
}

/// Linked in, shared and static, and preloaded; few types and a short text, for the host takes long to build.
fn ik_step(options: &Options) -> Result<()> {
    ik::demo(true)?;
    ik::linked_statically()?;
    let few = |types: &[&str], upcycled| verify::Options {
        types: types.iter().map(ToString::to_string).collect(),
        upcycled,
        is_ik: true,
        tokens: 4096,
        ..verify::Options::default()
    };
    verify_step(options, &few(&["Q4_0", "IQ4_K"], false))?;
    verify_step(options, &few(&["Q4_0"], true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_cargos_result_line_are_read() {
        let line = "test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        assert_eq!((before(line, " passed"), before(line, " ignored")), (Some(12), Some(3)));
    }

    #[test]
    fn a_skip_is_listed_once() {
        let options = Options::new(false);
        for _ in 0..2 {
            options.note_skip("ik: not supported yet".into());
        }
        assert_eq!(*options.skips.lock().unwrap(), ["ik: not supported yet"]);
    }
}

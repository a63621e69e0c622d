//! `cargo xtask test`: every check of the project, in one order, with one last line that counts them.

use std::{
    io::Write,
    process::{Command, ExitCode},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    c_tests, cache, cmake_tests, cpu, demo, examples, fork,
    host::{self, Kind},
    ik, matrix, memory, mutants,
    products::Products,
    race, skips, style,
    util::{self, Result},
    verify,
};

/// What the steps of a test run share.
pub struct Options {
    /// Leave out everything that needs a real host.
    pub quick: bool,
    /// Run what does not fit into CI too.
    pub full: bool,
    passed: AtomicUsize,
    skips: Mutex<Vec<String>>,
}

impl Options {
    /// Nothing passed and no skips yet.
    pub fn new(quick: bool, full: bool) -> Self {
        Self { quick, full, passed: AtomicUsize::new(0), skips: Mutex::default() }
    }

    fn wants(&self, when: When) -> bool {
        match when {
            When::Always | When::WithHosts => true,
            When::WithoutAmx => !cpu::detect().amx,
            When::Full => self.full,
        }
    }

    /// Counts tests that passed, all of each. A step that counts none is a test itself.
    pub fn pass(&self, count: usize) {
        self.passed.fetch_add(count, Ordering::Relaxed);
    }

    /// Records a check that could not run; the summary lists it by name.
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

    fn skip_count(&self) -> usize {
        self.skips.lock().expect("no step panics").len()
    }

    /// Skips that nobody allowed, on a machine where everything can run.
    fn not_allowed(&self, has_amx: bool) -> Vec<String> {
        let skips = self.skips.lock().expect("no step panics");
        skips.iter().filter(|skip| has_amx && skips::allowed(skip).is_none()).cloned().collect()
    }
}

/// When a step runs.
#[derive(Clone, Copy, PartialEq)]
enum When {
    Always,
    /// Needs a real host: left out by `--quick`.
    WithHosts,
    /// Stands in for what a machine without AMX cannot run.
    WithoutAmx,
    /// Takes too long for CI: only with `--full`.
    Full,
}

/// One line of the summary.
struct Step {
    name: &'static str,
    when: When,
    run: fn(&Options) -> Result<()>,
}

const STEPS: [Step; 19] = [
    Step { name: "style", when: When::Always, run: |_| style::run() },
    Step { name: "format", when: When::Always, run: format },
    Step { name: "clippy", when: When::Always, run: clippy },
    Step { name: "rust tests", when: When::Always, run: |o| rust_tests(o, None) },
    Step { name: "rust tests, tiles in software", when: When::WithoutAmx, run: emulated_tests },
    Step { name: "rust tests, AVX-512", when: When::Always, run: |o| rust_tests(o, Some("avx512")) },
    Step { name: "rust tests, portable", when: When::Always, run: |o| rust_tests(o, Some("portable")) },
    Step { name: "races", when: When::Always, run: race::run },
    Step { name: "C tests", when: When::Always, run: c_tests::run },
    Step { name: "CMake modules", when: When::Always, run: |_| cmake_tests::run() },
    Step { name: "examples", when: When::Always, run: examples::run },
    Step {
        name: "hosts",
        when: When::WithHosts,
        run: |_| {
            [Kind::Llama, Kind::Static, Kind::Dl, Kind::Later].into_iter().try_for_each(|k| host::ensure(k).map(|_| ()))
        },
    },
    Step { name: "demo", when: When::WithHosts, run: |_| demo::run(true) },
    Step { name: "verify", when: When::WithHosts, run: |o| verify_step(o, &verify::Options::default()) },
    Step { name: "ik_llama.cpp", when: When::WithHosts, run: ik_step },
    Step {
        name: "every host",
        when: When::WithHosts,
        run: |o| matrix::run(&[], true, false, |what, why| o.skip(what, why)),
    },
    Step { name: "little memory", when: When::WithHosts, run: |o| memory::run(|what, why| o.skip(what, why)) },
    Step { name: "bound of many rows", when: When::Full, run: many_rows },
    Step { name: "mutants", when: When::Full, run: mutants::step },
];

/// Runs the steps up to the first failure, and prints the summary last.
pub fn run(options: &Options) -> ExitCode {
    let start = Instant::now();
    let mut lines: Vec<(&str, &str, Duration)> = Vec::new();
    let mut failures: Vec<String> = Vec::new();
    let steps: Vec<&Step> = STEPS.iter().filter(|step| options.wants(step.when)).collect();
    for (n, step) in steps.iter().enumerate() {
        if !failures.is_empty() {
            options.note_skip(format!("{}: not run after the failure", step.name));
            continue;
        }
        if options.quick && step.when == When::WithHosts {
            options.skip(step.name, "--quick");
            continue;
        }
        println!("\n=== {} of {}: {}", n + 1, steps.len(), step.name);
        let begin = Instant::now();
        let (before, skips) = (options.passed.load(Ordering::Relaxed), options.skip_count());
        let outcome = (step.run)(options);
        // A step that counted nothing is a test itself, unless it was skipped.
        let is_new = || options.passed.load(Ordering::Relaxed) == before && options.skip_count() == skips;
        if outcome.is_ok() && is_new() {
            options.pass(1);
        }
        lines.push((step.name, if outcome.is_ok() { "passed" } else { "FAILED" }, begin.elapsed()));
        if let Err(why) = outcome {
            println!("\nFAILED {}: {why}", step.name);
            failures.push(format!("{}: {why}", step.name));
        }
    }
    let has_amx = cpu::detect().amx;
    failures
        .extend(options.not_allowed(has_amx).into_iter().map(|skip| format!("skipped on a machine with AMX: {skip}")));
    println!("\n=== Summary");
    for (name, verdict, time) in &lines {
        println!("  {verdict}  {:>7}  {name}", util::seconds(*time));
    }
    let skips = options.skips.lock().expect("no step panics");
    for skip in skips.iter() {
        println!("  SKIPPED          {skip}");
    }
    println!("  in all  {:>7}", util::seconds(start.elapsed()));
    for failure in &failures {
        println!("  failure: {}", failure.lines().next().unwrap_or_default());
    }
    if !has_amx {
        println!("  This machine has no AMX: nothing here ran on a tile unit.");
    }
    let passed = options.passed.load(Ordering::Relaxed);
    println!("{passed} passed, {} failed, {} skipped", failures.len(), skips.len());
    let _ = std::io::stdout().flush();
    ExitCode::from(u8::from(!failures.is_empty()))
}

fn format(_: &Options) -> Result<()> {
    util::run_shown(util::cargo().args(["fmt", "--all", "--check"]))?;
    // The table of weight types declares their modules, where cargo does not find them.
    let dir = util::repo().join("src/format");
    let entries = std::fs::read_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let sources =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "rs"));
    util::run_shown(
        Command::new("rustfmt").args(["--edition", "2024", "--check"]).args(sources).current_dir(util::repo()),
    )
}

fn clippy(_: &Options) -> Result<()> {
    util::run_shown(util::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

/// All Rust tests below a ceiling for the instruction set. Tests that could not run, or not wholly, say SKIPPED.
fn rust_tests(options: &Options, isa: Option<&str>) -> Result<()> {
    let mut cargo = util::cargo();
    cargo.args(["test", "--workspace", "--release", "--", "--show-output"]);
    match isa {
        Some(isa) => cargo.env("GGML_AMX_ISA", isa),
        None => cargo.env_remove("GGML_AMX_ISA"),
    };
    let products = count_tests(options, &mut cargo, &format!("rust-tests-{}", isa.unwrap_or("all")), isa)?;
    ran_as_asked(&products, isa, cpu::detect().amx)
}

/// The library's own tests in a build that computes tile instructions in software (`src/cpu/emulator.rs`).
fn emulated_tests(options: &Options) -> Result<()> {
    let mut cargo = library_tests();
    cargo.args(["--", "--show-output"]);
    let products = count_tests(options, &mut cargo, "rust-tests-emulated", None)?;
    ran_as_asked(&products, None, true)
}

/// Cargo with the library's own tests; without AMX in a build that computes tile instructions in software.
fn library_tests() -> Command {
    let mut cargo = util::cargo();
    cargo.args(["test", "--package", "ggml-amx", "--release", "--lib"]).env_remove("GGML_AMX_ISA");
    if !cpu::detect().amx {
        let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
        cargo.args(["--target-dir", "target/emulator"]).env("RUSTFLAGS", format!("{flags} --cfg amx_emulator"));
    }
    cargo
}

/// Runs tests, counts them and their skips, and gives the products that they say they had.
fn count_tests(options: &Options, cargo: &mut Command, name: &str, isa: Option<&str>) -> Result<Products> {
    let log = cache::log(name)?;
    let output = util::capture(cargo, &log).map_err(|e| {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        format!("{}\n{e}", failures(&text))
    })?;
    let results = || output.stdout.lines().filter(|l| l.starts_with("test result:"));
    let count = |word: &str| results().filter_map(|l| before(l, word)).sum::<usize>();
    let skipped = skipped(&output.stdout);
    let label = isa.map_or(String::new(), |isa| format!(" (GGML_AMX_ISA={isa})"));
    for (test, why) in &skipped {
        options.note_skip(format!("{test}: {why}{label}"));
    }
    let whole = count(" passed").saturating_sub(skipped.len());
    println!("  {whole} tests passed, {} skipped or in part, {} ignored", skipped.len(), count(" ignored"));
    options.pass(whole);
    Products::of(&output.stderr).ok_or("the Rust tests did not report their products".into())
}

/// Rows that the property test judges in the long run.
const MANY_ROWS: &str = "1000000";

/// The property test of the promised bound, on more rows than CI has time for.
fn many_rows(_: &Options) -> Result<()> {
    let mut cargo = library_tests();
    cargo.arg("matmul::tests::bound").env("GGML_AMX_TEST_ROWS", MANY_ROWS);
    util::capture(&mut cargo, &cache::log("many-rows")?).map(|_| ())
}

/// Tests that said SKIPPED, each once, with their first reason: `--show-output` prints a headline per test.
fn skipped(output: &str) -> Vec<(String, String)> {
    let mut tests: Vec<(String, String)> = Vec::new();
    let mut test = "";
    for line in output.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("---- ").and_then(|l| l.strip_suffix(" stdout ----")) {
            test = name;
        }
        if let Some(why) = line.strip_prefix("SKIPPED: ").filter(|_| tests.last().is_none_or(|(last, _)| last != test))
        {
            tests.push((test.to_string(), why.to_string()));
        }
    }
    tests
}

/// Whether the kernels below the ceiling multiplied something, and no others.
fn ran_as_asked(products: &Products, ceiling: Option<&str>, has_amx: bool) -> Result<()> {
    let tiles = if has_amx { "amx" } else { "no AMX here" };
    for (kernel, isa) in [("portable", "portable"), ("vectors", "avx512"), ("int8", tiles), ("bf16", tiles)] {
        let is_due = match ceiling {
            None => isa != "no AMX here",
            Some("avx512") => isa == "portable" || isa == "avx512",
            Some(ceiling) => isa == ceiling,
        };
        if (products.matrices(&[kernel]) > 0) != is_due {
            let did = if is_due { "multiplied nothing" } else { "were used" };
            return Err(format!("below the ceiling `{}` kernels `{kernel}` {did}", ceiling.unwrap_or("amx")));
        }
    }
    Ok(())
}

/// The number in front of a word: 12 in `ok. 12 passed; 0 failed`.
fn before(line: &str, word: &str) -> Option<usize> {
    line.split(word).next()?.rsplit(' ').next()?.parse().ok()
}

/// The part of a test log that a human wants to see.
fn failures(log: &str) -> String {
    let failed = |l: &&str| l.ends_with("FAILED") || l.starts_with("error");
    let names: Vec<&str> =
        log.lines().filter_map(|l| l.strip_prefix("test ")?.strip_suffix(" ... FAILED")).map(str::trim).collect();
    // Tests that pass panic too.
    let panic = |l: &&str| l.contains("panicked at") && names.iter().any(|name| l.contains(&format!("'{name}'")));
    log.lines().filter(failed).chain(log.lines().filter(panic)).take(30).collect::<Vec<_>>().join("\n")
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
    ik::processes(|what, why| options.skip(what, why))?;
    fork::run()?;
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
    fn a_skip_is_listed_once_and_fails_where_nothing_need_be_skipped() {
        let options = Options::new(false, false);
        for _ in 0..2 {
            options.note_skip("ik: not supported yet".into());
        }
        options.note_skip("the header compiled by clang: no clang on PATH".into());
        assert_eq!(options.not_allowed(true), ["ik: not supported yet"]);
        assert!(options.not_allowed(false).is_empty());
    }

    #[test]
    fn a_test_that_skipped_something_is_counted_once_and_apart() {
        let output = "\nsuccesses:\n\n---- a::b stdout ----\nSKIPPED: no amx\nSKIPPED: no amx\n\n---- c stdout ----\nfine\n\
            ---- d stdout ----\nSKIPPED: no AMX\n";
        let pair = |test: &str, why: &str| (test.to_string(), why.to_string());
        assert_eq!(skipped(output), [pair("a::b", "no amx"), pair("d", "no AMX")]);
    }

    #[test]
    fn kernels_above_the_ceiling_and_missing_ones_are_noticed() {
        let of = |text: &str| Products::of(&format!("ggml-amx: products: {text}")).unwrap();
        let (all, vectors) = (of("A portable 1, A vectors 1, A int8 1, A bf16 1"), of("A portable 1, A vectors 1"));
        assert_eq!(ran_as_asked(&all, None, true), Ok(()));
        assert_eq!(ran_as_asked(&vectors, None, false), Ok(()));
        assert_eq!(ran_as_asked(&vectors, Some("avx512"), true), Ok(()));
        assert_eq!(ran_as_asked(&of("A portable 1"), Some("portable"), true), Ok(()));
        for (products, ceiling, has_amx) in [
            (&vectors, None, true),
            (&all, Some("avx512"), true),
            (&vectors, Some("portable"), false),
            (&all, None, false),
        ] {
            assert!(ran_as_asked(products, ceiling, has_amx).is_err(), "{products:?} {ceiling:?}");
        }
        assert!(ran_as_asked(&of("none"), Some("portable"), true).is_err());
    }
}

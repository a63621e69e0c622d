//! `cargo xtask test`: every check of the project, in one order, with one last line that counts them.

mod rust;

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
    c_tests, cmake_tests, cpu, demo, examples, fork,
    host::{self, Kind},
    ik, matrix, memory, mutants, race, skips, style,
    util::{self, Result},
    verify,
};

pub const HELP: &str = "cargo xtask test [--quick] [--full] [--keep-going]

Style, format, clippy, Rust tests (all instruction sets, then with GGML_AMX_ISA=avx512 and portable, then under
ThreadSanitizer; without AMX also with tiles in software), C tests, CMake modules, examples, real hosts, demo, verify,
ik_llama.cpp, every host, little memory. Stops at the first step that fails. The last line counts tests.
A skip is no pass, and a step that skipped something is `in part`; on a machine with AMX only the skips of
xtask/src/skips.rs are allowed.

  --quick       no real hosts
  --full        also what takes too long for CI: a million rows against the promised bound, and planted defects, each
                of which a test must find
  --keep-going  go on after what failed, and list all failures at the end; the exit code is 1 all the same";

/// What the steps of a test run share.
pub struct Options {
    /// Leave out everything that needs a real host.
    pub quick: bool,
    /// Run what does not fit into CI too.
    pub full: bool,
    /// Go on after a step that failed.
    pub keep_going: bool,
    passed: AtomicUsize,
    skips: Mutex<Vec<String>>,
}

impl Options {
    /// Nothing passed and no skips yet.
    pub fn new(quick: bool, full: bool) -> Self {
        Self { quick, full, keep_going: false, passed: AtomicUsize::new(0), skips: Mutex::default() }
    }

    /// From the arguments behind `test`.
    pub fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self::new(false, false);
        for arg in args {
            match arg.as_str() {
                "--quick" => options.quick = true,
                "--full" => options.full = true,
                "--keep-going" => options.keep_going = true,
                other => return Err(format!("unknown argument `{other}`")),
            }
        }
        Ok(options)
    }

    fn wants(&self, when: When) -> bool {
        match when {
            When::Always | When::WithHosts => true,
            When::WithoutAmx => !cpu::detect().amx,
            When::Full => self.full,
        }
    }

    /// Counts tests that passed and skipped nothing. A step that counts none is one test.
    pub fn pass(&self, count: usize) {
        self.passed.fetch_add(count, Ordering::Relaxed);
    }

    /// Runs the checks of a step up to the first failure, or all of them if the run is to keep going.
    fn each<'a>(&self, checks: impl IntoIterator<Item = Check<'a>>) -> Result<()> {
        let mut failures = Vec::new();
        for check in checks {
            if let Err(why) = check() {
                failures.push(why);
                if !self.keep_going {
                    break;
                }
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
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

    /// Skips that are not in the list of allowed ones, on a machine where everything can run.
    fn not_allowed(&self, has_amx: bool) -> Vec<String> {
        let skips = self.skips.lock().expect("no step panics");
        skips.iter().filter(|skip| has_amx && skips::allowed(skip).is_none()).cloned().collect()
    }
}

/// One check of a step that has several.
type Check<'a> = Box<dyn FnOnce() -> Result<()> + 'a>;

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
    Step { name: "rust tests", when: When::Always, run: |o| rust::tests_below(o, None) },
    Step { name: "rust tests, tiles in software", when: When::WithoutAmx, run: rust::emulated },
    Step { name: "rust tests, AVX-512", when: When::Always, run: |o| rust::tests_below(o, Some("avx512")) },
    Step { name: "rust tests, portable", when: When::Always, run: |o| rust::tests_below(o, Some("portable")) },
    Step { name: "races", when: When::Always, run: race::run },
    Step { name: "C tests", when: When::Always, run: c_tests::run },
    Step { name: "CMake modules", when: When::Always, run: |_| cmake_tests::run() },
    Step { name: "examples", when: When::Always, run: examples::run },
    Step {
        name: "hosts",
        when: When::WithHosts,
        run: |o| {
            let kinds = [Kind::Llama, Kind::Static, Kind::Dl, Kind::Later];
            o.each(kinds.map(|kind| Box::new(move || host::ensure(kind).map(|_| ())) as Check<'_>))
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
    Step { name: "bound of many rows", when: When::Full, run: rust::many_rows },
    Step { name: "mutants", when: When::Full, run: mutants::step },
];

/// Name, verdict and time of each step that ran, and what failed.
#[derive(Default)]
struct Outcome {
    lines: Vec<(&'static str, &'static str, Duration)>,
    failures: Vec<String>,
}

/// Runs the steps, up to the first failure unless `keep_going`. The summary comes last and lists every failure.
pub fn run(options: &Options) -> ExitCode {
    let start = Instant::now();
    let steps: Vec<&Step> = STEPS.iter().filter(|step| options.wants(step.when)).collect();
    let Outcome { lines, mut failures } = run_steps(options, &steps);
    let has_amx = cpu::detect().amx;
    failures
        .extend(options.not_allowed(has_amx).into_iter().map(|skip| format!("skipped on a machine with AMX: {skip}")));
    println!("\n=== Summary");
    for (name, verdict, time) in &lines {
        println!("  {verdict:<7}  {:>7}  {name}", util::seconds(*time));
    }
    let skips = options.skips.lock().expect("no step panics");
    for skip in skips.iter() {
        println!("  SKIPPED           {skip}");
    }
    println!("  in all   {:>7}", util::seconds(start.elapsed()));
    for failure in &failures {
        let mut lines = failure.lines();
        println!("  failure: {}", lines.next().unwrap_or_default());
        lines.for_each(|line| println!("           {line}"));
    }
    if !has_amx {
        println!("  This machine has no AMX: nothing here ran on a tile unit.");
    }
    let passed = options.passed.load(Ordering::Relaxed);
    println!("{passed} passed, {} failed, {} skipped", failures.len(), skips.len());
    let _ = std::io::stdout().flush();
    ExitCode::from(u8::from(!failures.is_empty()))
}

fn run_steps(options: &Options, steps: &[&Step]) -> Outcome {
    let mut outcome = Outcome::default();
    for (n, step) in steps.iter().enumerate() {
        if !outcome.failures.is_empty() && !options.keep_going {
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
        let result = (step.run)(options);
        let is_whole = options.skip_count() == skips;
        // A step that counted nothing is one test, unless it was skipped.
        if result.is_ok() && is_whole && options.passed.load(Ordering::Relaxed) == before {
            options.pass(1);
        }
        let verdict = match (&result, is_whole) {
            (Ok(()), true) => "passed",
            (Ok(()), false) => "in part",
            (Err(_), _) => "FAILED",
        };
        outcome.lines.push((step.name, verdict, begin.elapsed()));
        if let Err(why) = result {
            println!("\nFAILED {}: {why}", step.name);
            outcome.failures.push(format!("{}: {why}", step.name));
        }
    }
    outcome
}

fn format(options: &Options) -> Result<()> {
    let all = || util::run_shown(util::cargo().args(["fmt", "--all", "--check"]));
    options.each([Box::new(all) as Check<'_>, Box::new(format_types)])
}

fn format_types() -> Result<()> {
    // A macro of the table of weight types declares their modules, so `cargo fmt` does not find these files.
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

fn verify_step(options: &Options, what: &verify::Options) -> Result<()> {
    match verify::run(what)? {
        verify::Outcome::Passed => {}
        verify::Outcome::Skipped(why) => options.skip("verify", &why),
    }
    Ok(())
}

/// Linked in, shared and static, and preloaded; few types and a short text, for the host takes long to build.
fn ik_step(options: &Options) -> Result<()> {
    let few = |types: &[&str], upcycled| verify::Options {
        types: types.iter().map(ToString::to_string).collect(),
        upcycled,
        is_ik: true,
        tokens: 4096,
        ..verify::Options::default()
    };
    let checks: [Check<'_>; 6] = [
        Box::new(|| ik::demo(true)),
        Box::new(ik::linked_statically),
        Box::new(|| ik::processes(|what, why| options.skip(what, why))),
        Box::new(fork::run),
        Box::new(|| verify_step(options, &few(&["Q4_0", "IQ4_K"], false))),
        Box::new(|| verify_step(options, &few(&["Q4_0"], true))),
    ];
    options.each(checks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_and_others_refused() {
        let of = |text: &str| Options::parse(&text.split_whitespace().map(String::from).collect::<Vec<_>>());
        let options = of("--keep-going --quick").ok().unwrap();
        assert!(options.keep_going && options.quick && !options.full);
        assert!(of("--fast").is_err());
    }

    #[test]
    fn a_failure_ends_the_run_unless_it_is_to_keep_going() {
        let step = |name, run| Step { name, when: When::Always, run };
        let steps =
            [step("first", |_| Err("broken".into())), step("second", |_| Ok(())), step("third", |_| Err("too".into()))];
        let run = |keep_going| {
            let mut options = Options::new(false, false);
            options.keep_going = keep_going;
            let outcome = run_steps(&options, &steps.each_ref());
            let verdicts: Vec<&str> = outcome.lines.iter().map(|(_, verdict, _)| *verdict).collect();
            (verdicts, outcome.failures, options.skip_count())
        };
        assert_eq!(run(false), (vec!["FAILED"], vec!["first: broken".into()], 2));
        let failures = vec!["first: broken".into(), "third: too".into()];
        assert_eq!(run(true), (vec!["FAILED", "passed", "FAILED"], failures, 0));
    }

    #[test]
    fn a_step_that_skipped_something_did_not_pass() {
        let options = Options::new(false, false);
        let run = |options: &Options| {
            options.skip("a check", "no reason");
            Ok(())
        };
        let step = Step { name: "half", when: When::Always, run };
        assert_eq!(run_steps(&options, &[&step]).lines[0].1, "in part");
        assert_eq!(options.passed.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn all_checks_of_a_step_that_failed_are_named_if_the_run_is_to_keep_going() {
        let fails = |why: &'static str| Box::new(move || Err(why.to_string())) as Check<'static>;
        let run = |keep_going| {
            let options = Options { keep_going, ..Options::new(false, false) };
            options.each([fails("first"), Box::new(|| Ok(())), fails("third")])
        };
        assert_eq!((run(false), run(true)), (Err("first".into()), Err("first\nthird".into())));
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
}

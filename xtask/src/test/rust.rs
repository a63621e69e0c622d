//! The Rust tests, with each instruction set: how many passed, what they skipped, and whether the kernels that were
//! asked for did the work.

use std::process::Command;

use super::Options;
use crate::{
    cache, cpu,
    products::Products,
    util::{self, Result},
};

/// All Rust tests below a ceiling for the instruction set. Tests that could not run, or not wholly, say SKIPPED.
pub(super) fn tests_below(options: &Options, isa: Option<&str>) -> Result<()> {
    let mut cargo = util::cargo();
    // All programs of tests, so that all failures are named.
    cargo.args(["test", "--workspace", "--release", "--no-fail-fast", "--", "--show-output"]);
    match isa {
        Some(isa) => cargo.env("GGML_AMX_ISA", isa),
        None => cargo.env_remove("GGML_AMX_ISA"),
    };
    let products = count_tests(options, &mut cargo, &format!("rust-tests-{}", isa.unwrap_or("all")), isa)?;
    ran_as_asked(&products, isa, cpu::detect().amx)
}

/// The library's own tests in a build that computes tile instructions in software (`src/cpu/emulator.rs`).
pub(super) fn emulated(options: &Options) -> Result<()> {
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

/// Runs tests, counts them and their skips, and returns the products that the test program reports.
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
pub(super) fn many_rows(_: &Options) -> Result<()> {
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

/// The lines of a test log that say what failed.
fn failures(log: &str) -> String {
    let failed = |l: &&str| l.ends_with("FAILED") || l.starts_with("error");
    let names: Vec<&str> =
        log.lines().filter_map(|l| l.strip_prefix("test ")?.strip_suffix(" ... FAILED")).map(str::trim).collect();
    // Tests that pass may panic too.
    let panic = |l: &&str| l.contains("panicked at") && names.iter().any(|name| l.contains(&format!("'{name}'")));
    log.lines().filter(failed).chain(log.lines().filter(panic)).take(30).collect::<Vec<_>>().join("\n")
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

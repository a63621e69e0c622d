//! `cargo xtask race`: what threads share in ik_llama.cpp, under ThreadSanitizer. The toolchain's standard library is
//! not instrumented, so the build uses the C library's locks (`--cfg race`), which ThreadSanitizer knows.

use std::process::Command;

use crate::{
    cache,
    test::Options,
    util::{self, Result},
};

pub const HELP: &str = "cargo xtask race

The Rust tests of teams, runs and packed tensors (src/host/ik, src/cpu) under ThreadSanitizer: graphs of several
contexts on 2 to 64 threads while models are loaded and unloaded. Needs the nightly toolchain. What is suppressed, and
why, is in xtask/race.txt.";

/// Where instrumented builds go: another `std` flavour than the usual one.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Tests in which threads meet.
const TESTS: [&str; 3] = ["host::ik", "cpu::rendezvous", "cpu::cores"];

/// Builds and runs them; a race is an error.
pub fn run(options: &Options) -> Result<()> {
    let mut version = Command::new("rustup");
    version.args(["run", "nightly", "rustc", "--version"]);
    let Some(version) = util::first_line(&mut version) else {
        options.skip("ThreadSanitizer", "no nightly toolchain");
        return Ok(());
    };
    let repo = util::repo();
    let mut cargo = Command::new("rustup");
    cargo.current_dir(&repo).args(["run", "nightly", "cargo", "test", "--lib", "--target", TARGET, "--target-dir"]);
    cargo.arg(repo.join("target/race")).arg("--").args(TESTS).args(["--test-threads", "1"]);
    // These variables are those of the cargo that runs this command.
    ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN", "CARGO_ENCODED_RUSTFLAGS"].iter().for_each(|name| {
        cargo.env_remove(name);
    });
    // ThreadSanitizer does not see what tile instructions read and write.
    cargo.env("GGML_AMX_ISA", "avx512");
    cargo.env("RUSTFLAGS", "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer --cfg race");
    cargo.env("TSAN_OPTIONS", format!("suppressions={} exitcode=66", repo.join("xtask/race.txt").display()));
    let log = cache::log("race")?;
    let output = util::capture(&mut cargo, &log).map_err(|why| {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let wanted = |l: &&str| l.starts_with("SUMMARY: ") || l.ends_with("FAILED") || l.starts_with("error");
        let lines: Vec<&str> = text.lines().filter(wanted).take(20).collect();
        format!("{}\n{why}", lines.join("\n"))
    })?;
    let passed = output.stdout.lines().filter(|l| l.starts_with("test ") && l.ends_with(" ok")).count();
    println!("  {passed} tests passed under ThreadSanitizer ({version})");
    options.pass(passed);
    if passed == 0 { Err("no test ran".into()) } else { Ok(()) }
}

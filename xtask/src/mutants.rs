//! `cargo xtask mutants`: defects planted in the library on purpose, as `cfg(mutant = "...")`. Each must turn the test
//! red that is named here; a test that stays green does not test.

use std::{path::PathBuf, process::Command};

use crate::{
    cache, cpu,
    json::{self, Look},
    test::Options,
    util::{self, Result},
};

pub const HELP: &str = "cargo xtask mutants [NAME ...]

Builds the library's tests with one planted defect after the other, and runs the test that must find it.
Without NAME: all of them. Without AMX tiles are computed in software.";

/// A planted defect.
struct Mutant {
    name: &'static str,
    /// What is wrong.
    what: &'static str,
    /// The test that must fail.
    test: &'static str,
    /// Its environment.
    env: &'static [(&'static str, &'static str)],
}

const fn mutant(name: &'static str, what: &'static str, test: &'static str) -> Mutant {
    Mutant { name, what, test, env: &[] }
}

/// Seconds that one test may take, the emulator and a busy machine included.
const TIME_LIMIT: &str = "300";

const MUTANTS: &[Mutant] = &[
    mutant(
        "split-last",
        "the last thread leaves one unit out",
        "matmul::split::tests::pieces_cover_the_result_exactly_once_for_any_shape_and_thread_count",
    ),
    mutant(
        "routing-slot",
        "all experts of a token get its first row",
        "matmul::tests::experts::every_row_is_the_product_with_its_tokens_expert",
    ),
    mutant(
        "fill-all",
        "filling a large part of a tensor fills all of it",
        "buffer::tests::filling_part_of_a_tensor_leaves_the_rest",
    ),
    mutant(
        "six-bits",
        "the upper two bits of four scales of K types are lost in the vector code",
        "format::tests::the_vector_code_agrees_with_the_portable_code_bit_for_bit",
    ),
    Mutant {
        env: &[("GGML_AMX_ISA", "portable")],
        ..mutant("ceiling", "GGML_AMX_ISA is not looked at", "cpu::tests::nothing_runs_above_the_ceiling")
    },
    mutant(
        "surplus",
        "threads that take no part in an operation do not wait for its end",
        "host::ik::team::tests::threads_of_an_operation_see_what_the_others_did",
    ),
    mutant(
        "whole-matrix",
        "every thread unpacks the whole matrix for the host",
        "host::ik::tests::unpack::threads_unpack_the_rows_they_need_and_no_others",
    ),
    mutant(
        "not-alone",
        "a packed tensor is given back while another context computes with it",
        "host::ik::tests::runs::contexts_compute_while_models_are_loaded_and_unloaded_and_a_tensor_is_given_back",
    ),
    mutant(
        "weights-unseen",
        "what requantising costs is a constant, whatever the weights are",
        "matmul::tests::bound::cases::channels_of_different_size_keep_the_bound",
    ),
    mutant(
        "errors-averaged",
        "errors of 32 channels are averaged, wherever the row is large",
        "matmul::tests::bound::cases::errors_of_single_channels_are_not_averaged_away",
    ),
    mutant(
        "neighbours-independent",
        "channels of a block are taken to have nothing in common",
        "matmul::tests::bound::cases::what_neighbouring_channels_have_in_common_may_cancel",
    ),
    mutant(
        "rows-unchecked",
        "no row is looked at but those of the sample",
        "matmul::tests::bound::cases::sinks_keep_the_bound_wherever_they_stand",
    ),
    mutant(
        "nan-rounded",
        "NaN becomes 0 where BF16 is rounded",
        "matmul::tests::bound::cases::a_scale_that_is_nan_is_in_the_results_for_any_number_of_rows",
    ),
    mutant(
        "exact-by-number",
        "exact results of few rows are made in another way",
        "matmul::tests::bound::cases::exact_rows_depend_neither_on_their_number_nor_on_their_neighbours",
    ),
    mutant(
        "mask-added",
        "minus infinity is added to the scores of hidden keys, which may be NaN",
        "attention::tests::independence::what_the_mask_hides_does_not_matter",
    ),
    mutant(
        "nan-values",
        "hidden values that are not finite are multiplied by weights of zero",
        "attention::tests::independence::values_that_are_not_finite_stay_in_their_channels",
    ),
    mutant(
        "shared-largest",
        "queries of a query block share when their largest score moves",
        "attention::tests::independence::rows_do_not_depend_on_others_or_on_their_number",
    ),
    mutant(
        "coarse-queries",
        "queries of attention are one BF16",
        "attention::tests::bound::rows_are_those_of_the_definition",
    ),
    mutant("uncounted", "products are not counted", "diag::counters::tests::what_is_counted_is_reported"),
    mutant(
        "barrier-of-all",
        "threads that could not be started are waited for",
        "capi::threads::tests::given_threads_that_cannot_be_started_then_the_others_do_not_wait_for_them",
    ),
    mutant(
        "chunks",
        "no more threads are expected at a product with experts than it has shares",
        "host::ik::tests::runs::given_shares_that_are_handed_out_then_all_of_them_are_computed_once",
    ),
    mutant(
        "stack-word",
        "the last argument on the stack is not seen",
        "capi::jump::tests::given_a_call_that_is_declined_then_every_argument_and_the_result_pass",
    ),
    mutant(
        "log-at-once",
        "lines are sent from inside initialisers and locks",
        "diag::delivery::tests::lines_wait_for_the_last_hold_or_for_the_next_call",
    ),
    mutant(
        "types-without-end",
        "types past the end of the host's table are asked for",
        "host::decoders::tests::without_later_decoders_only_old_types_are_asked_for",
    ),
];

/// Those named, or all.
pub fn run(names: &[String]) -> Result<()> {
    if let Some(unknown) = names.iter().find(|name| MUTANTS.iter().all(|m| m.name != name.as_str())) {
        return Err(format!("no mutant `{unknown}`"));
    }
    hunt(&Options::new(false, true), |mutant| names.is_empty() || names.iter().any(|name| name == mutant.name))
}

/// All of them, as a step of the test run.
pub fn step(options: &Options) -> Result<()> {
    hunt(options, |_| true)
}

fn hunt(options: &Options, wanted: impl Fn(&Mutant) -> bool) -> Result<()> {
    // Without a defect all these tests must pass; otherwise their failures would prove nothing.
    let sound = build(None)?;
    let mut survivors = Vec::new();
    for mutant in MUTANTS.iter().filter(|m| wanted(m)) {
        match verdict(&sound, mutant)? {
            Verdict::Passed => {}
            Verdict::Skipped => {
                options.skip(&format!("mutant {}", mutant.name), "its test cannot run here");
                continue;
            }
            Verdict::Failed => return Err(format!("{} fails without a defect too", mutant.test)),
        }
        let found = verdict(&build(Some(mutant.name))?, mutant)? == Verdict::Failed;
        println!("  {}  {}: {}", if found { "found   " } else { "SURVIVED" }, mutant.name, mutant.what);
        if found {
            options.pass(1);
        } else {
            survivors.push(format!("{} ({}) is not found by {}", mutant.name, mutant.what, mutant.test));
        }
    }
    if survivors.is_empty() { Ok(()) } else { Err(survivors.join("\n")) }
}

/// The program of the library's tests, with a defect.
fn build(mutant: Option<&str>) -> Result<PathBuf> {
    let mut cargo = util::cargo();
    cargo.args(["rustc", "--locked", "--package", "ggml-amx", "--lib", "--profile", "test"]);
    cargo.args(["--target-dir", "target/mutants", "--message-format", "json-render-diagnostics", "--"]);
    cargo.args(mutant.map(|name| format!("--cfg=mutant=\"{name}\"")));
    if !cpu::detect().amx {
        cargo.arg("--cfg=amx_emulator");
    }
    // Fast to build; the emulator is slow enough as it is.
    cargo.env("CARGO_PROFILE_TEST_OPT_LEVEL", "1").env("CARGO_PROFILE_TEST_DEBUG", "0");
    let output = util::capture(&mut cargo, &cache::log(&format!("mutant-{}", mutant.unwrap_or("none")))?)?;
    let messages = output.stdout.lines().filter(|l| l.starts_with('{')).filter_map(|l| json::parse(l).ok());
    let program = messages.map(|m| m.text("executable").to_string()).rfind(|path| !path.is_empty());
    program.map(PathBuf::from).ok_or("cargo built no program of tests".into())
}

#[derive(PartialEq)]
enum Verdict {
    Passed,
    Skipped,
    Failed,
}

/// Runs one test.
fn verdict(program: &PathBuf, mutant: &Mutant) -> Result<Verdict> {
    // A defect may make threads wait for ever.
    let mut command = Command::new("timeout");
    command.arg(TIME_LIMIT).arg(program);
    command.args([mutant.test, "--exact", "--show-output"]).env_remove("GGML_AMX_ISA").envs(mutant.env.iter().copied());
    let output = command.output().map_err(|e| format!("{} could not be started: {e}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !text.contains("running 1 test") {
        return Err(format!("there is no test {}", mutant.test));
    }
    // A defect may also end the process.
    Ok(match (output.status.success(), text.contains("SKIPPED")) {
        (false, _) => Verdict::Failed,
        (true, true) => Verdict::Skipped,
        (true, false) => Verdict::Passed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Names behind `mutant = ` in the sources below a directory.
    fn planted(dir: &std::path::Path, names: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                planted(&path, names);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let names_in =
                    text.split("mutant = \"").skip(1).map(|rest| rest.split('"').next().unwrap().to_string());
                names.extend(names_in);
            }
        }
    }

    #[test]
    fn the_list_names_what_is_planted() {
        let mut names = Vec::new();
        planted(&util::repo().join("src"), &mut names);
        let planted: HashSet<&str> = names.iter().map(String::as_str).collect();
        let listed: HashSet<&str> = MUTANTS.iter().map(|m| m.name).collect();
        assert_eq!(planted, listed);
        assert_eq!(listed.len(), MUTANTS.len(), "a name twice");
    }
}

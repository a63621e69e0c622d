//! The C and C++ tests in `c_tests/`: what each program needs follows from its name.
//!
//! `api_*` run without any ggml, linked with our static library (plain and with sanitizers) and once with the shared
//! one; `fake_*` likewise, with a ggml of their own (those with `#define HOSTS` only plain, once for each of their
//! hosts). `*_host` run against real hosts: all of them (plain and with sanitizers) against the shared build,
//! `smoke_host` also against the static and the DL build, some against a later version; `ik_*_host` against
//! ik_llama.cpp with our library linked in; `wheel_*` with an older ggml from a Python package. `parity_process_host`
//! and `ik_graph_host` also run with threads that spin. Each program prints its own counts; exit code 77 and lines that
//! start with SKIPPED say what could not run.

mod jobs;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    cache, compiler,
    test::Options,
    util::{self, Result, io},
};
use jobs::Job;

const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];
const SANITIZE: [&str; 4] =
    ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-O1"];
/// No program takes longer, sanitizers and a busy machine included.
const TIME_LIMIT: Duration = Duration::from_secs(600);
/// A program in which nothing could be checked.
const ALL_SKIPPED: i32 = 77;

/// Compiles and runs them all; `options.quick` leaves out the hosts.
pub fn run(options: &Options) -> Result<()> {
    let system = compiler::system()?;
    let (jobs, ggml) = jobs::all(options)?;
    check_header(options, ggml.as_deref())?;

    let out = util::target().join("c_tests");
    let begin = Instant::now();
    in_parallel(&jobs, |job| build(job, &out, &system.cc, &system.cxx))?;
    println!("  {} programs built ({})", jobs.len(), util::seconds(begin.elapsed()));
    let failed = Mutex::new(Vec::new());
    in_parallel(&jobs, |job| {
        run_program(job, &out, options).unwrap_or_else(|why| failed.lock().expect("no panics").push(why));
        Ok(())
    })?;
    let failed = failed.into_inner().expect("no panics");
    if failed.is_empty() {
        Ok(())
    } else {
        Err(format!("{} of {} C programs failed:\n{}", failed.len(), jobs.len(), failed.join("\n")))
    }
}

fn standard(cpp: bool) -> &'static str {
    if cpp { "-std=c++17" } else { "-std=c11" }
}

/// The header alone and on both sides of ggml's headers, in C and C++, by every compiler found here.
fn check_header(options: &Options, ggml: Option<&Path>) -> Result<()> {
    let system = compiler::system()?;
    let mut compilers = vec![(system.cc, system.cxx)];
    let clang = ["", "-19", "-18", "-17", "-16", "-15", "-14"]
        .into_iter()
        .find(|s| util::which(&format!("clang++{s}")).is_some());
    match clang {
        Some(suffix) => compilers.push((format!("clang{suffix}"), format!("clang++{suffix}"))),
        None => options.skip("the header compiled by clang", "no clang on PATH"),
    }
    let log = cache::log("c-tests-header")?;
    let mut compiled = 0;
    for (cc, cxx) in &compilers {
        for (compiler, file, cpp) in [(cc, "api_header.c", false), (cxx, "api_header.cpp", true)] {
            for order in 0..if ggml.is_some() { 3 } else { 1 } {
                let mut command = Command::new(compiler);
                command
                    .arg(standard(cpp))
                    .args(WARNINGS)
                    .arg("-fsyntax-only")
                    .arg(format!("-DGGML_AMX_TEST_ORDER={order}"))
                    .arg(format!("-I{}", util::repo().join("include").display()));
                if let Some(dir) = ggml {
                    command.arg("-isystem").arg(dir);
                }
                command.arg(util::repo().join("c_tests").join(file));
                util::capture(&mut command, &log)?;
                compiled += 1;
            }
        }
    }
    let names: Vec<&str> = compilers.iter().map(|(cc, _)| cc.as_str()).collect();
    println!("  header compiled {compiled} ways, without warnings ({})", names.join(", "));
    Ok(())
}

/// As many at once as there are cores; the first error wins.
fn in_parallel(jobs: &[Job], work: impl Fn(&Job) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let first_error = Mutex::new(None);
    let workers = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(why) = work(job) {
                        first_error.lock().expect("no panics").get_or_insert(why);
                        next.store(jobs.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    first_error.into_inner().expect("no panics").map_or(Ok(()), Err)
}

fn program(job: &Job, out: &Path) -> PathBuf {
    out.join(job.flavour).join(job.name())
}

fn build(job: &Job, out: &Path, cc: &str, cxx: &str) -> Result<()> {
    let program = program(job, out);
    let dir = program.parent().expect("programs lie in a directory");
    io("create", dir, fs::create_dir_all(dir))?;
    let object = program.with_extension("o");
    let log = cache::log(&format!("c-build-{}-{}", job.flavour, job.name()))?;
    let mut compile = Command::new(if job.is_cpp() { cxx } else { cc });
    compile
        .arg(standard(job.is_cpp()))
        .args(WARNINGS)
        .args(["-O2", "-g"])
        .args(job.sanitize.then_some(SANITIZE).into_iter().flatten())
        .arg(format!("-I{}", util::repo().join("include").display()));
    compile.args(job.host.map(|host| format!("-DHOST={host}")));
    for dir in &job.system_includes {
        compile.arg("-isystem").arg(dir);
    }
    compile.arg("-c").arg(&job.source).arg("-o").arg(&object);
    util::capture(&mut compile, &log)?;
    let mut link = Command::new(if job.is_cpp() || job.link_as_cpp { cxx } else { cc });
    link.args(job.sanitize.then_some(SANITIZE).into_iter().flatten())
        .arg(&object)
        .arg("-o")
        .arg(&program)
        .args(&job.link);
    util::capture(&mut link, &log).map(|_| ())
}

/// Runs one program, prints its line, and hands its SKIPPED lines on.
fn run_program(job: &Job, out: &Path, options: &Options) -> Result<()> {
    let title = format!("{} ({})", job.name(), job.flavour);
    let log = cache::log(&format!("c-run-{}-{}", job.flavour, job.name()))?;
    let begin = Instant::now();
    let mut command = Command::new(program(job, out));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let settings = ["GGML_", "OMP_", "GOMP_", "LD_", "ASAN_", "UBSAN_", "LSAN_"];
        if settings.iter().any(|p| text.starts_with(p)) && !text.starts_with("GGML_AMX_TEST_") {
            command.env_remove(&name);
        }
    }
    command
        .envs(job.env.iter().map(|(k, v)| (k, v)))
        // More threads than cores wait for each other: spinning would take most of the time of the large grids.
        // Programs about threads run both ways.
        .envs((!job.spins).then_some(("OMP_WAIT_POLICY", "passive")))
        .env("GGML_NO_BACKTRACE", "1");
    let ended = util::run_into(&mut command, &log, TIME_LIMIT);
    let text = String::from_utf8_lossy(&io("read", &log, fs::read(&log))?).into_owned();
    for line in text.lines().filter_map(|l| l.strip_prefix("SKIPPED ")) {
        let (what, why) = line.split_once(": ").unwrap_or((line, ""));
        options.skip(&format!("{}: {what}", job.name()), why);
    }
    let counts = text.lines().rfind(|l| l.contains(" checks, "));
    let counts = counts.map_or("", |l| l.rsplit(": ").next().unwrap_or(l));
    let time = util::seconds(begin.elapsed());
    match ended.as_ref().map(|status| status.code()) {
        Ok(Some(0)) if !counts.is_empty() => {
            options.pass(1);
            println!("  passed  {time:>7}  {title}: {counts}");
        }
        Ok(Some(ALL_SKIPPED)) => println!("  SKIPPED {time:>7}  {title}"),
        _ => {
            let how = match ended {
                Ok(status) if status.success() => "printed no counts".to_string(),
                Ok(status) => util::how_it_ended(status),
                Err(why) => why,
            };
            println!("  FAILED  {time:>7}  {title}: {how}; {counts}");
            let wanted = |l: &&str| l.starts_with("FAILED") || l.contains("ERROR: ") || l.contains("runtime error");
            for line in text.lines().filter(wanted).take(12) {
                println!("      {line}");
            }
            return Err(format!("  {title}: {how}; log: {}", log.display()));
        }
    }
    Ok(())
}

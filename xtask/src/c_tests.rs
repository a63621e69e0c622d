//! The C and C++ tests in `c_tests/`: what each program needs follows from its name.
//!
//! `api_*` run without any ggml, linked with our static library (plain and with sanitizers) and once with the shared
//! one; `fake_*` likewise, with a ggml of their own (`fake_layouts` once for each of its hosts). `*_host` run against
//! real hosts: all of them (plain and with sanitizers) against the shared build, `smoke_host` also against the static
//! and the DL build, some against a later version; `ik_*_host` against ik_llama.cpp with our library linked in;
//! `wheel_*` with an older ggml from a Python package. `parity_process_host` and `ik_graph_host` also run with threads
//! that spin. Each program prints its own counts; exit code 77 and lines that start with SKIPPED say what could not
//! run.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    cache::{self, Cache},
    compiler, fetch,
    host::{self, Host, Kind},
    symbols,
    test::Options,
    util::{self, Result, io},
};

const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];
const SANITIZE: [&str; 4] =
    ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-O1"];
/// What a Rust static library needs from the system.
const SYSTEM_LIBRARIES: [&str; 5] = ["-lgcc_s", "-lpthread", "-ldl", "-lrt", "-lm"];
/// No program takes longer, sanitizers and a busy machine included.
const TIME_LIMIT: Duration = Duration::from_secs(600);
/// Programs that also run against the later version of the host: what was found of its structs, the contract of
/// buffers, the surface, products.
const OF_LATER: [&str; 5] = ["abi_", "smoke_", "buffer_", "surface_", "parity_id_host"];
/// A program in which nothing could be checked.
const ALL_SKIPPED: i32 = 77;

/// One program to build and run.
struct Job {
    source: PathBuf,
    /// `plain`, `sanitized`, `spinning`, `shared`, `static`, `dl`, `later`, `wheel`: a directory and part of the line
    /// printed.
    flavour: &'static str,
    sanitize: bool,
    /// Headers that are not ours: no warnings from there.
    system_includes: Vec<PathBuf>,
    /// Everything behind the object when linking.
    link: Vec<String>,
    /// A C++ runtime must be linked even if the program is C.
    link_as_cpp: bool,
    env: Vec<(&'static str, PathBuf)>,
    /// Waiting threads of the host spin, as they do for users.
    spins: bool,
    /// Number of the host that the program is to have, of those it can have.
    host: Option<usize>,
}

impl Job {
    fn name(&self) -> String {
        let stem = self.source.file_stem().expect("sources have names");
        let cpp = if self.is_cpp() && stem == "api_header" { "_cpp" } else { "" };
        let host = self.host.map_or(String::new(), |host| format!("_{host}"));
        format!("{}{cpp}{host}", stem.to_string_lossy())
    }

    fn is_cpp(&self) -> bool {
        self.source.extension().is_some_and(|e| e == "cpp")
    }
}

/// Compiles and runs them all; `options.quick` leaves out the hosts.
pub fn run(options: &Options) -> Result<()> {
    let system = compiler::system()?;
    let release = host::our_libraries()?;
    let sources = sources()?;
    let starts = |s: &&PathBuf, prefix: &str| s.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix));
    let mut jobs: Vec<Job> = Vec::new();
    for source in sources.iter().filter(|s| starts(s, "api_") || starts(s, "fake_")) {
        if let Some(hosts) = hosts_of(source)? {
            let job = |host| Job { host: Some(host), ..api_job(source, &release, "plain", false, false) };
            jobs.extend((0..hosts).map(job));
            continue;
        }
        for (flavour, sanitize, shared) in
            [("plain", false, false), ("sanitized", true, false), ("shared", false, true)]
        {
            jobs.push(api_job(source, &release, flavour, sanitize, shared));
        }
    }
    let mut headers = Vec::new();
    if options.quick {
        options.skip("C tests against hosts, and the header beside ggml's", "--quick");
    } else {
        let shared = host::ensure(Kind::Llama)?;
        headers.push(shared.source.join("ggml/include"));
        let of_hosts = || sources.iter().filter(|s| s.to_string_lossy().contains("_host.") && !starts(s, "ik_"));
        for source in of_hosts() {
            jobs.push(host_job(source, &shared, "plain", false));
            jobs.push(host_job(source, &shared, "sanitized", true));
        }
        for source in of_hosts().filter(|s| starts(s, "parity_process_")) {
            jobs.push(Job { spins: true, ..host_job(source, &shared, "spinning", false) });
        }
        for (kind, flavour) in [(Kind::Static, "static"), (Kind::Dl, "dl")] {
            let other = host::ensure(kind)?;
            for source in of_hosts().filter(|s| starts(s, "smoke_")) {
                jobs.push(host_job(source, &other, flavour, false));
            }
        }
        let later = host::ensure(Kind::Later)?;
        for source in of_hosts().filter(|s| OF_LATER.iter().any(|prefix| starts(s, prefix))) {
            jobs.push(host_job(source, &later, "later", false));
        }
        match fetch::older_ggml(&Cache::open()?)? {
            Some(root) => {
                jobs.extend(sources.iter().filter(|s| starts(s, "wheel_")).map(|s| wheel_job(s, &release, &root)))
            }
            None => options.skip("the tests on ggml 0.20", "the package index does not serve it"),
        }
        let ik = host::ensure(Kind::IkOurs)?;
        for source in sources.iter().filter(|s| starts(s, "ik_")) {
            let kinds = [("plain", false, false), ("sanitized", true, false), ("spinning", false, true)];
            for (flavour, sanitize, spins) in kinds.into_iter().filter(|k| !k.2 || starts(&source, "ik_graph_")) {
                let mut job = Job { spins, ..host_job(source, &ik, flavour, sanitize) };
                // As the host's own programs are linked.
                job.link.extend(symbols::wrapped()?.iter().map(|name| format!("-Wl,--wrap={name}")));
                jobs.push(job);
            }
        }
    }
    check_header(options, headers.first().map(PathBuf::as_path))?;

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

/// How many hosts a program is built for, if that is for several: it says so itself.
fn hosts_of(source: &Path) -> Result<Option<usize>> {
    let text = io("read", source, fs::read_to_string(source))?;
    let line = text.lines().find_map(|l| l.strip_prefix("#define HOSTS "));
    let number = |line: &str| line.split_whitespace().next()?.parse().ok();
    line.map(|line| number(line).ok_or(format!("{}: HOSTS is no number", source.display()))).transpose()
}

fn api_job(source: &Path, release: &Path, flavour: &'static str, sanitize: bool, shared: bool) -> Job {
    let mut link = if shared {
        vec![
            format!("-L{}", release.display()),
            "-Wl,-Bdynamic".into(),
            "-l:libggml_amx.so".into(),
            format!("-Wl,-rpath,{}", release.display()),
        ]
    } else {
        vec![release.join("libggml_amx.a").display().to_string()]
    };
    link.extend(SYSTEM_LIBRARIES.map(String::from));
    Job {
        source: source.into(),
        flavour,
        sanitize,
        system_includes: Vec::new(),
        link,
        link_as_cpp: false,
        env: Vec::new(),
        spins: false,
        host: None,
    }
}

/// With an older ggml in shared libraries that others built, and our static library in the program.
fn wheel_job(source: &Path, release: &Path, ggml: &Path) -> Job {
    let mut job = api_job(source, release, "wheel", false, false);
    let libraries = ggml.join("lib64").display().to_string();
    job.system_includes.push(ggml.join("include"));
    job.link.extend([format!("-L{libraries}"), format!("-Wl,-rpath,{libraries}")]);
    job.link.extend(["-lggml", "-lggml-cpu", "-lggml-base"].map(String::from));
    job
}

fn host_job(source: &Path, host: &Host, flavour: &'static str, sanitize: bool) -> Job {
    let mut env = Vec::new();
    if host.kind == Kind::Dl {
        env.push(("GGML_AMX_TEST_BACKENDS", host.bin_dir()));
    }
    Job {
        source: source.into(),
        flavour,
        sanitize,
        system_includes: host.include_dirs(),
        link: host.link_args(),
        link_as_cpp: true,
        env,
        spins: false,
        host: None,
    }
}

/// `c_tests/*.c` and `*.cpp`, sorted.
fn sources() -> Result<Vec<PathBuf>> {
    let dir = util::repo().join("c_tests");
    let mut all: Vec<PathBuf> = io("read", &dir, fs::read_dir(&dir))?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "c" || e == "cpp"))
        .collect();
    all.sort();
    Ok(all)
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
    let code = run_within(&mut command, &log)?;
    let text = String::from_utf8_lossy(&io("read", &log, fs::read(&log))?).into_owned();
    for line in text.lines().filter_map(|l| l.strip_prefix("SKIPPED ")) {
        let (what, why) = line.split_once(": ").unwrap_or((line, ""));
        options.skip(&format!("{}: {what}", job.name()), why);
    }
    let counts = text.lines().rfind(|l| l.contains(" checks, "));
    let counts = counts.map_or("", |l| l.rsplit(": ").next().unwrap_or(l));
    let time = util::seconds(begin.elapsed());
    match code {
        Ok(0) if !counts.is_empty() => {
            options.pass(1);
            println!("  passed  {time:>7}  {title}: {counts}");
        }
        Ok(ALL_SKIPPED) => println!("  SKIPPED {time:>7}  {title}"),
        how => {
            let how = match how {
                Ok(0) => "printed no counts".to_string(),
                Ok(code) => format!("exit code {code}"),
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

/// Runs with both outputs in the log file. Ok(Ok(exit code)), or Ok(Err(how else it ended)).
fn run_within(command: &mut Command, log: &Path) -> Result<std::result::Result<i32, String>> {
    use std::os::unix::process::ExitStatusExt;
    let name = util::shown(command);
    let mut file = io("write", log, File::create(log))?;
    io("write", log, writeln!(file, "$ {name}"))?;
    let errors = io("write", log, file.try_clone())?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .spawn()
        .map_err(|e| format!("`{name}` could not be started: {e}"))?;
    let begin = Instant::now();
    loop {
        let status = child.try_wait().map_err(|e| format!("cannot wait for `{name}`: {e}"))?;
        if let Some(status) = status {
            return Ok(status.code().ok_or_else(|| format!("killed by signal {}", status.signal().unwrap_or(0))));
        }
        if begin.elapsed() > TIME_LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            return Ok(Err(format!("stopped after {}", util::seconds(TIME_LIMIT))));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

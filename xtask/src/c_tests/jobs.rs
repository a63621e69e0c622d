//! Which programs are built and run: each with which flags, against which host.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    cache::Cache,
    fetch,
    host::{self, Host, Kind},
    symbols,
    test::Options,
    util::{self, Result, io},
};

/// What a Rust static library needs from the system.
const SYSTEM_LIBRARIES: [&str; 5] = ["-lgcc_s", "-lpthread", "-ldl", "-lrt", "-lm"];

/// Programs that also run against the later version of the host.
const OF_LATER: [&str; 5] = ["abi_", "smoke_", "buffer_", "surface_", "parity_id_host"];

/// One program to build and run.
pub(super) struct Job {
    pub source: PathBuf,
    /// `plain`, `sanitized`, `spinning`, `shared`, `static`, `dl`, `later`, `wheel`: a directory and part of the line
    /// printed.
    pub flavour: &'static str,
    pub sanitize: bool,
    /// Headers that are not ours: no warnings from there.
    pub system_includes: Vec<PathBuf>,
    /// Everything behind the object when linking.
    pub link: Vec<String>,
    /// A C++ runtime must be linked even if the program is C.
    pub link_as_cpp: bool,
    pub env: Vec<(&'static str, PathBuf)>,
    /// Waiting threads of the host spin, as they do for users.
    pub spins: bool,
    /// For programs with several hosts of their own: the number of the one to build for.
    pub host: Option<usize>,
}

impl Job {
    pub fn name(&self) -> String {
        let stem = self.source.file_stem().expect("sources have names");
        let cpp = if self.is_cpp() && stem == "api_header" { "_cpp" } else { "" };
        let host = self.host.map_or(String::new(), |host| format!("_{host}"));
        format!("{}{cpp}{host}", stem.to_string_lossy())
    }

    pub fn is_cpp(&self) -> bool {
        self.source.extension().is_some_and(|e| e == "cpp")
    }
}

/// How many hosts a program is built for, if it says so itself (`#define HOSTS`).
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

/// All of them, and the folder of ggml's headers; `options.quick` leaves out what is on real hosts.
pub(super) fn all(options: &Options) -> Result<(Vec<Job>, Option<PathBuf>)> {
    let sources = sources()?;
    let release = host::our_libraries()?;
    let mut jobs = without_hosts(&sources, &release)?;
    if options.quick {
        options.skip("C tests against hosts, and the header beside ggml's", "--quick");
        return Ok((jobs, None));
    }
    let llama = host::ensure(Kind::Llama)?;
    jobs.extend(on_llama(&sources, &llama)?);
    match fetch::older_ggml(&Cache::open()?)? {
        Some(root) => jobs.extend(named(&sources, "wheel_").map(|source| wheel_job(source, &release, &root))),
        None => options.skip("the tests on ggml 0.20", "the package index does not serve it"),
    }
    jobs.extend(on_ik(&sources)?);
    Ok((jobs, Some(llama.source.join("ggml/include"))))
}

/// Sources whose names begin like this.
fn named<'a>(sources: &'a [PathBuf], prefix: &'a str) -> impl Iterator<Item = &'a PathBuf> {
    sources.iter().filter(move |source| starts(source, prefix))
}

fn starts(source: &Path, prefix: &str) -> bool {
    source.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
}

fn without_hosts(sources: &[PathBuf], release: &Path) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    for source in named(sources, "api_").chain(named(sources, "fake_")) {
        if let Some(hosts) = hosts_of(source)? {
            let job = |host| Job { host: Some(host), ..api_job(source, release, "plain", false, false) };
            jobs.extend((0..hosts).map(job));
            continue;
        }
        let flavours = [("plain", false, false), ("sanitized", true, false), ("shared", false, true)];
        jobs.extend(flavours.map(|(flavour, sanitize, shared)| api_job(source, release, flavour, sanitize, shared)));
    }
    Ok(jobs)
}

fn on_llama(sources: &[PathBuf], shared: &Host) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    let of_hosts: Vec<PathBuf> = sources
        .iter()
        .filter(|source| source.to_string_lossy().contains("_host.") && !starts(source, "ik_"))
        .cloned()
        .collect();
    for source in &of_hosts {
        jobs.push(host_job(source, shared, "plain", false));
        jobs.push(host_job(source, shared, "sanitized", true));
    }
    for source in named(&of_hosts, "parity_process_") {
        jobs.push(Job { spins: true, ..host_job(source, shared, "spinning", false) });
    }
    for (kind, flavour) in [(Kind::Static, "static"), (Kind::Dl, "dl")] {
        let other = host::ensure(kind)?;
        jobs.extend(named(&of_hosts, "smoke_").map(|source| host_job(source, &other, flavour, false)));
    }
    let later = host::ensure(Kind::Later)?;
    let of_later = of_hosts.iter().filter(|source| OF_LATER.iter().any(|prefix| starts(source, prefix)));
    jobs.extend(of_later.map(|source| host_job(source, &later, "later", false)));
    Ok(jobs)
}

fn on_ik(sources: &[PathBuf]) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    let ik = host::ensure(Kind::IkOurs)?;
    for source in named(sources, "ik_") {
        let flavours = [("plain", false, false), ("sanitized", true, false), ("spinning", false, true)];
        for (flavour, sanitize, spins) in flavours.into_iter().filter(|f| !f.2 || starts(source, "ik_graph_")) {
            let mut job = Job { spins, ..host_job(source, &ik, flavour, sanitize) };
            // As the host's own programs are linked.
            job.link.extend(symbols::wrapped()?.iter().map(|name| format!("-Wl,--wrap={name}")));
            jobs.push(job);
        }
    }
    Ok(jobs)
}

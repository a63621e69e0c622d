//! Hosts, their shims, and the bench program.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    cache, compiler, cpu,
    host::{self, Host, Kind},
    symbols,
    util::{self, Result, io},
};

use super::{options::Options, run::Run};

/// The full set on two cores takes half an hour on a quiet machine.
const TIME_LIMIT: Duration = Duration::from_secs(4 * 3600);

/// A host's product as a library.
struct Shim {
    /// Names for the bench program: the host, and the host with each of its variants.
    names: &'static [&'static str],
    library: PathBuf,
    /// What the host is.
    what: String,
}

/// Builds everything, runs the program, and brings its results.
pub fn run(options: &Options, out: &Path) -> Result<Run> {
    let shims = if options.no_hosts { Vec::new() } else { shims(out)? };
    let lines = out.join("mul-mat.lines");
    cache::remove(&lines)?;
    let mut program = util::cargo();
    program.args(["bench", "--bench", "mul_mat", "--"]).args(&options.program);
    for shim in &shims {
        for name in shim.names {
            program.arg("--host").arg(format!("{name}={}", shim.library.display()));
        }
    }
    program.arg("--json").arg(&lines);
    // A host that aborts would start a debugger.
    program.env("GGML_NO_BACKTRACE", "1");
    println!();
    util::run_shown_within(&mut program, TIME_LIMIT)?;
    let items = Run::items_of_lines(&io("read", &lines, fs::read_to_string(&lines))?)?;
    cache::remove(&lines)?;
    let mut command = vec!["cargo xtask bench".to_string()];
    command.extend(options.program.iter().cloned());
    command.extend(options.no_hosts.then(|| "--no-hosts".to_string()));
    Ok(Run {
        date: cpu::today(),
        cpu: cpu::detect().model,
        command: command.join(" "),
        hosts: shims.iter().map(|s| (s.names[0].to_string(), s.what.clone())).collect(),
        items,
    })
}

/// The hosts that can be built here.
fn shims(out: &Path) -> Result<Vec<Shim>> {
    let mut all = Vec::new();
    let baseline = if cpu::detect().amx { host::baseline()? } else { None };
    match baseline {
        Some(cpp) => {
            symbols::check_original(&cpp.cpu_library())?;
            all.push(shim(&cpp, &["llama"], "llama.cpp", &["-lggml-cpu", "-lggml-base"], out)?);
        }
        None if cpu::detect().amx => println!("  SKIPPED llama: {}", compiler::NO_BASELINE),
        None => println!("  SKIPPED llama: no AMX"),
    }
    let ik = host::ensure(Kind::Ik)?;
    all.push(shim(&ik, &["ik", "ik-rtr"], "ik.cpp", &["-lggml"], out)?);
    Ok(all)
}

/// `benches/hosts/SOURCE` against the host's headers and libraries, by the host's compiler.
fn shim(host: &Host, names: &'static [&'static str], source: &str, libraries: &[&str], out: &Path) -> Result<Shim> {
    let dir = util::repo().join("benches/hosts");
    let library = out.join(format!("host-{}.so", names[0]));
    let lib_dir = host.cpu_library().parent().expect("libraries lie in a directory").display().to_string();
    let mut compile = Command::new(&host.compiler.cxx);
    compile.args(["-std=c++17", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]);
    compile.arg("-I").arg(&dir);
    for include in host.include_dirs() {
        compile.arg("-isystem").arg(include);
    }
    compile.arg(dir.join(source)).arg("-o").arg(&library);
    compile.args([format!("-L{lib_dir}"), format!("-Wl,-rpath,{lib_dir}"), "-Wl,-z,defs".into()]).args(libraries);
    util::capture(&mut compile, &cache::log(&format!("bench-shim-{}", names[0]))?)?;
    Ok(Shim { names, library, what: format!("{}, {}", host.requirement(), host.built_by()) })
}

//! Running the host's programs: with this library, on the host's plain path, or on its C++ AMX backend. In ik_llama.cpp
//! the plain path is also its fastest, unless it is asked to repack.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    cache,
    host::Host,
    products,
    util::{self, Output, Result, io},
};

/// No run of a host's program takes longer, on two busy cores.
const TIME_LIMIT: Duration = Duration::from_secs(20 * 60);

/// How this library is asked to work; the default is no setting at all.
#[derive(Clone, Copy, Default)]
pub struct Settings<'a> {
    /// Ceiling for the instruction set.
    pub isa: Option<&'a str>,
    /// GGML_AMX_PRECISION=exact.
    pub exact: bool,
    /// GGML_AMX_MODE=packed.
    pub packed: bool,
    /// ik_llama.cpp interleaves rows when it loads weights.
    pub repacked: bool,
    /// Every result is searched for NaN.
    pub checked: bool,
    /// This library is not linked into the host but loaded before it, from here.
    pub preload: Option<&'a Path>,
}

/// What multiplies the matrices.
#[derive(Clone, Copy)]
pub enum Way<'a> {
    /// This library.
    Ours(Settings<'a>),
    /// The host's own code for plain weights: this library off, no extra buffer types.
    Plain,
    /// What the host does when it has no AMX: this library off, everything else as usual.
    HostBest,
    /// The same, with weights that ik_llama.cpp repacks when it loads them.
    Repacked,
    /// The host's own C++ AMX backend, from this other build of its CPU library.
    CppAmx(&'a Host),
}

impl<'a> Way<'a> {
    /// This library, with a ceiling for the instruction set.
    pub fn of_isa(isa: Option<&'a str>) -> Self {
        Self::Ours(Settings { isa, ..Settings::default() })
    }

    /// The build whose library of the CPU backend must be the one that runs.
    fn library_of<'h>(&'h self, host: &'h Host) -> &'h Host {
        match self {
            Self::CppAmx(other) => other,
            _ => host,
        }
    }
}

/// A command for one of the host's programs, in an environment without settings from outside.
pub fn command(host: &Host, name: &str, way: Way<'_>) -> Result<Command> {
    let program = match way {
        Way::CppAmx(other) => beside_the_other_library(host, other, name)?,
        _ => host.program(name),
    };
    let mut command = Command::new(program);
    clean(&mut command);
    let is_bench = name == "llama-bench";
    let (report, value) = products::REPORT;
    command.env(report, value);
    match way {
        Way::Ours(settings) => settings.apply(&mut command, is_bench),
        Way::Plain if !host.kind.is_ik() => {
            let off: &[&str] = if is_bench { &["--repack", "0"] } else { &["--no-repack"] };
            command.env("GGML_AMX_MODE", "off").args(off);
        }
        Way::Plain | Way::HostBest => {
            command.env("GGML_AMX_MODE", "off");
        }
        Way::Repacked => {
            command.env("GGML_AMX_MODE", "off").args(repack(is_bench));
        }
        Way::CppAmx(other) => {
            command.env("LD_LIBRARY_PATH", &other.lib_dirs()[0]);
        }
    }
    if host.kind.is_ik() {
        // These programs leave log files where they are started.
        command.current_dir(cache::logs()?);
    }
    Ok(command)
}

/// Takes settings from outside out of a program's environment.
pub fn clean(command: &mut Command) {
    for (key, _) in std::env::vars_os() {
        let text = key.to_string_lossy();
        if ["GGML_", "LLAMA_", "LD_", "OMP_", "GOMP_"].iter().any(|p| text.starts_with(p)) {
            command.env_remove(&key);
        }
    }
}

/// What tells ik_llama.cpp to interleave rows.
fn repack(is_bench: bool) -> &'static [&'static str] {
    if is_bench { &["-rtr", "1"] } else { &["-rtr"] }
}

impl Settings<'_> {
    /// The weights' place, for names of files.
    pub fn place(&self) -> &'static str {
        match self {
            Self { packed: true, .. } => "-packed",
            Self { repacked: true, .. } => "-rtr",
            _ => "",
        }
    }

    /// Whether the tile unit is to be used.
    pub fn is_amx(&self) -> bool {
        self.isa.is_none_or(|isa| isa == "amx")
    }

    /// Puts them into the environment and the arguments of a program.
    pub fn apply(self, command: &mut Command, is_bench: bool) {
        let on = [
            ("GGML_AMX_ISA", self.isa),
            ("GGML_AMX_PRECISION", self.exact.then_some("exact")),
            ("GGML_AMX_MODE", self.packed.then_some("packed")),
            ("GGML_AMX_CHECK", self.checked.then_some("nan")),
        ];
        command.envs(on.into_iter().filter_map(|(name, value)| Some((name, value?))));
        command.envs(self.preload.map(|library| ("LD_PRELOAD", library)));
        if self.repacked {
            command.args(repack(is_bench));
        }
    }
}

/// A copy of the program next to the other libggml-cpu. Hosts also look for backends in the directory of
/// their program: from their own one they would map our library beside the one they are linked to.
fn beside_the_other_library(host: &Host, other: &Host, name: &str) -> Result<PathBuf> {
    let (from, to) = (host.program(name), other.lib_dirs()[0].join(name));
    cache::remove(&to)?;
    io("copy to", &to, fs::copy(&from, &to))?;
    Ok(to)
}

/// Runs it, and proves by the loader's own record that the right library of the CPU backend was mapped.
pub fn run_proved(host: &Host, mut command: Command, way: Way<'_>, log: &Path) -> Result<Output> {
    let record = log.with_extension("libs");
    // Removes what an interrupted run left.
    let mark = host.cpu_library_mark();
    loaded(&record, mark);
    command.env("LD_DEBUG", "libs").env("LD_DEBUG_OUTPUT", &record);
    let output = util::capture_within(&mut command, log, TIME_LIMIT);
    let loaded = loaded(&record, mark);
    let output = output?;
    let wanted = &way.library_of(host).build;
    let right = |p: &PathBuf| p.canonicalize().is_ok_and(|p| wanted.canonicalize().is_ok_and(|w| p.starts_with(w)));
    if loaded.len() == 1 && loaded.iter().all(right) {
        return Ok(output);
    }
    Err(format!("`{}` ran on {loaded:?}, not on the CPU backend of {}", util::shown(&command), wanted.display()))
}

/// Reads and removes `RECORD.PID`, which glibc writes for LD_DEBUG_OUTPUT: libraries with `mark` in their paths.
fn loaded(record: &Path, mark: &str) -> Vec<PathBuf> {
    let (Some(dir), Some(prefix)) = (record.parent(), record.file_name().map(|n| format!("{}.", n.to_string_lossy())))
    else {
        return Vec::new();
    };
    let mut loaded = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            loaded.extend(initialised(&text, mark).map(PathBuf::from));
            let _ = fs::remove_file(entry.path());
        }
    }
    loaded
}

fn initialised<'a>(record: &'a str, mark: &str) -> impl Iterator<Item = &'a str> {
    record
        .lines()
        .filter_map(|l| l.split_once("calling init: "))
        .map(|(_, p)| p.trim())
        .filter(move |p| p.contains(mark))
}

/// The host's line about weights in the AMX buffer, without its time stamp.
pub fn amx_line(log: &str) -> Option<&str> {
    let line = log.lines().find(|l| l.contains("AMX model buffer size"))?;
    Some(line.find("load_tensors").map_or(line, |at| &line[at..]).trim())
}

/// How many MiB of weights are packed: by that line, or by this library's own, as ik_llama.cpp does not know.
pub fn held(log: &str) -> Option<f64> {
    let of_host = || amx_line(log)?.rsplit_once('=');
    let of_ours = || our_lines(log).into_iter().rev().find_map(|l| l.split_once(" tensors packed,"));
    of_host().or_else(of_ours)?.1.trim().strip_suffix("MiB")?.trim().parse().ok()
}

/// What this library itself said.
pub fn our_lines(log: &str) -> Vec<&str> {
    log.lines().filter_map(|l| l.find("ggml-amx:").map(|at| l[at..].trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_lines_are_found() {
        let log =
            "0.00.199.193 I load_tensors:          AMX model buffer size =    95.34 MiB\nggml-amx: no permission\n";
        assert_eq!(amx_line(log), Some("load_tensors:          AMX model buffer size =    95.34 MiB"));
        assert_eq!(held(log), Some(95.34));
        assert_eq!(our_lines(log), ["ggml-amx: no permission"]);
        let in_ik = "ggml-amx: 7 tensors packed, 1.25 MiB\nother\nggml-amx: 9 tensors packed, 2.50 MiB\n";
        assert_eq!((held(in_ik), held("ggml-amx: no permission")), (Some(2.5), None));
        assert_eq!(amx_line("load_tensors:   CPU_Mapped model buffer size =    92.10 MiB"), None);
    }

    #[test]
    fn only_initialised_libraries_count_as_loaded() {
        let record = "  123:\tfind library=libggml-cpu.so.0 [0]; searching\n  123:\t  trying file=/a/libggml-cpu.so.0\n  \
            123:\tcalling init: /b/libggml-cpu.so.0\n 123:\tcalling fini: /b/libggml-cpu.so.0 [0]\n";
        assert_eq!(initialised(record, "/libggml-cpu").collect::<Vec<_>>(), ["/b/libggml-cpu.so.0"]);
    }
}

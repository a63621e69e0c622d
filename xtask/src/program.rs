//! Running the host's programs, on our AMX path, on the host's plain path, or on its C++ AMX backend.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    cache,
    host::Host,
    util::{self, Output, Result, io},
};

/// No run of a host's program takes longer, on two busy cores.
const TIME_LIMIT: Duration = Duration::from_secs(20 * 60);

/// What multiplies the matrices.
#[derive(Clone, Copy)]
pub enum Way<'a> {
    /// This library, with this ceiling for the instruction set (None: its default, AMX).
    Ours(Option<&'a str>),
    /// This library with GGML_AMX_PRECISION=exact.
    Exact,
    /// The host's own code for plain weights: this library off, no extra buffer types.
    Plain,
    /// What the host does when it has no AMX: this library off, everything else as usual.
    HostBest,
    /// The host's own C++ AMX backend, from this other build of its CPU library.
    CppAmx(&'a Host),
}

impl Way<'_> {
    /// The build whose libggml-cpu must be the one that runs.
    fn library_of<'h>(&'h self, host: &'h Host) -> &'h Host {
        match self {
            Self::CppAmx(other) => other,
            Self::Ours(_) | Self::Exact | Self::Plain | Self::HostBest => host,
        }
    }
}

/// A command for one of the host's programs, in an environment without settings from outside.
pub fn command(host: &Host, name: &str, way: Way<'_>) -> Result<Command> {
    let program = match way {
        Way::CppAmx(other) => beside_the_other_library(host, other, name)?,
        Way::Ours(_) | Way::Exact | Way::Plain | Way::HostBest => host.program(name),
    };
    let mut command = Command::new(program);
    for (key, _) in std::env::vars_os() {
        let text = key.to_string_lossy();
        if ["GGML_", "LLAMA_", "LD_", "OMP_", "GOMP_"].iter().any(|p| text.starts_with(p)) {
            command.env_remove(&key);
        }
    }
    match way {
        Way::Ours(isa) => {
            if let Some(isa) = isa {
                command.env("GGML_AMX_ISA", isa);
            }
        }
        Way::Exact => {
            command.env("GGML_AMX_PRECISION", "exact");
        }
        Way::Plain => {
            let off: &[&str] = if name == "llama-bench" { &["--repack", "0"] } else { &["--no-repack"] };
            command.env("GGML_AMX_MODE", "off").args(off);
        }
        Way::HostBest => {
            command.env("GGML_AMX_MODE", "off");
        }
        Way::CppAmx(other) => {
            command.env("LD_LIBRARY_PATH", &other.lib_dirs()[0]);
        }
    }
    Ok(command)
}

/// A copy of the program next to the other libggml-cpu. Hosts also look for backends in the directory of
/// their program: from their own one they would map our library beside the one they are linked to.
fn beside_the_other_library(host: &Host, other: &Host, name: &str) -> Result<PathBuf> {
    let (from, to) = (host.program(name), other.lib_dirs()[0].join(name));
    cache::remove(&to)?;
    io("copy to", &to, fs::copy(&from, &to))?;
    Ok(to)
}

/// Runs it, and proves by the loader's own record that the right libggml-cpu was mapped.
pub fn run_proved(host: &Host, mut command: Command, way: Way<'_>, log: &Path) -> Result<Output> {
    let record = log.with_extension("libs");
    // What an interrupted run left.
    loaded_cpu_libraries(&record);
    command.env("LD_DEBUG", "libs").env("LD_DEBUG_OUTPUT", &record);
    let output = util::capture_within(&mut command, log, TIME_LIMIT);
    let loaded = loaded_cpu_libraries(&record);
    let output = output?;
    let wanted = way.library_of(host).bin_dir();
    let right = |p: &PathBuf| p.canonicalize().is_ok_and(|p| wanted.canonicalize().is_ok_and(|w| p.starts_with(w)));
    if loaded.len() == 1 && loaded.iter().all(right) {
        return Ok(output);
    }
    Err(format!("`{}` ran on {loaded:?}, not on the libggml-cpu of {}", util::shown(&command), wanted.display()))
}

/// Reads and removes `RECORD.PID`, which glibc writes for LD_DEBUG_OUTPUT.
fn loaded_cpu_libraries(record: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(prefix)) = (record.parent(), record.file_name().map(|n| format!("{}.", n.to_string_lossy())))
    else {
        return Vec::new();
    };
    let mut loaded = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            loaded.extend(initialised(&text).map(PathBuf::from));
            let _ = fs::remove_file(entry.path());
        }
    }
    loaded
}

fn initialised(record: &str) -> impl Iterator<Item = &str> {
    record
        .lines()
        .filter_map(|l| l.split_once("calling init: "))
        .map(|(_, p)| p.trim())
        .filter(|p| p.contains("/libggml-cpu"))
}

/// The host's line about weights in the AMX buffer, without its time stamp.
pub fn amx_line(log: &str) -> Option<&str> {
    let line = log.lines().find(|l| l.contains("AMX model buffer size"))?;
    Some(line.find("load_tensors").map_or(line, |at| &line[at..]).trim())
}

/// The size in such a line.
pub fn mebibytes(line: &str) -> Option<f64> {
    line.rsplit_once('=')?.1.trim().strip_suffix("MiB")?.trim().parse().ok()
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
        assert_eq!(amx_line(log).and_then(mebibytes), Some(95.34));
        assert_eq!(our_lines(log), ["ggml-amx: no permission"]);
        assert_eq!(amx_line("load_tensors:   CPU_Mapped model buffer size =    92.10 MiB"), None);
    }

    #[test]
    fn only_initialised_libraries_count_as_loaded() {
        let record = "  123:\tfind library=libggml-cpu.so.0 [0]; searching\n  123:\t  trying file=/a/libggml-cpu.so.0\n  \
            123:\tcalling init: /b/libggml-cpu.so.0\n 123:\tcalling fini: /b/libggml-cpu.so.0 [0]\n";
        assert_eq!(initialised(record).collect::<Vec<_>>(), ["/b/libggml-cpu.so.0"]);
    }
}

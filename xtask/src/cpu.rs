//! What reports and choices need to know about this machine.

use std::{collections::HashSet, fs, num::NonZero, thread};

/// The part of `/proc/cpuinfo` that matters here.
pub struct Cpu {
    /// Model name as the kernel prints it.
    pub model: String,
    /// The `flags` line: features that the kernel (or a hypervisor) advertises.
    pub flags: String,
    /// AMX-TILE and AMX-INT8 are advertised.
    pub amx: bool,
    /// AVX-512 VNNI is advertised.
    pub avx512_vnni: bool,
    /// Physical cores we may use: what hosts take as their default thread count.
    pub threads: usize,
}

/// Reads `/proc/cpuinfo`.
pub fn detect() -> Cpu {
    let usable = thread::available_parallelism().map_or(1, NonZero::get);
    parse(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default(), usable)
}

fn parse(cpuinfo: &str, usable: usize) -> Cpu {
    let fields = || cpuinfo.lines().filter_map(|l| l.split_once(':')).map(|(k, v)| (k.trim(), v.trim()));
    let first = |key| fields().find(|(k, _)| *k == key).map_or("", |(_, v)| v);
    let flags: HashSet<&str> = first("flags").split_whitespace().collect();
    let mut package = "";
    let mut cores = HashSet::new();
    for (key, value) in fields() {
        match key {
            "physical id" => package = value,
            "core id" => drop(cores.insert((package, value))),
            _ => {}
        }
    }
    Cpu {
        model: first("model name").to_string(),
        flags: first("flags").to_string(),
        amx: flags.contains("amx_tile") && flags.contains("amx_int8"),
        avx512_vnni: flags.contains("avx512_vnni") && flags.contains("avx512bw"),
        threads: if cores.is_empty() { usable } else { usable.min(cores.len()) },
    }
}

/// Today, `2026-01-31`, from the system's own calendar.
pub fn today() -> String {
    crate::util::first_line(std::process::Command::new("date").arg("+%F")).unwrap_or_else(|| "unknown date".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_hyperthreads_of_one_core_count_once() {
        let one = |n, core| {
            format!(
                "processor\t: {n}\nmodel name\t: Xeon\nphysical id\t: 0\ncore id\t\t: {core}\nflags\t\t: amx_tile amx_int8 sse\n\n"
            )
        };
        let cpu = parse(&[one(0, 0), one(1, 1), one(2, 0), one(3, 1)].concat(), 4);
        assert_eq!((cpu.threads, cpu.amx, cpu.avx512_vnni, cpu.model.as_str()), (2, true, false, "Xeon"));
    }
}

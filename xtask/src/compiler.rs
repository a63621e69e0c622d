//! Which compiler builds what: the system's gcc for our hosts, clang for the C++ AMX baseline.

use std::process::Command;

use crate::util::{self, Result};

/// Said when no compiler here can build the baseline.
pub const NO_BASELINE: &str = "the host's own C++ AMX backend needs clang 14 or newer, or gcc 13 or newer \
    (gcc 12 miscompiles it: SIGSEGV in the first prompt)";

/// A C and a C++ compiler that belong together.
#[derive(Clone, Debug)]
pub struct Compiler {
    /// C compiler, a name on PATH.
    pub cc: String,
    /// C++ compiler, a name on PATH.
    pub cxx: String,
    /// `clang 16.0.6`.
    pub label: String,
}

/// gcc, or whatever calls itself cc.
pub fn system() -> Result<Compiler> {
    [("gcc", "g++"), ("cc", "c++")]
        .into_iter()
        .find_map(|(cc, cxx)| found(cc, cxx, "").map(|(c, _)| c))
        .ok_or_else(|| "no C and C++ compiler (Debian, Ubuntu: apt-get install gcc g++)".to_string())
}

/// The first compiler here that is known to build the C++ AMX backend correctly.
pub fn for_cpp_amx() -> Option<Compiler> {
    let clang = ["", "-19", "-18", "-17", "-16", "-15", "-14"]
        .into_iter()
        .find_map(|suffix| found("clang", "clang++", suffix).filter(|(_, major)| *major >= 14));
    let gcc = || ["", "-14", "-13"].into_iter().find_map(|s| found("gcc", "g++", s).filter(|(_, major)| *major >= 13));
    clang.or_else(gcc).map(|(compiler, _)| compiler)
}

fn found(cc: &str, cxx: &str, suffix: &str) -> Option<(Compiler, u32)> {
    let (name, cc, cxx) = (cc, format!("{cc}{suffix}"), format!("{cxx}{suffix}"));
    util::which(&cxx)?;
    let line = util::first_line(Command::new(&cc).arg("--version"))?;
    let (version, major) = version(&line)?;
    Some((Compiler { cc, cxx, label: format!("{name} {version}") }, major))
}

/// The version in `gcc (Debian 12.2.0-14) 12.2.0` or `Debian clang version 16.0.6 (15~deb12u1)`.
fn version(line: &str) -> Option<(String, u32)> {
    let words = || line.split_whitespace();
    let after_word = words().skip_while(|w| *w != "version").nth(1);
    let last = words().rfind(|w| w.starts_with(|c: char| c.is_ascii_digit()) && w.contains('.') && !w.ends_with(')'));
    let word = after_word.or(last)?;
    let version = word.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
    Some((version.to_string(), version.split('.').next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_the_usual_compilers_are_understood() {
        let cases = [
            ("gcc (Debian 12.2.0-14+deb12u1) 12.2.0", "12.2.0", 12),
            ("gcc (Ubuntu 13.3.0-6ubuntu2~24.04) 13.3.0", "13.3.0", 13),
            ("gcc (GCC) 14.2.1 20250110 (Red Hat 14.2.1-7)", "14.2.1", 14),
            ("Debian clang version 16.0.6 (15~deb12u1)", "16.0.6", 16),
            ("Ubuntu clang version 18.1.3 (1ubuntu1)", "18.1.3", 18),
        ];
        for (line, text, major) in cases {
            assert_eq!(version(line), Some((text.to_string(), major)), "{line}");
        }
    }
}

//! The environment variables, read once. For an unknown value the default is used, and an error line names the values
//! that are allowed.

use super::delivery::{self, Level};
use super::report;
use crate::process::Once;

/// `GGML_AMX_MODE`: where weights live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Weights are packed in all buffers that the host offers to this library.
    Auto,
    /// The same as `Auto`.
    Packed,
    /// All weights are left to the host: the buffer type is NULL.
    Off,
}

/// `GGML_AMX_ISA`: the highest instruction set that may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IsaCeiling {
    /// Plain Rust, any x86-64.
    Portable,
    /// AVX-512 with VNNI.
    Avx512,
    /// AMX-INT8 (and AVX-512 where few rows of activations make it faster).
    Amx,
}

/// Everything the environment says, with defaults filled in.
#[derive(Clone, Debug)]
pub struct Env {
    /// `GGML_AMX_MODE`, default `auto`.
    pub mode: Mode,
    /// `GGML_AMX_ISA`; `None` when unset: AMX is then required.
    pub isa: Option<IsaCeiling>,
    /// `GGML_AMX_PRECISION` is `exact`: BF16 tiles for any number of rows; default `auto`.
    pub exact: bool,
    /// `GGML_AMX_THREADS`: threads that pack weights; `None` = all cores, at most 32.
    pub threads: Option<usize>,
    /// `GGML_AMX_LOG`, default `info`.
    pub log: Level,
    /// `GGML_AMX_CHECK` is `nan`: look through every result in ik_llama.cpp, and end the process if one is NaN or
    /// infinite.
    pub check_nan: bool,
    /// `GGML_AMX_REPORT` is `products`, or the log's level is `debug`: the number of products is reported when the
    /// process ends.
    pub report: bool,
}

/// The environment as it was at the first call.
pub fn env() -> &'static Env {
    static ENV: Once<Env> = Once::new();
    if let Some(env) = ENV.get() {
        return env;
    }
    let (mut complaints, mut is_first) = (Vec::new(), false);
    let env = ENV.get_or_init(|| {
        is_first = true;
        parse(|name| std::env::var(name).ok(), &mut complaints)
    });
    // Only now: whoever reads the log may call this function.
    for line in &complaints {
        delivery::line(Level::Error, line);
    }
    // Tests always report: so one sees which kernels they ran.
    if is_first && (env.report || cfg!(test)) && !report::at_exit() && env.log as i32 <= Level::Warn as i32 {
        delivery::line(Level::Warn, "products cannot be reported when the process ends");
    }
    env
}

fn parse(get: impl Fn(&str) -> Option<String>, complaints: &mut Vec<String>) -> Env {
    let mut choose = |name: &str, allowed: &[&str]| -> Option<usize> {
        let value = get(name).filter(|v| !v.is_empty())?;
        let found = allowed.iter().position(|a| *a == value);
        if found.is_none() {
            complaints.push(format!("{name}={value} is unknown; allowed: {}. Using the default.", allowed.join(", ")));
        }
        found
    };
    let mode = match choose("GGML_AMX_MODE", &["auto", "packed", "off"]) {
        Some(1) => Mode::Packed,
        Some(2) => Mode::Off,
        _ => Mode::Auto,
    };
    let isa = choose("GGML_AMX_ISA", &["amx", "avx512", "portable"])
        .map(|i| [IsaCeiling::Amx, IsaCeiling::Avx512, IsaCeiling::Portable][i]);
    let exact = choose("GGML_AMX_PRECISION", &["auto", "exact"]) == Some(1);
    let check_nan = choose("GGML_AMX_CHECK", &["nan"]) == Some(0);
    let report = choose("GGML_AMX_REPORT", &["products"]) == Some(0);
    let log = match choose("GGML_AMX_LOG", &["quiet", "info", "debug"]) {
        Some(0) => Level::Error,
        Some(2) => Level::Debug,
        _ => Level::Info,
    };
    let threads = get("GGML_AMX_THREADS").filter(|v| !v.is_empty()).and_then(|value| match value.parse::<usize>() {
        Ok(n) if (1..=1024).contains(&n) => Some(n),
        _ => {
            complaints.push(format!("GGML_AMX_THREADS={value} is unknown; allowed: 1 to 1024. Using the default."));
            None
        }
    });
    Env { mode, isa, exact, threads, log, check_nan, report: report || log == Level::Debug }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(pairs: &[(&str, &str)]) -> (Env, Vec<String>) {
        let mut complaints = Vec::new();
        let get = |name: &str| pairs.iter().find(|p| p.0 == name).map(|p| p.1.to_string());
        let env = parse(get, &mut complaints);
        (env, complaints)
    }

    #[test]
    fn an_empty_environment_gives_the_defaults_silently() {
        let (env, complaints) = parsed(&[]);
        assert_eq!((env.mode, env.isa, env.threads, env.report), (Mode::Auto, None, None, false));
        assert!(complaints.is_empty());
    }

    #[test]
    fn known_values_are_understood() {
        let (env, complaints) =
            parsed(&[("GGML_AMX_MODE", "off"), ("GGML_AMX_ISA", "avx512"), ("GGML_AMX_THREADS", "3")]);
        assert_eq!((env.mode, env.isa, env.threads), (Mode::Off, Some(IsaCeiling::Avx512), Some(3)));
        assert!(complaints.is_empty());
        for asks in [("GGML_AMX_REPORT", "products"), ("GGML_AMX_LOG", "debug")] {
            assert!(parsed(&[asks]).0.report, "{asks:?}");
        }
    }

    #[test]
    fn an_unknown_value_names_the_allowed_ones_and_falls_back() {
        let (env, complaints) = parsed(&[("GGML_AMX_ISA", "sse9"), ("GGML_AMX_THREADS", "-1")]);
        assert_eq!((env.isa, env.threads), (None, None));
        assert_eq!(complaints.len(), 2);
        assert!(complaints[0].contains("sse9") && complaints[0].contains("amx, avx512, portable"), "{complaints:?}");
        assert!(complaints[1].contains("1 to 1024"), "{complaints:?}");
    }
}

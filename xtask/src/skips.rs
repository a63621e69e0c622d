//! Which checks a test run may skip on a machine with AMX. Any other skip fails the run there. On machines without AMX
//! more is skipped, and the last lines say so.

/// Part of a skip's name or reason, and why it is no defect.
const ALLOWED: [(&str, &str); 12] = [
    ("--quick", "was asked for"),
    ("not run after the failure", "the run has failed anyway"),
    ("(GGML_AMX_ISA=avx512)", "this run stays below AMX on purpose; the run without a ceiling has it"),
    ("(GGML_AMX_ISA=portable)", "the same, below AVX-512"),
    ("no clang on PATH", "a second compiler for the header, which gcc has compiled"),
    ("no nightly toolchain", "ThreadSanitizer needs one; the models of the same code run everywhere"),
    ("the package index does not serve it", "an older host, which nothing else here needs"),
    ("does not serve ggml 0.20", "the same"),
    ("no control group can be made here", "that takes rights; limits of addresses are tried everywhere"),
    ("the host alone does not load in a small control group", "then there is nothing to compare with"),
    ("a signal stack of 2 KiB", "some kernels do not let a thread have one"),
    ("GiB of memory are available", "a tensor of 5.6 GB needs as much memory"),
];

/// Why this skip is allowed where there is AMX, if it is.
pub fn allowed(line: &str) -> Option<&'static str> {
    ALLOWED.iter().find(|(part, _)| line.contains(part)).map(|(_, why)| *why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_listed_is_allowed() {
        assert!(allowed("the header compiled by clang: no clang on PATH").is_some());
        assert!(allowed("no amx (GGML_AMX_ISA=avx512)").is_some());
        for other in ["no AMX", "no amx", "parity_process_host: no tile state in this process", "no AVX-512 VNNI"] {
            assert_eq!(allowed(other), None, "{other}");
        }
    }
}

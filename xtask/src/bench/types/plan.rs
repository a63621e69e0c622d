//! What `cargo xtask bench --type-table` is to measure.

use crate::verify;

/// Rows of activations: a prompt, a short one or several users, generation.
const ROWS: &str = "512,32,1";

/// What to measure.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// ggml's names.
    pub(super) types: Vec<String>,
    /// Arguments of the program.
    pub(super) args: Vec<String>,
    pub(super) rounds: usize,
    pub(super) threads: usize,
    /// How to repeat it.
    pub(super) command: String,
}

impl Plan {
    /// From the values of `--types`, `--m` and `--reps`, if they were given.
    pub fn new([types, rows, reps]: [Option<&str>; 3], rounds: usize, threads: usize) -> Self {
        let mut command = format!("cargo xtask bench --type-table --rounds {rounds} --threads {threads}");
        for (name, value) in [("--types", types), ("--m", rows), ("--reps", reps)] {
            command.extend(value.map(|v| format!(" {name} {v}")));
        }
        let names: Vec<&str> =
            types.map_or(verify::quantisable(false).collect(), |list| list.split(',').map(str::trim).collect());
        let mut args = ["--shapes", "matrix", "--tokens", rows.unwrap_or(ROWS)].map(String::from).to_vec();
        args.extend(reps.iter().flat_map(|n| ["--reps".to_string(), (*n).to_string()]));
        Self { types: names.into_iter().map(ggml_name).collect(), args, rounds, threads, command }
    }
}

/// ggml writes names in lower case, but for the K behind an underscore.
fn ggml_name(name: &str) -> String {
    name.to_lowercase().replace("_k", "_K")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_has_all_types_by_the_names_of_ggml() {
        let plan = Plan::new([None; 3], 5, 2);
        assert!(["q4_0", "q4_K", "iq2_xxs", "bf16", "mxfp4"].iter().all(|t| plan.types.iter().any(|p| p == t)));
        assert_eq!(plan.types.len(), verify::quantisable(false).count());
        assert_eq!(plan.args, ["--shapes", "matrix", "--tokens", "512,32,1"]);
        assert_eq!(plan.command, "cargo xtask bench --type-table --rounds 5 --threads 2");
    }

    #[test]
    fn a_plan_takes_what_was_asked_for() {
        let plan = Plan::new([Some("Q6_K,f16"), Some("8"), Some("3")], 1, 2);
        assert_eq!(plan.types, ["q6_K", "f16"]);
        assert_eq!(plan.args, ["--shapes", "matrix", "--tokens", "8", "--reps", "3"]);
        assert!(plan.command.ends_with("--threads 2 --types Q6_K,f16 --m 8 --reps 3"));
    }
}

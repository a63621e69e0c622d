//! The command line of `cargo xtask bench`.

use std::path::PathBuf;

use super::types::Plan;
use crate::{cpu, host, util::Result};

pub const HELP: &str = "cargo xtask bench [OPTIONS]

Products of one weight matrix, in one process and in turns: this library, llama.cpp's C++ AMX backend,
ik_llama.cpp (plain, and repacked as by -rtr), beside the peak of the tile unit and the bandwidth of plain
reads of the same moment. Weights come from memory, activations are quantised by everybody. Prints a table,
writes mul-mat.json.

  --full         M 1 to 2048, five shapes, the usual weight types (half an hour); default: a quick set
  --types LIST   weight types, separated by commas
  --m LIST       rows of activations
  --shapes LIST  NxK, separated by commas
  --threads N    default: all cores
  --reps N       repetitions, default 7
  --kind KIND    activations: gate (default; some channels are 30 times larger), down, smooth
  --exact        this library with GGML_AMX_PRECISION=exact
  --warm         one copy of the weights, which may stay in the cache
  --in-place     our weights as GGUF has them, packed on the way (in ik_llama.cpp)
  --no-hosts     this library alone
  --out DIR      where to write; default: bench/ in the cache

  --report FILE  only keep a mul-mat.json, types.json, slices.json or slices-ik.json in benchmarks/, and
                 write the documents that are made of what lies there
  --thresholds   only print from how many rows of activations on which kernel multiplies, by weight type,
                 and write the same into docs/dispatch.md
  --docs         only write these documents: docs/speed.svg, and tables between markers in
                 docs/performance.md, docs/types.md and docs/lab/products.md

  --slices       instead, whole models (a few layers of 8B dense and 30B mixture-of-experts width) in
                 llama-bench, pp512 and tg16 in turns: this library, with exact, C++ AMX backend
  --types LIST   default Q4_0,Q8_0,Q4_K
  --rounds N     default 5
  --host ik      in ik_llama.cpp: this library in place (also with -rtr) and packed, and without it; types also
                 IQ4_K, experts also pp2048 at once

  --experts      instead, mixture of experts: MUL_MAT_ID of 128 experts, 8 per token, as graphs of one operation
                 in this library's build and in that of the C++ AMX backend (repacked and plain), in turns
  --types LIST   default q4_0,q4_K
  --m LIST       tokens, default 1,4,32,128,512,2048
  --reps N       in every turn, default 7
  --rounds N     default 5

  --type-table   instead, every weight type: how it is stored, which rows of activations the tile unit takes, and
                 its speed against the plain path of the host, as graphs of one operation on a matrix of 4096x4096
                 in this library's build, buffer type AMX and CPU in turns (10 minutes). Writes types.json
  --types LIST   default: all that llama-quantize writes
  --m LIST       default 512,32,1
  --reps N       in every turn, default 7
  --rounds N     default 5";

/// What to measure, and where results go.
#[derive(Debug, Default)]
pub struct Options {
    /// Arguments handed on to the bench program.
    pub program: Vec<String>,
    /// Leave out the other hosts.
    pub no_hosts: bool,
    /// Directory for results.
    pub out: Option<PathBuf>,
    /// Only keep the results of this file, and write documents.
    pub report: Option<PathBuf>,
    /// Only write documents.
    pub docs: bool,
    /// Only write and print the tables of thresholds.
    pub thresholds: bool,
    /// Whole models.
    pub slices: bool,
    /// Of ik_llama.cpp.
    pub is_ik: bool,
    /// Their types.
    pub types: Vec<String>,
    /// Their rounds.
    pub rounds: usize,
    /// Mixture of experts.
    pub is_experts: bool,
    /// Arguments of their program.
    pub experts: Vec<String>,
    /// The table of weight types.
    pub type_table: Option<Plan>,
    /// Threads.
    pub threads: usize,
}

/// The types that most models come in; `--types` names others.
const USUAL_TYPES: &str = "q4_0,q4_1,q5_0,q5_1,q8_0,q2_K,q3_K,q4_K,q5_K,q6_K,iq4_nl,iq4_xs,mxfp4";
const FULL: [&str; 3] =
    [USUAL_TYPES, "1,2,4,8,16,32,64,128,512,2048", "4096x4096,14336x4096,4096x14336,1024x4096,151936x2048"];
const QUICK: [&str; 3] = ["q4_0,q8_0,q4_K", "1,8,32,512", "4096x4096"];

impl Options {
    /// From the arguments behind `bench`.
    pub fn parse(args: &[String]) -> Result<Self> {
        let mut o = Self { rounds: 5, threads: cpu::detect().threads, ..Self::default() };
        let mut lists: [Option<String>; 3] = [None, None, None];
        let (mut full, mut is_type_table, mut reps) = (false, false, None);
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--full" => full = true,
                "--types" => lists[0] = Some(value()?.clone()),
                "--m" => lists[1] = Some(value()?.clone()),
                "--shapes" => lists[2] = Some(value()?.clone()),
                "--threads" => o.threads = number(arg, value()?)?,
                "--rounds" => o.rounds = number(arg, value()?)?,
                "--reps" => {
                    let n = number(arg, value()?)?.to_string();
                    o.experts.extend([arg.clone(), n.clone()]);
                    o.program.extend([arg.clone(), n.clone()]);
                    reps = Some(n);
                }
                "--kind" => o.program.extend([arg.clone(), value()?.clone()]),
                "--exact" | "--warm" | "--in-place" => o.program.push(arg.clone()),
                "--no-hosts" => o.no_hosts = true,
                "--out" => o.out = Some(value()?.into()),
                "--report" => o.report = Some(value()?.into()),
                "--docs" => o.docs = true,
                "--slices" => o.slices = true,
                "--host" => o.is_ik = host::is_ik(value()?)?,
                "--experts" => o.is_experts = true,
                "--thresholds" => o.thresholds = true,
                "--type-table" => is_type_table = true,
                other => return Err(format!("unknown argument `{other}`")),
            }
        }
        if o.is_ik && !o.slices {
            return Err("--host is for --slices".into());
        }
        let usual = if o.is_ik { "Q4_0,Q4_K,Q8_0,IQ4_K" } else { "Q4_0,Q8_0,Q4_K" };
        let types = lists[0].clone().unwrap_or(usual.into());
        o.types = types.split(',').map(|t| t.trim().to_uppercase()).collect();
        o.type_table = is_type_table
            .then(|| Plan::new([lists[0].as_deref(), lists[1].as_deref(), reps.as_deref()], o.rounds, o.threads));
        for (list, name) in lists.iter().zip(["--types", "--tokens"]) {
            o.experts.extend(list.iter().flat_map(|l| [name.to_string(), l.clone()]));
        }
        for (i, name) in ["--types", "--m", "--shapes"].into_iter().enumerate() {
            let preset = if full { FULL[i] } else { QUICK[i] };
            o.program.extend([name.to_string(), lists[i].take().unwrap_or(preset.to_string())]);
        }
        o.program.extend(["--threads".to_string(), o.threads.to_string()]);
        Ok(o)
    }
}

fn number(name: &str, text: &str) -> Result<usize> {
    text.parse().ok().filter(|n| *n > 0).ok_or(format!("{name} needs a positive number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Options {
        Options::parse(&text.split_whitespace().map(String::from).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn lists_replace_the_presets_one_by_one() {
        let o = parsed("--full --m 3 --threads 5 --exact");
        assert_eq!(o.program[..5], ["--exact", "--types", USUAL_TYPES, "--m", "3"]);
        assert_eq!(o.program[5..], ["--shapes", FULL[2], "--threads", "5"]);
    }

    #[test]
    fn slices_have_types_of_their_own() {
        assert_eq!(parsed("--slices").types, ["Q4_0", "Q8_0", "Q4_K"]);
        assert_eq!(parsed("--slices --types q6_K").types, ["Q6_K"]);
        assert_eq!(parsed("--slices --host ik").types.last().map(String::as_str), Some("IQ4_K"));
    }

    #[test]
    fn experts_have_the_presets_of_their_program() {
        assert!(parsed("--experts").is_experts && parsed("--experts").experts.is_empty());
        assert_eq!(parsed("--experts --m 1,2 --reps 3").experts, ["--reps", "3", "--tokens", "1,2"]);
    }

    #[test]
    fn the_table_of_types_has_a_plan_of_its_own() {
        assert_eq!(parsed("--slices").type_table, None);
        let given = [Some("q4_0"), Some("1"), Some("3")];
        let plan = parsed("--m 1 --type-table --rounds 2 --types q4_0 --reps 3 --threads 4").type_table;
        assert_eq!(plan, Some(Plan::new(given, 2, 4)));
    }

    #[test]
    fn nonsense_is_refused() {
        for args in [&["--m"][..], &["--reps", "0"], &["--fast"], &["--host", "ik"], &["--slices", "--host", "x"]] {
            assert!(Options::parse(&args.iter().map(|s| s.to_string()).collect::<Vec<_>>()).is_err());
        }
    }
}

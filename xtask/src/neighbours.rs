//! `cargo xtask neighbours`: does an answer depend on who else asks? The same questions one after the other and in
//! eight slots, in llama.cpp: the host's plain path with F32 weights (the ceiling: its attention depends on the batch
//! too), with quantised weights, and this library.

use std::{path::Path, process::Command, time::Duration};

use crate::{
    cache::{self, Cache},
    compiler, cpu, fetch,
    host::{self, Host, Kind},
    products::{self, Floor},
    program::{self, Settings, Way},
    table, text,
    util::{self, Result, io},
    verify,
};

pub const HELP: &str = "cargo xtask neighbours [--types LIST] [--answers N] [--slots N]

Greedy answers of SmolLM2 in llama.cpp to the same questions, each alone and then in slots whose prompts and tokens
share batches, as in a server: how many are the same to the last token. Beside this library the host's plain path, and
the same weights in F32 there, which is the most that can be.

  --types LIST  weight types, separated by commas; default Q4_0
  --answers N   default 400
  --slots N     default 8";

/// No run takes longer; tiles may be computed in software.
const TIME_LIMIT: Duration = Duration::from_secs(60 * 60);

/// What to measure.
#[derive(Debug, PartialEq)]
pub struct Options {
    types: Vec<String>,
    answers: usize,
    slots: usize,
}

impl Options {
    /// From the command line.
    pub fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self { types: vec!["Q4_0".into()], answers: 400, slots: 8 };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let value = args.next().ok_or(format!("{arg} needs a value"));
            let number = |value: &str| match value.parse() {
                Ok(n) if n > 0 => Ok(n),
                _ => Err(format!("{arg} needs a number from 1 on, not `{value}`")),
            };
            match arg.as_str() {
                "--types" => options.types = value?.split(',').map(|t| t.trim().to_uppercase()).collect(),
                "--answers" => options.answers = number(value?)?,
                "--slots" => options.slots = number(value?)?,
                other => return Err(format!("unknown argument `{other}`")),
            }
        }
        Ok(options)
    }
}

/// How many answers are the same.
#[derive(Debug, PartialEq)]
struct Same {
    whole: usize,
    first: usize,
    of: usize,
}

impl Same {
    /// From the program's line.
    fn parse(output: &str) -> Option<Self> {
        let line = output.lines().find(|l| l.starts_with("same "))?;
        let numbers: Vec<usize> = line.split_whitespace().filter_map(|w| w.parse().ok()).collect();
        let [whole, of, first] = numbers.try_into().ok()?;
        Some(Self { whole, first, of })
    }

    /// In percent, with the 95 % interval of a share (Wilson's).
    fn share(&self) -> [f64; 3] {
        let (n, p, z) = (self.of as f64, self.whole as f64 / self.of as f64, 1.96f64);
        let middle = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
        let half = z / (1.0 + z * z / n) * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
        [p, middle - half, middle + half].map(|v| 100.0 * v)
    }
}

/// Measures and prints the table.
pub fn run(options: &Options) -> Result<()> {
    let host = host::ensure(Kind::Llama)?;
    let cache = Cache::open()?;
    let program = build(&host)?;
    let prose = text::prose(&fetch::source(&cache)?)?;
    let text = cache.once("neighbours/text.txt", |to| io("write", to, std::fs::write(to, &prose)))?;
    let amx = cpu::detect().amx || std::env::var_os("GGML_AMX_ISA").is_some_and(|isa| isa == "amx");
    let isa = if amx { None } else { Some("avx512") };
    let mut rows = Vec::new();
    for name in &options.types {
        let f32 = cache.path("neighbours/f32.gguf");
        let model = verify::in_f32(&cache, &host, name, &f32)?;
        let ours = Settings { isa, ..Settings::default() };
        let ways = [
            ("F32, host", &f32, Way::Plain),
            ("host", &model, Way::Plain),
            ("auto", &model, Way::Ours(ours)),
            ("exact", &model, Way::Ours(Settings { exact: true, ..ours })),
        ];
        for (what, model, way) in ways {
            let same = measure(&host, &program, model, &text, options, way)?;
            println!("  {name}, {what}: {} of {} answers are the same", same.whole, same.of);
            let [share, low, high] = same.share().map(|v| format!("{v:.1}"));
            let first = format!("{:.1}", 100.0 * same.first as f64 / same.of as f64);
            rows.push(vec![
                name.clone(),
                what.to_string(),
                same.of.to_string(),
                share,
                format!("{low} to {high}"),
                first,
            ]);
        }
        cache::remove(&f32)?;
    }
    println!("\n{}", table::render(&["type", "computed by", "answers", "same %", "95 %", "same first token %"], &rows));
    println!("  {} slots against one; this library on {}", options.slots, isa.unwrap_or("amx"));
    Ok(())
}

/// The program, linked against the host.
fn build(host: &Host) -> Result<std::path::PathBuf> {
    let program = cache::logs()?.join("neighbours");
    let mut compile = Command::new(compiler::system()?.cxx);
    compile.args(["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror"]);
    host.include_dirs().iter().for_each(|dir| {
        compile.arg("-isystem").arg(dir);
    });
    compile.arg(util::repo().join("c_tests/tools/neighbours.cpp")).arg("-o").arg(&program);
    compile.args(host.link_args()).arg("-lllama");
    util::capture(&mut compile, &cache::log("neighbours-build")?)?;
    Ok(program)
}

fn measure(host: &Host, program: &Path, model: &Path, text: &Path, options: &Options, way: Way<'_>) -> Result<Same> {
    let mut command = Command::new(program);
    program::clean(&mut command);
    let (report, value) = products::REPORT;
    let buffers = if let Way::Ours(_) = way { "usual" } else { "plain" };
    command.env(report, value).arg(model).arg(text);
    command.args([options.answers, options.slots, cpu::detect().threads].map(|n| n.to_string())).arg(buffers);
    match way {
        Way::Ours(settings) => settings.apply(&mut command, false),
        _ => {
            command.env("GGML_AMX_MODE", "off");
        }
    }
    let log = cache::log("neighbours")?;
    let output = util::capture_within(&mut command, &log, TIME_LIMIT)?;
    match way {
        Way::Ours(settings) => {
            Floor::new(host, &settings, model, options.answers, options.answers)?.check(&output.stderr)?
        }
        _ if products::none(&output.stderr) => {}
        _ => return Err("this library was at work in the host's plain run".into()),
    }
    Same::parse(&output.stdout).ok_or(format!("no result: see {}", log.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_program_is_read() {
        let same = Same::parse("x\nsame 362 of 400 first 399\n").unwrap();
        assert_eq!(same, Same { whole: 362, first: 399, of: 400 });
        assert_eq!(same.share().map(|v| (10.0 * v).round() / 10.0), [90.5, 87.2, 93.0]);
        assert_eq!(Same::parse("nothing"), None);
    }

    #[test]
    fn options_are_read_and_wrong_ones_named() {
        let parse = |args: &str| Options::parse(&args.split_whitespace().map(String::from).collect::<Vec<_>>());
        assert_eq!(parse(""), Ok(Options { types: vec!["Q4_0".into()], answers: 400, slots: 8 }));
        assert_eq!(parse("--types q8_0,F16 --answers 9 --slots 2").unwrap().types, ["Q8_0", "F16"]);
        assert!(parse("--answers 0").unwrap_err().contains("--answers"));
        assert!(parse("--slots").unwrap_err().contains("needs a value"));
        assert!(parse("--what 3").unwrap_err().contains("--what"));
    }
}

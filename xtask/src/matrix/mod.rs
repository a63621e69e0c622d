//! `cargo xtask hosts --check`: every host that this library says it serves, as one table: were its structs found, do
//! bytes come back from buffers, are products right, and, where there is a libllama, are a real model's logits.

mod check;
mod hosts;
mod newest;
mod vendored;

use std::{
    fs::{self, File},
    path::PathBuf,
    process::Command,
    time::Instant,
};

use crate::{
    bench::report::{between_markers, broken},
    cache::{self, Cache},
    compiler, cpu, fetch,
    host::{self, Kind},
    table, text,
    util::{self, Result, io},
    verify,
};
use hosts::{ENTRIES, Entry, Made, shared};

/// The weights of all logits.
const TYPE: &str = "Q4_1";

/// What every host is checked with.
struct Bench {
    program: PathBuf,
    /// This library as a shared one, beside hosts that do not have it in them.
    ours: PathBuf,
    isa: Option<String>,
    text: PathBuf,
    model: PathBuf,
    /// Logits of the same weights in F32.
    base: PathBuf,
    words: usize,
    /// Another run at the same time would overwrite the files of this one.
    _lock: File,
}

/// A line of the table.
struct Row {
    cells: Vec<String>,
    failed: Option<String>,
    /// It failed because an index does not have the package.
    is_absent: bool,
}

/// Checks the hosts with these names; without names all of them, or with `quick` those that CI has time for. In a quick
/// run `skip` is told of hosts whose package cannot be downloaded. `newest`: also newer versions that the packages'
/// indexes have.
pub fn run(names: &[String], quick: bool, newest: bool, skip: impl Fn(&str, &str)) -> Result<()> {
    let chosen =
        |entry: &&Entry| if names.is_empty() { !quick || entry.quick } else { names.iter().any(|n| n == entry.name) };
    if let Some(unknown) = names.iter().find(|name| ENTRIES.iter().all(|entry| entry.name != **name)) {
        let known: Vec<&str> = ENTRIES.iter().map(|entry| entry.name).collect();
        return Err(format!("no host `{unknown}`: {}", known.join("; ")));
    }
    let bench = Bench::new()?;
    let mut rows: Vec<Row> = ENTRIES.iter().filter(chosen).map(|entry| bench.look(entry)).collect();
    if newest {
        let newer = newest::newer(&bench, &rows);
        rows.extend(newer);
    }
    let header =
        ["host", "version", "this library", "structs", "buffers", "products: NMSE", "logits: KLD ours / host", ""];
    let cells: Vec<Vec<String>> = rows.iter().map(|row| row.cells.clone()).collect();
    println!("\n{}", table::render(&header, &cells));
    println!(
        "  KL divergence of {TYPE} to the same weights in F32, on {} kernels",
        bench.isa.as_deref().unwrap_or("amx")
    );
    let mut failures: Vec<&String> = Vec::new();
    for row in &rows {
        match &row.failed {
            Some(why) if quick && row.is_absent => skip("a prebuilt host", why),
            Some(why) => failures.push(why),
            None => {}
        }
    }
    if names.is_empty() && !quick && !newest && failures.is_empty() {
        bench.write_document(&header[..7], &cells)?;
    }
    match failures.is_empty() {
        true => Ok(()),
        false => Err(failures.into_iter().map(String::as_str).collect::<Vec<_>>().join("\n")),
    }
}

impl Bench {
    fn new() -> Result<Self> {
        let dir = cache::root()?.join("matrix");
        io("create", &dir, fs::create_dir_all(&dir))?;
        let lock = cache::lock(&dir.join("lock"))?;
        let ours = host::our_libraries()?.join("libggml_amx.so");
        let llama = host::ensure(Kind::Llama)?;
        let cache = Cache::open()?;
        let program = dir.join("any_host");
        let mut compile = Command::new(compiler::system()?.cxx);
        compile.args(["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror"]);
        compile.arg(util::repo().join("c_tests/tools/any_host.cpp")).args(["-ldl", "-o"]).arg(&program);
        util::capture(&mut compile, &cache::log("matrix-compile")?)?;
        let text = dir.join("text.txt");
        io("write", &text, fs::write(&text, text::prose(&fetch::source(&cache)?)?))?;
        let asked = std::env::var("GGML_AMX_ISA").ok().filter(|v| !v.is_empty());
        let isa = asked.or_else(|| (!cpu::detect().amx).then(|| "avx512".to_string()));
        let f32 = dir.join("f32.gguf");
        let model = verify::in_f32(&cache, &llama, TYPE, &f32)?;
        let base = dir.join("base");
        let mut bench = Self { program, ours, isa, text, model, base, words: 0, _lock: lock };
        let made = Made { version: String::new(), libraries: shared(&llama), llama: None, loader: None };
        bench.words = bench.logits(&made, &llama.bin_dir().join("libllama.so"), &f32, &bench.base, false)?;
        cache::remove(&f32)?;
        Ok(bench)
    }

    fn look(&self, entry: &Entry) -> Row {
        println!("  {}", entry.name);
        let begin = Instant::now();
        let mut cells = vec![entry.name.to_string(), String::new(), entry.how.to_string()];
        let made = (entry.make)(self);
        let is_absent = matches!(made, Ok(None));
        let made = made.and_then(|made| made.ok_or(fetch::NOT_SERVED.to_string()));
        let failed = made.and_then(|made| self.check(&made, &mut cells)).err();
        cells.resize(7, "-".into());
        cells.push(if failed.is_some() { "FAILED".into() } else { util::seconds(begin.elapsed()) });
        Row { failed: failed.map(|why| format!("{}: {why}", entry.name)), cells, is_absent }
    }

    /// The table of docs/hosts.md.
    fn write_document(&self, header: &[&str], rows: &[Vec<String>]) -> Result<()> {
        let origin = format!(
            "`cargo xtask hosts --check`, {}, {}, {} kernels; logits: SmolLM2-135M in {TYPE}, mean KL divergence to the \
             same weights in F32.",
            cpu::today(),
            cpu::detect().model,
            self.isa.as_deref().unwrap_or("amx"),
        );
        let mut out = format!("{}\n\n| {} |\n|{}\n", broken(&origin), header.join(" | "), "---|".repeat(header.len()));
        for row in rows {
            out.push_str(&format!("| {} |\n", row[..header.len()].join(" | ")));
        }
        let path = util::repo().join("docs/hosts.md");
        let old = io("read", &path, fs::read_to_string(&path))?;
        io("write", &path, fs::write(&path, between_markers(&old, "hosts", &out)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_different() {
        let mut names: Vec<&str> = ENTRIES.iter().map(|entry| entry.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ENTRIES.len());
    }
}

//! `cargo xtask bench`: this library beside other hosts and beside what the machine can do.

mod chart;
mod docs;
mod drive;
mod experts;
mod options;
mod products;
mod record;
pub mod report;
mod results;
mod run;
mod slices;
mod types;

use std::{
    fs,
    path::{Path, PathBuf},
};

pub use options::{HELP, Options};

use crate::{
    cache,
    util::{self, Result, io},
};
use record::Record;

/// Everything the options ask for.
pub fn run(options: &Options) -> Result<()> {
    if options.thresholds {
        return thresholds();
    }
    if let Some(file) = &options.report {
        keep(file)?;
    }
    if options.docs || options.report.is_some() {
        docs::write()?.iter().for_each(|name| println!("  wrote {name}"));
        return Ok(());
    }
    let out = match &options.out {
        Some(dir) => dir.clone(),
        None => cache::root()?.join("bench"),
    };
    io("create", &out, fs::create_dir_all(&out))?;
    if options.slices {
        return slices::run(options, &out);
    }
    if options.is_experts {
        return experts::run(options, &out);
    }
    if let Some(plan) = &options.type_table {
        return types::run(plan, &out);
    }
    let run = drive::run(options, &out)?;
    println!("\n{}", report::table(&run));
    let json = out.join("mul-mat.json");
    save(&json, &run.write())?;
    println!("  to put it into the documents: cargo xtask bench --report {}", json.display());
    Ok(())
}

/// Has the test that compares docs/dispatch.md with the library write its tables, and prints them.
fn thresholds() -> Result<()> {
    let mut cargo = util::cargo();
    cargo.args(["test", "--package", "ggml-amx", "--test", "dispatch"]).env("GGML_AMX_UPDATE_DOCS", "1");
    util::capture(&mut cargo, &cache::log("thresholds")?)?;
    let file = util::repo().join("docs/dispatch.md");
    let text = io("read", &file, fs::read_to_string(&file))?;
    println!("{}", report::within_markers(&text, "thresholds")?);
    Ok(())
}

/// Results among the records.
fn keep(results: &Path) -> Result<()> {
    let record = Record::with_results(results)?;
    let file = record.path();
    if let Some(dir) = file.parent() {
        io("create", dir, fs::create_dir_all(dir))?;
    }
    save(&file, &record.write())
}

fn save(file: &PathBuf, text: &str) -> Result<()> {
    io("write", file, fs::write(file, text))?;
    println!("  wrote {}", shown(file));
    Ok(())
}

/// Below the repository without its path.
fn shown(file: &Path) -> String {
    file.strip_prefix(util::repo()).unwrap_or(file).display().to_string()
}

//! `cargo xtask bench`: this library beside other hosts and beside what the machine can do.

mod chart;
mod drive;
mod experts;
mod options;
mod products;
pub mod report;
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
    json::Json,
    util::{self, Result, io},
};
use run::Run;
use types::Types;

/// Everything the options ask for.
pub fn run(options: &Options) -> Result<()> {
    if let Some(file) = &options.report {
        return write_docs(file);
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
    save(&out.join("mul-mat.svg"), &chart::draw(&run))?;
    println!("  to put it into the documents: cargo xtask bench --report {}", json.display());
    Ok(())
}

/// Results in the documents: the chart and its tables, or the table of types.
fn write_docs(results: &Path) -> Result<()> {
    let in_file = |e| format!("{}: {e}", results.display());
    let json = Json::parse(&io("read", results, fs::read_to_string(results))?).map_err(in_file)?;
    if json.text("kind") == types::KIND {
        return write_between("README.md", types::KIND, &Types::read(&json).map_err(in_file)?.markdown());
    }
    let run = Run::of(&json).map_err(in_file)?;
    save(&util::repo().join("docs/mul-mat.svg"), &chart::draw(&run))?;
    write_between("docs/performance.md", "bench", &report::markdown(&run))?;
    write_between("README.md", "bench", &report::summary(&run))
}

/// Text between the markers of this name.
fn write_between(document: &str, name: &str, text: &str) -> Result<()> {
    let file = util::repo().join(document);
    let old = io("read", &file, fs::read_to_string(&file))?;
    save(&file, &report::between_markers(&old, name, text).map_err(|e| format!("{document}: {e}"))?)
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

//! `cargo xtask bench`: this library beside other hosts and beside what the machine can do.

mod chart;
mod drive;
mod experts;
mod options;
mod report;
mod run;
mod slices;

use std::{
    fs,
    path::{Path, PathBuf},
};

pub use options::{HELP, Options};

use crate::{
    cache,
    util::{self, Result, io},
};
use run::Run;

/// Everything the options ask for.
pub fn run(options: &Options) -> Result<()> {
    if let Some(file) = &options.report {
        return write_docs(&Run::read(file)?);
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
    let run = drive::run(options, &out)?;
    println!("\n{}", report::table(&run));
    let json = out.join("mul-mat.json");
    save(&json, &run.write())?;
    save(&out.join("mul-mat.svg"), &chart::draw(&run))?;
    println!("  to put it into the documents: cargo xtask bench --report {}", json.display());
    Ok(())
}

/// The chart and the tables in the documents.
fn write_docs(run: &Run) -> Result<()> {
    let repo = util::repo();
    save(&repo.join("docs/mul-mat.svg"), &chart::draw(run))?;
    let texts = [("docs/performance.md", report::markdown(run)), ("README.md", report::summary(run))];
    for (name, text) in texts {
        let file = repo.join(name);
        let old = io("read", &file, fs::read_to_string(&file))?;
        let new = report::between_markers(&old, &text).map_err(|e| format!("{name}: {e}"))?;
        save(&file, &new)?;
    }
    Ok(())
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

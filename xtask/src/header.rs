//! `cargo xtask header`: writes include/ggml-amx.h anew (the crate's build script does it, when asked).

use crate::util::{self, Result};

/// Any other build only compares.
pub fn run() -> Result<()> {
    let mut build = util::cargo();
    build.arg("build").env("GGML_AMX_UPDATE_HEADER", "1");
    util::run_shown(&mut build)?;
    println!("include/ggml-amx.h is up to date");
    Ok(())
}

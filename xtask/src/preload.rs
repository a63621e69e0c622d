//! The library for LD_PRELOAD, built by the project in `cmake/` that also installs it.

use std::path::PathBuf;

use crate::{
    cache::{self, Cache},
    fetch, host, symbols,
    util::{self, Result},
};

/// Builds it out of the static library that cargo has just made, and looks at what it shows.
pub fn ensure() -> Result<PathBuf> {
    let cache = Cache::open()?;
    let tools = fetch::tools(&cache)?;
    let archive = host::our_archive()?;
    let repo = util::repo();
    let key = cache::fnv(format!("{}\n{}", repo.display(), archive.display()).bytes()) >> 32;
    let build = cache.path(format!("builds/preload-{key:08x}"));
    let mut configure = host::cmake(&tools);
    configure.arg("-S").arg(repo.join("cmake")).arg("-B").arg(&build).args(["-G", "Ninja"]);
    configure.arg(format!("-DGGML_AMX_LIBRARY={}", archive.display()));
    util::capture(&mut configure, &cache::log("configure-preload")?)?;
    let mut ninja = host::cmake(&tools);
    ninja.arg("--build").arg(&build);
    util::capture(&mut ninja, &cache::log("build-preload")?)?;
    let library = build.join("libggml_amx_preload.so");
    symbols::check_preload(&library)?;
    Ok(library)
}

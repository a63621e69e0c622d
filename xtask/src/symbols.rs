//! Proof that the swap happened: what the host's CPU library contains.

use std::{path::Path, process::Command};

use crate::{
    cache,
    util::{self, Result},
};

/// What only the C++ AMX backend defines.
const THEIRS: [&str; 6] = [
    "ggml_backend_amx_mul_mat",
    "ggml_backend_amx_convert_weight",
    "ggml_backend_amx_desired_wsize",
    "ggml_backend_amx_get_alloc_size",
    "tinygemm_kernel",
    "ggml::cpu::amx::",
];

/// What the host calls, and this library provides.
const ENTRY: &str = "ggml_backend_amx_buffer_type()";

/// Says what was checked, or which symbol is wrong.
pub fn check_swapped(library: &Path) -> Result<String> {
    let listing = list(library)?;
    let left: Vec<&str> = THEIRS.into_iter().filter(|name| listing.contains(name)).collect();
    if !left.is_empty() {
        return Err(format!(
            "{} still contains functions of the C++ AMX backend: {}",
            library.display(),
            left.join(", ")
        ));
    }
    if !listing.contains(ENTRY) {
        return Err(format!("{} has no {ENTRY}", library.display()));
    }
    Ok(format!("has {ENTRY}, and none of {}", THEIRS.join(", ")))
}

/// The opposite, for the baseline: the C++ AMX backend must be in it.
pub fn check_original(library: &Path) -> Result<()> {
    let listing = list(library)?;
    match THEIRS.into_iter().find(|name| !listing.contains(name)) {
        Some(name) => Err(format!("{} has no {name}: not a baseline for the C++ AMX backend", library.display())),
        None => Ok(()),
    }
}

/// All symbols, dynamic and static, demangled.
fn list(library: &Path) -> Result<String> {
    let mut listing = String::new();
    for flags in ["-C", "-DC"] {
        let mut nm = Command::new("nm");
        nm.arg(flags).arg(library);
        listing.push_str(&util::capture(&mut nm, &cache::log("nm")?)?.stdout);
    }
    Ok(listing)
}

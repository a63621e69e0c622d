//! Proof that the swap happened: what the host's libraries contain.

use std::{fs, path::Path, process::Command};

use crate::{
    cache,
    host::Host,
    util::{self, Result, io},
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

/// The functions of ik_llama.cpp that calls are taken from: the list the build has.
pub fn wrapped() -> Result<Vec<String>> {
    let file = util::repo().join("cmake/ik-wrapped.txt");
    Ok(io("read", &file, fs::read_to_string(&file))?.lines().map(String::from).collect())
}

/// Says that libggml has both this library's functions and the host's own, and who calls ours.
pub fn check_wrapped(host: &Host) -> Result<String> {
    let library = host.cpu_library();
    let names = wrapped()?;
    let shown = dynamic(&library)?;
    for name in names.iter().flat_map(|name| [name.clone(), format!("__wrap_{name}")]) {
        if !shown.contains(&format!(" T {name}")) {
            return Err(format!("{} does not show {name}", library.display()));
        }
    }
    let llama = host.build.join("src/libllama.so");
    let called = dynamic(&llama)?;
    if let Some(name) = names.iter().find(|name| called.contains(&format!(" U {name}"))) {
        return Err(format!("{} calls {name} past this library", llama.display()));
    }
    Ok(format!("has __wrap_{}", names.join(", __wrap_")))
}

/// The library for LD_PRELOAD shows what it shall and no more, and needs nothing but libc, and the
/// unwinder that the process has.
pub fn check_preload(library: &Path) -> Result<String> {
    let names = wrapped()?;
    let symbols = dynamic(library)?;
    for line in &symbols {
        let (kind, name) = line.trim_start().split_once(' ').unwrap_or_default();
        let is_unwinder = name.starts_with("_Unwind_") && name.contains("@GCC_");
        let is_libc = kind == "U" && (name.contains("@GLIBC_") || is_unwinder);
        let is_ours =
            names.iter().any(|n| n == name) || name.starts_with("ggml_amx_") || name.starts_with("ggml_backend_amx_");
        if !(is_libc || ["w", "v"].contains(&kind) || kind == "T" && is_ours) {
            return Err(format!("{}: unexpected symbol `{}`", library.display(), line.trim()));
        }
    }
    match names.iter().find(|name| !symbols.contains(&format!(" T {name}"))) {
        Some(name) => Err(format!("{} does not show {name}", library.display())),
        None => Ok(format!("shows {}", names.join(", "))),
    }
}

/// A library that has this one's code in it must stay mapped when its host unloads it.
pub fn check_no_delete(library: &Path) -> Result<()> {
    let mut readelf = Command::new("readelf");
    readelf.arg("-dW").arg(library);
    let listing = util::capture(&mut readelf, &cache::log("readelf")?)?.stdout;
    let is_set = listing.lines().any(|l| l.contains("(FLAGS_1)") && l.contains("NODELETE"));
    if is_set { Ok(()) } else { Err(format!("{} has no NODELETE among its dynamic flags", library.display())) }
}

/// A library that another project links our archive into must not show Rust's standard library.
pub fn check_no_rust(library: &Path) -> Result<()> {
    match dynamic(library)?.iter().find(|symbol| is_rust(symbol)) {
        Some(symbol) => Err(format!("{} shows `{}`", library.display(), symbol.trim())),
        None => Ok(()),
    }
}

/// By the two ways in which Rust writes names, and what it names plainly.
fn is_rust(symbol: &str) -> bool {
    let (kind, name) = symbol.trim_start().split_once(' ').unwrap_or_default();
    let hashed =
        name.len() > 20 && name.is_char_boundary(name.len() - 20) && name[name.len() - 20..].starts_with("17h");
    !["U", "w", "v"].contains(&kind)
        && (name.starts_with("_R") || name.starts_with("rust_") || (name.starts_with("_ZN") && hashed))
}

/// Dynamic symbols without addresses: ` T name`.
fn dynamic(library: &Path) -> Result<Vec<String>> {
    let mut nm = Command::new("nm");
    nm.arg("-D").arg(library);
    let listing = util::capture(&mut nm, &cache::log("nm-dynamic")?)?.stdout;
    Ok(listing.lines().map(|l| l[l.len().min(16)..].to_string()).collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_rust_are_told_from_those_of_cpp() {
        for rust in [
            " T _RNvCs1234_7___rustc12rust_panic",
            " T rust_eh_personality",
            " T _ZN4core9panicking5panic17h0123456789abcdefE",
        ] {
            assert!(is_rust(rust), "{rust}");
        }
        for other in [" T _ZN4ggml3cpu13tensor_traitsD1Ev", " U rust_eh_personality", " T ggml_amx_version", " w _Rx"] {
            assert!(!is_rust(other), "{other}");
        }
    }
}

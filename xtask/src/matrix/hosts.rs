//! The hosts, and how each comes to have this library: built with it, or prebuilt and loaded beside it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Bench, vendored::vendored};
use crate::{
    cache::{self, Cache},
    compiler,
    copies::{Copy, Edit, instead},
    fetch,
    host::{self, Host, Kind},
    util::{self, Result, io},
};

/// A host that is checked.
pub(super) struct Entry {
    pub name: &'static str,
    /// How it comes to have this library.
    pub how: &'static str,
    /// Whether CI has time for it.
    pub quick: bool,
    /// None: the index answers that it does not have the package.
    pub make: fn(&Bench) -> Result<Option<Made>>,
}

pub(super) const ENTRIES: [Entry; 11] = [
    Entry { name: "ggml, prebuilt", how: "by function", quick: true, make: wheel },
    Entry { name: "llama.cpp, earlier", how: "swapped in", quick: false, make: |_| swapped(Kind::Earlier).map(Some) },
    Entry { name: "node-llama-cpp, prebuilt", how: "by function", quick: true, make: node },
    Entry { name: "llama.cpp", how: "swapped in", quick: true, make: |_| swapped(Kind::Llama).map(Some) },
    Entry { name: "llama.cpp, backends as plug-ins", how: "swapped in", quick: true, make: |_| plugins().map(Some) },
    Entry {
        name: "ggml inside another project, plain make",
        how: "swapped in",
        quick: false,
        make: |_| vendored().map(Some),
    },
    Entry { name: "llama.cpp, later", how: "swapped in", quick: false, make: |_| swapped(Kind::Later).map(Some) },
    Entry { name: "Debian sid, prebuilt", how: "by function", quick: false, make: |bench| sid(bench).map(Some) },
    Entry {
        name: "ik_llama.cpp",
        how: "linked",
        quick: true,
        make: |_| linked(&host::ensure(Kind::IkOurs)?, "").map(Some),
    },
    Entry {
        name: "ik_llama.cpp, 12 sources",
        how: "linked",
        quick: false,
        make: |_| copy("12", &SOURCES_12).map(Some),
    },
    Entry {
        name: "ik_llama.cpp, 16 sources, indexer",
        how: "linked",
        quick: false,
        make: |_| copy("16", &SOURCES_16).map(Some),
    },
];

/// What is loaded.
pub(super) struct Made {
    pub version: String,
    /// Libraries and directories of backends, in the order in which they are loaded.
    pub libraries: Vec<PathBuf>,
    /// libllama, if there is one.
    pub llama: Option<PathBuf>,
    /// A loader of its own, with the directory of its libraries.
    pub loader: Option<PathBuf>,
}

/// The libraries of a shared build.
pub(super) fn shared(host: &Host) -> Vec<PathBuf> {
    ["libggml-base.so", "libggml-cpu.so", "libggml.so"].map(|name| host.bin_dir().join(name)).into()
}

fn swapped(kind: Kind) -> Result<Made> {
    let host = host::ensure(kind)?;
    if kind != Kind::Llama {
        host::also(&host, &["llama"])?;
    }
    let llama = Some(host.bin_dir().join("libllama.so"));
    Ok(Made { version: String::new(), libraries: shared(&host), llama, loader: None })
}

fn plugins() -> Result<Made> {
    let bin = host::ensure(Kind::Dl)?.bin_dir();
    let libraries = vec![bin.join("libggml-base.so"), bin.join("libggml.so"), bin];
    Ok(Made { version: String::new(), libraries, llama: None, loader: None })
}

fn wheel(bench: &Bench) -> Result<Option<Made>> {
    let Some(root) = fetch::older_ggml(&Cache::open()?)? else { return Ok(None) };
    let mut libraries: Vec<PathBuf> =
        ["libggml-base.so", "libggml-cpu.so", "libggml.so"].map(|name| root.join("lib64").join(name)).into();
    libraries.push(bench.ours.clone());
    Ok(Some(Made { version: String::new(), libraries, llama: None, loader: None }))
}

/// The one library of a directory whose name begins like this.
pub(super) fn library(dir: &Path, begins: &str) -> Result<PathBuf> {
    let names = io("read", dir, fs::read_dir(dir))?.flatten().map(|entry| entry.path());
    let is = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(begins));
    let mut found: Vec<PathBuf> = names.filter(is).collect();
    found.sort();
    found.into_iter().next().ok_or(format!("{} has no {begins}*", dir.display()))
}

fn node(bench: &Bench) -> Result<Option<Made>> {
    let Some(dir) = fetch::node(&Cache::open()?)? else { return Ok(None) };
    let libraries = vec![dir.join("libggml-base.so"), library(&dir, "libggml.")?, dir.clone(), bench.ours.clone()];
    Ok(Some(Made { version: String::new(), libraries, llama: Some(library(&dir, "libllama.")?), loader: None }))
}

fn sid(bench: &Bench) -> Result<Made> {
    let (version, dir) = fetch::sid(&Cache::open()?)?;
    let backends = library(&dir.join("ggml"), "backends")?;
    let libraries =
        vec![library(&dir, "libggml-base.so.")?, library(&dir, "libggml.so.")?, backends, bench.ours.clone()];
    let llama = library(&dir, "libllama.so.").or_else(|_| library(&dir.join("llama"), "libllama.so."))?;
    Ok(Made { version, libraries, llama: Some(llama), loader: Some(dir) })
}

fn linked(host: &Host, version: &str) -> Result<Made> {
    let libraries = vec![host.build.join("ggml/src/libggml.so")];
    let version = if version.is_empty() { fetch::IK.version() } else { version };
    Ok(Made { version: version.to_string(), libraries, llama: None, loader: None })
}

/// A copy of ik_llama.cpp as it was at another time, linked by the module.
fn copy(name: &str, edits: &[Edit]) -> Result<Made> {
    let pinned = host::ensure(Kind::Ik)?;
    let library = host::our_archive()?;
    let cache = Cache::open()?;
    let (tools, compiler) = (fetch::tools(&cache)?, compiler::system()?);
    let copy = Copy::new(&cache, &format!("ik-sources-{name}"), &pinned, edits, Some("ggml_tensor\\|GGML_MAX_SRC"))?;
    let mut configure = copy.configure(&tools, &compiler);
    let module = util::repo().join("cmake/llama-host.cmake");
    configure.arg(format!("-DCMAKE_PROJECT_INCLUDE={}", module.display()));
    configure.arg(format!("-DGGML_AMX_LIBRARY={}", library.display()));
    util::run_logged(&mut configure, name, &cache::log(&format!("configure-ik-sources-{name}"))?)?;
    let mut make = host::cmake(&tools);
    make.arg("--build").arg(&copy.build).args(["--target", "ggml"]);
    let log = cache::log(&format!("build-ik-sources-{name}"))?;
    util::run_logged(&mut make, &format!("building ik_llama.cpp with {name} sources"), &log)?;
    linked(
        &Host { kind: Kind::IkOurs, source: copy.source, build: copy.build, compiler },
        &format!("{}, edited", fetch::IK.version()),
    )
}

const IK_HEADER: &str = "ggml/include/ggml.h";

const IK_SOURCES: &str = "#define GGML_MAX_SRC            10";

const IK_KERNELS: &str = "ggml/src/iqk/iqk_mul_mat.h";

const IK_ATTENTION: &str = "ggml/src/iqk/iqk_flash_attn.cpp";

/// As of May 2026.
const SOURCES_12: [Edit; 1] = [instead(IK_HEADER, IK_SOURCES, "#define GGML_MAX_SRC 12")];

/// As of July 2026: flash attention has an argument more.
const SOURCES_16: [Edit; 5] = [
    instead(IK_HEADER, IK_SOURCES, "#define GGML_MAX_SRC 16"),
    instead(IK_KERNELS, "int ith, int nth, int n_swa);", "int ith, int nth, int n_swa, struct ggml_tensor * indexer);"),
    instead(IK_ATTENTION, "int ith, int nth, int n_swa) {", "int ith, int nth, int n_swa, struct ggml_tensor *) {"),
    instead(
        IK_ATTENTION,
        "[[maybe_unused]] int nth, [[maybe_unused]] int n_swa) {",
        "[[maybe_unused]] int nth, [[maybe_unused]] int n_swa, struct ggml_tensor *) {",
    ),
    instead("ggml/src/ggml.c", "ith, nth, dst->op_params[4])) return;", "ith, nth, dst->op_params[4], NULL)) return;"),
];

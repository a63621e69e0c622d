//! The real hosts: which llama.cpp builds exist, with which flags, and where their parts lie.
//!
//! What other commands use (see `c_tests.rs`, `demo.rs`, `verify/`):
//!
//! ```text
//! let host = host::ensure(Kind::Static)?;   // fetch, configure, build; quick when nothing changed
//! host.include_dirs()   // ggml/include, include, ggml/src, ggml/src/ggml-cpu: for -I
//! host.bin_dir()        // programs, and the shared libraries of a shared build
//! host.lib_dirs()       // for -L and LD_LIBRARY_PATH
//! host.link_args()      // everything after the objects on a g++ command line
//! host.program("llama-bench")  // path of one program (Kind::Llama, Kind::Ik, Kind::IkOurs)
//! ```
//!
//! Our library is not part of a build directory's name: it is rebuilt by cargo, so `ensure` always
//! ends in a ninja run, and a change of ours relinks the hosts. `ensure` takes the cache's lock: never
//! call it while holding a [`Cache`].

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use crate::{
    cache::{self, Cache},
    compiler::{self, Compiler},
    cpu, fetch,
    json::{self, Json, Look},
    symbols,
    util::{self, Result, io},
};

/// The module that swaps our library in, and what it includes (the rest of cmake/ is for installing).
const MODULE: [&str; 6] =
    ["llama-host.cmake", "object.cmake", "cargo.cmake", "amx-macros.h", "signatures.cmake", "llama-signatures.cpp"];
/// What of it is for ik_llama.cpp only.
const IK_MODULE: [&str; 3] = ["ik-host.cmake", "ik-wrapped.txt", "ik-signatures.cpp"];

/// One way to build the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Shared libraries and programs, system compiler, C++ AMX files replaced by this library.
    Llama,
    /// Only `libggml-cpu.so`, compiled by clang, with the host's own C++ AMX backend: the baseline. Without
    /// OpenMP, so that a program can run its operations on threads of its own.
    CppAmx,
    /// `libggml*.a` without any AMX compiler flag (GGML_NATIVE=OFF), this library linked in.
    Static,
    /// DL backends (GGML_BACKEND_DL=ON, GGML_NATIVE=OFF), this library linked into the CPU backend.
    Dl,
    /// A later version (ggml 0.26): shared libraries, this library in the place of its AMX code; no programs.
    Later,
    /// An earlier version (ggml 0.9): the same.
    Earlier,
    /// Shared libraries and programs of ik_llama.cpp as it is: to compare with, and to preload this library into.
    Ik,
    /// The same with this library linked in.
    IkOurs,
}

/// A finished build of the host.
#[derive(Clone, Debug)]
pub struct Host {
    /// How it was built.
    pub kind: Kind,
    /// Root of the host's source tree (holds `ggml/`, `src/`).
    pub source: PathBuf,
    /// The CMake build directory.
    pub build: PathBuf,
    /// The compiler it was built by.
    pub compiler: Compiler,
}

impl Kind {
    /// The name used in paths and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::CppAmx => "cpp-amx",
            Self::Static => "static",
            Self::Dl => "dl",
            Self::Later => "later",
            Self::Earlier => "earlier",
            Self::Ik => "ik",
            Self::IkOurs => "ik-amx",
        }
    }

    /// Whether this library is in it.
    fn is_ours(self) -> bool {
        !matches!(self, Self::CppAmx | Self::Ik)
    }

    /// ik_llama.cpp, not llama.cpp.
    pub fn is_ik(self) -> bool {
        matches!(self, Self::Ik | Self::IkOurs)
    }

    fn package(self) -> &'static fetch::Package {
        match self {
            Self::Ik | Self::IkOurs => &fetch::IK,
            Self::Later => &fetch::LATER,
            Self::Earlier => &fetch::EARLIER,
            Self::Llama | Self::CppAmx | Self::Static | Self::Dl => &fetch::HOST,
        }
    }

    fn targets(self) -> &'static [&'static str] {
        match self {
            Self::Llama => &["llama-completion", "llama-perplexity", "llama-quantize", "llama-bench"],
            Self::CppAmx => &["ggml-cpu"],
            Self::Static | Self::Dl | Self::Later | Self::Earlier => &["ggml"],
            Self::Ik | Self::IkOurs => &["llama-cli", "llama-perplexity", "llama-quantize", "llama-bench"],
        }
    }

    /// Options for CMake.
    pub fn flags(self, compiler: &Compiler, library: &Path) -> Vec<String> {
        let mut flags: Vec<String> = vec![
            "-DCMAKE_BUILD_TYPE=Release".into(),
            format!("-DCMAKE_C_COMPILER={}", compiler.cc),
            format!("-DCMAKE_CXX_COMPILER={}", compiler.cxx),
            format!("-DBUILD_SHARED_LIBS={}", if self == Self::Static { "OFF" } else { "ON" }),
        ];
        // The programs of ik_llama.cpp lie among its examples.
        let examples = "LLAMA_BUILD_EXAMPLES";
        for off in ["LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_SERVER", examples, "LLAMA_BUILD_TESTS"] {
            if off != examples || !self.is_ik() {
                flags.push(format!("-D{off}=OFF"));
            }
        }
        if self.is_ik() {
            flags.push(format!("-D{examples}=ON"));
        }
        if self == Self::CppAmx {
            flags.push("-DGGML_OPENMP=OFF".into());
        }
        if matches!(self, Self::Later | Self::Earlier) {
            // One of the packages has none of these.
            flags.extend(["TOOLS", "COMMON", "APP"].map(|what| format!("-DLLAMA_BUILD_{what}=OFF")));
        }
        if self.is_ours() {
            flags.push(format!("-DCMAKE_PROJECT_INCLUDE={}", module().display()));
        }
        if matches!(self, Self::Static | Self::Dl) {
            flags.push("-DGGML_NATIVE=OFF".into());
        }
        if self.is_ours() && self != Self::Llama {
            // Llama lets the module run cargo; here it is given the library that cargo has just built.
            flags.push(format!("-DGGML_AMX_LIBRARY={}", library.display()));
        }
        if self == Self::Dl {
            flags.push("-DGGML_BACKEND_DL=ON".into());
        }
        flags
    }
}

impl Host {
    /// Header directories for programs that talk to ggml, public ones first.
    pub fn include_dirs(&self) -> Vec<PathBuf> {
        let last = if self.kind.is_ik() { "ggml/src/iqk" } else { "ggml/src/ggml-cpu" };
        ["ggml/include", "include", "ggml/src", last].iter().map(|d| self.source.join(d)).collect()
    }

    /// Programs, and the shared libraries of a shared build.
    pub fn bin_dir(&self) -> PathBuf {
        self.build.join("bin")
    }

    /// Directories with `libggml*`, for `-L` and `LD_LIBRARY_PATH`; of the baseline one with only `libggml-cpu`.
    pub fn lib_dirs(&self) -> Vec<PathBuf> {
        vec![match self.kind {
            Kind::Static => self.build.join("ggml/src"),
            Kind::CppAmx => self.build.join("only-ggml-cpu"),
            Kind::Llama | Kind::Dl | Kind::Later | Kind::Earlier => self.bin_dir(),
            Kind::Ik | Kind::IkOurs => self.build.join("ggml/src"),
        }]
    }

    /// Path of one of the host's programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir().join(name)
    }

    /// The CPU backend's library: where the AMX code is, theirs or ours.
    pub fn cpu_library(&self) -> PathBuf {
        match self.kind {
            Kind::Static => self.lib_dirs()[0].join("libggml-cpu.a"),
            Kind::Llama | Kind::CppAmx | Kind::Dl | Kind::Later | Kind::Earlier => {
                self.bin_dir().join("libggml-cpu.so")
            }
            Kind::Ik | Kind::IkOurs => self.lib_dirs()[0].join("libggml.so"),
        }
    }

    /// What paths of the CPU backend's library have in them, whatever its version, and no other path has.
    pub fn cpu_library_mark(&self) -> &'static str {
        if self.kind.is_ik() { "/libggml.so" } else { "/libggml-cpu" }
    }

    /// Everything that follows the objects on a `g++` command line that links against this build.
    /// With DL backends libggml-cpu is a plug-in: programs link without it, and load it at run time.
    pub fn link_args(&self) -> Vec<String> {
        let mut args: Vec<String> = Vec::new();
        for dir in self.lib_dirs() {
            args.push(format!("-L{}", dir.display()));
            if self.kind != Kind::Static {
                args.push(format!("-Wl,-rpath,{}", dir.display()));
            }
        }
        let tail: &[&str] = match self.kind {
            Kind::Static => {
                &["-lggml", "-lggml-cpu", "-lggml-base", "-fopenmp", "-lpthread", "-ldl", "-lm", "-lutil", "-lrt"]
            }
            Kind::Dl => &["-lggml", "-lggml-base", "-lpthread", "-ldl", "-lm"],
            Kind::Llama | Kind::CppAmx | Kind::Later | Kind::Earlier => {
                &["-lggml", "-lggml-cpu", "-lggml-base", "-lpthread", "-ldl", "-lm"]
            }
            Kind::Ik | Kind::IkOurs => &["-lggml", "-lpthread", "-lm"],
        };
        args.extend(tail.iter().map(|s| (*s).to_string()));
        args
    }

    /// The package its source is from.
    pub fn requirement(&self) -> &'static str {
        self.kind.package().requirement
    }

    /// `gcc 12.2.0`, and a word when it had to do without OpenMP.
    pub fn built_by(&self) -> String {
        let cache = fs::read_to_string(self.build.join("CMakeCache.txt")).unwrap_or_default();
        let no_openmp = cache
            .lines()
            .any(|l| l == "GGML_OPENMP:BOOL=OFF" || (l.starts_with("OpenMP_CXX_FLAGS") && l.ends_with("NOTFOUND")));
        format!("{}{}", self.compiler.label, if no_openmp { ", without OpenMP" } else { "" })
    }
}

/// What `--host` says: ik_llama.cpp, or llama.cpp.
pub fn is_ik(name: &str) -> Result<bool> {
    match name {
        "ik" => Ok(true),
        "llama" => Ok(false),
        other => Err(format!("no host `{other}`: llama, ik")),
    }
}

/// Makes sure this build exists and is up to date with our sources.
pub fn ensure(kind: Kind) -> Result<Host> {
    let compiler = match kind {
        Kind::CppAmx => compiler::for_cpp_amx().ok_or_else(|| compiler::NO_BASELINE.to_string())?,
        _ => compiler::system()?,
    };
    let alike = if kind == Kind::IkOurs { Some(ensure(Kind::Ik)?.build) } else { None };
    ensure_with(kind, compiler, alike.as_deref())
}

/// The host's own C++ AMX backend, or None when no compiler here builds it correctly.
pub fn baseline() -> Result<Option<Host>> {
    compiler::for_cpp_amx().map(|compiler| ensure_with(Kind::CppAmx, compiler, None)).transpose()
}

/// `alike` is a build whose object files are the same.
fn ensure_with(kind: Kind, compiler: Compiler, alike: Option<&Path>) -> Result<Host> {
    let start = Instant::now();
    let cache = Cache::open()?;
    let tools = fetch::tools(&cache)?;
    let source = match kind {
        Kind::Ik | Kind::IkOurs => fetch::ik_source(&cache)?,
        Kind::Later => fetch::later_source(&cache)?,
        Kind::Earlier => fetch::earlier_source(&cache)?,
        Kind::Llama | Kind::CppAmx | Kind::Static | Kind::Dl => fetch::source(&cache)?,
    };
    let library = match kind {
        Kind::Static | Kind::Dl | Kind::Later | Kind::Earlier | Kind::IkOurs => our_archive()?,
        Kind::Llama | Kind::CppAmx | Kind::Ik => PathBuf::new(),
    };
    let flags = kind.flags(&compiler, &library);
    let build = cache.path(format!(
        "builds/{}-{}-{}",
        kind.package().requirement.replace("==", "-"),
        kind.name(),
        key(kind, &compiler, &flags)?
    ));
    let host = Host { kind, source, build, compiler };
    println!("  host {}: {} ({})", kind.name(), host.build.display(), host.compiler.label);
    configure(&host, &tools, &flags, alike)?;
    let mut ninja = cmake(&tools);
    ninja.arg("--build").arg(&host.build).arg("--target").args(kind.targets());
    util::run_logged(
        &mut ninja,
        &format!("building {}", kind.name()),
        &cache::log(&format!("build-{}", kind.name()))?,
    )?;
    if kind == Kind::CppAmx {
        only_ggml_cpu(&host)?;
    }
    if kind.is_ours() && kind != Kind::Static {
        symbols::check_no_delete(&host.cpu_library())?;
    }
    println!("  host {}: ready ({})", kind.name(), util::seconds(start.elapsed()));
    Ok(host)
}

/// Builds other targets of a host too.
pub fn also(host: &Host, targets: &[&str]) -> Result<()> {
    let tools = fetch::tools(&Cache::open()?)?;
    let mut ninja = cmake(&tools);
    ninja.arg("--build").arg(&host.build).arg("--target").args(targets);
    let name = host.kind.name();
    util::run_logged(&mut ninja, &format!("building more of {name}"), &cache::log(&format!("build-more-{name}"))?)
}

/// A tree of another version (`name` tells it from others), with this library in the place of its AMX code (of
/// ik_llama.cpp: beside it), built as `kind` is.
pub fn of_tree(kind: Kind, source: PathBuf, name: &str) -> Result<Host> {
    let library = our_archive()?;
    let cache = Cache::open()?;
    let (tools, compiler) = (fetch::tools(&cache)?, compiler::system()?);
    let flags = kind.flags(&compiler, &library);
    let build = cache.path(format!("builds/{name}-{}", key(kind, &compiler, &flags)?));
    let host = Host { kind, source, build, compiler };
    configure(&host, &tools, &flags, None)?;
    let mut ninja = cmake(&tools);
    ninja.arg("--build").arg(&host.build).args(["--target", "ggml"]);
    util::run_logged(&mut ninja, &format!("building {name}"), &cache::log(&format!("build-{name}"))?)?;
    Ok(host)
}

/// Eight hex digits over everything that shapes the build except our library: flags (they hold our path),
/// compiler version, the module, and the CPU that `-march=native` means.
fn key(kind: Kind, compiler: &Compiler, flags: &[String]) -> Result<String> {
    let cpu = cpu::detect();
    let mut text = format!("{}\n{}\n{}\n{}\n", flags.join("\n"), compiler.label, cpu.model, cpu.flags);
    if kind.is_ours() {
        let ik: &[&str] = if kind.is_ik() { &IK_MODULE } else { &[] };
        for file in MODULE.iter().chain(ik) {
            let path = util::repo().join("cmake").join(file);
            text.push_str(&io("read", &path, fs::read_to_string(&path))?);
        }
    }
    Ok(format!("{:08x}", cache::fnv(text.bytes()) >> 32))
}

/// Runs CMake once; a file that is written last says that it came to its end, and for which tree and flags.
fn configure(host: &Host, tools: &Path, flags: &[String], alike: Option<&Path>) -> Result<()> {
    let (done, what) = (host.build.join("configured"), format!("{}\n{}", host.source.display(), flags.join("\n")));
    if fs::read_to_string(&done).is_ok_and(|found| found == what) {
        return Ok(());
    }
    let name = host.kind.name();
    println!("    configuring {name}");
    cache::remove(&host.build)?;
    if let Some(alike) = alike {
        take_objects(alike, &host.build)?;
    }
    let mut configure = cmake(tools);
    configure.arg("-S").arg(&host.source).arg("-B").arg(&host.build).args(["-G", "Ninja"]).args(flags);
    util::run_logged(&mut configure, name, &cache::log(&format!("configure-{name}"))?)?;
    io("write", &done, fs::write(&done, what))
}

/// Begins with the object files of another build. What is done with them is up to ninja: it keeps the commands
/// they were made by, and makes anew what another command is for.
fn take_objects(from: &Path, to: &Path) -> Result<()> {
    // A killed run must not leave a folder that says it was configured.
    let mut partial = to.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    cache::remove(&partial)?;
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(from).arg(&partial);
    util::capture(&mut copy, &cache::log("take-objects")?)?;
    ["CMakeCache.txt", "CMakeFiles", "configured"].iter().try_for_each(|name| cache::remove(&partial.join(name)))?;
    io("rename", &partial, fs::rename(&partial, to))
}

/// cmake of the private tools, in an environment that is the same for everybody.
pub fn cmake(tools: &Path) -> Command {
    let mut cmake = Command::new(tools.join("cmake"));
    cmake.env("PATH", fetch::path_with(tools));
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        let ours = name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST");
        let builds =
            ["CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "LD_LIBRARY_PATH", "CMAKE_GENERATOR", "CMAKE_BUILD_TYPE"];
        if ours || builds.contains(&name_text.as_ref()) {
            cmake.env_remove(&name);
        }
    }
    cmake
}

/// A directory with `libggml-cpu.so*` alone, so that LD_LIBRARY_PATH swaps this library and no other.
fn only_ggml_cpu(host: &Host) -> Result<()> {
    let dir = &host.lib_dirs()[0];
    io("create", dir, fs::create_dir_all(dir))?;
    let bin = host.bin_dir();
    for entry in io("read", &bin, fs::read_dir(&bin))?.flatten() {
        let name = entry.file_name();
        let link = dir.join(&name);
        if name.to_string_lossy().starts_with("libggml-cpu.so") && !link.exists() {
            cache::remove(&link)?;
            io("create", &link, std::os::unix::fs::symlink(bin.join(&name), &link))?;
        }
    }
    Ok(())
}

/// Builds our libraries with cargo and returns the path of the static one.
pub fn our_archive() -> Result<PathBuf> {
    Ok(our_libraries()?.join("libggml_amx.a"))
}

/// The same; the folder of both. Cargo itself says where they are: settings of the user's move them.
pub fn our_libraries() -> Result<PathBuf> {
    let mut build = util::cargo();
    build.args(["build", "--release", "--lib", "--message-format=json-render-diagnostics", "--target-dir"]);
    build.arg(util::target());
    let said = util::capture(&mut build, &cache::log("cargo-build")?)?.stdout;
    archive_of(&said)?.parent().map(Path::to_path_buf).ok_or("an archive lies in a folder".into())
}

/// The static library among what cargo says that it built.
fn archive_of(messages: &str) -> Result<PathBuf> {
    let files = messages.lines().filter_map(|line| json::parse(line).ok()).flat_map(|message| {
        message.list("filenames").iter().filter_map(Json::as_str).map(String::from).collect::<Vec<_>>()
    });
    let archive = files.map(PathBuf::from).find(|file| file.ends_with("libggml_amx.a"));
    archive.ok_or("cargo does not say where libggml_amx.a is".into())
}

fn module() -> PathBuf {
    util::repo().join("cmake").join(MODULE[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_where_cargo_says() {
        let said = r#"{"reason":"compiler-artifact","target":{"name":"other"},"filenames":["/t/x/release/libother.rlib"]}
{"reason":"compiler-artifact","filenames":["/t/x/release/libggml_amx.so","/t/x/release/libggml_amx.a"],"fresh":true}
{"reason":"build-finished","success":true}"#;
        assert_eq!(archive_of(said), Ok(PathBuf::from("/t/x/release/libggml_amx.a")));
        assert!(archive_of("").is_err());
    }

    #[test]
    fn a_build_that_begins_with_objects_of_another_is_not_configured() {
        let dir = std::env::temp_dir().join(format!("xtask-objects-{}", std::process::id()));
        let (from, to) = (dir.join("from"), dir.join("to"));
        fs::create_dir_all(from.join("CMakeFiles")).unwrap();
        for file in ["configured", "CMakeCache.txt", "CMakeFiles/x", "a.o"] {
            fs::write(from.join(file), file).unwrap();
        }
        // What a killed run left.
        fs::create_dir_all(dir.join("to.partial")).unwrap();
        take_objects(&from, &to).unwrap();
        let left: Vec<_> = fs::read_dir(&to).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["a.o"]);
        assert!(from.join("configured").exists() && !dir.join("to.partial").exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}

//! The real hosts: which llama.cpp builds exist, with which flags, and where their parts lie.
//! What other commands use (see `c_tests/`, `demo.rs`, `verify/`):
//!
//! ```text
//! let host = host::ensure(Kind::Static)?;   // fetch, configure, build; quick when nothing changed
//! host.include_dirs()   // ggml/include, include, ggml/src, ggml/src/ggml-cpu: for -I
//! host.bin_dir()        // programs, and the shared libraries of a shared build
//! host.lib_dirs()       // for -L and LD_LIBRARY_PATH
//! host.link_args()      // everything after the objects on a g++ command line
//! host.program("llama-bench")  // path of one program (Kind::Llama, Kind::Ik, Kind::IkOurs)
//! ```
//! The name of a build directory does not depend on our library. `ensure` always ends in a ninja run, so a change of
//! ours relinks the hosts. It takes the cache's lock: never call it while holding a [`Cache`](crate::cache::Cache).

mod build;

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{compiler::Compiler, fetch, util::Result};
pub use build::{also, baseline, cmake, ensure, of_tree, our_archive, our_libraries};

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
            flags.push(format!("-DCMAKE_PROJECT_INCLUDE={}", build::module().display()));
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

    /// A part of the path of the CPU backend's library, in every version, that no other library's path has.
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

//! A project that has ggml in a folder of its own, as docs/building.md describes it.

use std::{fs, process::Command};

use super::hosts::Made;
use crate::{
    cache::{self, Cache},
    compiler, cpu, fetch, symbols,
    util::{self, Result, io},
};

/// A project that has ggml in a folder of its own, builds it with plain make, and takes this library by pkg-config.
pub(super) fn vendored() -> Result<Made> {
    let cache = Cache::open()?;
    let (source, tools, compiler) = (fetch::source(&cache)?, fetch::tools(&cache)?, compiler::system()?);
    let prefix = crate::fork::package(&cache, &tools, &compiler)?;
    let of = format!("{}\n{}\n{}\n{MAKEFILE}", prefix.display(), source.display(), compiler.label);
    let dir = cache.path(format!("matrix/make-{:08x}", cache::fnv(of.bytes()) >> 32));
    io("create", &dir, fs::create_dir_all(dir.join("vendor")))?;
    let link = dir.join("vendor/ggml");
    cache::remove(&link)?;
    io("create", &link, std::os::unix::fs::symlink(source.join("ggml"), &link))?;
    let makefile = dir.join("Makefile");
    io("write", &makefile, fs::write(&makefile, MAKEFILE))?;
    let mut make = Command::new("make");
    make.arg("-C").arg(&dir).arg(format!("-j{}", cpu::detect().threads));
    make.arg(format!("CC={}", compiler.cc)).arg(format!("CXX={}", compiler.cxx));
    make.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
    util::capture(&mut make, &cache::log("matrix-make")?)?;
    let project = dir.join("libproject.so");
    symbols::check_no_delete(&project)?;
    symbols::check_no_rust(&project)?;
    Ok(Made { version: String::new(), libraries: vec![project], llama: None, loader: None })
}

/// All of ggml for the CPU without its AMX files, and this library's archive in their place (docs/building.md).
const MAKEFILE: &str = "\
GGML := vendor/ggml
SRC := $(wildcard $(GGML)/src/*.c $(GGML)/src/*.cpp $(GGML)/src/ggml-cpu/*.c $(GGML)/src/ggml-cpu/*.cpp) \\
       $(wildcard $(GGML)/src/ggml-cpu/arch/x86/*.c $(GGML)/src/ggml-cpu/arch/x86/*.cpp $(GGML)/src/ggml-cpu/tiled/*.cpp)
OBJ := $(patsubst $(GGML)/%,build/%.o,$(SRC))
FLAGS := -O2 -fPIC -march=native -w -D_GNU_SOURCE -DGGML_USE_CPU \\
         -MMD -Ibuild -I$(GGML)/include -I$(GGML)/src -I$(GGML)/src/ggml-cpu
AMX := $(shell pkg-config --variable=libdir ggml-amx)
MODULE := $(AMX)/cmake/ggml-amx

libproject.so: $(OBJ) build/amx-types.o $(AMX)/libggml_amx.a $(MODULE)/hide-rust.map
\t$(CXX) -shared -o $@ $(OBJ) -L$(AMX) -l:libggml_amx.a -ldl -lpthread -lm -lutil -lrt \\
\t    -Wl,-z,nodelete -Wl,--version-script=$(MODULE)/hide-rust.map

# Are this ggml's types those that the library knows?
build/amx-types.o: $(MODULE)/llama-signatures.cpp build/ggml-version.h
\t$(CXX) -std=c++17 $(FLAGS) -c $< -o $@

# What ggml's own configure writes.
build/ggml-version.h:
\t@mkdir -p build
\tprintf '#define GGML_VERSION \"vendored\"\\n#define GGML_COMMIT \"none\"\\n' > $@

$(OBJ): build/ggml-version.h

# It registers the buffer type only if the compiler has AMX flags, or thinks so.
build/src/ggml-cpu/ggml-cpu.cpp.o: FLAGS += -include $(MODULE)/amx-macros.h

build/%.c.o: $(GGML)/%.c
\t@mkdir -p $(@D)
\t$(CC) -std=c11 $(FLAGS) -c $< -o $@

build/%.cpp.o: $(GGML)/%.cpp
\t@mkdir -p $(@D)
\t$(CXX) -std=c++17 $(FLAGS) -c $< -o $@

-include $(OBJ:.o=.d) build/amx-types.d
";

//! `cargo xtask cmake-tests`: the CMake modules on the small trees of `cmake/tests`, which look like hosts to them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cache::{self, Cache},
    compiler::{self, Compiler},
    fetch, host, symbols,
    util::{self, Result, io},
};

/// Where everything is built, and with what.
struct Bench {
    tools: PathBuf,
    compiler: Compiler,
    dir: PathBuf,
}

/// All of them, one after the other; the first failure ends the run.
pub fn run() -> Result<()> {
    let cache = Cache::open()?;
    let bench = Bench {
        tools: fetch::tools(&cache)?,
        compiler: compiler::system()?,
        dir: cache.path(format!("builds/cmake-tests-{:08x}", cache::fnv(util::repo().to_string_lossy().bytes()) >> 32)),
    };
    cache::remove(&bench.dir)?;
    bench.built_libraries_stay_where_they_are_mapped_and_cargo_is_asked_for_the_right_target()?;
    bench.stale_locks_are_refused()?;
    bench.trees_that_cannot_be_served_are_left_as_they_are()?;
    bench.kernels_of_another_type_end_the_configure()?;
    bench.older_versions_of_cmake_have_a_way_in()?;
    bench.link_time_optimisation_is_found()
}

/// Options of a configure run, and whether they turn link-time optimisation on for code that calls are taken from.
type LtoCase = (&'static [&'static str], bool);

const RELEASE: &str = "-DCMAKE_BUILD_TYPE=Release";
const MULTI: &str = "-GNinja Multi-Config";
const LTO_CASES: [LtoCase; 14] = [
    (&[RELEASE], false),
    (&[RELEASE, "-DCMAKE_CXX_FLAGS=-flto"], true),
    (&[RELEASE, "-DCMAKE_CXX_FLAGS_RELEASE=-O2 -flto=auto"], true),
    (&[RELEASE, "-DCMAKE_C_FLAGS_RELEASE=-O2 -flto"], true),
    (&["-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_RELEASE=-O2 -flto"], false),
    (&[RELEASE, "-DCMAKE_CXX_FLAGS=-flto", "-DCMAKE_CXX_FLAGS_RELEASE=-O2 -fno-lto"], false),
    (&[RELEASE, "-DFLAGS_OF_FOLDER=-flto"], true),
    (&[RELEASE, "-DOPTION_OF_TARGET=-flto"], true),
    (&[RELEASE, "-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=ON"], true),
    (&["-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=ON"], true),
    (&[MULTI], false),
    (&[MULTI, "-DCMAKE_CXX_FLAGS_RELEASE=-O2 -flto"], true),
    (&[MULTI, "-DCMAKE_INTERPROCEDURAL_OPTIMIZATION_RELEASE=ON"], true),
    (&[RELEASE, "-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=ON", "-DCMAKE_INTERPROCEDURAL_OPTIMIZATION_RELEASE=OFF"], false),
];

impl Bench {
    /// This project in small: the modules as they are, the crate and its header as in `cmake/tests/crate`.
    fn small_repo(&self, name: &str) -> Result<PathBuf> {
        let (repo, from) = (self.dir.join(name), util::repo().join("cmake"));
        copy_files(&from, &repo.join("cmake"))?;
        copy_files(&from.join("tests/crate"), &repo)?;
        copy_files(&from.join("tests/crate/src"), &repo.join("src"))?;
        copy_files(&from.join("tests/crate"), &repo.join("include"))?;
        Ok(repo)
    }

    fn configure(&self, tree: &str, build: &Path, module: &Path, options: &[&str]) -> Command {
        let mut configure = host::cmake(&self.tools);
        configure.arg("-S").arg(util::repo().join("cmake/tests").join(tree)).arg("-B").arg(build);
        if !options.contains(&MULTI) {
            configure.arg("-GNinja");
        }
        configure.arg(format!("-DCMAKE_PROJECT_TOP_LEVEL_INCLUDES={}", module.display()));
        configure.arg(format!("-DCMAKE_C_COMPILER={}", self.compiler.cc));
        configure.arg(format!("-DCMAKE_CXX_COMPILER={}", self.compiler.cxx));
        configure.args(options);
        configure
    }

    fn build(&self, build: &Path) -> Command {
        let mut command = host::cmake(&self.tools);
        command.arg("--build").arg(build).args(["--config", "Release"]);
        command
    }

    /// A user's `build.target` moves what cargo builds: the module must find it all the same. What was built must say
    /// that it may not be unloaded.
    fn built_libraries_stay_where_they_are_mapped_and_cargo_is_asked_for_the_right_target(&self) -> Result<()> {
        let repo = self.small_repo("small")?;
        write(&repo.join(".cargo/config.toml"), "[build]\ntarget = \"wasm32-unknown-unknown\"\n")?;
        for (name, generator) in [("single", RELEASE), ("multi", MULTI)] {
            let build = self.dir.join(format!("llama-{name}"));
            let module = repo.join("cmake/llama-host.cmake");
            let mut configure = self.configure("llama", &build, &module, &[generator]);
            util::capture(&mut configure, &cache::log("cmake-tests-configure")?)?;
            let mut make = self.build(&build);
            make.env("CARGO_BUILD_TARGET", "wasm32-unknown-unknown");
            util::capture(&mut make, &cache::log("cmake-tests-build")?)?;
            let dir = if generator == MULTI { build.join("Release") } else { build.clone() };
            for library in ["libggml-cpu.so", "libggml-cpu-x64.so", "libplugin.so"] {
                symbols::check_no_delete(&dir.join(library))?;
            }
            util::capture(&mut Command::new(dir.join("program")), &cache::log("cmake-tests-program")?)?;
        }
        println!("  built with a build.target of another machine, by both kinds of generators; cannot be unloaded");
        self.what_is_to_be_installed_is_found_too(&repo)
    }

    /// The project that installs.
    fn what_is_to_be_installed_is_found_too(&self, repo: &Path) -> Result<()> {
        let (build, prefix) = (self.dir.join("install-build"), self.dir.join("prefix"));
        let mut configure = host::cmake(&self.tools);
        configure.arg("-S").arg(repo.join("cmake")).arg("-B").arg(&build).arg("-GNinja");
        configure.arg(format!("-DCMAKE_C_COMPILER={}", self.compiler.cc));
        util::capture(&mut configure, &cache::log("cmake-tests-configure")?)?;
        util::capture(&mut self.build(&build), &cache::log("cmake-tests-build")?)?;
        let mut install = host::cmake(&self.tools);
        install.arg("--install").arg(&build).arg("--prefix").arg(&prefix);
        util::capture(&mut install, &cache::log("cmake-tests-install")?)?;
        for file in ["libggml_amx.a", "libggml_amx.so", "libggml_amx_preload.so"] {
            if !prefix.join("lib").join(file).is_file() {
                return Err(format!("{file} was not installed below {}", prefix.display()));
            }
        }
        println!("  installed with a build.target of another machine");
        Ok(())
    }

    /// Versions that nobody tested must not be built, and the lock file of the checkout is not ours to change.
    fn stale_locks_are_refused(&self) -> Result<()> {
        let repo = self.small_repo("stale")?;
        let manifest = repo.join("Cargo.toml");
        let text = io("read", &manifest, fs::read_to_string(&manifest))?;
        write(&manifest, &text.replace("0.1.0", "0.1.1"))?;
        let lock = || io("read", &repo, fs::read_to_string(repo.join("Cargo.lock")));
        let (before, build) = (lock()?, self.dir.join("llama-stale"));
        let mut configure = self.configure("llama", &build, &repo.join("cmake/llama-host.cmake"), &[RELEASE]);
        util::capture(&mut configure, &cache::log("cmake-tests-configure")?)?;
        match util::capture(&mut self.build(&build), &cache::log("cmake-tests-stale")?) {
            Ok(_) => Err("a Cargo.lock that does not fit was built with".into()),
            Err(why) if !why.contains("--locked") => Err(format!("not refused for its Cargo.lock: {why}")),
            Err(_) if lock()? != before => Err("Cargo.lock was changed".into()),
            Err(_) => {
                println!("  a Cargo.lock that does not fit is refused");
                Ok(())
            }
        }
    }

    /// A llama.cpp without the sources that are swapped, or whose classes are others: a warning that says which, and the build
    /// goes on; an error for those who ask for one.
    fn trees_that_cannot_be_served_are_left_as_they_are(&self) -> Result<()> {
        let module = util::repo().join("cmake/llama-host.cmake");
        let cases = [
            ("sources", "-DUNKNOWN=ON", "has no source ggml-cpu/amx/mmq.cpp"),
            ("classes", "-DCMAKE_CXX_FLAGS=-DOTHER_ORDER", "unknown type of extra_buffer_type"),
        ];
        for (name, option, why) in cases {
            let build = self.dir.join(format!("llama-unknown-{name}"));
            let mut configure = self.configure("llama", &build, &module, &[RELEASE, option]);
            let said = util::capture(&mut configure, &cache::log("cmake-tests-unknown")?)?.stderr;
            let said = unwrapped(&said);
            for part in [why, "left as it is", "GGML_AMX_REQUIRED"] {
                if !said.contains(part) {
                    return Err(format!("an unknown tree: no `{part}` in {said}"));
                }
            }
            let mut rules = self.build(&build);
            rules.args(["--", "-t", "commands", "ggml-cpu"]);
            let rules = util::capture(&mut rules, &cache::log("cmake-tests-unknown")?)?.stdout;
            if !rules.contains("ggml-cpu/amx/amx.cpp") || rules.contains("ggml_amx") {
                return Err("an unknown tree was changed".into());
            }
            let options = [RELEASE, option, "-DGGML_AMX_REQUIRED=ON"];
            let build = self.dir.join(format!("llama-required-{name}"));
            let mut required = self.configure("llama", &build, &module, &options);
            match util::capture(&mut required, &cache::log("cmake-tests-required")?) {
                Err(said) if unwrapped(&said).contains(why) => {}
                Err(said) => return Err(format!("GGML_AMX_REQUIRED: {said}")),
                Ok(_) => return Err("GGML_AMX_REQUIRED: an unknown tree was no error".into()),
            }
        }
        println!("  a tree that is not known is left as it is, or ends the configure if asked to");
        Ok(())
    }

    /// An ik_llama.cpp whose kernels take something else.
    fn kernels_of_another_type_end_the_configure(&self) -> Result<()> {
        let library = self.dir.join("libggml_amx.a");
        write(&library, "!<arch>\n")?;
        let library = format!("-DGGML_AMX_LIBRARY={}", library.display());
        let options = [RELEASE, "-DCMAKE_CXX_FLAGS=-DOTHER_KERNEL", &library];
        let module = util::repo().join("cmake/llama-host.cmake");
        let mut configure = self.configure("ik", &self.dir.join("ik-unknown"), &module, &options);
        match util::capture(&mut configure, &cache::log("cmake-tests-ik")?) {
            Err(why) if unwrapped(&why).contains("unknown type of iqk_mul_mat_4d") => {
                println!("  kernels of another type end the configure");
                Ok(())
            }
            Err(why) => Err(format!("a kernel of another type: {why}")),
            Ok(_) => Err("a kernel of another type was taken".into()),
        }
    }

    /// They do not know CMAKE_PROJECT_TOP_LEVEL_INCLUDES.
    fn older_versions_of_cmake_have_a_way_in(&self) -> Result<()> {
        let cmake = fetch::older_cmake(&self.tools, &self.dir)?;
        let (build, module) = (self.dir.join("llama-older"), util::repo().join("cmake/llama-host.cmake"));
        let library = self.dir.join("libggml_amx.so");
        write(&library, "")?;
        let mut configure = host::cmake(&cmake);
        configure.arg("-S").arg(util::repo().join("cmake/tests/llama")).arg("-B").arg(&build);
        configure
            .args(["-GNinja", RELEASE])
            .arg(format!("-DCMAKE_MAKE_PROGRAM={}", self.tools.join("ninja").display()));
        configure.arg(format!("-DCMAKE_PROJECT_INCLUDE={}", module.display()));
        configure.arg(format!("-DGGML_AMX_LIBRARY={}", library.display()));
        let said = util::capture(&mut configure, &cache::log("cmake-tests-older")?)?.stdout;
        if !said.contains("replaces the AMX code of ggml-cpu") {
            return Err(format!("{} did nothing", cmake.display()));
        }
        println!(
            "  {}: by CMAKE_PROJECT_INCLUDE",
            util::first_line(Command::new(cmake.join("cmake")).arg("--version")).unwrap_or_default()
        );
        Ok(())
    }

    /// Calls inside one link-time unit never reach the linker's `--wrap`.
    fn link_time_optimisation_is_found(&self) -> Result<()> {
        let library = self.dir.join("libggml_amx.a");
        write(&library, "!<arch>\n")?;
        let library = format!("-DGGML_AMX_LIBRARY={}", library.display());
        for (number, (options, is_on)) in LTO_CASES.into_iter().enumerate() {
            let build = self.dir.join(format!("ik-{number}"));
            let options: Vec<&str> = options.iter().copied().chain([library.as_str()]).collect();
            let mut configure = self.configure("ik", &build, &util::repo().join("cmake/llama-host.cmake"), &options);
            let outcome = util::capture(&mut configure, &cache::log("cmake-tests-ik")?);
            match outcome {
                Ok(_) if is_on => return Err(format!("link-time optimisation was not found: {options:?}")),
                Err(why) if !is_on || !why.contains("link-time optimisation") => {
                    return Err(format!("{options:?}: {why}"));
                }
                _ => {}
            }
        }
        println!("  link-time optimisation is found, {} ways", LTO_CASES.len());
        Ok(())
    }
}

/// What CMake says, in one line.
fn unwrapped(said: &str) -> String {
    said.replace('|', " ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The files of one directory, without those in directories below.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    io("create", to, fs::create_dir_all(to))?;
    for entry in io("read", from, fs::read_dir(from))?.flatten().filter(|e| e.path().is_file()) {
        io("copy", &entry.path(), fs::copy(entry.path(), to.join(entry.file_name())))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(dir) = path.parent() {
        io("create", dir, fs::create_dir_all(dir))?;
    }
    io("write", path, fs::write(path, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_of_every_function_whose_calls_are_taken_is_checked() {
        let text = fs::read_to_string(util::repo().join("cmake/ik-signatures.cpp")).unwrap();
        for name in symbols::wrapped().unwrap() {
            assert_eq!(text.matches(&format!("KNOWN({name},")).count(), 1, "{name}");
        }
    }
}

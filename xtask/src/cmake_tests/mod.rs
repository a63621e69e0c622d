//! `cargo xtask cmake-tests`: the CMake modules on the small trees of `cmake/tests`, which look like hosts to them.

mod lto;
mod trees;

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
    bench.trees_that_can_be_served_are()?;
    bench.kernels_of_another_type_end_the_configure()?;
    bench.headers_that_change_are_looked_at_again()?;
    bench.a_wrong_library_ends_the_configure()?;
    bench.projects_with_more_than_a_host_in_them()?;
    bench.older_versions_of_cmake_have_a_way_in()?;
    bench.link_time_optimisation_is_found()
}

const RELEASE: &str = "-DCMAKE_BUILD_TYPE=Release";
const MULTI: &str = "-GNinja Multi-Config";
impl Bench {
    /// This project in small: the modules as they are, the crate and its header as in `cmake/tests/crate`.
    fn small_repo(&self, name: &str) -> Result<PathBuf> {
        let (repo, from) = (self.dir.join(name), util::repo().join("cmake"));
        copy_files(&from, &repo.join("cmake"))?;
        copy_files(&from.join("tests/crate"), &repo)?;
        copy_files(&from.join("tests/crate/src"), &repo.join("src"))?;
        copy_files(&from.join("tests/crate"), &repo.join("include"))?;
        let license = repo.join("LICENSE");
        io("copy", &license, fs::copy(util::repo().join("LICENSE"), &license))?;
        Ok(repo)
    }

    fn configure(&self, tree: &str, build: &Path, module: &Path, options: &[&str]) -> Command {
        let mut configure = host::cmake(&self.tools);
        // `join` leaves the absolute path of another tree as it is.
        configure.arg("-S").arg(util::repo().join("cmake/tests").join(tree)).arg("-B").arg(build);
        if !options.contains(&MULTI) {
            configure.arg("-GNinja");
        }
        configure.arg(format!("-DCMAKE_PROJECT_INCLUDE={}", module.display()));
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

    /// The project that installs the library, its header, its modules and the licence.
    fn what_is_to_be_installed_is_found_too(&self, repo: &Path) -> Result<()> {
        // A comma in the path must not end a linker's argument.
        let (build, prefix) = (self.dir.join("install,build"), self.dir.join("prefix"));
        let mut configure = host::cmake(&self.tools);
        configure.arg("-S").arg(repo.join("cmake")).arg("-B").arg(&build).arg("-GNinja");
        configure.arg("-DCMAKE_INSTALL_LIBDIR=lib64");
        configure.arg(format!("-DCMAKE_C_COMPILER={}", self.compiler.cc));
        util::capture(&mut configure, &cache::log("cmake-tests-configure")?)?;
        util::capture(&mut self.build(&build), &cache::log("cmake-tests-build")?)?;
        let mut install = host::cmake(&self.tools);
        install.arg("--install").arg(&build).arg("--prefix").arg(&prefix);
        util::capture(&mut install, &cache::log("cmake-tests-install")?)?;
        let files = [
            "lib64/libggml_amx.a",
            "lib64/libggml_amx.so",
            "lib64/libggml_amx_preload.so",
            "lib64/cmake/ggml-amx/LICENSE",
            "share/licenses/ggml-amx/LICENSE",
        ];
        for file in files {
            if !prefix.join(file).is_file() {
                return Err(format!("{file} was not installed below {}", prefix.display()));
            }
        }
        let description = prefix.join("lib64/pkgconfig/ggml-amx.pc");
        let text = io("read", &description, fs::read_to_string(&description))?;
        let folders = "prefix=${pcfiledir}/../..\nlibdir=${prefix}/lib64\nincludedir=${prefix}/include\n\
            licensedir=${prefix}/share/licenses/ggml-amx\n";
        if !text.starts_with(folders) {
            return Err(format!("{} has other folders:\n{text}", description.display()));
        }
        println!("  installed with a build.target of another machine, into lib64");
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

    /// A file that looks like this library to the modules, as an option.
    fn stand_in(&self) -> Result<String> {
        let library = self.dir.join("libggml_amx.a");
        write(&library, "!<arch>\n_Z28ggml_backend_amx_buffer_typev __wrap_iqk_mul_mat_4d\n")?;
        Ok(format!("-DGGML_AMX_LIBRARY={}", library.display()))
    }

    /// A wrong library is found at once, not at the end of a long build.
    fn a_wrong_library_ends_the_configure(&self) -> Result<()> {
        let library = self.dir.join("libother.a");
        write(&library, "!<arch>\n")?;
        let library = format!("-DGGML_AMX_LIBRARY={}", library.display());
        for tree in ["llama", "ik"] {
            let build = self.dir.join(format!("wrong-{tree}"));
            let mut configure = self.configure(tree, &build, &util::repo().join("cmake/llama-host.cmake"), &[&library]);
            match util::capture(&mut configure, &cache::log("cmake-tests-wrong")?) {
                Err(why) if unwrapped(&why).contains("is no library of ggml-amx") => {}
                Err(why) => return Err(format!("a wrong library: {why}")),
                Ok(_) => return Err("a wrong library was taken".into()),
            }
        }
        println!("  a wrong GGML_AMX_LIBRARY ends the configure");
        Ok(())
    }

    /// A project that has llama.cpp and this one as subdirectories; and one with both kinds of hosts.
    fn projects_with_more_than_a_host_in_them(&self) -> Result<()> {
        let (repo, trees) = (self.small_repo("inside")?, util::repo().join("cmake/tests"));
        let module = repo.join("cmake/llama-host.cmake");
        let project = |name: &str, folders: &[PathBuf]| -> Result<PathBuf> {
            let dir = self.dir.join(format!("project-{name}"));
            let mut text = "cmake_minimum_required(VERSION 3.20)\nproject(whole C CXX)\n".to_string();
            for (number, folder) in folders.iter().enumerate() {
                text.push_str(&format!("add_subdirectory(\"{}\" part-{number})\n", folder.display()));
            }
            write(&dir.join("CMakeLists.txt"), &text)?;
            Ok(dir)
        };
        let both = project("inside", &[repo.join("cmake"), trees.join("llama")])?;
        let build = self.dir.join("inside-build");
        let mut configure = self.configure(&both.to_string_lossy(), &build, &module, &[RELEASE]);
        util::capture(&mut configure, &cache::log("cmake-tests-inside")?)?;
        util::capture(self.build(&build).args(["--target", "program"]), &cache::log("cmake-tests-inside")?)?;
        let hosts = project("hosts", &[trees.join("llama"), trees.join("ik")])?;
        let options = [RELEASE, &self.stand_in()?];
        let mut configure = self.configure(&hosts.to_string_lossy(), &self.dir.join("hosts-build"), &module, &options);
        let said = util::capture(&mut configure, &cache::log("cmake-tests-hosts")?)?;
        if !unwrapped(&said.stderr).contains("only ik_llama.cpp is served, not ggml-cpu") {
            return Err(format!("two hosts in a project, and llama.cpp is not mentioned: {}", said.stderr));
        }
        println!("  this project inside another one; two hosts in one project");
        Ok(())
    }

    /// Older versions do not know CMAKE_PROJECT_TOP_LEVEL_INCLUDES.
    fn older_versions_of_cmake_have_a_way_in(&self) -> Result<()> {
        let cmake = fetch::older_cmake(&self.tools, &self.dir)?;
        let (build, module) = (self.dir.join("llama-older"), util::repo().join("cmake/llama-host.cmake"));
        let library = self.dir.join("libggml_amx.so");
        write(&library, "_Z28ggml_backend_amx_buffer_typev")?;
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

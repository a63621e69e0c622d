//! Fetching, configuring and building hosts; and building this library for them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use super::{Host, Kind};
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

/// Builds other targets of a host too.
pub fn also(host: &Host, targets: &[&str]) -> Result<()> {
    let tools = fetch::tools(&Cache::open()?)?;
    let mut ninja = cmake(&tools);
    ninja.arg("--build").arg(&host.build).arg("--target").args(targets);
    let name = host.kind.name();
    util::run_logged(&mut ninja, &format!("building more of {name}"), &cache::log(&format!("build-more-{name}"))?)
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

/// Runs CMake once. A file that is written last says for which tree and flags it succeeded.
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

/// Starts a build directory with the object files of another build. Ninja keeps the commands that made them, and makes
/// again what now has another command.
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

/// Builds our libraries with cargo and returns their folder. Cargo itself says where they are, because a user's
/// settings may move them.
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

pub(super) fn module() -> PathBuf {
    util::repo().join("cmake").join(MODULE[0])
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

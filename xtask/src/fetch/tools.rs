//! The private virtual environment of Python that has CMake and ninja.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cache::{self, Cache},
    util::{self, Result, io},
};

/// Build tools for a private virtual environment, with the hashes of their files for x86-64 with glibc and musl. The
/// third needs the last two.
const TOOLS: [&str; 5] = [
    "cmake==4.4.4 --hash=sha256:f773a0544c66370408f451acd487c2c643b0dfebb48c5d64f3638bc1bb820238 \
     --hash=sha256:ed50c732a82ac04f6e5606a0677ddfb49dda9ee130f9d4163c5df217e478417e",
    "ninja==1.13.2 --hash=sha256:65a24341b5ac09fcadcc37082660be40a94174e51a937fabf6e2cae26225fa2c \
     --hash=sha256:915bd482c4be41c75120fd67a22e0bb3f0fbb3bbc5f95b89787deadd59e27ef2",
    "scikit_build_core==1.1.2 --hash=sha256:7f4f959a467692db50bdd1ea7ce1507f2c7972e6023b753ee302d169bc4cec85",
    "packaging==26.3 --hash=sha256:d7193f7c8e4e93f444fde0262bf90af30e16fa0ad0ad44cb553c87339b23cd1c",
    "pathspec==1.1.1 --hash=sha256:a00ce642f577bf7f473932318056212bc4f8bfdf53128c78bbd5af0b9b20b189",
];

/// What the third also needs before Python 3.11.
const OLDER_PYTHON: [&str; 3] = [
    "exceptiongroup==1.3.2 --hash=sha256:41c6a70dfec22050d3d8b43386b059a4dc0bca3f3d40a40971cb206fff1785af",
    "tomli==2.5.0 --hash=sha256:32a7b79ac57a2e83670ce329ccf675798bc5a2094783a63676866b70503f2e2b",
    "typing_extensions==4.16.0 --hash=sha256:481caa481374e813c1b176ada14e97f1f67a4539ce9cfeb3f350d78d6370c2e8",
];

/// The oldest CMake that the modules are tested with: that of Ubuntu 22.04.
const OLDER_CMAKE: &str =
    "cmake==3.22.6 --hash=sha256:a2357c510e37db7df156c31ab43857b4583e3a2ece8220747e8a007aea50aa45";

/// The private virtual environment with cmake and ninja; returns its `bin` directory.
pub fn tools(cache: &Cache) -> Result<PathBuf> {
    let venv = cache.path(format!("tools-{:08x}", cache::fnv(tool_list().bytes()) >> 32));
    let bin = venv.join("bin");
    // A virtual environment cannot be renamed, so a file inside says that it is whole.
    let whole = venv.join("whole");
    let answers = |tool: &str| util::first_line(Command::new(bin.join(tool)).arg("--version")).is_some();
    if whole.exists() && answers("cmake") && answers("ninja") {
        return Ok(bin);
    }
    println!("  installing CMake and ninja into {}", venv.display());
    cache::remove(&venv)?;
    let mut create = Command::new("python3");
    create.args(["-m", "venv"]).arg(&venv);
    util::capture(&mut create, &cache::log("venv")?).map_err(|e| {
        let hint = if e.contains("could not be started") {
            "\n  Python 3 is needed (Debian, Ubuntu: apt-get install python3 python3-venv)"
        } else if e.contains("ensurepip") {
            "\n  install python3-venv (Debian, Ubuntu: apt-get install python3-venv) and run again"
        } else {
            ""
        };
        format!("{e}{hint}")
    })?;
    let wanted = venv.join("requirements.txt");
    io("write", &wanted, fs::write(&wanted, tool_list()))?;
    let mut install = pip(&bin, "install");
    install.args(["--require-hashes", "--only-binary", ":all:", "-r"]).arg(&wanted);
    util::capture(&mut install, &cache::log("pip-install")?)?;
    io("write", &whole, fs::write(&whole, tool_list()))?;
    Ok(bin)
}

/// The requirements file of all that is installed there.
fn tool_list() -> String {
    let older = OLDER_PYTHON.map(|tool| tool.replacen(" --hash", "; python_version < '3.11' --hash", 1));
    TOOLS.iter().map(|tool| (*tool).to_string()).chain(older).map(|tool| tool + "\n").collect()
}

/// An older CMake, installed below `dir`; returns the directory of its programs.
pub fn older_cmake(tools: &Path, dir: &Path) -> Result<PathBuf> {
    let to = dir.join("older-cmake");
    let wanted = dir.join("older-cmake.txt");
    io("create", dir, fs::create_dir_all(dir))?;
    io("write", &wanted, fs::write(&wanted, OLDER_CMAKE))?;
    let mut install = pip(tools, "install");
    install
        .args(["--no-deps", "--require-hashes", "--only-binary", ":all:", "--target"])
        .arg(&to)
        .arg("-r")
        .arg(&wanted);
    util::capture(&mut install, &cache::log("pip-older-cmake")?)?;
    Ok(to.join("cmake/data/bin"))
}

/// pip of the private environment; building an sdist's metadata needs its cmake and ninja on PATH.
pub(super) fn pip(bin: &Path, command: &str) -> Command {
    let mut pip = Command::new(bin.join("python3"));
    pip.args(["-m", "pip", command, "--no-input", "--disable-pip-version-check"]);
    pip.env("PATH", path_with(bin));
    pip
}

/// PATH with `bin` in front.
pub fn path_with(bin: &Path) -> OsString {
    let old = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(std::iter::once(bin.to_path_buf()).chain(std::env::split_paths(&old))).unwrap_or(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_has_a_hash() {
        for line in tool_list().lines().chain([OLDER_CMAKE]) {
            assert!(line.contains("==") && line.contains(" --hash=sha256:"), "{line}");
        }
    }
}

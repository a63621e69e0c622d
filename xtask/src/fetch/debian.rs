//! What Debian's unstable distribution ships today.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cache::{self, Cache},
    util::{self, Result, io},
};

/// Its packages of ggml and llama.cpp, and the system libraries that they were built for.
const SID: [&str; 7] = ["libggml0", "libllama0", "libc6", "libgcc-s1", "libgomp1", "libstdc++6", "libssl3t64"];

/// Downloads and unpacks today's packages; returns the version of ggml and the directory of the libraries.
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

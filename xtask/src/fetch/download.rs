//! Downloads of pinned files, compared with their hashes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    packages::Package,
    tools::{pip, tools},
};
use crate::{
    cache::{self, Cache},
    util::{self, Result, io},
};

/// [`download`], or None if the index answers that it does not have the file. Anything else that goes wrong is an
/// error, a missing network too.
pub(super) fn download_if_served(cache: &Cache, package: &Package) -> Result<Option<PathBuf>> {
    let whole = cache.path(format!("downloads/{}", package.file));
    if !whole.exists() {
        tools(cache)?; // now, so that its messages are not in this package's log
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

/// Whether the messages of pip or urllib mean that the index was reached and does not have the file. Without a network
/// pip also says that there is no matching distribution, but only after other complaints.
fn says_absent(said: &str) -> bool {
    let any = |parts: &[&str]| parts.iter().any(|part| said.contains(part));
    let unreachable = ["Retrying", "Could not fetch URL", "onnection", "Temporary failure", "timed out"];
    any(&["HTTP Error 404", "HTTP Error 410"]) || any(&["No matching distribution"]) && !any(&unreachable)
}

/// Downloads by package name; pip checks the hash before it runs anything of the package, we check it again.
pub(super) fn download(cache: &Cache, package: &Package) -> Result<PathBuf> {
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

pub(super) fn check_sha256(file: &Path, wanted: &str) -> Result<()> {
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
    use crate::fetch::HOST;

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
    fn a_file_that_is_not_the_pinned_one_is_refused() {
        let file = std::env::temp_dir().join(format!("xtask-sha-{}", std::process::id()));
        fs::write(&file, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(check_sha256(&file, abc), Ok(()));
        assert!(check_sha256(&file, HOST.sha256).unwrap_err().contains("not the pinned file"));
        fs::remove_file(&file).unwrap();
    }
}

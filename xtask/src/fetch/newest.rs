//! The newest version of a package, instead of the pinned one.

use std::{fs, path::PathBuf, process::Command};

use super::{
    packages::Package,
    tools::{pip, tools},
};
use crate::{
    cache::{self, Cache},
    util::{self, Result, io},
};

/// The newest version of a package, and the digest of its file as the index states it.
pub struct Newest {
    pub version: String,
    algorithm: String,
    digest: String,
}

/// Asks an index for the highest version that is neither withdrawn nor a pre-release.
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

/// Downloads the newest version of a package of sources, compares its digest, and returns its tree.
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

impl Package {
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
}

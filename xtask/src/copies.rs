//! Copies of the pinned ik_llama.cpp tree in which a few places are others: forks, and versions that no package has.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cache::{self, Cache},
    compiler::Compiler,
    host::{self, Host, Kind},
    util::{self, Result, io},
};

/// Text that is put into a file of the tree, behind (or, if it says so, in the place of) a piece that is there once.
pub struct Edit {
    file: &'static str,
    at: &'static str,
    replace: bool,
    text: &'static str,
}

/// Text behind a piece.
pub const fn behind(file: &'static str, at: &'static str, text: &'static str) -> Edit {
    Edit { file, at, replace: false, text }
}

/// Text in the place of a piece.
pub const fn instead(file: &'static str, at: &'static str, text: &'static str) -> Edit {
    Edit { file, at, replace: true, text }
}

/// Takes the object file of a source that is as in the pinned tree from that tree's build, unless it mentions something
/// that is another here: `sh LAUNCHER pinned-tree copy pinned-build pattern compiler ...`.
const LAUNCHER: &str = r#"pinned=$1 copy=$2 build=$3 pattern=$4
shift 4
for last; do
    [ "$before" = -o ] && object=$last
    [ "$before" = -MF ] && list=$last
    before=$last
done
source=${last#"$copy"/}
if [ "$source" != "$last" ] && cmp -s "$pinned/$source" "$last" && [ -n "$object" ] && [ -f "$build/$object" ] &&
    ! { [ "$pattern" != none ] && grep -q "$pattern" "$last"; }; then
    [ -n "$list" ] && echo "$object: $last" > "$list"
    exec cp "$build/$object" "$object"
fi
exec "$@"
"#;

/// Links of the pinned tree, with files of its own where something was put in.
fn tree(pinned: &Path, to: &Path, edits: &[Edit]) -> Result<()> {
    let mut links = Command::new("cp");
    links.arg("-as").arg(pinned).arg(to);
    util::capture(&mut links, &cache::log("copy-links")?)?;
    for edit in edits {
        let path = to.join(edit.file);
        let text = io("read", &path, fs::read_to_string(&path))?;
        let count = text.matches(edit.at).count();
        if count != 1 {
            return Err(format!("{}: {count} places like this one: {}", edit.file, edit.at));
        }
        let new = if edit.replace { edit.text.to_string() } else { format!("{}{}", edit.at, edit.text) };
        cache::remove(&path)?;
        io("write", &path, fs::write(&path, text.replacen(edit.at, &new, 1)))?;
    }
    Ok(())
}

/// A copy, and the place where it is built.
pub struct Copy {
    /// Root of the tree.
    pub source: PathBuf,
    /// The CMake build directory.
    pub build: PathBuf,
    launch: String,
}

impl Copy {
    /// Makes the tree. Object files are taken from the pinned tree's build, except of sources that were edited or
    /// mention `pattern`: what an edited header is about.
    pub fn new(cache: &Cache, name: &str, pinned: &Host, edits: &[Edit], pattern: Option<&str>) -> Result<Self> {
        let text: Vec<&str> = edits.iter().flat_map(|edit| [edit.file, edit.at, edit.text]).collect();
        let of = [&util::repo(), &pinned.source, &pinned.build].map(|path| path.display().to_string());
        let key = cache::fnv(format!("{}{}", of.join("\n"), text.join("\n")).bytes()) >> 32;
        let source = cache.once(&format!("builds/copy-source-{key:08x}"), |to| tree(&pinned.source, to, edits))?;
        let build = cache.path(format!("builds/{name}-{key:08x}"));
        let launcher = cache.path("builds/launcher.sh");
        io("write", &launcher, fs::write(&launcher, LAUNCHER))?;
        let paths = [&launcher, &pinned.source, &source, &pinned.build].map(|path| path.display().to_string());
        let launch = format!("sh;{};{}", paths.join(";"), pattern.unwrap_or("none"));
        Ok(Self { source, build, launch })
    }

    /// CMake, with the flags that the pinned tree is built with.
    pub fn configure(&self, tools: &Path, compiler: &Compiler) -> Command {
        let mut configure = host::cmake(tools);
        configure.arg("-S").arg(&self.source).arg("-B").arg(&self.build).arg("-GNinja");
        configure.args(Kind::Ik.flags(compiler, Path::new("")));
        for language in ["C", "CXX"] {
            configure.arg(format!("-DCMAKE_{language}_COMPILER_LAUNCHER={}", self.launch));
        }
        configure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_place_that_is_there_once_is_edited() {
        let dir = std::env::temp_dir().join(format!("xtask-copies-{}", std::process::id()));
        let (pinned, file) = (dir.join("pinned"), dir.join("pinned/src/a.c"));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "one\ntwo\ntwo\n").unwrap();
        let edits = [behind("src/a.c", "one\n", "more\n"), instead("src/a.c", "more\n", "other\n")];
        tree(&pinned, &dir.join("copy"), &edits).unwrap();
        assert_eq!(fs::read_to_string(dir.join("copy/src/a.c")).unwrap(), "one\nother\ntwo\ntwo\n");
        assert_eq!(fs::read_to_string(&file).unwrap(), "one\ntwo\ntwo\n");
        let why = tree(&pinned, &dir.join("other"), &[behind("src/a.c", "two\n", "x")]).unwrap_err();
        assert!(why.contains("2 places"), "{why}");
        fs::remove_dir_all(&dir).unwrap();
    }
}

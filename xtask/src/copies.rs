//! Copies of the pinned ik_llama.cpp tree with a few edits: forks, and versions that no package has.

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

/// An edit of one file: a text is inserted behind a piece that occurs once, or replaces it.
pub struct Edit {
    file: &'static str,
    at: &'static str,
    replace: bool,
    text: &'static str,
}

/// Inserts a text behind a piece.
pub const fn behind(file: &'static str, at: &'static str, text: &'static str) -> Edit {
    Edit { file, at, replace: false, text }
}

/// Replaces a piece.
pub const fn instead(file: &'static str, at: &'static str, text: &'static str) -> Edit {
    Edit { file, at, replace: true, text }
}

/// A compiler launcher. It takes the object file of an unedited source from the pinned tree's build, unless the source
/// mentions `pattern`: `sh LAUNCHER pinned-tree copy pinned-build pattern compiler ...`.
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

/// Links to the pinned tree, with files of its own where something was edited.
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

/// An edited copy, and its build directory.
pub struct Copy {
    /// Root of the tree.
    pub source: PathBuf,
    /// The CMake build directory.
    pub build: PathBuf,
    launch: String,
}

impl Copy {
    /// Makes the tree. Object files come from the pinned tree's build, except those of sources that were edited or that
    /// mention `pattern`, which stands for what an edited header declares.
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

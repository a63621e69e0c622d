//! The files that the style check reads.

use std::{fs, process::Command};

use crate::util::{self, Result, io};

/// One text file.
pub struct Source {
    /// Below the root of the repository, with `/`.
    pub path: String,
    pub text: String,
}

impl Source {
    /// Of the library itself, where the rules of SAFETY comments and circles hold.
    pub fn is_library(&self) -> bool {
        self.path.starts_with("src/") && self.path.ends_with(".rs")
    }

    /// Of the library or of xtask, where files and functions have limits.
    pub fn has_limits(&self) -> bool {
        self.is_library() || self.path.starts_with("xtask/src/") && self.path.ends_with(".rs")
    }

    pub fn language(&self) -> Option<Language> {
        let (stem, extension) = self.path.rsplit_once('.').unwrap_or((&self.path, ""));
        match extension {
            "rs" => Some(Language::Rust),
            "c" | "h" | "hpp" | "cpp" => Some(Language::C),
            "py" | "cmake" | "sh" => Some(Language::Hashes),
            "txt" if stem.rsplit('/').next() == Some("CMakeLists") => Some(Language::Hashes),
            "md" => Some(Language::Markdown),
            _ => None,
        }
    }
}

/// How a file marks its comments.
#[derive(Clone, Copy, PartialEq)]
pub enum Language {
    /// `//`; strings may go over several lines.
    Rust,
    /// `//`, and `/* ... */`.
    C,
    /// `#`.
    Hashes,
    /// All of it is prose, but for tables and code.
    Markdown,
}

/// Every file of a known language that git tracks or would track.
pub fn tracked() -> Result<Vec<Source>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(util::repo());
    let output = git.output().map_err(|e| format!("git could not be started: {e}"))?;
    if !output.status.success() {
        return Err(format!("`{}`: {}", util::shown(&git), String::from_utf8_lossy(&output.stderr).trim()));
    }
    let mut all = Vec::new();
    for path in String::from_utf8_lossy(&output.stdout).split_terminator('\0') {
        let mut source = Source { path: path.into(), text: String::new() };
        let file = util::repo().join(path);
        // A file that was deleted and not yet committed is still in the index.
        if source.language().is_some() && file.is_file() {
            source.text = io("read", &file, fs::read_to_string(&file))?;
            all.push(source);
        }
    }
    Ok(all)
}

/// The line without what stands in double quotes. A string may go on in the next line: `quoted` says so.
pub fn without_strings(line: &str, quoted: &mut bool) -> String {
    let (mut out, mut last) = (String::new(), ' ');
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if *quoted => drop(chars.next()),
            // Not the character '"'.
            '"' if *quoted || last != '\'' => *quoted = !*quoted,
            // What follows is a comment, where quotes mean nothing.
            '/' if !*quoted && chars.as_str().starts_with('/') => return out + "/" + chars.as_str(),
            _ if !*quoted => out.push(c),
            _ => {}
        }
        last = c;
    }
    out
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A made-up tree.
    pub fn sources(files: &[(&str, &str)]) -> Vec<Source> {
        files.iter().map(|(path, text)| Source { path: path.to_string(), text: text.to_string() }).collect()
    }

    #[test]
    fn languages_follow_from_names() {
        let files =
            [("a/b.rs", Some(Language::Rust)), ("a.hpp", Some(Language::C)), ("x.md", Some(Language::Markdown))];
        let more = [("a/CMakeLists.txt", Some(Language::Hashes)), ("cmake/ik-wrapped.txt", None), (".ci/run", None)];
        for (path, language) in files.into_iter().chain(more) {
            assert!(sources(&[(path, "")])[0].language() == language, "{path}");
        }
    }

    #[test]
    fn strings_are_left_out_but_not_comments() {
        let mut quoted = false;
        let mut code = |line| without_strings(line, &mut quoted);
        assert_eq!(code(r#"let a = "x // \" y" + '"'; // "z""#), r#"let a =  + '"'; // "z""#);
        assert_eq!((code("let b = \"1").as_str(), code("// 2").as_str(), code("3\";").as_str()), ("let b = ", "", ";"));
    }
}

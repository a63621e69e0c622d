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
            "py" | "cmake" | "sh" | "toml" => Some(Language::Hashes),
            _ if self.path == ".ci/run" => Some(Language::Hashes),
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

/// A string that goes on in the next line: with escapes, or raw with so many `#`.
#[derive(Clone, Copy, Default, PartialEq)]
pub enum Open {
    #[default]
    None,
    Escaped,
    Raw(usize),
}

/// The line without what stands in double quotes.
pub fn without_strings(line: &str, open: &mut Open) -> String {
    let (mut out, mut chars) = (String::new(), line.chars());
    while let Some(c) = chars.next() {
        let rest = chars.as_str();
        match *open {
            Open::Escaped if c == '\\' => drop(chars.next()),
            Open::Escaped if c == '"' => *open = Open::None,
            Open::Raw(hashes) if c == '"' && rest.chars().take_while(|c| *c == '#').count() >= hashes => {
                chars = rest[hashes..].chars();
                *open = Open::None;
            }
            Open::Escaped | Open::Raw(_) => {}
            // What follows is a comment, where quotes mean nothing.
            Open::None if c == '/' && rest.starts_with('/') => return out + "/" + rest,
            // The characters '"' and '\"'.
            Open::None if c == '\'' && (rest.starts_with("\"'") || rest.starts_with("\\\"'")) => {
                out.push(c);
                chars = rest.trim_start_matches(['\\', '"']).chars();
            }
            Open::None if c == '"' => {
                let before = out.trim_end_matches('#');
                let is_raw = before.strip_suffix('r').is_some_and(|b| !b.ends_with(|c: char| c.is_alphanumeric()));
                let is_raw = is_raw || before.ends_with("br") || before.ends_with("cr");
                *open = if is_raw { Open::Raw(out.len() - before.len()) } else { Open::Escaped };
            }
            Open::None => out.push(c),
        }
    }
    out
}

/// The lines of Rust code without their comments and strings.
pub fn code(text: &str) -> Vec<String> {
    let mut open = Open::None;
    let line = |line: &str| {
        let code = without_strings(line, &mut open);
        code.split("//").next().unwrap_or_default().trim_end().to_string()
    };
    text.lines().map(line).collect()
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
        let more =
            [("a/CMakeLists.txt", Language::Hashes), (".ci/run", Language::Hashes), ("Cargo.toml", Language::Hashes)];
        let more =
            more.map(|(path, language)| (path, Some(language))).into_iter().chain([("cmake/ik-wrapped.txt", None)]);
        for (path, language) in files.into_iter().chain(more) {
            assert!(sources(&[(path, "")])[0].language() == language, "{path}");
        }
    }

    #[test]
    fn strings_are_left_out_but_not_comments() {
        let mut open = Open::None;
        let mut code = |line| without_strings(line, &mut open);
        assert_eq!(code(r#"let a = "x // \" y" + '"'; // "z""#), r#"let a =  + ''; // "z""#);
        assert_eq!(code(r##"let a = br#"x " // \"# + r"\" + '\"' + b; // c"##), "let a = br# + r + '' + b; // c");
        assert_eq!((code("let b = \"1").as_str(), code("// 2").as_str(), code("3\";").as_str()), ("let b = ", "", ";"));
    }
}

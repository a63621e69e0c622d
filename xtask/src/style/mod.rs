//! `cargo xtask style`: what this project wants of its texts and neither rustfmt nor clippy looks at. It reads files
//! and runs nothing, so it is the first step of the tests.

mod circles;
mod files;
mod imports;
mod lines;
mod safety;
mod sizes;

use crate::util::Result;
use files::Source;

pub const HELP: &str = "cargo xtask style

Reads the files that git knows and names each place where one of these rules is broken:

  lines     comments, and prose in Markdown, have at most 120 columns (tables, code and lines that are one link may be
            longer)
  sizes     in src/ and xtask/ no file has more than 400 lines without a reason in its first lines, no function more
            than 80
  SAFETY    a comment in src/ names the invariant; `promised by the caller` alone does not
  circles   no two files in src/ use each other, directly or through others";

/// A place where a rule is broken.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Offence {
    file: String,
    /// From 1.
    line: usize,
    /// What is wrong and what to do.
    what: String,
}

impl Offence {
    fn new(file: &str, line: usize, what: impl Into<String>) -> Self {
        Self { file: file.into(), line, what: what.into() }
    }
}

/// Reads the whole repository; every offence is printed.
pub fn run() -> Result<()> {
    let sources = files::tracked()?;
    let known = circles::EXCEPTIONS;
    let offences = check(&sources, &known);
    for Offence { file, line, what } in &offences {
        println!("  {file}:{line}: {what}");
    }
    for (from, to, _) in known {
        if !circles::uses(&sources, from, to) {
            println!("  note: {from} does not use {to} any more; delete the exception in xtask/src/style/circles.rs");
        }
    }
    match offences.len() {
        0 => {
            println!("  {} files read, nothing to complain about", sources.len());
            Ok(())
        }
        1 => Err("one rule of style is broken; the place stands above".into()),
        n => Err(format!("rules of style are broken in {n} places, listed above")),
    }
}

/// All offences in these files, sorted.
fn check(sources: &[Source], known: &[circles::Exception]) -> Vec<Offence> {
    let mut all: Vec<Offence> = sources
        .iter()
        .flat_map(|source| {
            let mut own = lines::check(source);
            own.extend(sizes::check(source));
            own.extend(safety::check(source));
            own
        })
        .collect();
    all.extend(circles::check(sources, known));
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_offence_of_each_kind_is_found() {
        let long_function = format!("fn long() {{\n{}}}\n", "    a();\n".repeat(80));
        let files = [
            ("src/circle.rs", "use crate::other;\n".to_string()),
            ("src/comment.rs", format!("// {}\n", "word ".repeat(30))),
            ("src/file.rs", "a();\n".repeat(401)),
            ("src/function.rs", long_function),
            ("src/other.rs", "use crate::circle;\n".to_string()),
            ("src/safety.rs", "// SAFETY: promised by the caller.\n".to_string()),
            ("docs/prose.md", "word ".repeat(30)),
            ("c_tests/long.c", "a();\n".repeat(401)),
        ];
        let sources = files.map(|(path, text)| Source { path: path.into(), text });
        let found = check(&sources, &[]);
        let found: Vec<(&str, usize, &str)> =
            found.iter().map(|o| (o.file.as_str(), o.line, o.what.split_inclusive(' ').next().unwrap())).collect();
        assert_eq!(
            found,
            [
                ("docs/prose.md", 1, "150 "),
                ("src/circle.rs", 1, "uses "),
                ("src/comment.rs", 1, "153 "),
                ("src/file.rs", 1, "401 "),
                ("src/function.rs", 1, "`long` "),
                ("src/safety.rs", 1, "SAFETY: "),
            ]
        );
    }
}

//! The documents: links lead somewhere, sources and items that they name are there, and what a newcomer reads first
//! stays short.

use std::path::{Path, PathBuf};

/// Every Markdown file of the repository that people read.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["", "docs", "docs/lab", "examples", "c_tests", "cmake/tests"];
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(root.join(folder)).unwrap().flatten());
    let mut all: Vec<PathBuf> =
        files.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
    all.sort();
    all
}

/// The name that GitHub gives a heading in links.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn has_anchor(file: &Path, wanted: &str) -> bool {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().filter_map(|line| line.strip_prefix('#')).any(|line| anchor(line.trim_start_matches('#')) == wanted)
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading_that_are_there() {
    let mut links = 0;
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        for rest in text.split("](").skip(1) {
            let target: String = rest.chars().take_while(|c| *c != ')').collect();
            let (path, heading) = target.split_once('#').unwrap_or((&target, ""));
            if target.contains("://") || target.contains(char::is_whitespace) {
                continue;
            }
            links += 1;
            let file = if path.is_empty() { document.clone() } else { document.parent().unwrap().join(path) };
            assert!(file.exists(), "{}: there is no {target}", document.display());
            assert!(heading.is_empty() || has_anchor(&file, heading), "{}: no heading {target}", document.display());
        }
    }
    assert!(links > 30, "{links} links");
}

/// Whether a path in backticks is one of this repository's sources, which begin with a folder of it or of `src/`.
fn is_source(word: &str) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let plain = word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-./".contains(c));
    let first = word.split('/').next().unwrap_or_default();
    plain && word.contains('/') && (root.join("src").join(first).is_dir() || FOLDERS.contains(&first))
}

/// Folders of the repository that documents name files of.
const FOLDERS: [&str; 7] = ["src", "c_tests", "xtask", "cmake", "benches", "tests", "examples"];

#[test]
fn every_source_that_is_named_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = 0;
    for document in documents().iter().filter(|path| !path.ends_with("CHANGELOG.md")) {
        let text = std::fs::read_to_string(document).unwrap();
        // Odd parts are code; what follows `::` is an item of the file.
        for code in text.split('`').skip(1).step_by(2) {
            let word = code.split("::").next().unwrap_or_default();
            if !is_source(word) {
                continue;
            }
            names += 1;
            let ends = ["", ".rs", "/mod.rs"];
            let places = ends.iter().flat_map(|end| [format!("{word}{end}"), format!("src/{word}{end}")]);
            let is_there = places.map(|place| root.join(place)).any(|path| path.exists());
            assert!(is_there, "{}: there is no `{word}` any more", document.display());
        }
    }
    assert!(names > 30, "{names} names");
}

/// What is missing of an item like `room::file::tests::name_...`: the file of its module must contain its other names.
fn missing(item: &str) -> Option<String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let names: Vec<&str> = item.split("::").filter(|name| !name.is_empty()).collect();
    let file = |n: usize| {
        let module = src.join(names[..n].join("/"));
        [module.with_extension("rs"), module.join("mod.rs")].into_iter().find(|path| path.is_file())
    };
    let (n, file) = (1..=names.len()).rev().find_map(|n| Some((n, file(n)?)))?;
    let text = std::fs::read_to_string(file).unwrap();
    names[n..].iter().map(|name| name.trim_end_matches("...")).find(|name| !text.contains(name)).map(str::to_string)
}

#[test]
fn every_item_that_is_named_is_there() {
    let mut names = 0;
    for document in documents().iter().filter(|path| !path.ends_with("CHANGELOG.md")) {
        let text = std::fs::read_to_string(document).unwrap();
        for code in text.split('`').skip(1).step_by(2).filter(|code| code.contains("::") && !code.contains('/')) {
            let item = code.split(|c: char| !(c.is_alphanumeric() || "_:.".contains(c))).next().unwrap_or_default();
            names += 1;
            assert_eq!(missing(item), None, "{}: `{item}`", document.display());
        }
    }
    assert!(names > 30, "{names} names");
}

#[test]
fn what_is_read_first_is_short() {
    for (name, most) in [("README.md", 120), ("docs/performance.md", 150)] {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
        let lines = text.lines().count();
        assert!(lines <= most, "{name} has {lines} lines, at most {most} are wanted");
    }
}

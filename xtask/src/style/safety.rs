//! A SAFETY comment names the invariant that makes the code sound. One that only points elsewhere tells the reader
//! nothing.

use super::{Offence, files::Source};

/// What points elsewhere, in lower case.
const PHRASES: [&str; 20] = [
    "promised by the caller",
    "as promised by the caller",
    "promised by our caller",
    "guaranteed by the caller",
    "upheld by the caller",
    "the caller's promise",
    "the caller promises it",
    "the caller promises this",
    "the caller's contract",
    "promised",
    "passed on",
    "as above",
    "see above",
    "as below",
    "as before",
    "here and below",
    "likewise",
    "the same",
    "the same as above",
    "same as above",
];

pub fn check(source: &Source) -> Vec<Offence> {
    if !source.is_library() {
        return Vec::new();
    }
    let lines: Vec<&str> = source.text.lines().collect();
    let mut all = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let Some((_, text)) = line.split_once("// SAFETY:") else { continue };
        let next = lines[number + 1..].iter().map_while(|line| line.trim_start().strip_prefix("//"));
        let text = std::iter::once(text).chain(next).map(str::trim).collect::<Vec<_>>().join(" ");
        if says_nothing(&text) {
            let what = format!("SAFETY: {text:?} names no invariant; say which one holds, and why here");
            all.push(Offence::new(&source.path, number + 1, what));
        }
    }
    all
}

fn says_nothing(text: &str) -> bool {
    let text = text.to_lowercase();
    let parts = text.split(['.', ',', ';', ':']).map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| part.strip_prefix("and ").unwrap_or(part)).all(|part| PHRASES.contains(&part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_comments_without_an_invariant_are_found() {
        for empty in
            ["promised by the caller.", "As above.", "passed on, and as above.", "promised by\n    // the caller."]
        {
            let text = format!("fn a() {{\n    // SAFETY: {empty}\n    unsafe {{}}\n}}\n");
            let offences = check(&Source { path: "src/a.rs".into(), text });
            assert!(matches!(&offences[..], [Offence { line: 2, .. }]), "{empty}");
        }
        for whole in ["the panel is one of the task's.", "passed on; the range was checked in `new`."] {
            assert!(!says_nothing(whole), "{whole}");
        }
    }
}

//! A SAFETY comment names the invariant that makes the code sound. One that only points elsewhere tells the reader
//! nothing.

use super::{Offence, files::Source};

/// Words that only say that somebody else saw to it. A comment of nothing but these names no invariant.
const EMPTY: [&str; 50] = [
    "above",
    "all",
    "and",
    "as",
    "before",
    "below",
    "by",
    "caller",
    "caller's",
    "callers",
    "checked",
    "contract",
    "correct",
    "course",
    "fine",
    "for",
    "function",
    "function's",
    "guaranteed",
    "here",
    "holds",
    "is",
    "it",
    "its",
    "likewise",
    "obviously",
    "of",
    "ok",
    "on",
    "our",
    "passed",
    "promise",
    "promised",
    "promises",
    "safe",
    "same",
    "see",
    "so",
    "sound",
    "still",
    "that",
    "the",
    "there",
    "this",
    "too",
    "trivially",
    "true",
    "upheld",
    "valid",
    "yes",
];

pub fn check(source: &Source) -> Vec<Offence> {
    if !source.is_library() {
        return Vec::new();
    }
    let lines: Vec<&str> = source.text.lines().collect();
    let mut all = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let Some(text) = after_mark(line) else { continue };
        let next = lines[number + 1..].iter().map_while(|line| line.trim_start().strip_prefix("//"));
        let text = std::iter::once(text).chain(next).map(str::trim).collect::<Vec<_>>().join(" ");
        if says_nothing(&text) {
            let what = format!("SAFETY: {text:?} names no invariant; say which one holds, and why here");
            all.push(Offence::new(&source.path, number + 1, what));
        }
    }
    all
}

/// What a comment says behind its mark, in all the ways that clippy takes for one.
fn after_mark(line: &str) -> Option<&str> {
    let comment = line.find("//").or(line.find("/*"))?;
    let at = line.to_ascii_lowercase()[comment..].find("safety:")?;
    let mark = &line[comment..comment + at];
    mark.trim_start_matches(['/', '*', '!', ' ']).is_empty().then(|| line[comment + at..].split_at("safety:".len()).1)
}

fn says_nothing(text: &str) -> bool {
    let text = text.to_lowercase();
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '\'' && c != '_').filter(|word| !word.is_empty());
    words.into_iter().all(|word| EMPTY.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_comments_without_an_invariant_are_found() {
        for empty in [
            "promised by the caller.",
            "As above.",
            "passed on, and as above.",
            "promised by\n    // the caller; yes.",
            "",
        ] {
            let text = format!("fn a() {{\n    // SAFETY: {empty}\n    unsafe {{}}\n}}\n");
            let offences = check(&Source { path: "src/a.rs".into(), text });
            assert!(matches!(&offences[..], [Offence { line: 2, .. }]), "{empty}");
        }
        for mark in ["// Safety: ", "//safety: ", "/* SAFETY: ", "/// SAFETY: "] {
            assert_eq!(after_mark(&format!("    {mark}as above")).map(str::trim), Some("as above"), "{mark}");
        }
        assert_eq!(after_mark("// what the SAFETY: comments say"), None);
        for whole in ["LIVE TENSOR.", "the panel is one of the task's.", "passed on; the range was checked in `new`."] {
            assert!(!says_nothing(whole), "{whole}");
        }
    }
}

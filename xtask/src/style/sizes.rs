//! Files and functions of the library and of xtask stay short enough to be read in one go.

use super::{
    Offence,
    files::{self, Source},
};

const FILE_LINES: usize = 400;
const FUNCTION_LINES: usize = 80;
/// What a longer file says in its first lines, with the reason behind it.
const REASON: &str = "Longer than 400 lines because ";
/// Words of a reason in the same line.
const LEAST_WORDS: usize = 3;
/// Lines in which [`REASON`] may stand.
const FIRST_LINES: usize = 15;

pub fn check(source: &Source) -> Vec<Offence> {
    if !source.has_limits() {
        return Vec::new();
    }
    let lines: Vec<&str> = source.text.lines().collect();
    let mut all = Vec::new();
    let is_reason = |line: &&str| {
        let reason = line.strip_prefix("//! ").and_then(|line| line.split_once(REASON));
        reason.is_some_and(|(_, reason)| reason.split_whitespace().count() >= LEAST_WORDS)
    };
    let has_reason = lines.iter().take(FIRST_LINES).any(is_reason);
    if lines.len() > FILE_LINES && !has_reason {
        let what = format!(
            "{} lines; split the file by meaning, or say `//! {REASON}...` in its first {FIRST_LINES} lines",
            lines.len()
        );
        all.push(Offence::new(&source.path, 1, what));
    }
    let code = files::code(&source.text);
    for (number, line) in code.iter().enumerate() {
        let Some(name) = function(line) else { continue };
        let length = length(&code[number..]);
        if length > FUNCTION_LINES {
            let what = format!("`{name}` has {length} lines; split it, {FUNCTION_LINES} are the most");
            all.push(Offence::new(&source.path, number + 1, what));
        }
    }
    all
}

/// The name of the function that begins in this line.
fn function(line: &str) -> Option<&str> {
    let (_, after) = line.trim_start().split_once("fn ").filter(|(before, _)| is_qualifiers(before))?;
    // A macro may give the name.
    let end = after.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '$')?;
    Some(&after[..end]).filter(|name| !name.is_empty())
}

/// What may stand before `fn`: `#[inline] pub(super) const unsafe extern "C" `, or a variable of a macro.
fn is_qualifiers(text: &str) -> bool {
    let text = text.rsplit(']').next().unwrap_or_default().replace("pub(in ", "pub(");
    let is_qualifier = |word: &str| {
        word.starts_with("pub")
            || word.starts_with('$')
            || ["const", "async", "unsafe", "extern", "safe"].contains(&word)
    };
    (text.is_empty() || text.ends_with(' ')) && text.split_whitespace().all(is_qualifier)
}

/// Lines up to the closing brace, which rustfmt puts below the beginning of the function. A declaration has no body.
fn length(lines: &[String]) -> usize {
    let indentation = |line: &str| line.len() - line.trim_start().len();
    let own = indentation(&lines[0]);
    let mut has_body = false;
    for (n, line) in lines.iter().enumerate() {
        if !has_body && (line.ends_with(';') || line.ends_with('}')) {
            return n + 1;
        }
        if has_body && line.trim_start().starts_with('}') && indentation(line) <= own {
            return n + 1;
        }
        has_body |= line.ends_with('{');
    }
    lines.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offences(text: String) -> Vec<(usize, String)> {
        let source = Source { path: "src/a/b.rs".into(), text };
        check(&source).into_iter().map(|offence| (offence.line, offence.what)).collect()
    }

    fn with_body(head: &str, lines: usize) -> String {
        format!("{head} {{\n{}}}\n", "    a();\n".repeat(lines - 2))
    }

    #[test]
    fn a_long_file_must_say_why() {
        assert_eq!(offences("a\n".repeat(400)), []);
        assert!(matches!(&offences("a\n".repeat(401))[..], [(1, what)] if what.starts_with("401 lines; split")));
        let text = |head: &str| format!("{head}\n{}", "a\n".repeat(500));
        let reason = format!("//! {REASON}it is a table.");
        assert_eq!(offences(text(&format!("//! A.\n{reason}"))), []);
        assert_eq!(offences(text(&format!("{}{reason}", "a\n".repeat(15)))).len(), 1);
        assert_eq!(offences(text(&format!("//! {REASON}yes."))).len(), 1);
    }

    #[test]
    fn long_functions_are_found_with_every_head() {
        let heads = [
            "fn long(a: u8)",
            "pub fn long<T>()",
            "pub(in crate::a) const unsafe fn long()",
            "unsafe extern \"C\" fn long(\n    a: u8,\n) -> u8",
            "fn long<T>()\nwhere\n    T: Copy,\n",
            "fn long(\n    // One; or none.\n    a: [u8; 4], // {}\n)",
            "#[inline] $vis extern \"C\" fn long()",
        ];
        for head in heads {
            let extra = head.matches('\n').count();
            assert_eq!(offences(with_body(head, FUNCTION_LINES - extra)), [], "{head}");
            let text = format!("// fn x\n{}", with_body(head, FUNCTION_LINES + 1 - extra));
            assert_eq!(offences(text), [(2, "`long` has 81 lines; split it, 80 are the most".into())], "{head}");
        }
    }

    #[test]
    fn declarations_and_short_functions_end_where_they_end() {
        let text =
            format!("trait A {{\n    fn a(&self);\n    fn b() -> u8 {{ 1 }}\n}}\n{}", "let b = 1;\n".repeat(100));
        assert_eq!(offences(text), []);
        // No brace in a string ends a function; a macro may give its name.
        let text = format!("fn $a() {{\n    let s = \"\n}}\n\"; // }}\n{}}}\n", "    a();\n".repeat(77));
        assert_eq!(offences(text).len(), 1);
        let inner = format!("fn outer() {{\n    fn inner() {{\n    }}\n{}}}\n", "    a();\n".repeat(77));
        assert_eq!(offences(inner), [(1, "`outer` has 81 lines; split it, 80 are the most".into())]);
    }
}

//! Lines of comments, and of prose in Markdown, have at most 120 columns. rustfmt breaks code, but not comments.

use super::{
    Offence,
    files::{Language, Open, Source, without_strings},
};

/// As `max_width` in rustfmt.toml.
const COLUMNS: usize = 120;

pub fn check(source: &Source) -> Vec<Offence> {
    let Some(language) = source.language() else { return Vec::new() };
    let is_text = match language {
        Language::Rust => |text: &str| with_slashes(text, true),
        Language::C => |text: &str| with_slashes(text, false),
        Language::Hashes => with_hashes,
        Language::Markdown => prose,
    };
    let too_long = |(line, _): &(&str, bool)| line.chars().count() > COLUMNS;
    let marked = source.text.lines().zip(is_text(&source.text)).enumerate();
    marked
        .filter(|(_, line)| line.1 && too_long(line))
        .map(|(number, (line, _))| {
            let what = if language == Language::Markdown { "prose" } else { "comment" };
            let columns = line.chars().count();
            Offence::new(&source.path, number + 1, format!("{columns} columns of {what}; break the line at {COLUMNS}"))
        })
        .collect()
}

/// For each line, whether it has a comment. In Rust a string may go on in the next line, in C it ends with its own.
fn with_slashes(text: &str, is_rust: bool) -> Vec<bool> {
    let (mut open, mut in_block) = (Open::None, false);
    let has_comment = |line: &str| {
        if !is_rust {
            open = Open::None;
        }
        let code = without_strings(line, &mut open);
        let (mut rest, mut found) = (code.as_str(), in_block);
        loop {
            let end = if in_block { rest.find("*/") } else { rest.find("/*") };
            let is_line = !in_block && rest.find("//").is_some_and(|at| end.is_none_or(|end| at < end));
            found |= is_line || !in_block && end.is_some();
            let Some(end) = end.filter(|_| !is_line) else { return found };
            in_block = !in_block;
            rest = &rest[end + 2..];
        }
    };
    text.lines().map(has_comment).collect()
}

/// For each line, whether it has a comment.
fn with_hashes(text: &str) -> Vec<bool> {
    let has_comment =
        |line: &str| line.trim_start().starts_with('#') || without_strings(line, &mut Open::None).contains(" # ");
    text.lines().map(has_comment).collect()
}

/// For each line, whether it is prose that can be broken.
fn prose(text: &str) -> Vec<bool> {
    let mut fenced = false;
    let is_prose = |line: &str| {
        let line = line.trim_start();
        let fence = line.starts_with("```") || line.starts_with("~~~");
        fenced ^= fence;
        // A heading must be one line; a line without spaces behind its mark is one link or one path.
        let whole = line.trim_start_matches(['-', '*', '!', '>', ' ']);
        let is_link = whole.starts_with('[') && whole.ends_with(')') && whole.matches("](").count() == 1;
        !(fenced || fence || line.starts_with(['|', '#', '<']) || is_link || !whole.trim().contains(' '))
    };
    text.lines().map(is_prose).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long(start: &str) -> String {
        format!("{start} {}", "word ".repeat(30))
    }

    fn lines(path: &str, text: String) -> Vec<usize> {
        check(&Source { path: path.into(), text }).into_iter().map(|offence| offence.line).collect()
    }

    #[test]
    fn long_comments_are_found_and_long_code_is_not() {
        for path in ["b/a.c", "a.h", "a.hpp", "a.cpp"] {
            let text =
                ["short", &long("//"), &long("code"), &long("code; //"), "/* a", &long("b"), "*/", &long("code")];
            assert_eq!(lines(path, text.join("\n")), [2, 4, 6], "{path}");
        }
        let text =
            [&long("    ///"), &long("code"), &long("code; //"), "let a = \"", &long("// b"), "c\";", &long("//")];
        assert_eq!(lines("a.rs", text.map(str::to_string).join("\n")), [1, 3, 7]);
        for path in ["a.cmake", "a/CMakeLists.txt", "a.sh", "a.py"] {
            assert_eq!(lines(path, [long("#"), long("code"), long("code # ")].join("\n")), [1, 3], "{path}");
        }
        let text = ["// a/*.c", &long("code"), &long("/*"), &long("b"), "*/", &long("code"), "r\"\\\";", &long("//")];
        assert_eq!(lines("a.rs", text.map(str::to_string).join("\n")), [3, 4, 8]);
        assert!(lines("a.rs", format!("let url = \"http://{}\";", "a".repeat(120))).is_empty());
    }

    #[test]
    fn long_prose_is_found_and_tables_code_and_links_are_not() {
        let link = format!("- [a]({})", "x".repeat(120));
        let text = [&long("|"), &long("# "), "```", &long("code"), "```", &long("-"), &link, &long("prose")];
        assert_eq!(lines("docs/a.md", text.map(str::to_string).join("\n")), [6, 8]);
    }

    #[test]
    fn columns_are_counted_not_bytes() {
        assert!(lines("a.rs", format!("// {}", "ä".repeat(117))).is_empty());
        assert_eq!(lines("a.rs", format!("// {}", "ä".repeat(118))), [1]);
    }
}

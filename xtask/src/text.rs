//! English prose for `verify`, made from the host's own documentation: the same bytes on every machine.
//!
//! The pinned source archive holds some 140,000 words of Markdown. Code, tables, headings, HTML and links
//! are dropped; what stays is paragraphs of sentences.

use std::{fs, path::Path};

use crate::util::{Result, io};

/// Files with the longest stretches of prose, in the order in which they are used.
const FILES: [&str; 16] = [
    "docs/multi-gpu.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "AGENTS.md",
    "docs/speculative.md",
    "docs/build.md",
    "tools/perplexity/README.md",
    "tools/quantize/README.md",
    "docs/development/HOWTO-add-model.md",
    "tools/completion/README.md",
    "docs/autoparser.md",
    "grammars/README.md",
    "tools/server/README-dev.md",
    "docs/function-calling.md",
    "docs/docker.md",
    "tools/server/README.md",
];

/// The whole text; `source` is the root of llama.cpp.
pub fn prose(source: &Path) -> Result<String> {
    let mut text = String::new();
    for file in FILES {
        let path = source.join(file);
        text.push_str(&paragraphs(&io("read", &path, fs::read_to_string(&path))?));
    }
    Ok(text)
}

/// Paragraphs of one Markdown file, one per line.
fn paragraphs(markdown: &str) -> String {
    let mut out = String::new();
    let mut paragraph = String::new();
    let mut fenced = false;
    for line in markdown.lines().chain([""]) {
        let line = line.trim();
        let fence = line.starts_with("```") || line.starts_with("~~~");
        let item = list_item(line);
        let skipped = fence || fenced || line.is_empty() || line.starts_with(['#', '|', '<', '!']);
        if (skipped || item.is_some()) && !paragraph.is_empty() {
            if is_prose(&paragraph) {
                out.push_str(&paragraph);
                out.push_str("\n\n");
            }
            paragraph.clear();
        }
        fenced ^= fence;
        if !skipped {
            for word in plain(item.unwrap_or(line)).split_whitespace() {
                if !paragraph.is_empty() {
                    paragraph.push(' ');
                }
                paragraph.push_str(word);
            }
        }
    }
    out
}

/// What follows the bullet, quote mark or number of a list item.
fn list_item(line: &str) -> Option<&str> {
    let number = line.trim_start_matches(|c: char| c.is_ascii_digit());
    if number.len() < line.len() && number.starts_with(". ") {
        return Some(&number[2..]);
    }
    ["- ", "* ", "+ ", "> "].iter().find_map(|mark| line.strip_prefix(mark))
}

/// Without links, emphasis and code marks: `[text](url)` becomes `text`.
fn plain(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("](") {
        out.push_str(before);
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    out.push_str(rest);
    out.retain(|c| !matches!(c, '[' | ']' | '*' | '`'));
    out.split_whitespace().filter(|w| !w.contains("://")).collect::<Vec<_>>().join(" ")
}

/// At least one sentence, and mostly words.
fn is_prose(paragraph: &str) -> bool {
    let words: Vec<&str> = paragraph.split_whitespace().collect();
    let is_word = |w: &&&str| w.trim_matches(|c: char| ",.;:!?()'\"".contains(c)).chars().all(char::is_alphabetic);
    words.len() >= 12 && paragraph.is_ascii() && words.iter().filter(is_word).count() * 5 >= words.len() * 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sentences_survive() {
        let markdown = "# Heading\n\nThis is a paragraph, with a [link](https://example.org/x) in it, which\n\
            goes on in a **second** line.\n\n```sh\nmake this line of code go away because it is not prose at all here\n```\n\
            | a | table | with | many | words | that | would | otherwise | be | taken | for | prose |\n\
            too short\n- An item is a paragraph of its own, and it has twelve words too.\n";
        assert_eq!(
            paragraphs(markdown),
            "This is a paragraph, with a link in it, which goes on in a second line.\n\n\
             An item is a paragraph of its own, and it has twelve words too.\n\n"
        );
    }
}

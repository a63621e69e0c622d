//! A run as text for the terminal, and the Markdown that documents are made of.

use super::run::{Item, Run, Way};
use crate::{stats, table, util::Result};

/// Hosts, as the bench program names them. Of ik_llama.cpp the faster of its two forms counts.
pub const LLAMA: &[&str] = &["llama"];
/// Plain and repacked.
pub const IK: &[&str] = &["ik", "ik-rtr"];

/// One line per product.
pub fn table(run: &Run) -> String {
    let hosts: Vec<&str> =
        ["llama", "ik", "ik-rtr"].into_iter().filter(|h| run.items.iter().any(|i| i.way(h).is_some())).collect();
    let mut header = vec!["type NxK", "M", "ms", "% peak", "% reads", "NMSE"];
    for host in &hosts {
        header.extend([*host, "NMSE", "ratio"]);
    }
    header.extend(["TOPS", "GB/s"]);
    let rows: Vec<Vec<String>> = run.items.iter().map(|item| row(item, &hosts)).collect();
    table::render(&header, &rows) + &legend(run, &hosts)
}

fn row(item: &Item, hosts: &[&str]) -> Vec<String> {
    let mut cells = vec![format!("{} {}", item.ty(), item.shape()), item.m().to_string()];
    if let Some(way) = item.way("ours") {
        cells.extend([times(&way), percent(way.of_peak), percent(way.of_read), format!("{:.0e}", way.nmse)]);
    }
    for host in hosts {
        match item.way(host) {
            Some(way) => {
                let ratio = item.ratio(&[host]).map_or("-".into(), |r| format!("{r:.2}x"));
                cells.extend([times(&way), format!("{:.0e}", way.nmse), ratio]);
            }
            None => cells.extend(["-"; 3].map(String::from)),
        }
    }
    cells.extend([percent(item.number("peak_tops")), percent(item.number("read_gbs"))]);
    cells
}

/// What the columns of hosts are, with the forms their weights had.
fn legend(run: &Run, hosts: &[&str]) -> String {
    let mut out = format!("  {}, {}, {} threads\n", run.date, run.cpu, run.items[0].number("threads"));
    for host in hosts {
        let mut forms: Vec<String> = run.items.iter().filter_map(|i| i.way(host)).map(|w| w.form).collect();
        forms.sort();
        forms.dedup();
        let name = host.split('-').next().unwrap_or(host);
        let what = run.hosts.iter().find(|(k, _)| k == name).map_or("", |(_, v)| v);
        out.push_str(&format!("  {host}: {what}; weights as {}\n", forms.join(", ")));
    }
    out + "  ms: medians (lowest to highest); ratio: their median by ours; % of the tile peak and of plain reads in the same repetitions\n"
}

/// The median, and all repetitions from the shortest to the longest, if they are known.
fn times(way: &Way) -> String {
    if way.all_ms.is_empty() { time(way.ms) } else { stats::spread(&way.all_ms, time) }
}

fn time(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.3}") } else { format!("{ms:.1}") }
}

fn percent(value: f64) -> String {
    if value.is_finite() { format!("{value:.1}") } else { "-".into() }
}

/// Markdown: a first column without a header, and others.
pub fn grid(header: &[String], lines: &[(String, Vec<String>)]) -> String {
    let mut out = format!("| | {} |\n|---|{}\n", header.join(" | "), "---|".repeat(header.len()));
    for (name, cells) in lines {
        out.push_str(&format!("| {name} | {} |\n", cells.join(" | ")));
    }
    out
}

/// A paragraph in lines of at most 120 columns, if its words allow.
pub fn broken(paragraph: &str) -> String {
    let mut out = String::new();
    let mut columns = 0;
    for word in paragraph.split_whitespace() {
        let length = word.chars().count();
        if columns > 0 && columns + 1 + length > 120 {
            out.push('\n');
            columns = 0;
        } else if columns > 0 {
            out.push(' ');
            columns += 1;
        }
        out.push_str(word);
        columns += length;
    }
    out
}

/// The document with everything between the comments `NAME:begin` and `NAME:end` replaced.
pub fn between_markers(document: &str, name: &str, text: &str) -> Result<String> {
    let (before, _, behind) = at_markers(document, name)?;
    Ok(format!("{before}\n{}\n{behind}", text.trim_end()))
}

/// What stands between these comments.
pub fn within_markers<'a>(document: &'a str, name: &str) -> Result<&'a str> {
    at_markers(document, name).map(|(_, within, _)| within.trim())
}

/// A document up to the first comment, between both, and from the last one on.
fn at_markers<'a>(document: &'a str, name: &str) -> Result<(&'a str, &'a str, &'a str)> {
    let [first, last] = ["begin", "end"].map(|which| format!("<!-- {name}:{which} -->"));
    let begin = document.find(&first).ok_or(format!("there is no `{first}`"))? + first.len();
    let end = document[begin..].find(&last).ok_or(format!("there is no `{last}` behind `{first}`"))? + begin;
    Ok((&document[..begin], &document[begin..end], &document[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::run::tests::example;

    #[test]
    fn the_table_has_a_line_per_product_and_names_the_forms() {
        let text = table(&example());
        assert_eq!(text.lines().filter(|l| l.contains("x4096")).count(), 8);
        assert!(text.contains("q4_0 1024x4096  512  1.000 (0.500 to 2.000)    40.0     90.0  1e-5   8.000"), "{text}");
        assert!(text.contains("  llama: llama.cpp; weights as f\n"));
    }

    #[test]
    fn paragraphs_are_broken_between_words() {
        let text = broken(&"word ".repeat(50));
        assert!(text.lines().all(|line| line.len() <= 120 && !line.ends_with(' ')), "{text}");
        assert_eq!((text.lines().count(), text.split_whitespace().count()), (3, 50));
    }

    #[test]
    fn only_the_text_between_the_markers_changes() {
        let old = "a\n<!-- t:begin -->\nold\n<!-- t:end -->\nb\n<!-- u:begin -->\n<!-- u:end -->\n";
        let new = between_markers(old, "t", "new\n").unwrap();
        assert_eq!(new, old.replace("old", "new"));
        assert_eq!(between_markers(&new, "t", "new").unwrap(), new);
        assert_eq!(within_markers(&new, "t"), Ok("new"));
        assert!(between_markers("nothing", "t", "x").is_err());
    }
}

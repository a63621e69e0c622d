//! A run as text: every product for the terminal, means over the shapes for the documents.

use super::run::{Item, Run};
use crate::{table, util::Result};

/// Hosts, as the bench program names them. Of ik_llama.cpp the faster of its two forms counts.
pub const LLAMA: &[&str] = &["llama"];
/// Plain and repacked.
pub const IK: &[&str] = &["ik", "ik-rtr"];

/// One line per product.
pub fn table(run: &Run) -> String {
    let hosts: Vec<&str> =
        ["llama", "ik", "ik-rtr"].into_iter().filter(|h| run.items.iter().any(|i| i.way(h).is_some())).collect();
    let mut header = vec!["type NxK", "M", "ms", "best", "% peak", "% reads", "NMSE"];
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
        cells.extend([time(way.ms), time(way.best_ms)]);
        cells.extend([percent(way.of_peak), percent(way.of_read), format!("{:.0e}", way.nmse)]);
    }
    for host in hosts {
        match item.way(host) {
            Some(way) => {
                let ratio = item.ratio(&[host]).map_or("-".into(), |r| format!("{r:.2}x"));
                cells.extend([time(way.ms), format!("{:.0e}", way.nmse), ratio]);
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
    out + "  medians of ms; ratio: their time by ours; % of the tile peak and of plain reads in the same repetitions\n"
}

fn time(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.3}") } else { format!("{ms:.1}") }
}

fn percent(value: f64) -> String {
    if value.is_finite() { format!("{value:.1}") } else { "-".into() }
}

/// One figure for every type and M.
type Figure = (&'static str, fn(&Item) -> Option<f64>, fn(f64) -> String);

const FIGURES: [Figure; 5] = [
    ("Time of llama.cpp's C++ AMX backend / time of this library", |i| i.ratio(LLAMA), ratio),
    ("Time of ik_llama.cpp (plain or `-rtr`, the faster one) / time of this library", |i| i.ratio(IK), ratio),
    ("% of the tile unit's peak", |i| i.way("ours").map(|w| w.of_peak), |v| format!("{v:.0}")),
    ("% of the bandwidth of plain reads", |i| i.way("ours").map(|w| w.of_read), |v| format!("{v:.0}")),
    ("NMSE against sums in f64", |i| i.way("ours").map(|w| w.nmse), |v| format!("{v:.0e}")),
];

fn ratio(value: f64) -> String {
    format!("{value:.2}")
}

/// Tables of type by M, for docs/performance.md.
pub fn markdown(run: &Run) -> String {
    let mut out = format!("{}\n\n![chart of this run](mul-mat.svg)\n", origin(run));
    for (title, of, show) in FIGURES {
        let rows = run.rows();
        let cell = |ty: &str, m: usize| run.mean(ty, m, of).map_or(String::new(), show);
        let types = run.different(|i| i.ty().to_string());
        let lines: Vec<(String, Vec<String>)> =
            types.into_iter().map(|ty| (ty.clone(), rows.iter().map(|m| cell(&ty, *m)).collect())).collect();
        if lines.iter().any(|(_, cells)| cells.iter().any(|c| !c.is_empty())) {
            let header: Vec<String> = rows.iter().map(|m| format!("M = {m}")).collect();
            out.push_str(&format!("\n{title}:\n\n{}", grid(&header, &lines)));
        }
    }
    out
}

/// The ends of the range of M, for README.md.
pub fn summary(run: &Run) -> String {
    let (few, many) = few_and_many(run);
    let header: Vec<String> = [few, many]
        .iter()
        .flat_map(|m| [format!("M = {m}: C++ AMX backend"), format!("M = {m}: ik_llama.cpp")])
        .chain([format!("M = {few}: % of read bandwidth"), format!("M = {many}: % of tile peak")])
        .collect();
    let lines: Vec<(String, Vec<String>)> = run
        .different(|i| i.ty().to_string())
        .into_iter()
        .map(|ty| {
            let show = |m, f: &Figure| run.mean(&ty, m, f.1).map_or(String::new(), f.2);
            let [llama, ik, peak, read, _] = &FIGURES;
            let cells = vec![
                show(few, llama),
                show(few, ik),
                show(many, llama),
                show(many, ik),
                show(few, read),
                show(many, peak),
            ];
            (ty, cells)
        })
        .collect();
    format!(
        "{}\n\n![chart of this run](docs/mul-mat.svg)\n\nTimes of others / time of this library, and shares of the \
         machine's limits:\n\n{}",
        origin(run),
        grid(&header, &lines)
    )
}

/// One row for generation and one for prompts: 1 and 512, or what comes nearest.
pub fn few_and_many(run: &Run) -> (usize, usize) {
    let rows = run.rows();
    let nearest = |wanted: usize| rows.iter().copied().min_by_key(|m| m.abs_diff(wanted)).unwrap_or(wanted);
    (nearest(1), nearest(512))
}

/// Where the figures are from.
fn origin(run: &Run) -> String {
    let shapes = run.different(Item::shape).join(", ");
    let span = |key: &str| {
        let values = || run.items.iter().map(|i| i.number(key));
        format!("{:.1} to {:.1}", values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max))
    };
    let hosts: Vec<&str> = run.hosts.iter().map(|(_, what)| what.as_str()).collect();
    format!(
        "{}, {}, {} threads: `{}`. Tile peak {} TOPS, plain reads {} GB/s. Medians, geometric means over N x K of \
         {shapes}. Others: {}.",
        run.date,
        run.cpu,
        run.items[0].number("threads"),
        run.command,
        span("peak_tops"),
        span("read_gbs"),
        if hosts.is_empty() { "none".into() } else { hosts.join("; ") },
    )
}

/// Markdown: a first column without a header, and others.
pub fn grid(header: &[String], lines: &[(String, Vec<String>)]) -> String {
    let mut out = format!("| | {} |\n|---|{}\n", header.join(" | "), "---|".repeat(header.len()));
    for (name, cells) in lines {
        out.push_str(&format!("| {name} | {} |\n", cells.join(" | ")));
    }
    out
}

/// The document with everything between the comments `NAME:begin` and `NAME:end` replaced.
pub fn between_markers(document: &str, name: &str, text: &str) -> Result<String> {
    let [first, last] = ["begin", "end"].map(|which| format!("<!-- {name}:{which} -->"));
    let begin = document.find(&first).ok_or(format!("there is no `{first}`"))? + first.len();
    let end = document[begin..].find(&last).ok_or(format!("there is no `{last}` behind `{first}`"))? + begin;
    Ok(format!("{}\n{}\n{}", &document[..begin], text.trim_end(), &document[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::run::tests::example;

    #[test]
    fn the_table_has_a_line_per_product_and_names_the_forms() {
        let text = table(&example());
        assert_eq!(text.lines().filter(|l| l.contains("x4096")).count(), 8);
        assert!(text.contains("q4_0 1024x4096  512  1.000  1.000    40.0     90.0  1e-5  8.000"), "{text}");
        assert!(text.contains("  llama: llama.cpp; weights as f\n"));
    }

    #[test]
    fn documents_get_means_over_the_shapes() {
        let text = markdown(&example());
        assert!(text.contains("| | M = 1 | M = 512 |\n|---|---|---|\n| q4_0 | 4.00 | 4.00 |\n"), "{text}");
        assert!(text.contains("| q4_1 | 3.00 | 3.00 |"));
        assert!(summary(&example()).contains("| q4_0 | 4.00 | 1.50 | 4.00 | 1.50 | 90 | 40 |"));
    }

    #[test]
    fn a_run_without_hosts_has_no_table_of_ratios() {
        let mut run = example();
        let line = "{\"type\":\"q4_0\",\"n\":64,\"k\":256,\"m\":1,\"ours\":{\"ms\":1,\"nmse\":1e-5}}";
        run.items = Run::items_of_lines(line).unwrap();
        assert!(!markdown(&run).contains("C++ AMX backend"));
        assert!(table(&run).contains("1e-5"));
    }

    #[test]
    fn only_the_text_between_the_markers_changes() {
        let old = "a\n<!-- t:begin -->\nold\n<!-- t:end -->\nb\n<!-- u:begin -->\n<!-- u:end -->\n";
        let new = between_markers(old, "t", "new\n").unwrap();
        assert_eq!(new, old.replace("old", "new"));
        assert_eq!(between_markers(&new, "t", "new").unwrap(), new);
        assert!(between_markers("nothing", "t", "x").is_err());
    }
}

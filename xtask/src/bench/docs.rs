//! What the documents show of the records in `benchmarks/`: tables between markers, and the chart.

use std::{fs, path::PathBuf};

use super::{
    chart,
    record::{Model, Product, Products, Record, TypeRow, TypeTable},
    report::{between_markers, broken, grid},
};
use crate::{
    stats,
    util::{self, Result, io},
};

/// A file of the repository and its new text.
pub type Document = (&'static str, String);

/// Writes all of them; the names of those that changed.
pub fn write() -> Result<Vec<&'static str>> {
    let mut changed = Vec::new();
    for (name, text) in documents()? {
        let path = util::repo().join(name);
        if fs::read_to_string(&path).is_ok_and(|old| old == text) {
            continue;
        }
        io("write", &path, fs::write(&path, text))?;
        changed.push(name);
    }
    Ok(changed)
}

/// The documents with everything between their markers made anew, from the newest record of each kind.
pub fn documents() -> Result<Vec<Document>> {
    let records = Record::all()?;
    let newest = |has: fn(&Record) -> bool| records.iter().rfind(|record| has(record));
    let models = newest(|r| !r.models.is_empty()).ok_or("no record has models")?;
    let products = newest(|r| r.products.is_some()).ok_or("no record has products")?;
    let types = newest(|r| r.types.is_some()).ok_or("no record has types")?;
    let of_products = products.products.as_ref().ok_or("it has")?;
    let of_types = types.types.as_ref().ok_or("it has")?;
    Ok(vec![
        ("docs/speed.svg", chart::draw(models)?),
        ("docs/types.md", with("docs/types.md", &[("types", type_table(types, of_types))])?),
        ("docs/lab/products.md", with("docs/lab/products.md", &[("products", every_m(products, of_products))])?),
        (
            "docs/performance.md",
            with(
                "docs/performance.md",
                &[
                    ("llama", models_of(models, "llama.cpp")),
                    ("ik", models_of(models, "ik_llama.cpp")),
                    ("products", summary(products, of_products)),
                ],
            )?,
        ),
    ])
}

/// A document with the text between each of these markers replaced.
fn with(document: &str, parts: &[(&str, String)]) -> Result<String> {
    let path: PathBuf = util::repo().join(document);
    let mut text = io("read", &path, fs::read_to_string(&path))?;
    for (marker, part) in parts {
        text = between_markers(&text, marker, part).map_err(|e| format!("{document}: {e}"))?;
    }
    Ok(text)
}

/// Where figures are from.
fn origin(record: &Record, command: &str) -> String {
    let file = record.path();
    let file = file.strip_prefix(util::repo()).unwrap_or(&file).display().to_string();
    format!("{}, {}, {} threads: `{command}`; `{file}`.", record.date, record.cpu, record.threads)
}

fn cell(value: Option<&Option<f64>>, show: impl Fn(f64) -> String) -> String {
    value.copied().flatten().map_or(String::new(), show)
}

/// A median, with the lowest and the highest value if they are known.
fn with_range(value: Option<&Option<f64>>, range: Option<&Option<[f64; 2]>>) -> String {
    let range = range.copied().flatten();
    let ends = range.map_or(String::new(), |[least, most]| format!(" ({least:.2} to {most:.2})"));
    cell(value, |v| format!("{v:.2}{ends}"))
}

/// The turns of a model.
fn turns(values: &[f64]) -> String {
    stats::spread(values, |v| if v < 100.0 { rounded(v) } else { format!("{v:.0}") })
}

/// At most two digits behind the point.
fn rounded(value: f64) -> String {
    ((value * 100.0).round() / 100.0).to_string()
}

/// Tokens per second in one host, and ratios; a column is empty where a way was not measured.
fn models_of(record: &Record, host: &str) -> String {
    let models: Vec<&Model> = record.models.iter().filter(|m| m.host == host).collect();
    let names = |of: fn(&Model) -> &Vec<super::record::Way>| {
        let mut all: Vec<String> = Vec::new();
        for way in models.iter().flat_map(|m| of(m)) {
            if !all.contains(&way.way) {
                all.push(way.way.clone());
            }
        }
        all
    };
    let (ours, theirs) = (names(|m| &m.ours), names(|m| &m.theirs));
    let header: Vec<String> = ours
        .iter()
        .chain(&theirs)
        .map(|name| format!("{name}: tokens/s"))
        .chain(ours.iter().map(|name| format!("{name}: times as fast")))
        .collect();
    let lines: Vec<(String, Vec<String>)> = models
        .iter()
        .map(|model| {
            let speed = |name: &String| {
                let way = model.ours.iter().chain(&model.theirs).find(|w| w.way == *name);
                way.map_or(String::new(), |w| turns(&w.speed))
            };
            let times = |name: &String| {
                let way = model.ours.iter().find(|w| w.way == *name);
                way.map_or(String::new(), |w| turns(&w.ratio))
            };
            let cells = ours.iter().chain(&theirs).map(speed).chain(ours.iter().map(times)).collect();
            (format!("{} {} {}", model.slice, model.ty, model.test), cells)
        })
        .collect();
    let mut commands: Vec<&str> = models.iter().map(|m| m.command.as_str()).collect();
    commands.dedup();
    format!("{}\n\n{}", broken(&origin(record, &commands.join("`, `"))), grid(&header, &lines))
}

/// Generation and prompts: M of 1 and 512.
fn summary(record: &Record, products: &Products) -> String {
    let at = |wanted: usize| {
        let nearest = products.rows.iter().enumerate().min_by_key(|(_, m)| m.abs_diff(wanted));
        nearest.map_or((0, 0), |(i, m)| (i, *m))
    };
    let ((few, few_m), (many, many_m)) = (at(1), at(512));
    let header: Vec<String> = [few_m, many_m]
        .iter()
        .flat_map(|m| [format!("M = {m}: C++ AMX backend"), format!("M = {m}: ik_llama.cpp")])
        .chain([format!("M = {few_m}: % of read bandwidth"), format!("M = {many_m}: % of tile peak")])
        .collect();
    let line = |p: &Product| {
        let percent = |values: &[Option<f64>], i: usize| cell(values.get(i), |v| format!("{v:.0}"));
        let cells = vec![
            with_range(p.llama.get(few), p.llama_range.get(few)),
            with_range(p.ik.get(few), p.ik_range.get(few)),
            with_range(p.llama.get(many), p.llama_range.get(many)),
            with_range(p.ik.get(many), p.ik_range.get(many)),
            percent(&p.read, few),
            percent(&p.peak, many),
        ];
        (p.ty.clone(), cells)
    };
    format!(
        "{}\n\n{}",
        broken(&of_run(record, products)),
        grid(&header, &products.types.iter().map(line).collect::<Vec<_>>())
    )
}

fn of_run(record: &Record, products: &Products) -> String {
    let span = |[least, most]: [f64; 2]| format!("{least:.1} to {most:.1}");
    format!(
        "{} Tile peak {} TOPS, plain reads {} GB/s. Medians, geometric means over N x K of {}. Others: {}.",
        origin(record, &products.command),
        span(products.peak_tops),
        span(products.read_gbs),
        products.shapes.join(", "),
        if products.hosts.is_empty() { "none".into() } else { products.hosts.join("; ") },
    )
}

/// One figure for every type and M.
type Figure = (&'static str, fn(&Product) -> &Vec<Option<f64>>, fn(f64) -> String);

const FIGURES: [Figure; 5] = [
    ("Time of llama.cpp's C++ AMX backend / time of this library", |p| &p.llama, |v| format!("{v:.2}")),
    ("Time of ik_llama.cpp (plain or `-rtr`, the faster one) / time of this library", |p| &p.ik, |v| format!("{v:.2}")),
    ("% of the tile unit's peak", |p| &p.peak, |v| format!("{v:.0}")),
    ("% of the bandwidth of plain reads", |p| &p.read, |v| format!("{v:.0}")),
    ("NMSE against sums in f64", |p| &p.nmse, |v| format!("{v:.0e}")),
];

/// Tables of type by M.
fn every_m(record: &Record, products: &Products) -> String {
    let mut out = format!("{}\n", broken(&of_run(record, products)));
    let header: Vec<String> = products.rows.iter().map(|m| format!("M = {m}")).collect();
    for (title, of, show) in FIGURES {
        let line = |p: &Product| (p.ty.clone(), of(p).iter().map(|v| cell(Some(v), show)).collect::<Vec<_>>());
        let lines: Vec<(String, Vec<String>)> = products.types.iter().map(line).collect();
        if lines.iter().any(|(_, cells)| cells.iter().any(|c| !c.is_empty())) {
            out.push_str(&format!("\n{title}:\n\n{}", grid(&header, &lines)));
        }
    }
    out
}

/// Every weight type.
pub fn type_table(record: &Record, types: &TypeTable) -> String {
    let fixed = ["stored", "tile unit from rows", "fewer rows"].map(String::from);
    let header: Vec<String> = fixed.into_iter().chain(types.rows.iter().map(|m| format!("M = {m}"))).collect();
    let line = |row: &TypeRow| {
        let mut cells = row.facts().to_vec();
        cells.extend(row.ratio.iter().enumerate().map(|(m, v)| with_range(Some(v), row.range.get(m))));
        (row.ty.clone(), cells)
    };
    let lines: Vec<(String, Vec<String>)> = types.types.iter().map(line).collect();
    let origin = broken(&format!("{} Host: {}.", origin(record, &types.command), types.host));
    format!("{origin}\n\n{}", grid(&header, &lines))
}

impl TypeRow {
    /// How the type is stored, from which rows on the tile unit takes it, and what takes fewer.
    pub fn facts(&self) -> [String; 3] {
        let tiles = match (self.int8_rows, self.bf16_rows) {
            (Some(int8), Some(bf16)) => format!("{int8}, in BF16 {bf16}"),
            (None, Some(bf16)) => format!("in BF16 {bf16}"),
            _ => "never".to_string(),
        };
        let is_packed = self.stored.as_deref() == Some("packed");
        let few = if is_packed { "AVX-512, packed weights" } else { "the host's kernels" };
        [self.stored.clone().unwrap_or("by the host".into()), tiles, few.into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::run::tests::example;

    #[test]
    fn the_documents_are_what_the_records_say() {
        for (name, text) in documents().unwrap() {
            let there = fs::read_to_string(util::repo().join(name)).unwrap_or_default();
            assert!(there == text, "{name} has drifted: run `cargo xtask bench --docs`");
        }
    }

    #[test]
    fn documents_get_means_over_the_shapes() {
        let (record, products) = (Record::default(), Products::of(&example()));
        let text = every_m(&record, &products);
        assert!(text.contains("| | M = 1 | M = 512 |\n|---|---|---|\n| q4_0 | 4.00 | 4.00 |\n"), "{text}");
        assert!(text.contains("| q4_1 | 3.00 | 3.00 |"));
        let text = summary(&record, &products);
        let wanted =
            "| q4_0 | 4.00 (4.00 to 4.00) | 1.50 (1.50 to 1.50) | 4.00 (4.00 to 4.00) | 1.50 (1.50 to 1.50) | 90 |";
        assert!(text.contains(wanted), "{text}");
    }

    #[test]
    fn a_run_without_hosts_has_no_table_of_ratios() {
        let mut run = example();
        let line = "{\"type\":\"q4_0\",\"n\":64,\"k\":256,\"m\":1,\"ours\":{\"ms\":1,\"nmse\":1e-5}}";
        run.items = crate::bench::run::Run::items_of_lines(line).unwrap();
        assert!(!every_m(&Record::default(), &Products::of(&run)).contains("C++ AMX backend"));
    }
}

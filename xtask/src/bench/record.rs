//! Benchmark results as they are kept: `benchmarks/CPU/DATE.json`, one file per processor and day. The tables and
//! charts of the documents are made of these files and of nothing else.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    report::{IK, LLAMA},
    run::Run,
    types::Types,
};
use crate::{
    json::{self, Json, Look},
    util::{self, Result, io},
};

/// What was measured on one processor on one day.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Record {
    /// Day.
    pub date: String,
    /// Model name as the kernel prints it.
    pub cpu: String,
    /// What else one must know of the machine; for people.
    #[serde(default)]
    pub machine: String,
    /// Threads of every run.
    pub threads: usize,
    /// Where the figures are from, if not from a run of these commands.
    #[serde(default)]
    pub note: String,
    /// Whole models.
    #[serde(default)]
    pub models: Vec<Model>,
    /// Products of one matrix.
    #[serde(default)]
    pub products: Option<Products>,
    /// All weight types.
    #[serde(default)]
    pub types: Option<TypeTable>,
}

/// A slice of a model in one host: tokens per second of every turn.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Model {
    /// `llama.cpp` or `ik_llama.cpp`.
    pub host: String,
    /// `dense` (8B width) or `experts` (30B mixture of experts).
    pub slice: String,
    /// Weight type, as llama-quantize calls it.
    #[serde(rename = "type")]
    pub ty: String,
    /// llama-bench's name: `pp512` is a prompt of 512 tokens, `tg16` are 16 generated ones.
    pub test: String,
    /// How to repeat it.
    pub command: String,
    /// Ways of this library.
    pub ours: Vec<Way>,
    /// What they are compared with.
    pub theirs: Vec<Way>,
}

/// One of those that had their turns.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Way {
    /// Name.
    pub way: String,
    /// Tokens per second.
    pub speed: Vec<f64>,
    /// Of our ways: its speed by that of the fastest of the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ratio: Vec<f64>,
}

/// `cargo xtask bench`: geometric means over the shapes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Products {
    /// How to repeat it.
    pub command: String,
    /// What the other hosts are.
    pub hosts: Vec<String>,
    /// N x K.
    pub shapes: Vec<String>,
    /// Lowest and highest peak of the tile unit in the run.
    pub peak_tops: [f64; 2],
    /// The same of plain reads.
    pub read_gbs: [f64; 2],
    /// M of every column.
    pub rows: Vec<usize>,
    /// One for every type.
    pub types: Vec<Product>,
}

/// Figures of one type, one for every M; none where nothing was measured.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Product {
    /// ggml's name.
    #[serde(rename = "type")]
    pub ty: String,
    /// Time of llama.cpp's C++ AMX backend by ours: medians of the repetitions.
    pub llama: Vec<Option<f64>>,
    /// Lowest and highest repetition; not in records of older versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub llama_range: Vec<Option<[f64; 2]>>,
    /// Time of ik_llama.cpp by ours.
    pub ik: Vec<Option<f64>>,
    /// As `llama_range`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ik_range: Vec<Option<[f64; 2]>>,
    /// Percent of the tile unit's peak.
    pub peak: Vec<Option<f64>>,
    /// Percent of the bandwidth of plain reads.
    pub read: Vec<Option<f64>>,
    /// Error against f64.
    pub nmse: Vec<Option<f64>>,
}

/// `cargo xtask bench --type-table`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct TypeTable {
    /// How to repeat it.
    pub command: String,
    /// The host whose plain path was measured.
    pub host: String,
    /// M of every column.
    pub rows: Vec<usize>,
    /// One for every type.
    pub types: Vec<TypeRow>,
}

/// One weight type.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct TypeRow {
    /// ggml's name.
    #[serde(rename = "type")]
    pub ty: String,
    /// `packed` or `plain`; none: left to the host.
    pub stored: Option<String>,
    /// Rows of activations from which on the tile unit is used in int8.
    pub int8_rows: Option<usize>,
    /// The same in BF16.
    pub bf16_rows: Option<usize>,
    /// Time of the host's plain path by ours, for every M: the median of the turns.
    pub ratio: Vec<Option<f64>>,
    /// Lowest and highest of the turns; not in records of older versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub range: Vec<Option<[f64; 2]>>,
}

/// The folder of all records.
pub fn dir() -> PathBuf {
    util::repo().join("benchmarks")
}

impl Record {
    /// All of them, the oldest first.
    pub fn all() -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for cpu in io("read", &dir(), fs::read_dir(dir()))?.flatten().filter(|entry| entry.path().is_dir()) {
            for file in io("read", &cpu.path(), fs::read_dir(cpu.path()))?.flatten() {
                all.push(Self::read(&file.path())?);
            }
        }
        all.sort_by(|a: &Self, b| (&a.date, &a.cpu).cmp(&(&b.date, &b.cpu)));
        Ok(all)
    }

    /// One file.
    pub fn read(file: &Path) -> Result<Self> {
        parsed(&io("read", file, fs::read_to_string(file))?, file)
    }

    /// Where it is kept.
    pub fn path(&self) -> PathBuf {
        dir().join(slug(&self.cpu)).join(format!("{}.json", self.date))
    }

    /// The file, with one line per model and type.
    pub fn write(&self) -> String {
        let mut parts = vec![
            member("date", &self.date),
            member("cpu", &self.cpu),
            member("machine", &self.machine),
            member("threads", &self.threads),
            member("note", &self.note),
            list("models", &self.models, "  "),
        ];
        parts.extend(self.products.as_ref().map(|p| {
            let head = [
                member("command", &p.command),
                member("hosts", &p.hosts),
                member("shapes", &p.shapes),
                member("peak_tops", &p.peak_tops),
                member("read_gbs", &p.read_gbs),
                member("rows", &p.rows),
            ];
            format!("  \"products\": {{\n  {},\n{}\n  }}", head.join(",\n  "), list("types", &p.types, "    "))
        }));
        parts.extend(self.types.as_ref().map(|t| {
            let head = [member("command", &t.command), member("host", &t.host), member("rows", &t.rows)];
            format!("  \"types\": {{\n  {},\n{}\n  }}", head.join(",\n  "), list("types", &t.types, "    "))
        }));
        format!("{{\n{}\n}}\n", parts.join(",\n"))
    }

    /// The record of a day with the results of a file that `cargo xtask bench` wrote, beside what it had of others.
    pub fn with_results(results: &Path) -> Result<Self> {
        let text = io("read", results, fs::read_to_string(results))?;
        let of = |e| format!("{}: {e}", results.display());
        let found = json::parse(&text).map_err(of)?;
        if found.is_array() {
            let items: Vec<SliceItem> = parsed(&text, results)?;
            let first = items.first().ok_or(of("no results in it".into()))?;
            let mut record = Self::of_day(&first.date, &first.cpu, first.threads)?;
            let new: Vec<Model> = items.iter().map(SliceItem::model).collect();
            record.models.retain(|old| !new.iter().any(|model| model.host == old.host));
            record.models.extend(new);
            return Ok(record);
        }
        if found.text("kind") == super::types::KIND {
            let types = Types::read(&found).map_err(of)?;
            let mut record = Self::of_day(&types.date, &types.cpu, types.threads)?;
            record.types = Some(types.table());
            return Ok(record);
        }
        let run = Run::of(&found).map_err(of)?;
        let threads = run.items[0].number("threads") as usize;
        let mut record = Self::of_day(&run.date, &run.cpu, threads)?;
        record.products = Some(Products::of(&run));
        Ok(record)
    }

    /// That of this day, or a new one.
    fn of_day(date: &str, cpu: &str, threads: usize) -> Result<Self> {
        let new = Self { date: date.into(), cpu: cpu.into(), threads, ..Self::default() };
        if new.path().exists() { Self::read(&new.path()) } else { Ok(new) }
    }
}

impl Products {
    /// Means over the shapes of a run.
    pub fn of(run: &Run) -> Self {
        let span = |key: &str| {
            let values = || run.items.iter().map(|i| i.number(key)).filter(|v| v.is_finite());
            [values().fold(f64::MAX, f64::min), values().fold(0.0, f64::max)]
        };
        let rows = run.rows();
        let types = run.different(|i| i.ty().to_string()).into_iter().map(|ty| {
            let column = |of: &dyn Fn(&super::run::Item) -> Option<f64>| {
                rows.iter().map(|m| run.mean(&ty, *m, of).map(significant)).collect::<Vec<_>>()
            };
            let ranges = |hosts: &[&str]| -> Vec<Option<[f64; 2]>> {
                let end = |end: usize| column(&move |i| Some(i.range(hosts)?[end]));
                let both =
                    end(0).into_iter().zip(end(1)).map(|(least, most)| Some([least?, most?])).collect::<Vec<_>>();
                if both.iter().any(Option::is_some) { both } else { Vec::new() }
            };
            Product {
                llama: column(&|i| i.ratio(LLAMA)),
                llama_range: ranges(LLAMA),
                ik: column(&|i| i.ratio(IK)),
                ik_range: ranges(IK),
                peak: column(&|i| i.way("ours").map(|w| w.of_peak)),
                read: column(&|i| i.way("ours").map(|w| w.of_read)),
                nmse: column(&|i| i.way("ours").map(|w| w.nmse)),
                ty,
            }
        });
        Self {
            command: run.command.clone(),
            hosts: run.hosts.iter().map(|(_, what)| what.clone()).collect(),
            shapes: run.different(super::run::Item::shape),
            peak_tops: span("peak_tops"),
            read_gbs: span("read_gbs"),
            types: types.collect(),
            rows,
        }
    }
}

/// An item of `slices.json`: besides these members one for every way, with its tokens per second.
#[derive(Deserialize)]
struct SliceItem {
    date: String,
    cpu: String,
    slice: String,
    #[serde(rename = "type")]
    ty: String,
    test: String,
    threads: usize,
    #[serde(flatten)]
    ways: serde_json::Map<String, Json>,
}

/// Names of ways that are not ours.
const THEIRS: [(&str, &str); 3] = [("C++ AMX", "C++ AMX backend"), ("ik", "ik"), ("ik -rtr", "ik `-rtr`")];
/// Names of ours.
const OURS: [(&str, &str); 5] = [
    ("ours", "this library"),
    ("exact", "`exact`"),
    ("in place", "in place"),
    ("in place, -rtr", "in place, `-rtr`"),
    ("packed", "packed"),
];

impl SliceItem {
    fn model(&self) -> Model {
        let speeds = |name: &str| -> Option<Vec<f64>> {
            Some(self.ways.get(name)?.as_array()?.iter().filter_map(Json::as_f64).collect())
        };
        let named = |names: &[(&str, &str)]| -> Vec<Way> {
            let way = |(name, shown): &(&str, &str)| {
                Some(Way { way: (*shown).to_string(), speed: speeds(name)?, ratio: Vec::new() })
            };
            names.iter().filter_map(way).collect()
        };
        let theirs = named(&THEIRS);
        let best = |turn: usize| theirs.iter().filter_map(|w| w.speed.get(turn)).copied().reduce(f64::max);
        let mut ours = named(&OURS);
        for way in &mut ours {
            way.ratio =
                way.speed.iter().enumerate().filter_map(|(turn, v)| Some(significant(v / best(turn)?))).collect();
        }
        let is_ik = self.ways.contains_key("ik");
        Model {
            host: if is_ik { "ik_llama.cpp" } else { "llama.cpp" }.into(),
            slice: if self.slice.starts_with("dense") { "dense" } else { "experts" }.into(),
            ty: self.ty.clone(),
            test: self.test.clone(),
            command: format!("cargo xtask bench --slices{}", if is_ik { " --host ik" } else { "" }),
            ours,
            theirs,
        }
    }
}

/// Four digits: no measurement here has more.
pub fn significant(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// The lowest and the highest; none of fewer than two values.
pub fn range(values: &[f64]) -> Option<[f64; 2]> {
    let ends = [values.iter().copied().reduce(f64::min)?, values.iter().copied().reduce(f64::max)?];
    (values.len() > 1).then(|| ends.map(significant))
}

/// The name of a folder: `Intel(R) Xeon(R) Processor` is `intel-xeon-processor`.
fn slug(cpu: &str) -> String {
    let plain = cpu.replace("(R)", " ").replace("(TM)", " ").to_lowercase();
    plain.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
}

fn parsed<T: DeserializeOwned>(text: &str, file: &Path) -> Result<T> {
    serde_json::from_str(text).map_err(|e| format!("{}: {e}", file.display()))
}

fn written(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("texts and numbers")
}

fn member(key: &str, value: &impl Serialize) -> String {
    format!("  \"{key}\": {}", written(value))
}

fn list(key: &str, values: &[impl Serialize], indent: &str) -> String {
    let lines: Vec<String> = values.iter().map(|value| format!("{indent}  {}", written(value))).collect();
    format!("{indent}\"{key}\": [\n{}\n{indent}]", lines.join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::run::tests::example;

    #[test]
    fn every_record_lies_where_its_processor_and_day_say_and_is_read_back_as_it_was() {
        let records = Record::all().unwrap();
        assert!(!records.is_empty());
        for record in records {
            assert_eq!(Record::read(&record.path()).unwrap(), record);
            assert_eq!(parsed::<Record>(&record.write(), Path::new("written")).unwrap(), record);
        }
    }

    #[test]
    fn a_run_is_kept_as_means_over_its_shapes() {
        let products = Products::of(&example());
        assert_eq!(products.rows, [1, 512]);
        assert_eq!(products.types[0].llama, [Some(4.0), Some(4.0)]);
        assert_eq!(products.types[1].ik, [Some(3.0), Some(3.0)]);
        assert_eq!(products.types[1].nmse, [Some(1e-5), Some(1e-5)]);
        assert_eq!(products.peak_tops, [12.0, 12.0]);
    }

    #[test]
    fn a_slice_is_compared_with_the_fastest_of_the_others_turn_by_turn() {
        let text = r#"{"date":"2026-11-22","cpu":"c","slice":"dense-8b","type":"Q4_0","test":"pp512","threads":2,
            "in place":[30,40],"packed":[20,20],"ik":[10,5],"ik -rtr":[5,20]}"#;
        let item: SliceItem = parsed(text, Path::new("text")).unwrap();
        let model = item.model();
        assert_eq!((model.host.as_str(), model.slice.as_str()), ("ik_llama.cpp", "dense"));
        assert_eq!(model.ours[0].ratio, [3.0, 2.0]);
        assert_eq!(model.theirs.len(), 2);
    }

    #[test]
    fn results_of_a_run_become_the_record_of_its_day() {
        let run = Run { date: "2001-02-03".into(), ..example() };
        let file = std::env::temp_dir().join(format!("xtask-record-{}.json", std::process::id()));
        fs::write(&file, run.write()).unwrap();
        let record = Record::with_results(&file).unwrap();
        fs::write(&file, "{}").unwrap();
        assert!(Record::with_results(&file).is_err());
        fs::remove_file(&file).unwrap();
        assert_eq!((record.threads, record.products.as_ref()), (2, Some(&Products::of(&run))));
        assert!(record.path().ends_with("benchmarks/xeon-e/2001-02-03.json"), "{}", record.path().display());
        assert_eq!(parsed::<Record>(&record.write(), Path::new("written")).unwrap(), record);
    }

    #[test]
    fn processors_have_plain_names() {
        assert_eq!(slug("Intel(R) Xeon(R) Processor"), "intel-xeon-processor");
        assert_eq!(slug("AMD EPYC 9B45 64-Core"), "amd-epyc-9b45-64-core");
    }
}

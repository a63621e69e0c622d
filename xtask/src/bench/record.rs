//! Benchmark results as they are kept: `benchmarks/CPU/DATE.json`, one file per processor and day. The tables and
//! charts of the documents are made of these files and of nothing else.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::util::{self, Result, io};

/// What was measured on one processor on one day.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Record {
    /// Day.
    pub date: String,
    /// Model name as the kernel prints it.
    pub cpu: String,
    /// What else a reader should know about the machine.
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

/// One way to run a model.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Way {
    /// Name.
    pub way: String,
    /// Tokens per second.
    pub speed: Vec<f64>,
    /// For our ways: speed divided by that of the fastest other way, turn by turn.
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

pub(super) fn parsed<T: DeserializeOwned>(text: &str, file: &Path) -> Result<T> {
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
    fn processors_have_plain_names() {
        assert_eq!(slug("Intel(R) Xeon(R) Processor"), "intel-xeon-processor");
        assert_eq!(slug("AMD EPYC 9B45 64-Core"), "amd-epyc-9b45-64-core");
    }
}

//! The results of one run of the bench program, as they lie in a JSON file.

use super::record;
use crate::{
    json::{self, Json, Look, object},
    stats,
    util::Result,
};

/// A run: where, when, with what, and one item per product.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// Day.
    pub date: String,
    /// Model name of the processor.
    pub cpu: String,
    /// How to repeat it.
    pub command: String,
    /// What the hosts are, by name.
    pub hosts: Vec<(String, String)>,
    /// Products.
    pub items: Vec<Item>,
}

/// One product.
#[derive(Clone, Debug, PartialEq)]
pub struct Item(Json);

/// What one way took, in one product.
pub struct Way {
    /// Form of the weights.
    pub form: String,
    /// Median time.
    pub ms: f64,
    /// Time of every repetition; empty in files of earlier versions.
    pub all_ms: Vec<f64>,
    /// Percent of the tile unit's peak, NaN without AMX.
    pub of_peak: f64,
    /// Percent of the bandwidth of plain reads.
    pub of_read: f64,
    /// Error against f64.
    pub nmse: f64,
}

impl Item {
    /// Name of the weight type.
    pub fn ty(&self) -> &str {
        self.0.text("type")
    }

    /// A number of the item: `n`, `k`, `m`, `threads`, `peak_tops`, `read_gbs`; NaN when it is not there.
    pub fn number(&self, key: &str) -> f64 {
        self.0.number(key).unwrap_or(f64::NAN)
    }

    /// Rows of activations.
    pub fn m(&self) -> usize {
        self.number("m") as usize
    }

    /// `4096x14336`.
    pub fn shape(&self) -> String {
        format!("{}x{}", self.number("n"), self.number("k"))
    }

    /// `ours` or a host.
    pub fn way(&self, name: &str) -> Option<Way> {
        let way = self.0.get(name)?;
        let number = |key: &str| way.number(key).unwrap_or(f64::NAN);
        Some(Way {
            form: way.text("form").into(),
            ms: number("ms"),
            all_ms: way.list("all_ms").iter().filter_map(Json::as_f64).collect(),
            of_peak: number("of_peak"),
            of_read: number("of_read"),
            nmse: number("nmse"),
        })
    }

    /// The fastest of these, by medians.
    fn fastest(&self, names: &[&str]) -> Option<Way> {
        names.iter().filter_map(|n| self.way(n)).min_by(|a, b| a.ms.total_cmp(&b.ms))
    }

    /// How many times longer than ours the fastest of these takes, by medians.
    pub fn ratio(&self, names: &[&str]) -> Option<f64> {
        Some(self.fastest(names)?.ms / self.way("ours")?.ms)
    }

    /// The same of every repetition: the lowest and the highest.
    pub fn range(&self, names: &[&str]) -> Option<[f64; 2]> {
        record::range(&stats::ratios(&self.fastest(names)?.all_ms, &self.way("ours")?.all_ms))
    }
}

impl Run {
    /// Items from the lines that the bench program wrote.
    pub fn items_of_lines(lines: &str) -> Result<Vec<Item>> {
        lines.lines().map(|l| json::parse(l).map(Item)).collect()
    }

    /// The file: one line per item.
    pub fn write(&self) -> String {
        let hosts = object(self.hosts.iter().map(|(k, v)| (k.clone(), v.as_str().into())));
        let head = [("date", &self.date), ("cpu", &self.cpu), ("command", &self.command)];
        let mut out = String::from("{\n");
        for (key, value) in head {
            out.push_str(&format!("\"{key}\":{},\n", Json::from(value.as_str())));
        }
        let items: Vec<String> = self.items.iter().map(|i| i.0.to_string()).collect();
        out.push_str(&format!("\"hosts\":{hosts},\n\"items\":[\n{}\n]\n}}\n", items.join(",\n")));
        out
    }

    /// What [`Run::write`] wrote.
    pub fn of(json: &Json) -> Result<Self> {
        let hosts = match json.get("hosts") {
            Some(Json::Object(members)) => members.keys().cloned().collect(),
            _ => Vec::new(),
        };
        let described = json.get("hosts").cloned().unwrap_or(Json::Null);
        let items: Vec<Item> = json.list("items").iter().cloned().map(Item).collect();
        if items.iter().any(|i| i.way("ours").is_none()) || items.is_empty() {
            return Err("no results of `cargo xtask bench` in it".into());
        }
        Ok(Self {
            date: json.text("date").into(),
            cpu: json.text("cpu").into(),
            command: json.text("command").into(),
            hosts: hosts.into_iter().map(|k: String| (k.clone(), described.text(&k).to_string())).collect(),
            items,
        })
    }

    /// Different values of a key, in the order of their first appearance.
    pub fn different<T: PartialEq>(&self, key: impl Fn(&Item) -> T) -> Vec<T> {
        let mut all = Vec::new();
        for value in self.items.iter().map(key) {
            if !all.contains(&value) {
                all.push(value);
            }
        }
        all
    }

    /// All values of M, rising.
    pub fn rows(&self) -> Vec<usize> {
        let mut all = self.different(Item::m);
        all.sort_unstable();
        all
    }

    /// Geometric mean over the shapes of one type and M; None where nothing was measured.
    pub fn mean(&self, ty: &str, m: usize, of: impl Fn(&Item) -> Option<f64>) -> Option<f64> {
        let items = self.items.iter().filter(|i| i.ty() == ty && i.m() == m);
        let logs: Vec<f64> = items.filter_map(of).map(f64::ln).filter(|l| l.is_finite()).collect();
        (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp())
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Two shapes, two types, M of 1 and 512; ours twice as fast as llama.cpp, and ik without -rtr for q4_1.
    pub fn example() -> Run {
        let mut lines = String::new();
        for ty in ["q4_0", "q4_1"] {
            for (n, factor) in [(4096, 1.0), (1024, 4.0)] {
                for m in [1, 512] {
                    let way = |ms: f64| {
                        format!(
                            "{{\"form\":\"f\",\"ms\":{ms},\"of_peak\":40,\"of_read\":90,\"nmse\":1e-5,\
                             \"all_ms\":[{},{ms},{}]}}",
                            ms / 2.0,
                            ms * 2.0
                        )
                    };
                    let rtr = if ty == "q4_0" { format!(",\"ik-rtr\":{}", way(1.5)) } else { String::new() };
                    lines.push_str(&format!(
                        "{{\"type\":\"{ty}\",\"n\":{n},\"k\":4096,\"m\":{m},\"threads\":2,\"peak_tops\":12.0,\
                         \"read_gbs\":26.5,\"ours\":{},\"llama\":{},\"ik\":{}{rtr}}}\n",
                        way(1.0),
                        way(2.0 * factor),
                        way(3.0)
                    ));
                }
            }
        }
        Run {
            date: "2026-11-22".into(),
            cpu: "Xeon \"E\"".into(),
            command: "cargo xtask bench".into(),
            hosts: vec![("llama".into(), "llama.cpp".into()), ("ik".into(), "ik_llama.cpp".into())],
            items: Run::items_of_lines(&lines).unwrap(),
        }
    }

    #[test]
    fn a_file_is_read_back_as_it_was() {
        let run = example();
        assert_eq!(Run::of(&json::parse(&run.write()).unwrap()).unwrap(), run);
        assert_eq!(run.write().lines().filter(|l| l.contains("\"type\"")).count(), 8);
    }

    #[test]
    fn ratios_take_the_fastest_of_a_host_and_means_are_geometric() {
        let run = example();
        assert_eq!(run.items[0].ratio(&["ik", "ik-rtr"]), Some(1.5));
        assert_eq!(run.items[4].ratio(&["ik", "ik-rtr"]), Some(3.0));
        let mean = run.mean("q4_0", 512, |i| i.ratio(&["llama"])).unwrap();
        assert!((mean - 4.0).abs() < 1e-9, "{mean}");
        assert_eq!(run.mean("q8_0", 512, |i| i.ratio(&["llama"])), None);
        assert_eq!(run.rows(), [1, 512]);
    }

    #[test]
    fn other_json_is_refused() {
        for text in ["{}", "{\"items\":[{\"type\":\"q4_0\"}]}"] {
            assert!(Run::of(&json::parse(text).unwrap()).is_err());
        }
    }
}

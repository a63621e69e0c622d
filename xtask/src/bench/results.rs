//! What the files that `cargo xtask bench` writes become in the record of their day.

use std::{fs, path::Path};

use serde::Deserialize;

use super::{
    record::{Model, Product, Products, Record, Way, parsed, significant},
    report::{IK, LLAMA},
    run::{Item, Run},
    types::{self, Types},
};
use crate::{
    json::{self, Json, Look},
    util::{Result, io},
};

impl Record {
    /// The record of a day with the results of one file that `cargo xtask bench` wrote added to it.
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
        if found.text("kind") == types::KIND {
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
            let column = |of: &dyn Fn(&Item) -> Option<f64>| {
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
            shapes: run.different(Item::shape),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::run::tests::example;

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
}

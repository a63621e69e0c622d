//! Every weight type: how this library stores and multiplies it, and its speed beside the plain path of the same
//! host: the same weights in a buffer of type `CPU`.

mod plan;

use std::path::Path;

use crate::{
    cache, cpu,
    host::{self, Kind},
    json::{self, Json, Look, object},
    stats::{self, median},
    table, util,
    util::Result,
};
pub use plan::Plan;

use super::{
    products::Program,
    record::{self, TypeRow, TypeTable},
    save,
};

/// The `kind` member of a file of such results.
pub const KIND: &str = "types";
/// One run: where, when, with what, and all types.
#[derive(Debug, Default, PartialEq)]
pub struct Types {
    /// Day.
    pub date: String,
    /// Model name of the processor.
    pub cpu: String,
    /// Threads.
    pub threads: usize,
    command: String,
    host: String,
    items: Vec<Item>,
}

/// One type.
#[derive(Debug, Default, PartialEq)]
struct Item {
    name: String,
    /// `packed` or `plain`; `None`: this library leaves the type to the host.
    stored: Option<String>,
    /// Rows of activations from which on the tile unit is used in int8 and in BF16.
    int8_rows: Option<usize>,
    bf16_rows: Option<usize>,
    products: Vec<Product>,
}

/// Milliseconds of every turn.
#[derive(Debug, Default, PartialEq)]
struct Product {
    m: usize,
    ours: Vec<f64>,
    plain: Vec<f64>,
}

/// Measures everything in turns; table and `types.json`.
pub fn run(plan: &Plan, out: &Path) -> Result<()> {
    let program = Program::build(&host::ensure(Kind::Llama)?, out)?;
    let types = measure(plan, &program)?;
    println!("\n{}  {}", types.terminal(), types.origin());
    let json = out.join("types.json");
    save(&json, &types.write())?;
    println!("  to put it into the documents: cargo xtask bench --report {}", json.display());
    Ok(())
}

fn measure(plan: &Plan, program: &Program) -> Result<Types> {
    let facts = facts()?;
    let mut items: Vec<Item> = plan.types.iter().map(|name| Item { name: name.clone(), ..Item::default() }).collect();
    for round in 1..=plan.rounds {
        println!("    round {round} of {}", plan.rounds);
        for item in &mut items {
            turn(item, |buffer, args| program.run(buffer, plan.threads, args), &plan.args)?;
        }
    }
    items.iter_mut().try_for_each(|item| item.explain(&facts))?;
    Ok(Types {
        date: cpu::today(),
        cpu: cpu::detect().model,
        threads: plan.threads,
        command: plan.command.clone(),
        host: program.what.clone(),
        items,
    })
}

/// One turn of one type: this library, and the plain path if there is something to compare.
fn turn(item: &mut Item, program: impl Fn(&str, &[String]) -> Result<Vec<Json>>, args: &[String]) -> Result<()> {
    let args = [&["--types".to_string(), item.name.clone()], args].concat();
    let ours = program("AMX", &args)?;
    if ours.is_empty() {
        return Ok(());
    }
    let plain = program("CPU", &args)?;
    let apart = || format!("{}: the lines of both buffers do not fit each other", item.name);
    if ours.len() != plain.len() {
        return Err(apart());
    }
    for (ours, plain) in ours.iter().zip(&plain) {
        let [m, same_m] = [ours, plain].map(|line| line.number("tokens").unwrap_or(f64::NAN));
        let [ours, plain] = [ours, plain].map(|line| line.number("ms").unwrap_or(f64::NAN));
        if m != same_m || !(ours * plain).is_finite() {
            return Err(apart());
        }
        let at = item.products.iter().position(|p| p.m == m as usize).unwrap_or_else(|| {
            item.products.push(Product { m: m as usize, ..Product::default() });
            item.products.len() - 1
        });
        item.products[at].ours.push(ours);
        item.products[at].plain.push(plain);
    }
    Ok(())
}

/// What the library of these sources says of its types, one object each.
fn facts() -> Result<Vec<Json>> {
    let mut program = util::cargo();
    program.args(["bench", "--bench", "mul_mat", "--", "--facts"]);
    let stdout = util::capture(&mut program, &cache::log("bench-facts")?)?.stdout;
    stdout.lines().filter(|l| l.starts_with('{')).map(json::parse).collect()
}

impl Item {
    /// Adds what the library knows of a type that it took.
    fn explain(&mut self, facts: &[Json]) -> Result<()> {
        if self.products.is_empty() {
            return Ok(());
        }
        let fact = facts.iter().find(|f| f.text("type") == self.name);
        let fact = fact.ok_or(format!("{} was measured, but the library does not know it", self.name))?;
        self.read_facts(fact);
        Ok(())
    }

    fn read_facts(&mut self, json: &Json) {
        let rows = |key| json.number(key).map(|n| n as usize);
        self.stored = Some(json.text("stored").to_string()).filter(|s| !s.is_empty());
        (self.int8_rows, self.bf16_rows) = (rows("int8_rows"), rows("bf16_rows"));
    }

    /// What is kept of it.
    fn row(&self, rows: &[usize]) -> TypeRow {
        let ratios: Vec<Option<Vec<f64>>> = rows.iter().map(|m| self.ratios(*m)).collect();
        let of_ratios = |ratios: &Option<Vec<f64>>| ratios.as_ref().map(|all| record::significant(median(all)));
        TypeRow {
            ty: self.name.clone(),
            stored: self.stored.clone(),
            int8_rows: self.int8_rows,
            bf16_rows: self.bf16_rows,
            ratio: ratios.iter().map(of_ratios).collect(),
            range: ratios.iter().map(|ratios| record::range(ratios.as_ref()?)).collect(),
        }
    }

    /// Type, form, tiles, few rows; then one ratio for every M.
    fn cells(&self, rows: &[usize]) -> Vec<String> {
        let ratio = |m: &usize| self.ratios(*m).map_or(String::new(), |all| stats::spread(&all, |v| format!("{v:.2}")));
        let name = std::iter::once(self.name.clone());
        name.chain(self.row(rows).facts()).chain(rows.iter().map(ratio)).collect()
    }

    /// The plain path's time by ours: the turns of both follow each other, so every pair has its own ratio.
    fn ratios(&self, m: usize) -> Option<Vec<f64>> {
        let product = self.products.iter().find(|p| p.m == m)?;
        Some(stats::ratios(&product.plain, &product.ours))
    }

    fn json(&self) -> Json {
        let list = |ms: &[f64]| Json::from(ms.to_vec());
        let product = |p: &Product| {
            let members = [("m", Json::from(p.m)), ("ours_ms", list(&p.ours)), ("plain_ms", list(&p.plain))];
            object(members)
        };
        object([
            ("type", Json::from(self.name.as_str())),
            ("stored", self.stored.clone().into()),
            ("int8_rows", self.int8_rows.into()),
            ("bf16_rows", self.bf16_rows.into()),
            ("products", self.products.iter().map(product).collect()),
        ])
    }

    fn read(json: &Json) -> Self {
        let list = |p: &Json, key: &str| p.list(key).iter().map(|v| v.as_f64().unwrap_or(f64::NAN)).collect();
        let product = |p: &Json| Product {
            m: p.number("m").unwrap_or(0.0) as usize,
            ours: list(p, "ours_ms"),
            plain: list(p, "plain_ms"),
        };
        let products = json.list("products").iter().map(product).collect();
        let mut item = Self { name: json.text("type").into(), products, ..Self::default() };
        item.read_facts(json);
        item
    }
}

impl Types {
    /// The file: one line per type.
    fn write(&self) -> String {
        let texts = [("date", &self.date), ("cpu", &self.cpu), ("command", &self.command), ("host", &self.host)];
        let head: String =
            texts.iter().map(|(key, value)| format!("\"{key}\":{},\n", Json::from(value.as_str()))).collect();
        let items: Vec<String> = self.items.iter().map(|i| i.json().to_string()).collect();
        format!(
            "{{\n\"kind\":\"{KIND}\",\n{head}\"threads\":{},\n\"items\":[\n{}\n]\n}}\n",
            self.threads,
            items.join(",\n")
        )
    }

    /// What [`Types::write`] wrote.
    pub fn read(json: &Json) -> Result<Self> {
        let items: Vec<Item> = json.list("items").iter().map(Item::read).collect();
        if items.is_empty() {
            return Err("no results of `cargo xtask bench --type-table` in it".into());
        }
        let text = |key| json.text(key).to_string();
        Ok(Self {
            date: text("date"),
            cpu: text("cpu"),
            threads: json.number("threads").unwrap_or(0.0) as usize,
            command: text("command"),
            host: text("host"),
            items,
        })
    }

    /// All values of M, in the order of measuring.
    fn rows(&self) -> Vec<usize> {
        let mut all = Vec::new();
        for product in self.items.iter().flat_map(|i| &i.products) {
            if !all.contains(&product.m) {
                all.push(product.m);
            }
        }
        all
    }

    fn header(&self) -> Vec<String> {
        let fixed = ["stored", "tile unit from rows", "fewer rows"].map(String::from);
        fixed.into_iter().chain(self.rows().iter().map(|m| format!("M = {m}"))).collect()
    }

    fn lines(&self) -> Vec<Vec<String>> {
        let rows = self.rows();
        self.items.iter().map(|i| i.cells(&rows)).collect()
    }

    fn terminal(&self) -> String {
        let header = self.header();
        let header: Vec<&str> = std::iter::once("type").chain(header.iter().map(String::as_str)).collect();
        table::render(&header, &self.lines())
    }

    /// What is kept of it.
    pub fn table(&self) -> TypeTable {
        let rows = self.rows();
        TypeTable {
            command: self.command.clone(),
            host: self.host.clone(),
            types: self.items.iter().map(|item| item.row(&rows)).collect(),
            rows,
        }
    }

    /// Where the figures are from.
    fn origin(&self) -> String {
        format!("{}, {}, {} threads, {}: `{}`.", self.date, self.cpu, self.threads, self.host, self.command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{docs, record::Record};

    fn line(m: usize, ms: f64) -> Json {
        json::parse(&format!("{{\"type\":\"q4_0\",\"tokens\":{m},\"ms\":{ms}}}")).unwrap()
    }

    fn facts() -> Vec<Json> {
        let lines = [
            r#"{"type":"q4_0","stored":"packed","int8_rows":11,"bf16_rows":33}"#,
            r#"{"type":"f16","stored":"plain","int8_rows":null,"bf16_rows":16}"#,
        ];
        lines.map(|l| json::parse(l).unwrap()).into()
    }

    /// A packed type, a plain one, and one that the program printed nothing about.
    fn example() -> Types {
        let mut items = Vec::new();
        for (name, of_plain) in [("q4_0", Some(4.0)), ("f16", Some(2.0)), ("iq1_s", None)] {
            let mut item = Item { name: name.into(), ..Item::default() };
            for turns in [1.0, 2.0, 10.0] {
                let program = |buffer: &str, args: &[String]| {
                    assert_eq!(args, ["--types", name, "--reps", "3"]);
                    let ms = if buffer == "AMX" { turns } else { turns * of_plain.unwrap() };
                    Ok(if of_plain.is_some() { vec![line(512, ms), line(1, ms / 8.0)] } else { Vec::new() })
                };
                turn(&mut item, program, &["--reps".into(), "3".into()]).unwrap();
            }
            item.explain(&facts()).unwrap();
            items.push(item);
        }
        Types {
            date: "2026-11-22".into(),
            cpu: "Xeon \"E\"".into(),
            threads: 2,
            command: "cargo xtask bench --type-table".into(),
            host: "llama.cpp, gcc 12".into(),
            items,
        }
    }

    #[test]
    fn types_that_nobody_takes_stay_with_the_host() {
        let text = docs::type_table(&Record::default(), &example().table());
        assert!(text.contains("| | stored | tile unit from rows | fewer rows | M = 512 | M = 1 |\n"), "{text}");
        assert!(
            text.contains("| q4_0 | packed | 11, in BF16 33 | AVX-512, packed weights | 4.00 (4.00 to 4.00) | 4.00 (4.00 to 4.00) |\n"),
            "{text}"
        );
        assert!(
            text.contains(
                "| f16 | plain | in BF16 16 | the host's kernels | 2.00 (2.00 to 2.00) | 2.00 (2.00 to 2.00) |\n"
            ),
            "{text}"
        );
        assert!(text.contains("| iq1_s | by the host | never | the host's kernels |  |  |\n"), "{text}");
        assert_eq!(example().terminal().lines().count(), 5);
    }

    #[test]
    fn a_file_is_read_back_as_it_was() {
        let types = example();
        let json = json::parse(&types.write()).unwrap();
        assert_eq!(json.text("kind"), KIND);
        assert_eq!(Types::read(&json).unwrap(), types);
        assert!(Types::read(&json::parse("{}").unwrap()).is_err());
    }

    #[test]
    fn lines_that_do_not_belong_together_are_refused() {
        let mut item = Item { name: "q4_0".into(), ..Item::default() };
        let other_rows = |buffer: &str, _: &[String]| Ok(vec![line(if buffer == "AMX" { 32 } else { 1 }, 1.0)]);
        assert!(turn(&mut item, other_rows, &[]).is_err());
        let fewer = |buffer: &str, _: &[String]| Ok(vec![line(1, 1.0); if buffer == "AMX" { 2 } else { 1 }]);
        assert!(turn(&mut item, fewer, &[]).is_err());
    }

    #[test]
    fn a_measured_type_must_be_one_of_the_library() {
        let mut item = Item { name: "q9".into(), products: vec![Product::default()], ..Item::default() };
        assert!(item.explain(&facts()).is_err());
    }
}

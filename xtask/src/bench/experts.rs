//! Mixture of experts: graphs of one MUL_MAT_ID in this library's build and in that of the C++ AMX backend, whose
//! programs run in turns.

use std::path::Path;

use crate::{
    compiler, cpu,
    host::{self, Kind},
    json::{Json, Look, object},
    stats, symbols, table,
    util::Result,
};

use super::{options::Options, products::Program, save};

/// One build and one of its buffer types.
struct Side {
    name: &'static str,
    buffer: &'static str,
    program: Program,
}

/// One product, and what every side took in every turn.
struct Item {
    /// What the program printed about the product itself.
    product: Json,
    /// Median milliseconds of the turns, by side.
    ms: Vec<Vec<f64>>,
}

/// Measures everything in turns; table and `experts.json`.
pub fn run(options: &Options, out: &Path) -> Result<()> {
    let sides = sides(out)?;
    let mut items: Vec<Item> = Vec::new();
    for round in 1..=options.rounds {
        println!("    round {round} of {}", options.rounds);
        for (i, side) in sides.iter().enumerate() {
            for line in side.program.run(side.buffer, options.threads, &options.experts)? {
                add(&mut items, line, i, sides.len());
            }
        }
    }
    let mut header = vec!["ms"];
    header.extend(sides.iter().map(|s| s.name));
    let against: Vec<String> = sides.iter().skip(1).map(|s| format!("{} / ours", s.name)).collect();
    header.extend(against.iter().map(String::as_str));
    let rows: Vec<Vec<String>> = items.iter().map(row).collect();
    println!("\n{}", table::render(&header, &rows));
    println!("  {}; {}, {} threads", stats::legend(options.rounds), cpu::detect().model, options.threads);
    for side in &sides {
        println!("  {}: {}, {}", side.name, side.buffer, side.program.what);
    }
    let lines: Vec<String> = items.iter().map(|i| json(i, &sides).to_string()).collect();
    save(&out.join("experts.json"), &format!("[\n{}\n]\n", lines.join(",\n")))
}

/// This library; the C++ build with the buffer that its loader chooses (its AMX backend takes no experts); and the same
/// build with plain weights, for types that it does not repack.
fn sides(out: &Path) -> Result<Vec<Side>> {
    let ours = Program::build(&host::ensure(Kind::Llama)?, out)?;
    let mut all = vec![Side { name: "ours", buffer: "AMX", program: ours }];
    if let Some(cpp) = host::baseline()? {
        symbols::check_original(&cpp.cpu_library())?;
        let program = Program::build(&cpp, out)?;
        all.push(Side { name: "repacked", buffer: "CPU_REPACK", program: program.clone() });
        all.push(Side { name: "plain", buffer: "CPU", program });
    } else {
        println!("  SKIPPED C++ AMX: {}", compiler::NO_BASELINE);
    }
    Ok(all)
}

/// Sorts one line of a program to the product it is about.
fn add(items: &mut Vec<Item>, line: Json, side: usize, sides: usize) {
    let ms = line.number("ms").unwrap_or(f64::NAN);
    let found = items.iter().position(|i| title(&i.product) == title(&line));
    let at = found.unwrap_or_else(|| {
        items.push(Item { product: line, ms: vec![Vec::new(); sides] });
        items.len() - 1
    });
    items[at].ms[side].push(ms);
}

fn title(product: &Json) -> String {
    let number = |key| product.number(key).unwrap_or(f64::NAN);
    format!("{} {} {}", product.text("type"), product.text("shape"), number("tokens"))
}

fn row(item: &Item) -> Vec<String> {
    let cell = |values: &[f64]| stats::spread(values, |v| format!("{v:.2}"));
    let mut cells = vec![title(&item.product)];
    cells.extend(item.ms.iter().map(|ms| cell(ms)));
    cells.extend(item.ms.iter().skip(1).map(|ms| cell(&stats::ratios(ms, &item.ms[0]))));
    cells
}

fn json(item: &Item, sides: &[Side]) -> Json {
    let text = |key: &str| -> (String, Json) { (key.to_string(), item.product.text(key).into()) };
    let number = |key: &str| -> (String, Json) { (key.to_string(), item.product.number(key).into()) };
    let mut members: Vec<(String, Json)> = vec![
        ("date".to_string(), cpu::today().into()),
        ("cpu".to_string(), cpu::detect().model.into()),
        text("type"),
        text("shape"),
    ];
    members.extend(["k", "n", "experts", "used", "tokens", "threads"].map(number));
    for (side, ms) in sides.iter().zip(&item.ms) {
        members.push((format!("{}_ms", side.name), ms.clone().into()));
    }
    object(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(tokens: u32, ms: f64) -> Json {
        crate::json::parse(&format!(
            "{{\"type\":\"q4_0\",\"shape\":\"up\",\"k\":2048,\"tokens\":{tokens},\"ms\":{ms}}}"
        ))
        .unwrap()
    }

    #[test]
    fn lines_of_all_turns_meet_at_their_product() {
        let mut items = Vec::new();
        for (side, tokens, ms) in [(0, 1, 1.0), (0, 32, 5.0), (1, 1, 3.0), (0, 1, 2.0), (1, 1, 3.0)] {
            add(&mut items, line(tokens, ms), side, 2);
        }
        assert_eq!(items.len(), 2);
        assert_eq!(row(&items[0]), ["q4_0 up 1", "1.50 (1.00 to 2.00)", "3.00 (3.00 to 3.00)", "2.25 (1.50 to 3.00)"]);
        assert_eq!(row(&items[1]), ["q4_0 up 32", "5.00", "-", "-"]);
    }
}

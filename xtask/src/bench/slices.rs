//! Whole models in llama-bench: slices of big ones, this library and the C++ AMX backend in turns.

use std::path::Path;

use crate::{
    cache::Cache,
    compiler, cpu,
    host::{self, Host, Kind},
    json::Json,
    program::Way,
    slice::Slice,
    speed::{self, Plan, Samples, median},
    symbols, table,
    util::Result,
};

use super::{options::Options, save};

const NAMES: [&str; 3] = ["ours", "exact", "C++ AMX"];

/// Measures every type of every slice; table and `slices.json`.
pub fn run(options: &Options, out: &Path) -> Result<()> {
    let host = host::ensure(Kind::Llama)?;
    let baseline = host::baseline()?;
    if let Some(cpp) = &baseline {
        symbols::check_original(&cpp.cpu_library())?;
    } else {
        println!("  SKIPPED C++ AMX: {}", compiler::NO_BASELINE);
    }
    let mut ways = vec![Way::Ours(None), Way::Exact];
    ways.extend(baseline.as_ref().map(Way::CppAmx));
    let plan = Plan { prompt: 512, generation: 16, rounds: options.rounds, repetitions: 1 };
    let (mut rows, mut items) = (Vec::new(), Vec::new());
    for slice in Slice::ALL {
        let models = slice.models(&Cache::open()?, &host, &options.types)?;
        for (ty, model) in options.types.iter().zip(&models) {
            println!("  {} {ty}", slice.name());
            check(&host, model, &ways, options.threads)?;
            let samples = speed::interleaved(&host, model, &ways, options.threads, &plan)?;
            for (test, of) in tests(&plan) {
                let values: Vec<&[f64]> = samples.iter().map(of).collect();
                rows.push(row(&format!("{} {ty} {test}", slice.name()), &values));
                items.push(item(slice, ty, &test, options.threads, &values));
            }
        }
    }
    let header = ["tokens/s", "ours", "exact", "C++ AMX", "ours / C++", "exact / C++"];
    println!("\n{}", table::render(&header[..if ways.len() == 3 { 6 } else { 3 }], &rows));
    println!("  medians of {} turns; {}, {} threads", plan.rounds, cpu::detect().model, options.threads);
    let lines: Vec<String> = items.iter().map(Json::to_string).collect();
    save(&out.join("slices.json"), &format!("[\n{}\n]\n", lines.join(",\n")))
}

type Of = fn(&Samples) -> &[f64];

fn tests(plan: &Plan) -> [(String, Of); 2] {
    [(format!("pp{}", plan.prompt), |s| &s.prompt), (format!("tg{}", plan.generation), |s| &s.generation)]
}

/// Every way must keep its weights where it says.
fn check(host: &Host, model: &Path, ways: &[Way<'_>], threads: usize) -> Result<()> {
    for (way, name) in ways.iter().zip(NAMES) {
        if !speed::amx_buffer_used(host, model, *way, threads)? {
            return Err(format!("{name}: llama-bench did not use an AMX buffer"));
        }
    }
    Ok(())
}

fn row(name: &str, values: &[&[f64]]) -> Vec<String> {
    let medians: Vec<f64> = values.iter().map(|v| median(v)).collect();
    let mut cells = vec![name.to_string()];
    cells.extend(medians.iter().map(|m| format!("{m:.1}")));
    if let [ours, exact, cpp] = medians[..] {
        cells.extend([ours, exact].map(|m| format!("{:.2}x", m / cpp)));
    }
    cells
}

fn item(slice: Slice, ty: &str, test: &str, threads: usize, values: &[&[f64]]) -> Json {
    let mut members = vec![
        ("date".to_string(), Json::of(cpu::today())),
        ("cpu".to_string(), Json::of(cpu::detect().model)),
        ("slice".to_string(), Json::of(slice.name())),
        ("type".to_string(), Json::of(ty)),
        ("test".to_string(), Json::of(test)),
        ("threads".to_string(), Json::Number(threads as f64)),
    ];
    for (name, v) in NAMES.iter().zip(values) {
        let list = v.iter().map(|t| Json::Number(*t)).collect();
        members.push(((*name).to_string(), Json::List(list)));
    }
    Json::Object(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_need_the_baseline() {
        let (fast, slow) = ([4.0, 2.0, 3.0], [1.0, 2.0, 1.5]);
        assert_eq!(row("a", &[&fast, &fast, &slow]), ["a", "3.0", "3.0", "1.5", "2.00x", "2.00x"]);
        assert_eq!(row("a", &[&fast, &slow]), ["a", "3.0", "1.5"]);
    }

    #[test]
    fn an_item_keeps_all_samples() {
        let text = item(Slice::Dense, "Q4_0", "pp512", 2, &[&[1.5, 2.0], &[1.0], &[3.0]]).to_string();
        assert!(text.contains("\"slice\":\"dense-8b\"") && text.contains("\"ours\":[1.5,2]"), "{text}");
    }
}

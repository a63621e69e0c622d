//! Whole models in llama-bench: slices of big ones, this library and what it is compared with in turns.

use std::path::Path;

use crate::{
    cache::Cache,
    compiler, cpu, gguf,
    host::{self, Host, Kind},
    json::{Json, object},
    products,
    program::{self, Settings, Way},
    slice::Slice,
    speed::{self, Of, Plan},
    stats, symbols, table,
    util::Result,
};

use super::{options::Options, save};

/// One way to run a model.
struct Side<'a> {
    name: &'static str,
    way: Way<'a>,
    /// One of this library's ways, not one to compare with.
    is_ours: bool,
    /// Weights must be packed.
    is_packed: bool,
}

/// Measures every type of every slice; table and `slices.json`, in ik_llama.cpp `slices-ik.json`.
pub fn run(options: &Options, out: &Path) -> Result<()> {
    if options.is_ik {
        let host = host::ensure(Kind::IkOurs)?;
        return measure(&host, &sides_in_ik(), options, &out.join("slices-ik.json"));
    }
    let host = host::ensure(Kind::Llama)?;
    let baseline = host::baseline()?;
    if let Some(cpp) = &baseline {
        symbols::check_original(&cpp.cpu_library())?;
    } else {
        println!("  SKIPPED C++ AMX: {}", compiler::NO_BASELINE);
    }
    let exact = Way::Ours(Settings { exact: true, ..Settings::default() });
    let mut sides = vec![
        Side { name: "ours", way: Way::of_isa(None), is_ours: true, is_packed: true },
        Side { name: "exact", way: exact, is_ours: true, is_packed: true },
    ];
    let cpp = baseline.as_ref().map(Way::CppAmx);
    sides.extend(cpp.map(|way| Side { name: "C++ AMX", way, is_ours: false, is_packed: true }));
    measure(&host, &sides, options, &out.join("slices.json"))
}

/// All in one build: without this library it is ik_llama.cpp as it is, whose objects are the same.
fn sides_in_ik() -> [Side<'static>; 5] {
    let packed = Way::Ours(Settings { packed: true, ..Settings::default() });
    let repacked = Way::Ours(Settings { repacked: true, ..Settings::default() });
    [
        Side { name: "in place", way: Way::of_isa(None), is_ours: true, is_packed: false },
        Side { name: "in place, -rtr", way: repacked, is_ours: true, is_packed: false },
        Side { name: "packed", way: packed, is_ours: true, is_packed: true },
        Side { name: "ik", way: Way::HostBest, is_ours: false, is_packed: false },
        Side { name: "ik -rtr", way: Way::Repacked, is_ours: false, is_packed: false },
    ]
}

/// What llama-bench is asked for; ik_llama.cpp is tuned for large batches of experts too.
fn plans(slice: Slice, options: &Options) -> Vec<Plan> {
    let usual = Plan { prompt: 512, generation: 16, batch: None, rounds: options.rounds, repetitions: 1 };
    let large = Plan { prompt: 2048, generation: 0, batch: Some(2048), ..usual };
    if options.is_ik && slice == Slice::Experts { vec![usual, large] } else { vec![usual] }
}

fn measure(host: &Host, sides: &[Side<'_>], options: &Options, file: &Path) -> Result<()> {
    let ways: Vec<Way<'_>> = sides.iter().map(|s| s.way).collect();
    let (mut rows, mut items) = (Vec::new(), Vec::new());
    for slice in Slice::ALL {
        let models = slice.models(&Cache::open()?, host, &options.types)?;
        for (ty, model) in options.types.iter().zip(&models) {
            println!("  {} {ty}", slice.name());
            check(host, model, ty, sides, options.threads)?;
            for plan in plans(slice, options) {
                let samples = speed::interleaved(host, model, &ways, options.threads, &plan)?;
                for (test, of) in tests(&plan) {
                    let values: Vec<&[f64]> = samples.iter().map(of).collect();
                    rows.push(row(&format!("{} {ty} {test}", slice.name()), sides, &values));
                    items.push(item(slice, ty, &test, options.threads, sides, &values));
                }
            }
        }
    }
    let header = header(sides);
    println!("\n{}", table::render(&header.iter().map(String::as_str).collect::<Vec<_>>(), &rows));
    println!("  {}; {}, {} threads", stats::legend(options.rounds), cpu::detect().model, options.threads);
    println!("  {}, {}", host.requirement(), host.built_by());
    let lines: Vec<String> = items.iter().map(Json::to_string).collect();
    save(&file.to_path_buf(), &format!("[\n{}\n]\n", lines.join(",\n")))
}

fn tests(plan: &Plan) -> Vec<(String, Of)> {
    let mut all: Vec<(String, Of)> = vec![(format!("pp{}", plan.prompt), |s| &s.prompt)];
    if plan.generation > 0 {
        all.push((format!("tg{}", plan.generation), |s| &s.generation));
    }
    all
}

/// Checks each way in a short run: its weights must be packed or not as it says, and only in our ways may this library
/// compute. (Each turn checks how much it computed.) Types with row headers stay plain in ik_llama.cpp.
fn check(host: &Host, model: &Path, ty: &str, sides: &[Side<'_>], threads: usize) -> Result<()> {
    for side in sides {
        let log = speed::short_log(host, model, side.way, threads)?;
        let may_stay = gguf::by_name(ty).is_some_and(gguf::Type::stays_with_ik);
        if program::held(&log).is_some() != side.is_packed && !may_stay {
            let is = if side.is_packed { "are not" } else { "are" };
            return Err(format!("{}: weights {is} packed in llama-bench", side.name));
        }
        if !side.is_ours && !products::none(&log) {
            return Err(format!("{}: this library is at work in llama-bench", side.name));
        }
    }
    Ok(())
}

/// Names, and what our ways are divided by: the fastest of the others.
fn header(sides: &[Side<'_>]) -> Vec<String> {
    let others: Vec<&str> = sides.iter().filter(|s| !s.is_ours).map(|s| s.name).collect();
    let mut header = vec!["tokens/s".to_string()];
    header.extend(sides.iter().map(|s| s.name.to_string()));
    let by = match others[..] {
        [] => return header,
        [one] => one,
        _ => "best",
    };
    header.extend(sides.iter().filter(|s| s.is_ours).map(|s| format!("{} / {by}", s.name)));
    header
}

/// Speeds of all ways, and the ratios of ours, turn by turn.
fn row(name: &str, sides: &[Side<'_>], values: &[&[f64]]) -> Vec<String> {
    let mut cells = vec![name.to_string()];
    cells.extend(values.iter().map(|v| stats::spread(v, |v| format!("{v:.1}"))));
    let of = |is_ours| sides.iter().zip(values).filter(move |(s, _)| s.is_ours == is_ours).map(|(_, v)| *v);
    let faster = |a: Vec<f64>, b: &[f64]| a.iter().zip(b).map(|(a, b)| a.max(*b)).collect();
    let mut others = of(false);
    if let Some(first) = others.next() {
        let best = others.fold(first.to_vec(), faster);
        cells.extend(of(true).map(|ours| stats::spread(&stats::ratios(ours, &best), |v| format!("{v:.2}"))));
    }
    cells
}

fn item(slice: Slice, ty: &str, test: &str, threads: usize, sides: &[Side<'_>], values: &[&[f64]]) -> Json {
    let mut members: Vec<(String, Json)> = vec![
        ("date".to_string(), cpu::today().into()),
        ("cpu".to_string(), cpu::detect().model.into()),
        ("slice".to_string(), slice.name().into()),
        ("type".to_string(), ty.into()),
        ("test".to_string(), test.into()),
        ("threads".to_string(), threads.into()),
    ];
    for (side, v) in sides.iter().zip(values) {
        members.push((side.name.to_string(), v.to_vec().into()));
    }
    object(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(name: &'static str, is_ours: bool) -> Side<'static> {
        Side { name, way: Way::HostBest, is_ours, is_packed: false }
    }

    #[test]
    fn ratios_are_against_the_best_of_the_others() {
        let (fast, slow, middle) = ([4.0, 2.0, 3.0], [1.0, 2.0, 1.5], [2.0, 2.0, 2.0]);
        let sides = [side("a", true), side("b", false), side("c", false)];
        assert_eq!(header(&sides), ["tokens/s", "a", "b", "c", "a / best"]);
        assert_eq!(
            row("x", &sides, &[&fast, &slow, &middle]),
            ["x", "3.0 (2.0 to 4.0)", "1.5 (1.0 to 2.0)", "2.0 (2.0 to 2.0)", "1.50 (1.00 to 2.00)"]
        );
        let sides = [side("a", true), side("b", true), side("c", false)];
        assert_eq!(header(&sides), ["tokens/s", "a", "b", "c", "a / c", "b / c"]);
        assert_eq!(row("x", &sides[..2], &[&fast, &slow]), ["x", "3.0 (2.0 to 4.0)", "1.5 (1.0 to 2.0)"]);
        assert_eq!(header(&sides[..2]), ["tokens/s", "a", "b"]);
    }

    #[test]
    fn an_item_keeps_all_samples() {
        let sides = [side("ours", true), side("exact", true), side("C++ AMX", false)];
        let text = item(Slice::Dense, "Q4_0", "pp512", 2, &sides, &[&[1.5, 2.0], &[1.0], &[3.0]]).to_string();
        assert!(text.contains("\"slice\":\"dense-8b\"") && text.contains("\"ours\":[1.5,2.0]"), "{text}");
    }

    #[test]
    fn large_batches_are_for_experts_in_ik() {
        let of = |is_ik, slice| plans(slice, &Options { is_ik, ..Options::default() });
        assert_eq!(of(true, Slice::Experts).iter().map(|p| tests(p).len()).collect::<Vec<_>>(), [2, 1]);
        assert_eq!((of(true, Slice::Dense).len(), of(false, Slice::Experts).len()), (1, 1));
    }
}

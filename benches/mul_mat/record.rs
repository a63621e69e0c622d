//! One line for the reader, one JSON object for `cargo xtask bench`.

use std::fmt::Write;

use crate::measure::{Measured, Way};
use crate::options::Options;
use crate::subject::Subject;

/// Figures of one way to compute the product.
struct Figures {
    ms: f64,
    best_ms: f64,
    of_peak: Option<f64>,
    of_read: f64,
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut v: Vec<f64> = values.collect();
    v.sort_by(f64::total_cmp);
    if v.len() % 2 == 1 { v[v.len() / 2] } else { f64::midpoint(v[v.len() / 2 - 1], v[v.len() / 2]) }
}

fn figures(way: &Way, all: &Measured, macs: f64, bytes: f64) -> Figures {
    let share = |work: f64, rates: &[f64]| 100.0 * median(way.times.iter().zip(rates).map(|(t, r)| work / t / r));
    Figures {
        ms: 1e3 * median(way.times.iter().copied()),
        best_ms: 1e3 * way.times.iter().copied().fold(f64::INFINITY, f64::min),
        of_peak: (!all.peaks.is_empty()).then(|| share(macs, &all.peaks)),
        of_read: share(bytes, &all.reads),
    }
}

/// A measured product as a line of text and as a JSON object.
pub fn lines(subject: &Subject<'_>, m: usize, all: &Measured, o: &Options) -> (String, String) {
    let shape = &subject.shape;
    let (macs, bytes) = ((m * shape.n * shape.k) as f64, shape.plain_size() as f64);
    let all_figures: Vec<Figures> = all.ways.iter().map(|w| figures(w, all, macs, bytes)).collect();
    let peak = (!all.peaks.is_empty()).then(|| 2e-12 * median(all.peaks.iter().copied()));
    let read = 1e-9 * median(all.reads.iter().copied());
    let ours = &all_figures[0];
    let percent = |p: Option<f64>| p.map_or("-".into(), |p| format!("{p:.1}"));
    let mut text = format!(
        "{:>7} {:>13} {m:>5} {:>9.3} ms {:>5} % of peak {:>5.1} % of reads, NMSE {:.1e}",
        shape.ty.info().name,
        format!("{}x{}", shape.n, shape.k),
        ours.ms,
        percent(ours.of_peak),
        ours.of_read,
        all.ways[0].nmse,
    );
    for (way, f) in all.ways.iter().zip(&all_figures).skip(1) {
        let _ = write!(text, "; {} {:.3} ms ({:.2}x, {:.1e})", way.name, f.ms, f.ms / ours.ms, way.nmse);
    }
    let _ = write!(text, "   [{} TOPS, {read:.1} GB/s]", percent(peak));

    let mut json = format!(
        "{{\"type\":\"{}\",\"n\":{},\"k\":{},\"m\":{m},\"threads\":{},\"kind\":\"{}\",\"exact\":{},\"reps\":{},\
         \"copies\":{},\"peak_tops\":{},\"read_gbs\":{}",
        shape.ty.info().name,
        shape.n,
        shape.k,
        o.threads,
        o.kind,
        o.exact,
        o.reps,
        subject.copies,
        number(peak),
        number(Some(read)),
    );
    for (way, f) in all.ways.iter().zip(&all_figures) {
        let _ = write!(
            json,
            ",\"{}\":{{\"form\":\"{}\",\"ms\":{},\"best_ms\":{},\"of_peak\":{},\"of_read\":{},\"nmse\":{},\
             \"all_ms\":[{}]}}",
            way.name,
            way.form,
            number(Some(f.ms)),
            number(Some(f.best_ms)),
            number(f.of_peak),
            number(Some(f.of_read)),
            number(Some(way.nmse)),
            way.times.iter().map(|t| number(Some(1e3 * t))).collect::<Vec<_>>().join(","),
        );
    }
    json.push('}');
    (text, json)
}

/// A number in five digits; NaN and infinity, which JSON has not, as `null`.
fn number(value: Option<f64>) -> String {
    value.filter(|v| v.is_finite()).map_or("null".into(), |v| format!("{v:.4e}"))
}

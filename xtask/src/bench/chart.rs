//! A run as a drawing: ratios to the other hosts as bars, the share of the tile peak over M as lines.

use std::fmt::Write;

use super::{
    report::{IK, LLAMA, few_and_many},
    run::{Item, Run},
};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 620.0;
/// Colours that read on white and on black.
const COLOURS: [&str; 7] = ["#4c8dd6", "#e0912f", "#4caf7d", "#d65f5f", "#9a76d3", "#a08060", "#d66fb3"];
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#24292f}.title{font-size:14px;font-weight:600}\
    .value{font-size:10px}.grid{stroke:#d0d7de;stroke-width:1}.axis{stroke:#57606a;stroke-width:1}\
    @media(prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#3d444d}.axis{stroke:#8d96a0}}";

/// A rectangle to draw in, with a scale from 0 to `top`.
struct Plot {
    left: f64,
    right: f64,
    upper: f64,
    lower: f64,
    top: f64,
    parts: u32,
}

impl Plot {
    fn y(&self, value: f64) -> f64 {
        self.lower - (self.lower - self.upper) * value / self.top
    }

    fn width(&self) -> f64 {
        self.right - self.left
    }

    /// Title, horizontal lines with their values, and the name of the scale.
    fn frame(&self, svg: &mut String, title: &str, scale: &str) {
        text(svg, self.left, self.upper - 28.0, "start", "title", title);
        for i in 0..=self.parts {
            let value = self.top * f64::from(i) / f64::from(self.parts);
            let y = self.y(value);
            let class = if i == 0 { "axis" } else { "grid" };
            line(svg, class, [self.left, y, self.right, y]);
            text(svg, self.left - 6.0, y + 4.0, "end", "value", &format!("{value}"));
        }
        text(svg, self.left, self.upper - 10.0, "start", "value", scale);
    }
}

/// The whole drawing.
pub fn draw(run: &Run) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" role=\"img\">\n<title>Speed of this library</title>\n<style>{STYLE}</style>\n"
    );
    let types = run.different(|i| i.ty().to_string());
    let (few, many) = few_and_many(run);
    bars(&mut svg, run, &types, few, 50.0);
    bars(&mut svg, run, &types, many, 500.0);
    lines(&mut svg, run, &types);
    let note = format!("{}, {}, {} threads", run.date, run.cpu, run.items[0].number("threads"));
    text(&mut svg, WIDTH - 20.0, HEIGHT - 8.0, "end", "value", &escaped(&note));
    svg.push_str("</svg>\n");
    svg
}

/// One group per type: their time by ours.
fn bars(svg: &mut String, run: &Run, types: &[String], m: usize, left: f64) {
    let of = |ty: &str, names| run.mean(ty, m, |i| i.ratio(names));
    let hosts = [("C++ AMX backend", LLAMA), ("ik_llama.cpp", IK)];
    let values = types.iter().flat_map(|ty| hosts.iter().filter_map(move |(_, names)| of(ty, names)));
    let (top, parts) = round_up(values.fold(1.0, f64::max));
    let plot = Plot { left, right: left + 380.0, upper: 60.0, lower: 250.0, top, parts };
    plot.frame(svg, &format!("Speed relative to others, M = {m}"), "time of the other / time of this library");
    let group = plot.width() / types.len() as f64;
    for (g, ty) in types.iter().enumerate() {
        let middle = plot.left + group * (g as f64 + 0.5);
        let width = (group * 0.38).min(24.0);
        for (h, (_, names)) in hosts.iter().enumerate() {
            let Some(value) = of(ty, names) else { continue };
            let (x, y) = (middle + width * (h as f64 - 1.0), plot.y(value));
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>",
                width - 1.0,
                plot.lower - y,
                COLOURS[h]
            );
            text(svg, x + width / 2.0, y - 3.0, "middle", "value", &format!("{value:.1}"));
        }
        text(svg, middle, plot.lower + 16.0, "middle", "", &escaped(ty));
    }
    line(svg, "axis\" stroke-dasharray=\"4 3", [plot.left, plot.y(1.0), plot.right, plot.y(1.0)]);
    for (h, (name, _)) in hosts.iter().enumerate() {
        key(svg, plot.left + 150.0 * h as f64, plot.lower + 36.0, COLOURS[h], name);
    }
}

/// One line per type.
fn lines(svg: &mut String, run: &Run, types: &[String]) {
    let rows = run.rows();
    let of = |ty: &str, m| run.mean(ty, m, |i: &Item| i.way("ours").map(|w| w.of_peak));
    let values = types.iter().flat_map(|ty| rows.iter().filter_map(move |m| of(ty, *m)));
    let (top, parts) = round_up(values.fold(1.0, f64::max));
    let plot = Plot { left: 50.0, right: 780.0, upper: 370.0, lower: 560.0, top, parts };
    plot.frame(svg, "Share of the tile unit's peak", "% of a TDPBSSD loop in the same repetitions");
    let log = |m: usize| (m as f64).log2();
    let (first, last) = (log(rows[0]), log(rows[rows.len() - 1]));
    let x = |m: usize| plot.left + 20.0 + (plot.width() - 40.0) * (log(m) - first) / (last - first).max(1.0);
    for m in &rows {
        text(svg, x(*m), plot.lower + 16.0, "middle", "", &m.to_string());
    }
    text(svg, (plot.left + plot.right) / 2.0, plot.lower + 34.0, "middle", "", "M, rows of activations");
    for (t, ty) in types.iter().enumerate() {
        let colour = COLOURS[t % COLOURS.len()];
        let points: Vec<(f64, f64)> = rows.iter().filter_map(|m| Some((x(*m), plot.y(of(ty, *m)?)))).collect();
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let path = path.join(" ");
        let _ = writeln!(svg, "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>");
        for (x, y) in points {
            let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
        }
        key(svg, plot.right + 20.0, plot.upper + 10.0 + 20.0 * t as f64, colour, ty);
    }
}

fn key(svg: &mut String, x: f64, y: f64, colour: &str, name: &str) {
    let _ = writeln!(svg, "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>", y - 9.0);
    text(svg, x + 15.0, y, "start", "", &escaped(name));
}

fn line(svg: &mut String, class: &str, [x1, y1, x2, y2]: [f64; 4]) {
    let _ = writeln!(svg, "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>");
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, class: &str, words: &str) {
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\"{class}>{words}</text>");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The end of a scale, at least 2, and into how many parts it falls.
fn round_up(value: f64) -> (f64, u32) {
    let value = value.max(1.9) * 1.05;
    let power = 10f64.powf(value.log10().floor());
    let steps = [(1.0, 4), (2.0, 4), (3.0, 3), (4.0, 4), (5.0, 5), (6.0, 6), (8.0, 4), (10.0, 5)];
    let (step, parts) = steps.into_iter().find(|(step, _)| step * power >= value).unwrap_or((10.0, 5));
    (step * power, parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::run::tests::example;

    #[test]
    fn every_value_is_drawn_inside_the_picture() {
        let svg = draw(&example());
        let count = |what: &str| svg.matches(what).count();
        // 2 panels x 2 types x 2 hosts, the keys of both panels and of the lines.
        assert_eq!(count("<rect"), 8 + 4 + 2);
        assert_eq!(count("<polyline"), 2);
        assert_eq!(count("<text"), count("</text>"));
        for part in svg.split('"').filter_map(|p| p.parse::<f64>().ok()) {
            assert!((0.0..=WIDTH).contains(&part), "{part}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn scales_end_at_round_values() {
        let cases = [(0.3, (2.0, 4)), (2.8, (3.0, 3)), (5.0, (6.0, 6)), (9.0, (10.0, 5)), (45.0, (50.0, 5))];
        for (value, scale) in cases {
            assert_eq!(round_up(value), scale, "{value}");
        }
    }
}

//! The chart of README.md: how much faster are a prompt and generation, per weight type in wide use, in which host.
//!
//! Two panels of bars. A bar is the median of the turns' ratios of speeds, with a line from the lowest to the highest;
//! the line at 1 is the host's own fastest code.

use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::record::{Model, Record};
use crate::{stats::median, util::Result};

const WIDTH: u32 = 900;
const HEIGHT: u32 = 640;
const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(220, 220, 220);

/// The types most models come in.
const TYPES: [&str; 3] = ["Q4_0", "Q4_K", "Q8_0"];
/// Name in the record, and under the bars.
const SLICES: [(&str, &str); 2] = [("dense", "8B dense"), ("experts", "30B experts")];
const TESTS: [(&str, &str); 2] = [("pp512", "Prompt of 512 tokens"), ("tg16", "Generation")];

/// A bar of every group: host, way of this library, what it is called, colour.
const BARS: [(&str, &str, &str, RGBColor); 3] = [
    ("llama.cpp", "this library", "llama.cpp, beside its C++ AMX backend", RGBColor(31, 95, 153)),
    ("ik_llama.cpp", "in place", "ik_llama.cpp, weights in place", RGBColor(230, 140, 40)),
    ("ik_llama.cpp", "packed", "ik_llama.cpp, weights packed", RGBColor(70, 150, 90)),
];

/// Draws an SVG. Text stays text, so no font is needed here.
pub fn draw(record: &Record) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        let failed = |e: DrawingAreaErrorKind<_>| format!("the chart cannot be drawn: {e}");
        root.fill(&WHITE).map_err(failed)?;
        let (head, panels) = root.split_vertically(64);
        text(&head, "How many times as fast as the host's own fastest code (1)", (20, 24), 20, HPos::Left)?;
        let origin = format!("{}, {}, {} threads", record.date, record.cpu, record.threads);
        text(&head, &origin, (WIDTH as i32 - 20, 26), 12, HPos::Right)?;
        for (i, (_, _, name, colour)) in BARS.into_iter().enumerate() {
            let x = 20 + [0, 320, 580][i];
            head.draw(&Rectangle::new([(x, 44), (x + 14, 58)], colour.filled())).map_err(failed)?;
            text(&head, name, (x + 20, 51), 14, HPos::Left)?;
        }
        for (panel, (test, title)) in panels.split_evenly((TESTS.len(), 1)).iter().zip(TESTS) {
            draw_panel(panel, record, test, title)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw_panel(area: &Area<'_>, record: &Record, test: &str, title: &str) -> Result<()> {
    let failed = |e: DrawingAreaErrorKind<_>| format!("the chart cannot be drawn: {e}");
    let (width, height) = area.dim_in_pixel();
    let (left, right, top, bottom) = (50, width as i32 - 20, 40, height as i32 - 50);
    text(area, title, (20, 18), 16, HPos::Left)?;
    let most = highest(record, test);
    let y = |ratio: f64| bottom - (ratio / most * f64::from(bottom - top)) as i32;
    for step in 0..=most as i32 {
        let at = y(f64::from(step));
        let (colour, stroke) = if step == 1 { (INK, 2) } else { (GRID, 1) };
        let line = PathElement::new(vec![(left, at), (right, at)], ShapeStyle::from(colour).stroke_width(stroke));
        area.draw(&line).map_err(failed)?;
        text(area, &step.to_string(), (left - 8, at), 13, HPos::Right)?;
    }
    let groups: Vec<(&str, &str, &str)> =
        SLICES.iter().flat_map(|(slice, shown)| TYPES.map(|ty| (*slice, *shown, ty))).collect();
    let each = f64::from(right - left) / groups.len() as f64;
    let bar = each * 0.24;
    for (g, (slice, shown, ty)) in groups.into_iter().enumerate() {
        let middle = f64::from(left) + each * (g as f64 + 0.5);
        text(area, ty, (middle as i32, bottom + 14), 14, HPos::Center)?;
        text(area, shown, (middle as i32, bottom + 31), 12, HPos::Center)?;
        for (b, (host, way, _, colour)) in BARS.into_iter().enumerate() {
            let Some([least, ratio, most]) = ratios(record, host, way, [slice, ty, test]) else { continue };
            let from = middle + bar * (b as f64 - 1.5);
            let corners = [((from + 1.0) as i32, y(ratio)), ((from + bar - 1.0) as i32, bottom)];
            area.draw(&Rectangle::new(corners, colour.filled())).map_err(failed)?;
            let centre = (from + bar / 2.0) as i32;
            let turns =
                PathElement::new(vec![(centre, y(least)), (centre, y(most))], ShapeStyle::from(INK).stroke_width(1));
            area.draw(&turns).map_err(failed)?;
            // On a white plate, because a grid line may be behind it.
            let at = (centre, y(most) - 8);
            let plate = [(at.0 - 11, at.1 - 6), (at.0 + 11, at.1 + 6)];
            area.draw(&Rectangle::new(plate, WHITE.filled())).map_err(failed)?;
            text(area, &format!("{ratio:.1}"), at, 12, HPos::Center)?;
        }
    }
    Ok(())
}

fn text(area: &Area<'_>, words: &str, at: (i32, i32), size: i32, side: HPos) -> Result<()> {
    let style = (FONT, size).into_font().color(&INK).pos(Pos::new(side, VPos::Center));
    area.draw(&Text::new(words.to_string(), at, style)).map_err(|e| format!("the chart cannot be drawn: {e}"))
}

/// The lowest, the median and the highest of the turns; none if this was not measured.
fn ratios(record: &Record, host: &str, way: &str, [slice, ty, test]: [&str; 3]) -> Option<[f64; 3]> {
    let is_it = |m: &&Model| m.host == host && m.slice == slice && m.ty == ty && m.test == test;
    let way = record.models.iter().find(is_it)?.ours.iter().find(|w| w.way == way)?;
    let ends = [way.ratio.iter().copied().reduce(f64::min)?, way.ratio.iter().copied().reduce(f64::max)?];
    Some([ends[0], median(&way.ratio), ends[1]])
}

/// A whole number above every bar of a panel and its figure.
fn highest(record: &Record, test: &str) -> f64 {
    let mut most: f64 = 1.0;
    for (host, way, _, _) in BARS {
        for (slice, _) in SLICES {
            for ty in TYPES {
                most = most.max(ratios(record, host, way, [slice, ty, test]).map_or(0.0, |ratios| ratios[2]));
            }
        }
    }
    (most + 0.2).ceil()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record::all().unwrap().into_iter().rfind(|r| !r.models.is_empty()).unwrap()
    }

    #[test]
    fn every_bar_has_its_figure_above_it_and_every_group_its_name() {
        let svg = draw(&record()).unwrap();
        for (host, way, name, _) in BARS {
            assert!(svg.contains(name), "{name}");
            for (slice, _) in SLICES {
                for (ty, (test, _)) in TYPES.into_iter().zip(TESTS) {
                    if let Some([least, ratio, most]) = ratios(&record(), host, way, [slice, ty, test]) {
                        assert!(svg.contains(&format!("\n{ratio:.1}\n")), "{host} {way} {slice} {ty} {test}");
                        assert!(least <= ratio && ratio <= most && most < highest(&record(), test));
                    }
                }
            }
        }
        assert_eq!(svg, draw(&record()).unwrap());
    }
}

//! Plots as SVG. The style of the page sets the colour of their text.

use anyhow::{Result, anyhow};
use plotters::{
    chart::{ChartBuilder, LabelAreaPosition},
    drawing::IntoDrawingArea as _,
    prelude::SVGBackend,
    series::LineSeries,
    style::{Color as _, RGBColor, ShapeStyle},
};

use super::Run;

/// Size in SVG units. The page scales the plot to the available width.
const SIZE: (u32, u32) = (720, 420);
/// Size of text in SVG units: nearly 15 pixels on a page that is 360 pixels wide.
const TEXT_SIZE: f64 = 36.0;
/// Factor by which plotters reduces a font size when it writes SVG.
const PLOTTERS_REDUCTION: f64 = 1.24;
/// Colour of axes and grid, visible on light and dark pages.
const GRID: RGBColor = RGBColor(128, 128, 128);

/// Line in a plot.
#[derive(Debug)]
pub struct Line {
    /// Name in the legend.
    pub name: &'static str,
    /// Colour, visible on light and dark pages.
    pub color: RGBColor,
    /// Points of the line, with a gap between runs.
    pub runs: Vec<Run>,
}

/// Draws `lines` over the last `seconds`.
pub fn svg(lines: &[Line], seconds: f64) -> Result<String> {
    let mut text = String::new();
    draw(&mut text, lines, seconds.max(10.0)).map_err(|error| anyhow!("cannot draw a plot: {error}"))?;
    Ok(text)
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn draw(text: &mut String, lines: &[Line], seconds: f64) -> Outcome {
    let (unit, name) = if seconds > 180.0 { (60.0, "min") } else { (1.0, "s") };
    let points = || lines.iter().flat_map(|line| &line.runs).flatten();
    let highest = points().map(|(_, rate)| *rate).fold(0.0, f64::max);
    let top = if highest > 0.0 { highest * 1.05 } else { 1.0 };

    let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&area)
        .margin_top(28)
        .margin_right(40)
        .set_label_area_size(LabelAreaPosition::Left, 104)
        .set_label_area_size(LabelAreaPosition::Bottom, 56)
        .build_cartesian_2d(-seconds / unit..0.0, 0.0..top)?;
    let moment = |at: &f64| if *at > -0.001 { "now".to_owned() } else { format!("−{:.0} {name}", -at) };
    chart
        .configure_mesh()
        .x_labels(4)
        .y_labels(5)
        .x_label_formatter(&moment)
        .y_label_formatter(&|rate| short(*rate))
        .label_style(("sans-serif", TEXT_SIZE * PLOTTERS_REDUCTION))
        .axis_style(GRID)
        .bold_line_style(GRID.mix(0.25))
        .light_line_style(GRID.mix(0.0))
        .draw()?;
    for line in lines {
        let style = ShapeStyle { color: line.color.to_rgba(), filled: false, stroke_width: 4 };
        for run in &line.runs {
            let run = run.iter().map(|(at, rate)| (at / unit, *rate));
            chart.draw_series(LineSeries::new(run, style))?;
        }
    }
    area.present()?;
    Ok(())
}

/// Writes a number in few characters.
fn short(number: f64) -> String {
    const UNITS: [(f64, &str); 3] = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    match UNITS.iter().find(|(unit, _)| number >= *unit) {
        Some((unit, name)) => format!("{}{name}", trimmed(number / unit)),
        None => trimmed(number),
    }
}

/// Writes a number with three digits, without trailing zeros after the decimal point.
fn trimmed(number: f64) -> String {
    let digits = if number >= 100.0 {
        0
    } else if number >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{number:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 0.25, 1.5, 12.34, 100.0, 1500.0, 2.5e6].map(short);
        assert_eq!(shown, ["0", "0.25", "1.5", "12.3", "100", "1.5k", "2.5M"]);
    }

    #[test]
    fn a_plot_has_text_and_lines_and_needs_no_font() {
        let runs = vec![vec![(-20.0, 1.0), (-10.0, 3.0), (0.0, 2.0)]];
        let plot = svg(&[Line { name: "x", color: RGBColor(1, 2, 3), runs }], 20.0).unwrap();
        assert!(plot.contains("viewBox=\"0 0 720 420\""), "{plot}");
        assert!(
            plot.contains("stroke=\"#010203\"") && plot.contains("−10 s") && plot.contains("now"),
            "{plot}"
        );
        assert!(!plot.contains("<image") && !plot.contains("<path"), "text is text: {plot}");
        assert!(svg(&[], 0.0).is_ok() && svg(&[], 3600.0).unwrap().contains("−40 min"));
    }
}

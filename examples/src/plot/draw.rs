//! Draws a plot: title and legend on top, the curves below.

use std::{collections::BTreeSet, fmt::Write, ops::Range};

use interlock::tools::timeline::escape;

use super::{Axis, Line, Pixels, Plot, Series, axis::Scale, is_finite, theme::COLOURS};

const WIDTH: f64 = 640.0;
/// The height of a plot with one row of legend.
const HEIGHT: f64 = 350.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = WIDTH - 20.0;
const MARGIN: f64 = 16.0;
/// The height of a row of the legend.
const ROW: f64 = 20.0;
/// An upper bound of the width of a letter in the legend.
const LETTER: f64 = 7.2;
/// The height of numbers and label below the curves.
const BELOW: f64 = 52.0;
/// The largest number of points of a curve with dots.
const MAX_DOTS: usize = 60;

/// Returns the plot as SVG, with this style sheet.
pub(super) fn svg(plot: &Plot, style: &str) -> String {
    let legend = Legend::new(&plot.series);
    let top = 44.0 + legend.rows as f64 * ROW;
    let height = HEIGHT + legend.rows.saturating_sub(1) as f64 * ROW;
    let frame = Frame::new(plot, top..height - BELOW);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\" font-family=\"Inter, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif\" font-size=\"12\">"
    );
    // Writing to a string cannot fail, here and below.
    let _ = write!(svg, "<title>{}</title>", escape(&plot.title));
    if !style.is_empty() {
        let _ = write!(svg, "<style>{style}</style>");
    }
    let _ = write!(svg, "<rect class=\"plot-paper\" width=\"{WIDTH}\" height=\"{height}\"/>");
    let title = escape(&plot.title);
    let _ = write!(
        svg,
        "<text class=\"plot-title\" x=\"{MARGIN}\" y=\"26\" font-size=\"15\" font-weight=\"600\">{title}</text>"
    );
    svg += &legend.svg;
    frame.draw(&mut svg, plot);
    for series in &plot.series {
        frame.draw_series(&mut svg, series);
    }
    svg + "</svg>"
}

/// The names of the curves, in rows.
struct Legend {
    svg: String,
    rows: usize,
}

impl Legend {
    fn new(series: &[Series]) -> Self {
        let (mut svg, mut x, mut rows) = (String::new(), MARGIN, 1);
        for series in series {
            let width = 26.0 + LETTER * series.name.chars().count() as f64 + 14.0;
            if x > MARGIN && x + width > WIDTH {
                (x, rows) = (MARGIN, rows + 1);
            }
            let y = 32.0 + ROW * rows as f64;
            let (colour, name) = (series.colour % COLOURS, escape(&series.name));
            let _ = write!(
                svg,
                "<path class=\"plot-line{colour}\" d=\"M{} {}h18\" stroke-width=\"3\"/>\
                 <text class=\"plot-label\" x=\"{}\" y=\"{}\">{name}</text>",
                Pixels(x),
                Pixels(y - 6.0),
                Pixels(x + 24.0),
                Pixels(y - 2.0)
            );
            x += width;
        }
        Self { svg, rows: if series.is_empty() { 0 } else { rows } }
    }
}

/// The area of the curves.
struct Frame {
    x: Scale,
    y: Scale,
    rows: Range<f64>,
}

impl Frame {
    fn new(plot: &Plot, rows: Range<f64>) -> Self {
        let points = || plot.series.iter().flat_map(|series| &series.points).copied().filter(|p| is_finite(*p));
        let scale = |axis: &Axis, values: &mut dyn Iterator<Item = f64>, count, margin| {
            let extent = values.fold(None, |extent: Option<(f64, f64)>, v| {
                Some(extent.map_or((v, v), |(least, most)| (least.min(v), most.max(v))))
            });
            let (least, most) = extent.unwrap_or((0.0, 1.0));
            Scale::new(axis, least, most, count, margin)
        };
        let x = scale(&plot.x, &mut points().map(|p| p.0), 8, false);
        let y = scale(&plot.y, &mut points().map(|p| p.1), 7, true);
        Self { x, y, rows }
    }

    fn position(&self, (x, y): (f64, f64)) -> (Pixels, Pixels) {
        (Pixels(self.at_x(x)), Pixels(self.at_y(y)))
    }

    fn at_x(&self, value: f64) -> f64 {
        LEFT + self.x.share(value) * (RIGHT - LEFT)
    }

    fn at_y(&self, value: f64) -> f64 {
        self.rows.end - self.y.share(value) * (self.rows.end - self.rows.start)
    }

    /// Draws grid, axes, numbers and labels.
    fn draw(&self, svg: &mut String, plot: &Plot) {
        let Range { start: top, end: bottom } = self.rows;
        let mut grid = String::new();
        let mut numbers = String::new();
        for (value, label) in &self.y.ticks {
            let y = self.at_y(*value);
            let _ = write!(grid, "M{LEFT} {}H{RIGHT}", Pixels(y));
            let _ = write!(
                numbers,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{label}</text>",
                LEFT - 8.0,
                Pixels(y + 4.2)
            );
        }
        for (value, label) in &self.x.ticks {
            let x = Pixels(self.at_x(*value));
            let _ = write!(grid, "M{x} {}V{}", Pixels(top), Pixels(bottom));
            let _ = write!(
                numbers,
                "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
                Pixels(bottom + 18.0)
            );
        }
        let _ = write!(svg, "<path class=\"plot-grid\" d=\"{grid}\"/>");
        let _ = write!(svg, "<path class=\"plot-axis\" d=\"M{LEFT} {}H{RIGHT}\"/>", Pixels(bottom));
        let (middle, across) = (Pixels((top + bottom) / 2.0), Pixels((LEFT + RIGHT) / 2.0));
        let _ = write!(
            svg,
            "<g class=\"plot-label\">{numbers}<text x=\"{across}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(16 {middle}) rotate(-90)\" text-anchor=\"middle\">{}</text></g>",
            Pixels(bottom + 40.0),
            escape(&plot.x.label),
            escape(&plot.y.label)
        );
    }

    fn draw_series(&self, svg: &mut String, series: &Series) {
        let mut path = String::new();
        let mut seen = BTreeSet::new();
        let points = || series.points.iter().copied().filter(|point| is_finite(*point));
        for point in points() {
            let (x, y) = self.position(point);
            let _ = match (path.is_empty(), series.line) {
                (true, _) => write!(path, "M{x} {y}"),
                (false, Line::Steps) => write!(path, "H{x}V{y}"),
                (false, _) => write!(path, "L{x} {y}"),
            };
            seen.insert(x.to_string());
        }
        let colour = series.colour % COLOURS;
        let _ = write!(
            svg,
            "<g><title>{}</title><path class=\"plot-line{colour}\" d=\"{path}\" stroke-width=\"1.8\" stroke-linejoin=\"round\"/>",
            escape(&series.name)
        );
        // A single point is visible only as a dot.
        if seen.len() == 1 || (series.line == Line::Dotted && series.points.len() <= MAX_DOTS) {
            for point in points() {
                let (x, y) = self.position(point);
                let _ = write!(svg, "<circle class=\"plot-dot{colour}\" cx=\"{x}\" cy=\"{y}\" r=\"3\"/>");
            }
        }
        *svg += "</g>";
    }
}

//! Plots, drawn as SVG or PNG.

mod axis;
mod curve;
mod draw;
#[cfg_attr(not(feature = "png"), path = "plot/png/missing.rs")]
mod png;
mod theme;

pub(crate) use curve::{binned, points_for, ratios, smoothed};
pub(crate) use png::png;
pub(crate) use theme::style;

use std::fmt;

/// A plot.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plot {
    /// A short name for files.
    pub(crate) name: String,
    /// The title.
    pub(crate) title: String,
    /// The horizontal axis.
    pub(crate) x: Axis,
    /// The vertical axis.
    pub(crate) y: Axis,
    /// The curves.
    pub(crate) series: Vec<Series>,
}

/// An axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Axis {
    /// The label, with the unit.
    pub(crate) label: String,
    /// Whether it is logarithmic, if all values are above zero.
    pub(crate) logarithmic: bool,
    /// The lower end, or none; values below it extend the axis.
    pub(crate) from: Option<f64>,
    /// The upper end, or none; values above it extend the axis.
    pub(crate) to: Option<f64>,
    /// Whether values are shares, written in per cent.
    pub(crate) percent: bool,
    /// Whether values are whole numbers.
    pub(crate) whole: bool,
}

impl Axis {
    /// Makes an axis for any numbers.
    pub(crate) fn new(label: impl Into<String>) -> Self {
        Self { label: label.into(), ..Self::default() }
    }
}

/// A curve.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Series {
    /// Its name in the legend.
    pub(crate) name: String,
    /// The number of its colour, the same in every plot.
    pub(crate) colour: usize,
    /// The style of the curve.
    pub(crate) line: Line,
    /// Its points, in order; non-finite ones are left out.
    pub(crate) points: Vec<(f64, f64)>,
}

/// The style of a curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Lines from point to point.
    Plain,
    /// Lines from point to point, with dots if the points are few.
    Dotted,
    /// Steps: level until the next point.
    Steps,
}

impl Plot {
    /// Returns whether there is no point to draw.
    pub(crate) fn is_empty(&self) -> bool {
        self.series.iter().all(|series| series.points.iter().all(|point| !is_finite(*point)))
    }

    /// Draws the plot as part of a page that has the [`style`]s.
    pub(crate) fn to_inline_svg(&self) -> String {
        draw::svg(self, "")
    }

    /// Draws the plot as a separate file, in light colours.
    pub(crate) fn to_svg(&self) -> String {
        draw::svg(self, &style(false))
    }
}

fn is_finite((x, y): (f64, f64)) -> bool {
    x.is_finite() && y.is_finite()
}

/// A number of pixels, to a tenth.
struct Pixels(f64);

impl fmt::Display for Pixels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = (self.0 * 10.0).round() as i64;
        match tenths % 10 {
            0 => write!(f, "{}", tenths / 10),
            _ => write!(f, "{:.1}", tenths as f64 / 10.0),
        }
    }
}

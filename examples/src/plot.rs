//! Plots: what one shows, drawn in one way as SVG, or that as PNG.

mod axis;
mod curve;
mod draw;
mod png;
mod theme;

pub(crate) use curve::{binned, points_for, ratios, smoothed};
pub(crate) use png::png;
pub(crate) use theme::style;

use std::fmt;

/// What one plot shows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plot {
    /// A short name for files.
    pub(crate) name: String,
    /// What it shows, in a few words.
    pub(crate) title: String,
    /// The axis across.
    pub(crate) x: Axis,
    /// The axis upwards.
    pub(crate) y: Axis,
    /// The curves.
    pub(crate) series: Vec<Series>,
}

/// An axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Axis {
    /// What it counts, with the unit.
    pub(crate) label: String,
    /// By powers, where all values are above zero.
    pub(crate) logarithmic: bool,
    /// The least extent; what is drawn may make it larger.
    pub(crate) from: Option<f64>,
    /// Likewise.
    pub(crate) to: Option<f64>,
    /// Values are shares, to be written as per cent.
    pub(crate) percent: bool,
    /// Only whole numbers mean something.
    pub(crate) whole: bool,
}

impl Axis {
    /// An axis for any numbers.
    pub(crate) fn new(label: impl Into<String>) -> Self {
        Self { label: label.into(), ..Self::default() }
    }
}

/// A curve.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Series {
    /// What it is, for the legend.
    pub(crate) name: String,
    /// The number of its colour; equal numbers are equal colours in every plot.
    pub(crate) colour: usize,
    /// How it is drawn.
    pub(crate) line: Line,
    /// Its points, in order; those that are not finite are left out.
    pub(crate) points: Vec<(f64, f64)>,
}

/// How a curve is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// From point to point.
    Plain,
    /// From point to point, with a dot on each where there are few.
    Dotted,
    /// Level until the next point.
    Steps,
}

impl Plot {
    /// Whether there is anything to see.
    pub(crate) fn is_empty(&self) -> bool {
        self.series.iter().all(|series| series.points.iter().all(|point| !is_finite(*point)))
    }

    /// The plot as a part of a page that has the [`style`]s.
    pub(crate) fn to_inline_svg(&self) -> String {
        draw::svg(self, "")
    }

    /// The plot as a file of its own, in light colours.
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

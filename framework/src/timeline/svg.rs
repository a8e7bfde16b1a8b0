//! A timeline as a picture: one row for each stage, time from left to right, one rectangle for each action.

mod element;
mod palette;

use std::{collections::BTreeSet, fmt::Write, ops::Range};

use self::element::{Element, number};
use super::{
    Span, Timeline,
    time::{in_words, moment, ticks},
};
use crate::schedule::{Action, ActionKind, Purpose};

/// The content and the form of a drawing of a timeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawing<'a> {
    /// The title, a few words.
    pub title: &'a str,
    /// The window of time that is drawn, in seconds; by default the whole timeline. A picture takes about 200 bytes for each action.
    pub window: Option<Range<f64>>,
    /// The spans of the critical path, by index. They are outlined, and joined in the order of their starts.
    pub path: &'a [usize],
}

impl Default for Drawing<'_> {
    /// Draws the whole timeline, under a general title.
    fn default() -> Self {
        Self { title: "What each stage did when", window: None, path: &[] }
    }
}

const WIDTH: f64 = 1200.0;
const MARGIN: f64 = 28.0;
/// The left and right ends of the rows.
const LEFT: f64 = 92.0;
const RIGHT: f64 = 1084.0;
/// The place of the stages' busy shares.
const BUSY: Range<f64> = 1096.0..1136.0;
const LEGEND: f64 = 82.0;
/// The distance from the legend of the kinds to that of the texts in the rectangles.
const LEGEND_OF_TEXTS: f64 = 20.0;
const TOP: f64 = 154.0;
/// The least distance between two lines of text.
const LINE: f64 = 14.0;

/// The texts in the rectangles.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Texts {
    /// The notation of the actions, such as `W0.1`.
    Notation,
    /// The number of the micro-batch, or the letter of an action that has none.
    Numbers,
    /// None, since the rows are too low.
    None,
}

/// The positions of the parts of a picture.
struct Layout {
    window: Range<f64>,
    stages: usize,
    /// The distance between rows, and the height of a row.
    pitch: f64,
    row: f64,
}

impl Layout {
    fn new(window: Range<f64>, stages: usize) -> Self {
        let pitch = (900.0 / stages.max(1) as f64).clamp(2.0, 36.0);
        // Rows too low for a gap of a pixel have no gap.
        let row = if pitch < 5.0 { pitch } else { pitch * 0.8 };
        Self { window, stages, pitch, row }
    }

    fn x(&self, time: f64) -> f64 {
        let length = (self.window.end - self.window.start).max(f64::MIN_POSITIVE);
        LEFT + (time - self.window.start) / length * (RIGHT - LEFT)
    }

    fn y(&self, stage: usize) -> f64 {
        TOP + stage as f64 * self.pitch
    }

    fn bottom(&self) -> f64 {
        self.y(self.stages)
    }

    /// Whether the axis is repeated at the bottom.
    fn is_tall(&self) -> bool {
        self.bottom() > 600.0
    }

    /// The stages whose rows have text beside them: all, or every second, fifth, tenth …
    fn labelled(&self) -> impl Iterator<Item = usize> {
        let every = (0..).flat_map(|n| [1, 2, 5].map(|m| m * 10_usize.pow(n))).find(|&n| n as f64 * self.pitch >= LINE);
        (0..self.stages).step_by(every.unwrap_or(1))
    }

    /// Returns the left edge and the width of a span. Spans that are wide enough keep a small gap to the next.
    fn place(&self, span: &Span) -> (f64, f64) {
        let Range { start, end } = span.within(&self.window);
        let (x, width) = (self.x(start), self.x(end) - self.x(start));
        (x, if width > 4.0 { width - 0.7 } else { width.max(0.3) })
    }

    /// The size of the texts in the rectangles.
    fn text_size(&self) -> f64 {
        (self.row * 0.62).min(12.0)
    }

    /// Returns whether a text fits in the rectangle of a span.
    fn fits(&self, span: &Span, text: &str) -> bool {
        text.len() as f64 * self.text_size() * 0.6 + 2.0 <= self.place(span).1
    }

    /// Chooses the texts: the notation if it fits most of the rectangles.
    fn texts(&self, shown: &[&Span]) -> Texts {
        if self.text_size() < 6.0 {
            return Texts::None;
        }
        match shown.iter().filter(|span| self.fits(span, &span.action.to_string())).count() * 2 > shown.len() {
            true => Texts::Notation,
            false => Texts::Numbers,
        }
    }
}

impl Texts {
    /// Returns the text of an action; empty for none.
    fn of(self, action: &Action) -> String {
        match (self, action.micro_batch_index()) {
            (Self::None, _) => String::new(),
            (Self::Numbers, Some(micro)) => micro.to_string(),
            (Self::Notation, _) | (Self::Numbers, None) => action.to_string(),
        }
    }

    /// Returns the words of the legend for a kind, after its letter if rectangles of this kind have it.
    fn legend(self, kind: ActionKind) -> String {
        match self {
            Self::None => kind.name().to_owned(),
            Self::Numbers if kind.has_micro() => kind.name().to_owned(),
            Self::Notation | Self::Numbers => format!("{} {}", kind.letter(), kind.name()),
        }
    }

    /// Returns the words that explain the numbers, with the name of an action as the example; none if there are no numbers.
    fn explained(self, shown: &[&Span]) -> Option<String> {
        let actions = || shown.iter().map(|span| span.action);
        match self {
            Self::None => None,
            Self::Numbers => {
                actions().find(|action| action.micro_batch_index().is_some())?;
                Some("numbers are micro-batches".to_owned())
            }
            Self::Notation => {
                let example = actions().find(|action| action.loss().is_some());
                let example = example.or_else(|| actions().find(|action| action.micro_batch_index().is_some()))?;
                let mut words = format!("{example}: {}", example.kind().name());
                if let Some(micro) = example.micro_batch_index() {
                    words += &format!(" of micro-batch {micro}");
                }
                if let Some(loss) = example.loss() {
                    words += &format!(" for the loss of stage {loss}");
                }
                Some(words)
            }
        }
    }
}

impl Timeline {
    /// Returns the timeline as an SVG picture. Rows are stages, the first on top. Colours are kinds of action, in two shades that alternate with
    /// steps. The numbers at the right are the busy shares of the stages. The legend explains the texts in the rectangles, a tooltip each action.
    pub fn to_svg(&self, drawing: &Drawing<'_>) -> String {
        let window = drawing.window.clone().unwrap_or_else(|| self.extent());
        let layout = Layout::new(window, self.stages);
        let shown: Vec<&Span> =
            self.spans.iter().filter(|span| span.stage < self.stages && span.is_in(&layout.window)).collect();
        let height = layout.bottom() + if layout.is_tall() { 44.0 } else { 24.0 };
        let mut svg = Element::new("svg")
            .text("xmlns", "http://www.w3.org/2000/svg")
            .text("viewBox", format!("0 0 {WIDTH} {}", number(height)))
            .number("width", WIDTH)
            .number("height", height)
            .text("role", "img")
            .text("aria-labelledby", "title")
            .text("font-family", "Inter, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif")
            .number("font-size", 12.0)
            .text("fill", palette::TEXT);
        svg.push(Element::new("title").text("id", "title").content(drawing.title));
        svg.push(rect(0.0, 0.0, WIDTH, height).text("fill", palette::PAPER));
        let texts = layout.texts(&shown);
        self.draw_heading(&mut svg, drawing, &layout, (&shown, texts));
        self.draw_frame(&mut svg, &layout);
        svg.push(draw_spans(&layout, &shown));
        svg.push(draw_texts(&layout, &shown, texts));
        if !drawing.path.is_empty() {
            let path: Vec<&Span> = drawing.path.iter().filter_map(|&index| self.spans.get(index)).collect();
            svg.push(draw_path(&layout, path));
        }
        svg.to_string() + "\n"
    }

    /// Draws the title, the line below it, and the legend of the actions and their texts.
    fn draw_heading(
        &self,
        svg: &mut Element,
        drawing: &Drawing<'_>,
        layout: &Layout,
        (shown, texts): (&[&Span], Texts),
    ) {
        svg.push(label(MARGIN, 38.0, drawing.title).number("font-size", 18.0).number("font-weight", 700.0));
        let mut words = match self.stages {
            1 => "1 stage".to_owned(),
            stages => format!("{stages} stages"),
        };
        let steps: BTreeSet<u64> = shown.iter().filter(|s| s.action.trains()).map(|s| s.action.step()).collect();
        match (steps.first(), steps.last()) {
            (Some(first), Some(last)) if first == last => words += &format!(", step {first}"),
            (Some(first), Some(last)) => words += &format!(", steps {first} to {last}"),
            _ => {}
        }
        let busy = self.busy(&layout.window);
        let mean = busy.iter().sum::<f64>() / busy.len().max(1) as f64;
        let length = in_words(layout.window.end - layout.window.start);
        words += &format!(", {length}; on average, a stage is busy for {} of it", percent(mean));
        svg.push(label(MARGIN, 59.0, &words).number("font-size", 13.0).text("fill", palette::FAINT));

        let kinds: BTreeSet<ActionKind> = shown.iter().map(|span| span.action.kind()).collect();
        let mut x = MARGIN;
        for kind in kinds {
            let first = steps.first().copied().unwrap_or_default();
            for (half, step) in [(0.0, first), (8.0, first + u64::from(steps.len() > 1))] {
                svg.push(rect(x + half, LEGEND, 8.0, 12.0).text("fill", palette::fill(kind, step)));
            }
            let words = texts.legend(kind);
            svg.push(label(x + 22.0, LEGEND + 10.0, &words));
            x += 42.0 + 5.7 * words.len() as f64;
        }
        if !drawing.path.is_empty() {
            let line = rect(x + 1.0, LEGEND + 1.0, 14.0, 10.0).text("fill", "none").text("stroke", palette::PATH);
            svg.push(line.number("stroke-width", 1.8));
            svg.push(label(x + 22.0, LEGEND + 10.0, "critical path"));
        }
        let shades = (steps.len() > 1).then(|| "shades alternate with steps".to_owned());
        let notes: Vec<String> = texts.explained(shown).into_iter().chain(shades).collect();
        if !notes.is_empty() {
            let y = LEGEND + 10.0 + LEGEND_OF_TEXTS;
            svg.push(label(MARGIN, y, &notes.join("; ")).text("fill", palette::FAINT));
        }
    }

    /// Draws the axis and, beside the rows, the names and the busy shares of the stages.
    fn draw_frame(&self, svg: &mut Element, layout: &Layout) {
        let (top, bottom) = (TOP - 6.0, layout.bottom() + 4.0);
        let mut lanes = String::new();
        let mut bars = String::new();
        let busy = self.busy(&layout.window);
        for (stage, busy) in busy.iter().enumerate() {
            lanes += &outline(LEFT, layout.y(stage), RIGHT - LEFT, layout.row);
            lanes += &outline(BUSY.start, layout.y(stage), BUSY.end - BUSY.start, layout.row);
            bars += &outline(BUSY.start, layout.y(stage), (BUSY.end - BUSY.start) * busy.min(1.0), layout.row);
        }
        svg.push(Element::new("path").text("d", lanes).text("fill", palette::LANE));
        svg.push(Element::new("path").text("d", bars).text("fill", palette::BUSY));
        let mut lines = String::new();
        let mut times = Element::new("g").text("text-anchor", "middle").text("fill", palette::FAINT);
        for (time, words) in ticks(&layout.window, 10) {
            let x = number(layout.x(time));
            // Writing to a string cannot fail.
            let _ = write!(lines, "M{x} {}V{}", number(top), number(bottom));
            times.push(label(layout.x(time), top - 6.0, &words));
            if layout.is_tall() {
                times.push(label(layout.x(time), bottom + 16.0, &words));
            }
        }
        svg.push(Element::new("path").text("d", lines).text("stroke", palette::LINE));
        svg.push(times);
        let mut names = Element::new("g").text("text-anchor", "end");
        let mut shares = Element::new("g");
        shares.push(label(BUSY.end + 8.0, top - 6.0, "busy").text("fill", palette::FAINT));
        for stage in layout.labelled() {
            let y = layout.y(stage) + layout.row / 2.0 + 4.2;
            names.push(label(LEFT - 10.0, y, &format!("stage {stage}")));
            shares.push(label(BUSY.end + 8.0, y, &percent(busy[stage])));
        }
        svg.push(names);
        svg.push(shares);
    }
}

/// Draws a rectangle for each span. A rectangle has a tooltip unless it is too narrow.
fn draw_spans(layout: &Layout, shown: &[&Span]) -> Element {
    let mut group = Element::new("g").text("id", "actions");
    for span in shown {
        let (x, width) = layout.place(span);
        let mut rect = rect(x, layout.y(span.stage), width, layout.row)
            .text("fill", palette::fill(span.action.kind(), span.action.step()));
        if width > 0.5 {
            rect.push(Element::new("title").content(&in_full(span, layout)));
        }
        group.push(rect);
    }
    group
}

/// Draws the texts in the rectangles that are wide enough.
fn draw_texts(layout: &Layout, shown: &[&Span], texts: Texts) -> Element {
    let size = layout.text_size();
    let mut group = Element::new("g")
        .number("font-size", size)
        .number("font-weight", 600.0)
        .text("text-anchor", "middle")
        .text("pointer-events", "none")
        .text("fill", palette::NAME);
    for span in shown {
        let text = texts.of(&span.action);
        if !text.is_empty() && layout.fits(span, &text) {
            let (x, width) = layout.place(span);
            group.push(label(x + width / 2.0, layout.y(span.stage) + layout.row / 2.0 + size * 0.36, &text));
        }
    }
    group
}

/// Draws an outline around each span of a path, and lines from one to the next.
fn draw_path(layout: &Layout, mut path: Vec<&Span>) -> Element {
    path.sort_by(|a, b| a.start.total_cmp(&b.start));
    path.retain(|span| span.stage < layout.stages && span.is_in(&layout.window));
    let middle = |stage: usize| layout.y(stage) + layout.row / 2.0;
    let mut line = String::new();
    let mut before: Option<(f64, f64)> = None;
    for span in path {
        let (x, width) = layout.place(span);
        if let Some((x0, y0)) = before {
            let _ = write!(line, "M{} {}L{} {}", number(x0), number(y0), number(x), number(middle(span.stage)));
        }
        line += &outline(x, layout.y(span.stage), width, layout.row);
        before = Some((x + width, middle(span.stage)));
    }
    Element::new("path")
        .text("id", "path")
        .text("d", line)
        .text("fill", "none")
        .text("pointer-events", "none")
        .text("stroke", palette::PATH)
        .number("stroke-width", if layout.row < 8.0 { 1.0 } else { 1.8 })
}

/// Returns the description of an action, in words.
fn in_full(span: &Span, layout: &Layout) -> String {
    let Span { stage, action, start, end } = span;
    let mut words = format!("stage {stage}: {}", action.kind().name());
    if let Some(loss) = action.loss() {
        words += &format!(" of loss {loss}");
    }
    if let Some(micro) = action.micro_batch_index() {
        words += &format!(", micro-batch {micro}");
    }
    let evaluates = |micro_batch: &crate::schedule::MicroBatchId| micro_batch.purpose == Purpose::Evaluate;
    match action {
        Action::Forward(micro_batch) | Action::Head { micro_batch, .. } if evaluates(micro_batch) => {
            words += &format!(" of the evaluation before step {}", micro_batch.step);
        }
        _ => words += &format!(", step {}", action.step()),
    }
    format!("{words}; from {}, for {}", moment(*start, &layout.window), in_words(end - start))
}

fn percent(share: f64) -> String {
    let decimals = usize::from(share > 0.0 && share < 0.0095);
    format!("{:.decimals$} %", share * 100.0)
}

fn rect(x: f64, y: f64, width: f64, height: f64) -> Element {
    Element::new("rect").number("x", x).number("y", y).number("width", width).number("height", height)
}

/// Returns the outline of a rectangle, as a part of a path.
fn outline(x: f64, y: f64, width: f64, height: f64) -> String {
    let (x, y, width, height) = (number(x), number(y), number(width), number(height));
    format!("M{x} {y}h{width}v{height}h-{width}z")
}

fn label(x: f64, y: f64, words: &str) -> Element {
    Element::new("text").number("x", x).number("y", y).content(words)
}

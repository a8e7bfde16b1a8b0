//! Draws a view on the terminal.

use std::ops::Range;

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Style, Stylize},
    text::{Line, Span, Text},
    widgets::{Block, Cell, Clear, Paragraph, Row, Sparkline, Table, TableState},
};

use interlock::tools::metrics::{MEMORY, PHASES};

use super::{
    how,
    model::{StageView, View},
    plain,
    watch::Watch,
    words,
};

/// The colours of the phases, in the order of [`PHASES`].
const COLOURS: [Color; PHASES.len()] =
    [Color::Blue, Color::Magenta, Color::Cyan, Color::Green, Color::LightGreen, Color::Yellow];
/// The width of the bar of a stage's busy share.
const BAR_WIDTH: usize = 6;
/// The width of a stage's phases in the table of stages.
const PHASES_WIDTH: usize = 15;

/// A column of the table of stages.
struct StageColumn {
    value: Value,
    /// The two lines of its heading.
    heading: [&'static str; 2],
    width: u16,
    /// On a narrow terminal the columns of the highest ranks are left out.
    rank: u8,
    /// What it shows, for the legend.
    meaning: &'static str,
}

/// The value in a column of the table of stages.
#[derive(Clone, Copy)]
enum Value {
    Stage,
    Device,
    Follows,
    TrainingLoss,
    ValidationLoss,
    TrainingAccuracy,
    ValidationAccuracy,
    Gradient,
    Bar,
    Busy,
    Mailbox,
    InFlight,
    Phases,
    Memory,
    Last,
}

const fn column(value: Value, heading: [&'static str; 2], width: u16, rank: u8, meaning: &'static str) -> StageColumn {
    StageColumn { value, heading, width, rank, meaning }
}

/// The columns of the table of stages. Those of rank 0 fit in 80 columns, all in 130.
const COLUMNS: [StageColumn; 15] = [
    column(Value::Stage, ["", "stage"], 5, 0, "its number, from 0"),
    column(Value::Device, ["", "device"], 13, 0, "the device that it is pinned to"),
    column(Value::Follows, ["", "follows"], 7, 0, "the stages whose losses it follows, and its width"),
    column(Value::TrainingLoss, ["train.", "loss"], 6, 0, "its head's mean loss on the last training batch"),
    column(Value::ValidationLoss, ["valid.", "loss"], 6, 0, "the same at the last evaluation on the validation set"),
    column(Value::TrainingAccuracy, ["train.", "acc. %"], 6, 5, "its head's accuracy on the last training batch"),
    column(Value::ValidationAccuracy, ["valid.", "acc. %"], 6, 0, "the same at the last evaluation"),
    column(Value::Gradient, ["gradient", "norm"], 8, 2, "the norm of its gradient, before clipping"),
    column(Value::Bar, ["", ""], BAR_WIDTH as u16, 3, ""),
    column(
        Value::Busy,
        ["busy %", "(simulated)"],
        11,
        0,
        "the share of the time in which it computes; ┃ is the simulated one",
    ),
    column(Value::Mailbox, ["", "mailbox"], 7, 0, "messages in its mailbox, and its capacity"),
    column(Value::InFlight, ["in", "flight"], 6, 0, "micro-batches that it holds"),
    column(Value::Phases, ["what it", "computes"], PHASES_WIDTH as u16, 6, "the phases of its time, in these colours"),
    column(Value::Memory, ["", "memory"], 6, 4, "its peak memory in the last step"),
    column(Value::Last, ["", "last"], 6, 1, "time since it finished a computation"),
];

/// Returns the columns of stages that fit in this width.
fn fitting(width: u16) -> impl Iterator<Item = &'static StageColumn> {
    let taken = |rank: u8| COLUMNS.iter().filter(|c| c.rank <= rank).map(|c| c.width + 1).sum::<u16>() - 1;
    let greatest = (1..=6).rev().find(|&rank| taken(rank) <= width).unwrap_or(0);
    COLUMNS.iter().filter(move |column| column.rank <= greatest)
}

/// The selection on the screen.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Choice {
    /// The number of the endpoint.
    pub(super) endpoint: usize,
    /// The number of its stage.
    pub(super) stage: usize,
    pub(super) paused: bool,
    /// Whether the legend is shown.
    pub(super) legend: bool,
}

/// Draws the chosen one of `watches`.
pub(super) fn draw(frame: &mut Frame<'_>, watches: &[Watch], choice: Choice) {
    let watch = &watches[choice.endpoint];
    if !watch.answered {
        draw_waiting(frame, watches, choice);
        return;
    }
    let view = &watch.view;
    let [header, stages, details, boundaries, history, footer] = areas(frame.area(), view);
    draw_header(frame, header, watches, choice);
    draw_stages(frame, stages, view, choice.stage);
    if let Some(stage) = view.stages.get(choice.stage) {
        draw_details(frame, details, stage);
    }
    draw_boundaries(frame, boundaries, view, choice.stage);
    draw_history(frame, history, watch);
    let pause = if choice.paused { "go on" } else { "pause" };
    let keys = format!(" q quit  p {pause}  ? legend  ↑↓ stage{}", next_pipeline(watches));
    frame.render_widget(Line::from(keys).dim(), footer);
    if choice.legend {
        draw_legend(frame);
    }
}

/// Returns the key for other endpoints, if there are any.
fn next_pipeline(watches: &[Watch]) -> &'static str {
    if watches.len() > 1 { "  tab next pipeline" } else { "" }
}

/// Returns the number of the chosen endpoint, if there are several.
fn position(watches: &[Watch], choice: Choice) -> Span<'static> {
    match watches.len() {
        1 => Span::default(),
        several => Span::from(format!("  {} of {several}", choice.endpoint + 1)).dim(),
    }
}

/// Draws an endpoint that has never answered.
fn draw_waiting(frame: &mut Frame<'_>, watches: &[Watch], choice: Choice) {
    let watch = &watches[choice.endpoint];
    let title = Span::from(format!(" waiting for {} …", watch.address)).bold().yellow();
    let problem = watch.trouble.as_ref().map_or_else(String::new, |trouble| format!(" {}", trouble.problem));
    let lines = vec![
        Line::from_iter([title, position(watches, choice)]),
        Line::from(format!(" {}", how(&watch.address))),
        Line::from(problem).dim(),
        Line::default(),
        Line::from(format!(" q quit{}", next_pipeline(watches))).dim(),
    ];
    frame.render_widget(Paragraph::new(lines), frame.area());
}

/// Draws the meanings of the columns and colours of the table of stages, over everything else.
fn draw_legend(frame: &mut Frame<'_>) {
    let mut lines: Vec<Line<'_>> = COLUMNS
        .iter()
        .filter(|column| !column.meaning.is_empty())
        .map(|column| {
            let heading = column.heading.join(" ");
            Line::from_iter([Span::from(format!(" {:<19}", heading.trim())).bold(), Span::from(column.meaning)])
        })
        .collect();
    let colours =
        PHASES.iter().zip(COLOURS).map(|(phase, colour)| Span::from(format!(" ▆ {}", words::phase(phase))).fg(colour));
    lines.push(Line::from_iter(colours));
    lines.push(Line::from(
        " A stage is red if it has met a non-finite value, its time if it has finished nothing for 30 s.",
    ));
    let whole = frame.area();
    let width = lines.iter().map(Line::width).max().unwrap_or(0);
    let tall = |rows: usize| u16::try_from(rows + 2).unwrap_or(u16::MAX);
    let area = Rect { width: tall(width).min(whole.width), height: tall(lines.len()).min(whole.height), ..whole };
    let block = Block::bordered().title(" legend  ? closes it ");
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

/// Returns the areas of header, stages, the chosen stage, boundaries, history and footer. Stages and boundaries get as many lines as fit.
fn areas(whole: Rect, view: &View) -> [Rect; 6] {
    const FIXED: [u16; 4] = [3, 5, 5, 1];
    // The frame and the lines of headings.
    let tall = |rows: usize, headings: u16| u16::try_from(rows).unwrap_or(u16::MAX).saturating_add(2 + headings);
    let (stages, boundaries) = (tall(view.stages.len(), 2), tall(view.boundaries.len(), 1));
    let space = whole.height.saturating_sub(FIXED.iter().sum());
    let boundaries = boundaries.min((space / 3).max(space.saturating_sub(stages)));
    let stages = stages.min(space - boundaries);
    let [header, details, history, footer] = FIXED;
    let heights = [header, stages, details, boundaries].map(Constraint::Length);
    let heights = heights.into_iter().chain([Constraint::Min(history), Constraint::Length(footer)]);
    Layout::vertical(heights).areas(whole)
}

fn draw_header(frame: &mut Frame<'_>, area: Rect, watches: &[Watch], choice: Choice) {
    let watch = &watches[choice.endpoint];
    let view = &watch.view;
    let colour = match view.state.as_str() {
        "training" | "finished" => Color::Green,
        "failed" => Color::Red,
        _ => Color::Yellow,
    };
    let mut title = vec![
        Span::from(" ● ").fg(colour),
        Span::from(view.state.clone()).bold().fg(colour),
        Span::from(format!("  {}", view.pipeline)).bold(),
        Span::from(format!("  {}  {}, {}  ", view.run, view.model, view.strategy)),
        Span::from(watch.address.clone()).dim(),
    ];
    title.push(position(watches, choice));
    let notice = match (&watch.trouble, choice.paused) {
        (Some(trouble), _) => {
            let since = words::time(Some(trouble.since.elapsed().as_secs_f64()));
            let last = "these are the last values, until a run answers";
            Line::from(format!(" no answer for {since}: {}; {last}", trouble.problem)).red()
        }
        (None, true) => Line::from(" paused").yellow(),
        (None, false) => Line::default(),
    };
    let lines = vec![Line::from(title), Line::from(format!(" {}", plain::summary(view))), notice];
    frame.render_widget(Paragraph::new(lines), area);
}

fn draw_stages(frame: &mut Frame<'_>, area: Rect, view: &View, chosen: usize) {
    let columns: Vec<&StageColumn> = fitting(area.width.saturating_sub(2)).collect();
    let heading = |column: &&StageColumn| Text::from_iter(column.heading.map(Line::from));
    let header = Row::new(columns.iter().map(heading)).height(2).dim();
    let shown = visible(view.stages.len(), chosen, area.height.saturating_sub(2 + 2));
    let rows = view.stages[shown.clone()].iter().map(|stage| {
        let row = Row::new(columns.iter().map(|column| cell(column, stage, view)));
        if stage.not_finite > 0.0 { row.red() } else { row }
    });
    let widths = columns.iter().map(|column| column.width);
    let table = Table::new(rows, widths.map(Constraint::Length))
        .header(header)
        .row_highlight_style(Style::new().bg(Color::DarkGray))
        .block(Block::bordered().title(" stages ").border_style(Style::new().dim()));
    let mut state = TableState::new().with_selected(Some(chosen.saturating_sub(shown.start)));
    frame.render_stateful_widget(table, area, &mut state);
}

/// Returns the rows of a table that are drawn in this height, so that the chosen one is among them.
fn visible(rows: usize, chosen: usize, height: u16) -> Range<usize> {
    let height = usize::from(height).max(1);
    let first = (chosen + 1).saturating_sub(height).min(rows);
    first..rows.min(first + height)
}

/// Returns the cell of a stage in a column.
fn cell(column: &StageColumn, stage: &StageView, view: &View) -> Cell<'static> {
    let right = |text: String| right(text, column.width.into());
    match column.value {
        Value::Stage => right(stage.index.to_string()),
        Value::Device => Cell::from(stage.device.clone()),
        Value::Follows => Cell::from(plain::follows(stage)),
        Value::TrainingLoss => right(words::number(stage.loss)),
        Value::ValidationLoss => right(words::number(stage.validation_loss)),
        Value::TrainingAccuracy => right(words::percent(stage.accuracy)),
        Value::ValidationAccuracy => right(words::percent(stage.validation_accuracy)),
        Value::Gradient => right(words::number(stage.gradient_norm)),
        Value::Bar => Cell::from(bar(stage)),
        Value::Busy => {
            let simulated = stage.simulated_busy.map(|share| format!(" ({})", words::percent(Some(share))));
            right(words::percent(stage.busy) + &simulated.unwrap_or_default())
        }
        Value::Mailbox => right(plain::mailbox(stage)),
        Value::InFlight => right(words::count(stage.in_flight)),
        Value::Phases => Cell::from(split(stage, PHASES_WIDTH)),
        Value::Memory => right(words::bytes(Some(stage.memory.iter().sum()))),
        Value::Last => {
            let late = stage.since_progress.is_some_and(|since| since > 30.0) && view.state == "training";
            let last = right(words::time(stage.since_progress));
            if late { last.style(Style::new().red()) } else { last }
        }
    }
}

fn right(text: String, width: usize) -> Cell<'static> {
    Cell::from(format!("{text:>width$}"))
}

/// Returns a bar for the busy share of a stage, with a mark at the simulated share.
fn bar(stage: &StageView) -> Line<'static> {
    let cells = |share: f64| (share * BAR_WIDTH as f64).round() as usize;
    let filled = stage.busy.map_or(0, cells);
    let mark = stage.simulated_busy.map(|share| cells(share).clamp(1, BAR_WIDTH) - 1);
    Line::from_iter((0..BAR_WIDTH).map(|i| match (i < filled, mark == Some(i)) {
        (_, true) => Span::from("┃").yellow(),
        (true, false) => Span::from("█").green(),
        (false, false) => Span::from("░").dim(),
    }))
}

/// Returns a strip of cells in the colours of the stage's phases.
fn split(stage: &StageView, cells: usize) -> Line<'static> {
    let mut spans = Vec::new();
    let (mut sum, mut from) = (0.0, 0);
    for (i, share) in stage.phases.iter().enumerate() {
        sum += share;
        let to = (sum * cells as f64).round() as usize;
        let to = to.clamp(from, cells);
        spans.push(Span::from("▆".repeat(to - from)).fg(COLOURS[i]));
        from = to;
    }
    Line::from(spans)
}

fn draw_details(frame: &mut Frame<'_>, area: Rect, stage: &StageView) {
    let mut phases = split(stage, 10).spans;
    for (i, (share, phase)) in stage.phases.iter().zip(PHASES).enumerate().filter(|(_, (share, _))| **share > 0.0) {
        phases.push(Span::from(format!("  {} ", words::phase(phase))).fg(COLOURS[i]));
        phases.push(Span::from(format!("{} %", words::percent(Some(*share)))));
    }
    if stage.phases.is_empty() {
        phases.push(Span::from("nothing was computed").dim());
    }
    let memory: Vec<String> =
        MEMORY.iter().zip(&stage.memory).map(|(k, b)| format!("{k} {}", words::bytes(Some(*b)))).collect();
    let mut rest = format!(
        "waits of activations {}, of gradients {}   in flight {}   mailbox {}",
        words::time(stage.activation_wait),
        words::time(stage.gradient_wait),
        words::count(stage.in_flight),
        plain::mailbox(stage)
    );
    if stage.alignment.is_some() {
        rest += &format!("   alignment {}", words::number(stage.alignment));
    }
    if stage.not_finite > 0.0 {
        rest += &format!("   not finite {}", words::count(Some(stage.not_finite)));
    }
    let block = Block::bordered().title(format!(" stage {} ", stage.index)).border_style(Style::new().dim());
    frame.render_widget(
        Paragraph::new(vec![
            Line::from(phases),
            Line::from(rest),
            Line::from(format!("memory: {}", memory.join(", "))),
        ])
        .block(block),
        area,
    );
}

fn draw_boundaries(frame: &mut Frame<'_>, area: Rect, view: &View, chosen: usize) {
    // Together with the first column, gaps and frame, 80 columns.
    const WIDTHS: [usize; 6] = [13, 10, 9, 11, 10, 9];
    let chosen = chosen.min(view.boundaries.len().saturating_sub(1));
    let shown = visible(view.boundaries.len(), chosen, area.height.saturating_sub(2 + 1));
    let rows = view.boundaries[shown.clone()].iter().map(|boundary| {
        let ends = format!("{:>3} ⇄ {}", boundary.from, boundary.to);
        let cells = plain::traffic(&boundary.activations).into_iter().chain(plain::traffic(&boundary.gradients));
        Row::new([Cell::from(ends)].into_iter().chain(cells.zip(WIDTHS).map(|(text, width)| right(text, width))))
    });
    let header = ["stages", "activations/s", "bytes", "transfer", "gradients/s", "bytes", "transfer"];
    let headings = header[1..].iter().zip(WIDTHS).map(|(text, width)| right((*text).to_owned(), width));
    let header = Row::new([Cell::from(header[0])].into_iter().chain(headings));
    let widths = [9].into_iter().chain(WIDTHS.map(|width| width as u16));
    let table = Table::new(rows, widths.map(Constraint::Length))
        .header(header.dim())
        .block(Block::bordered().title(" boundaries ").border_style(Style::new().dim()));
    let mut state = TableState::new().with_selected((!view.boundaries.is_empty()).then(|| chosen - shown.start));
    frame.render_stateful_widget(table, area, &mut state);
}

fn draw_history(frame: &mut Frame<'_>, area: Rect, watch: &Watch) {
    let [loss, speed] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(area);
    let titles = [
        format!(" loss of the last stage {} ", words::number(watch.view.loss())),
        format!(" examples/s {} ", words::rate(watch.view.examples_per_second)),
    ];
    for (area, title, values, colour, from_zero) in
        [(loss, &titles[0], &watch.losses, Color::Cyan, false), (speed, &titles[1], &watch.speeds, Color::Green, true)]
    {
        let space = area.width.saturating_sub(2).into();
        let shown: Vec<f64> = values.iter().skip(values.len().saturating_sub(space)).copied().collect();
        let sparkline = Sparkline::default()
            .data(heights(&shown, from_zero))
            .max(MAX_HEIGHT)
            .style(Style::new().fg(colour))
            .block(Block::bordered().title(title.as_str()).border_style(Style::new().dim()));
        frame.render_widget(sparkline, area);
    }
}

/// The height of the greatest value.
const MAX_HEIGHT: u64 = 24;

/// Returns values as heights up to [`MAX_HEIGHT`]. The least value has height 1; with `from_zero`, heights are proportional to values instead.
fn heights(values: &[f64], from_zero: bool) -> Vec<u64> {
    let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let least = if from_zero { 0.0 } else { values.iter().copied().fold(f64::INFINITY, f64::min) };
    let least_height = if from_zero { 0.0 } else { 1.0 };
    let range = greatest - least;
    let height = |value: &f64| match range > 0.0 {
        true => least_height + (value - least) / range * (MAX_HEIGHT as f64 - least_height),
        false => least_height,
    };
    values.iter().map(|value| height(value).round() as u64).collect()
}

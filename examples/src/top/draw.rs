//! Draws a view on the terminal.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Style, Stylize},
    text::{Line, Span},
    widgets::{Block, Cell, Paragraph, Row, Sparkline, Table, TableState},
};

use interlock::tools::metrics::{MEMORY, PHASES};

use super::{
    model::{StageView, View},
    plain,
    watch::Watch,
    words,
};

/// The colours of the phases, in the order of [`PHASES`].
const COLOURS: [Color; PHASES.len()] =
    [Color::Blue, Color::Magenta, Color::Cyan, Color::Green, Color::LightGreen, Color::Yellow];
/// The width of the bar of a stage's busy share.
const BAR_WIDTH: usize = 8;
/// The number of columns from which on the table of stages shows the phases of their time.
const WIDE_TERMINAL: u16 = 130;
/// The width of a stage's phases in that table.
const PHASES_WIDTH: usize = 24;

/// The selection on the screen.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Choice {
    /// The number of the endpoint.
    pub(super) endpoint: usize,
    /// The number of its stage.
    pub(super) stage: usize,
    pub(super) paused: bool,
}

/// Draws the chosen one of `watches`.
pub(super) fn draw(frame: &mut Frame<'_>, watches: &[Watch], choice: Choice) {
    let watch = &watches[choice.endpoint];
    let view = &watch.view;
    let [header, stages, details, boundaries, history, footer] = areas(frame.area(), view);
    draw_header(frame, header, watches, choice);
    draw_stages(frame, stages, view, choice.stage);
    if let Some(stage) = view.stages.get(choice.stage) {
        draw_details(frame, details, stage);
    }
    draw_boundaries(frame, boundaries, view, choice.stage);
    draw_history(frame, history, watch);
    let more = if watches.len() > 1 { "  tab next pipeline" } else { "" };
    let keys = format!(" q quit  p {}  ↑↓ stage{more}", if choice.paused { "go on" } else { "pause" });
    frame.render_widget(Line::from(keys).dim(), footer);
}

/// Returns the areas of header, stages, the chosen stage, boundaries, history and footer. Stages and boundaries get as many lines as fit.
fn areas(whole: Rect, view: &View) -> [Rect; 6] {
    const FIXED: [u16; 4] = [3, 5, 5, 1];
    const FRAME: u16 = 3;
    let tall = |rows: usize| u16::try_from(rows).unwrap_or(u16::MAX).saturating_add(FRAME);
    let space = whole.height.saturating_sub(FIXED.iter().sum());
    let boundaries = tall(view.boundaries.len()).min((space / 3).max(space.saturating_sub(tall(view.stages.len()))));
    let stages = tall(view.stages.len()).min(space - boundaries);
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
    if watches.len() > 1 {
        title.push(Span::from(format!("  {} of {}", choice.endpoint + 1, watches.len())).dim());
    }
    let notice = match (&watch.trouble, choice.paused) {
        (Some(trouble), _) => {
            let since = words::time(Some(trouble.since.elapsed().as_secs_f64()));
            Line::from(format!(" no answer for {since}: {}; these are the last values", trouble.problem)).red()
        }
        (None, true) => Line::from(" paused").yellow(),
        (None, false) => Line::default(),
    };
    let lines = vec![Line::from(title), Line::from(format!(" {}", plain::summary(view))), notice];
    frame.render_widget(Paragraph::new(lines), area);
}

fn draw_stages(frame: &mut Frame<'_>, area: Rect, view: &View, chosen: usize) {
    let wide = area.width >= WIDE_TERMINAL;
    let mut header =
        vec!["stage", "device", "follows", "loss", "valid.", "acc %", "grad.", "busy (simulated)", "mail", "fly"];
    let mut widths = vec![5, 13, 7, 6, 6, 5, 6, BAR_WIDTH as u16 + 10, 6, 3];
    if wide {
        header.push("what it computes");
        widths.push(PHASES_WIDTH as u16);
    }
    header.extend(["memory", "last"]);
    widths.extend([6, 6]);
    let rows = view.stages.iter().map(|stage| {
        let mut cells = vec![
            right(stage.index.to_string(), 5),
            Cell::from(stage.device.clone()),
            Cell::from(plain::follows(stage)),
            right(words::number(stage.loss), 6),
            right(words::number(stage.validation_loss), 6),
            right(plain::accuracy(stage), 5),
            right(words::number(stage.gradient_norm), 6),
            Cell::from(busy(stage)),
            right(plain::mailbox(stage), 6),
            right(words::count(stage.in_flight), 3),
        ];
        if wide {
            cells.push(Cell::from(split(stage, PHASES_WIDTH)));
        }
        let late = stage.since_progress.is_some_and(|since| since > 30.0) && view.state == "training";
        let last = right(words::time(stage.since_progress), 6);
        cells.push(right(words::bytes(Some(stage.memory.iter().sum())), 6));
        cells.push(if late { last.style(Style::new().red()) } else { last });
        let row = Row::new(cells);
        if stage.not_finite > 0.0 { row.red() } else { row }
    });
    let table = Table::new(rows, widths.into_iter().map(Constraint::Length))
        .header(Row::new(header).dim())
        .row_highlight_style(Style::new().bg(Color::DarkGray))
        .block(Block::bordered().title(" stages ").border_style(Style::new().dim()));
    let mut state = TableState::new().with_selected(Some(chosen));
    frame.render_stateful_widget(table, area, &mut state);
}

fn right(text: String, width: usize) -> Cell<'static> {
    Cell::from(format!("{text:>width$}"))
}

/// Returns a bar for the busy share of a stage, with a mark at the simulated share, and both numbers.
fn busy(stage: &StageView) -> Line<'static> {
    let cells = |share: f64| (share * BAR_WIDTH as f64).round() as usize;
    let filled = stage.busy.map_or(0, cells);
    let mark = stage.simulated_busy.map(|share| cells(share).clamp(1, BAR_WIDTH) - 1);
    let bar = (0..BAR_WIDTH).map(|i| match (i < filled, mark == Some(i)) {
        (_, true) => Span::from("┃").yellow(),
        (true, false) => Span::from("█").green(),
        (false, false) => Span::from("░").dim(),
    });
    let simulated =
        stage.simulated_busy.map_or_else(String::new, |share| format!(" ({})", words::percent(Some(share))));
    let numbers = format!(" {:>3}{simulated}", words::percent(stage.busy));
    Line::from_iter(bar.chain([Span::from(numbers)]))
}

/// Returns a strip of cells in the colours of the stage's phases.
fn split(stage: &StageView, cells: usize) -> Line<'static> {
    let mut spans = Vec::new();
    let (mut sum, mut from) = (0.0, 0);
    for (i, share) in stage.phases.iter().enumerate() {
        sum += share;
        let to = (sum * cells as f64).round() as usize;
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
    let rows = view.boundaries.iter().map(|boundary| {
        let ends = format!("{:>3} ⇄ {}", boundary.from, boundary.to);
        let cells = plain::traffic(&boundary.activations).into_iter().chain(plain::traffic(&boundary.gradients));
        Row::new([Cell::from(ends)].into_iter().chain(cells.map(|text| right(text, 12))))
    });
    let header = ["stages", "activations/s", "bytes", "transfer", "gradients/s", "bytes", "transfer"];
    let header = header
        .iter()
        .enumerate()
        .map(|(i, text)| if i == 0 { Cell::from(*text) } else { right((*text).to_owned(), 12) });
    let table = Table::new(rows, [9, 13, 12, 12, 12, 12, 12].map(Constraint::Length))
        .header(Row::new(header).dim())
        .block(Block::bordered().title(" boundaries ").border_style(Style::new().dim()));
    let mut state = TableState::new().with_selected(view.boundaries.len().checked_sub(1).map(|last| chosen.min(last)));
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

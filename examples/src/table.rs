//! Tables on the terminal.

use std::{
    fmt,
    io::{self, IsTerminal},
};

use console::{Alignment, measure_text_width, pad_str};
use interlock::{Evaluation, Report};
use interlock_models::data::DataKind;

use crate::{progress::columns, terminal::in_one_line};

/// The measure by which heads are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    Accuracy,
    Perplexity,
}

impl Measure {
    pub(crate) fn of(data: &DataKind) -> Self {
        match data {
            DataKind::Images { .. } | DataKind::Vectors { .. } => Self::Accuracy,
            DataKind::Text { .. } => Self::Perplexity,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::Perplexity => "perplexity",
        }
    }

    /// Returns the score as text, or a dash without a head.
    fn show(self, accuracy: Option<f64>, loss: Option<f64>) -> String {
        match self {
            Self::Accuracy => accuracy.map_or_else(dash, |a| format!("{a:.4}")),
            Self::Perplexity => loss.map_or_else(dash, |l| format!("{:.3}", l.exp())),
        }
    }
}

pub(crate) fn dash() -> String {
    "-".to_owned()
}

/// A table, which prints as text.
///
/// On a terminal that is too narrow, texts are broken at spaces and after commas, but never within a word or between a number and its unit. If that is
/// not enough, the columns that do not fit follow in another table below, after the columns that name the rows.
pub(crate) struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
    /// The number of columns, from the first, that name a row.
    names: usize,
    /// Whether the cells of all columns but the first are aligned right.
    right: bool,
}

/// Creates a table whose first column names its rows.
pub(crate) fn table(header: &[&str]) -> Table {
    let header = header.iter().map(|&heading| heading.to_owned()).collect();
    Table { header, rows: Vec::new(), names: 1, right: false }
}

/// The characters between the texts of two columns.
const GAP: usize = 2;

impl Table {
    /// Makes the first `count` columns name the rows.
    pub(crate) fn named_by(self, count: usize) -> Self {
        Self { names: count, ..self }
    }

    /// Aligns all columns but the first right.
    pub(crate) fn aligned_right(self) -> Self {
        Self { right: true, ..self }
    }

    pub(crate) fn add_row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| in_one_line(&cell).into_owned()).collect());
    }

    /// Returns the text for a terminal of this many columns, or of any width.
    pub(crate) fn within(&self, width: Option<usize>) -> String {
        let columns: Vec<Column> = (0..self.header.len()).map(|n| Column::new(self, n)).collect();
        let taken = |shown: &[usize], of: fn(&Column) -> usize| -> usize {
            shown.iter().map(|&n| of(&columns[n]) + GAP).sum::<usize>().saturating_sub(GAP)
        };
        let every: Vec<usize> = (0..columns.len()).collect();
        let Some(width) = width.filter(|&width| taken(&every, |column| column.widest) > width) else {
            return self.draw(&every, &columns.iter().map(|column| column.widest).collect::<Vec<_>>());
        };
        let (names, mut rest) = every.split_at(self.names.min(every.len()));
        let mut parts = Vec::new();
        while parts.is_empty() || !rest.is_empty() {
            let fits = |&count: &usize| {
                let shown = [names, &rest[..count]].concat();
                taken(&shown, |column| column.narrowest) <= width
            };
            // At least one column besides the names, whether it fits or not.
            let count = (0..=rest.len()).rev().find(fits).unwrap_or(0).max(1).min(rest.len());
            let shown = [names, &rest[..count]].concat();
            let mut spare = width.saturating_sub(taken(&shown, |column| column.narrowest));
            let widths: Vec<usize> = shown
                .iter()
                .map(|&n| {
                    let Column { narrowest, widest, .. } = columns[n];
                    let more = spare.min(widest - narrowest);
                    spare -= more;
                    narrowest + more
                })
                .collect();
            parts.push(self.draw(&shown, &widths));
            rest = &rest[count..];
        }
        parts.join("\n")
    }

    /// Draws these columns with lines of at most these widths.
    fn draw(&self, columns: &[usize], widths: &[usize]) -> String {
        let total = widths.iter().map(|width| width + GAP).sum::<usize>().saturating_sub(GAP);
        let mut lines = vec!["─".repeat(total)];
        self.add_lines(&mut lines, &self.header, columns, widths);
        lines.push("═".repeat(total));
        for row in &self.rows {
            self.add_lines(&mut lines, row, columns, widths);
        }
        lines.push("─".repeat(total));
        lines.join("\n")
    }

    /// Adds the lines of a row, as many as its highest cell has.
    fn add_lines(&self, lines: &mut Vec<String>, row: &[String], columns: &[usize], widths: &[usize]) {
        let cells: Vec<Vec<String>> = columns.iter().zip(widths).map(|(&n, &width)| broken(&row[n], width)).collect();
        for at in 0..cells.iter().map(Vec::len).max().unwrap_or(0) {
            let mut line = String::new();
            for (n, (cell, &width)) in cells.iter().zip(widths).enumerate() {
                let text = cell.get(at).map_or("", String::as_str);
                let alignment = if self.right && n > 0 { Alignment::Right } else { Alignment::Left };
                line += &pad_str(text, width, alignment, None);
                line += &" ".repeat(GAP);
            }
            lines.push(line.trim_end().to_owned());
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.within(io::stdout().is_terminal().then(columns)))
    }
}

/// The widths of a column's text: in one line, and broken as often as possible.
struct Column {
    widest: usize,
    narrowest: usize,
}

impl Column {
    fn new(table: &Table, n: usize) -> Self {
        let texts = || std::iter::once(&table.header).chain(&table.rows).map(|row| row[n].as_str());
        Self {
            widest: texts().map(length).max().unwrap_or(0),
            narrowest: texts().flat_map(pieces).map(length).max().unwrap_or(0),
        }
    }
}

/// Returns the width of a text on the terminal.
fn length(text: &str) -> usize {
    measure_text_width(text.trim())
}

/// Cuts a text after each comma, and after each space that does not follow a digit.
fn pieces(text: &str) -> Vec<&str> {
    let mut before = ' ';
    let ends = |character: char| {
        let follows_digit = std::mem::replace(&mut before, character).is_ascii_digit();
        character == ',' || (character == ' ' && !follows_digit)
    };
    text.split_inclusive(ends).collect()
}

/// Breaks a text into lines of at most `width` characters, if its pieces are not longer.
fn broken(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for piece in pieces(text) {
        match lines.last_mut() {
            Some(line) if length(&format!("{line}{piece}")) <= width => line.push_str(piece),
            _ => lines.push(piece.to_owned()),
        }
    }
    lines.iter().map(|line| line.trim().to_owned()).collect()
}

/// Returns a table of the stages of a report.
pub(crate) fn stages(report: &Report, measure: Measure) -> Table {
    let [loss, score] = ["loss", measure.name()].map(|name| scored(report.evaluated, name));
    let mut rows = table(&["stage", "device", "units", "parameters", "follows", &loss, &score, "busy"]);
    // The plan of the last step; a later one may not have begun.
    let phase = report.plans.iter().rev().find(|phase| phase.from_step < report.steps.max(1));
    for stage in &report.stages {
        let follows = phase.and_then(|phase| phase.follows.get(stage.index)).map(ToString::to_string);
        rows.add_row([
            stage.index.to_string(),
            stage.device.clone(),
            stage.units.to_string(),
            stage.parameters.to_string(),
            follows.unwrap_or_else(dash),
            stage.loss.map_or_else(dash, |l| format!("{l:.4}")),
            measure.show(stage.accuracy, stage.loss),
            format!("{:.0} %", 100.0 * stage.busy),
        ]);
    }
    rows
}

/// Returns the name of a score: on the validation set, or, where nothing was evaluated, on the last training batch.
pub(crate) fn scored(evaluated: bool, name: &str) -> String {
    format!("{} {name}", if evaluated { "validation" } else { "training" })
}

/// Returns a table of the heads of an evaluation, or of the head of stage `only`.
pub(crate) fn heads(evaluation: &Evaluation, measure: Measure, only: Option<usize>) -> Table {
    let mut rows = table(&["stage", "loss", measure.name()]);
    for head in evaluation.heads().iter().filter(|head| only.is_none_or(|k| k == head.stage)) {
        let loss = head.score.mean_loss();
        rows.add_row([head.stage.to_string(), format!("{loss:.4}"), measure.show(head.score.accuracy(), Some(loss))]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_row(header: &[&str], row: &[&str]) -> Table {
        let mut table = table(header);
        table.add_row(row.iter().map(|cell| (*cell).to_owned()));
        table
    }

    /// A table of stages with a long device.
    fn stages() -> Table {
        let header =
            ["stage", "device", "units", "parameters", "follows", "validation loss", "validation accuracy", "busy"];
        of_row(&header, &["0", "cpu:threads=1,cores=0", "5", "1234567", "1", "2.3026", "0.1000", "100 %"])
    }

    fn widest(text: &str) -> usize {
        text.lines().map(|line| line.chars().count()).max().unwrap()
    }

    #[test]
    fn wide_terminal_has_each_row_on_one_line() {
        let text = stages().within(Some(200));
        assert_eq!(text, stages().within(None));
        assert_eq!(text.lines().count(), 5);
        assert!(text.contains("validation accuracy") && text.contains("cpu:threads=1,cores=0  "), "{text}");
    }

    #[test]
    fn narrow_terminal_breaks_lines_between_words() {
        let text = stages().within(Some(80));
        assert!(widest(&text) <= 80, "{text}");
        insta::assert_snapshot!(text, @r"
        ────────────────────────────────────────────────────────────────────────────────
        stage  device          units  parameters  follows  validation  validation  busy
                                                           loss        accuracy
        ════════════════════════════════════════════════════════════════════════════════
        0      cpu:threads=1,  5      1234567     1        2.3026      0.1000      100 %
               cores=0
        ────────────────────────────────────────────────────────────────────────────────
        ");
    }

    #[test]
    fn columns_that_do_not_fit_follow_below_after_the_names_of_the_rows() {
        let header = ["", "stages", "width", "units a stage", "ms a step", "examples/s", "idle", "MiB, largest"];
        let mut table =
            of_row(&header, &["▸", "4", "2", "1, 1, 1, 2", "3487.7", "1234.5", "38 %", "12345"]).named_by(3);
        table.add_row(["", "4", "e2e", "1, 1, 1, 2", "3487.7", "1234.5", "38 %", "12345"].map(str::to_owned));
        for width in [30, 45, 60] {
            let text = table.within(Some(width));
            assert!(widest(&text) <= width, "{text}");
            let words: Vec<&str> = text.split_whitespace().collect();
            for word in ["stages", "examples/s", "3487.7", "1234.5", "12345", "largest"] {
                assert!(words.contains(&word), "{word} is broken at {width}\n{text}");
            }
            // Each part names both rows.
            let parts = text.matches("stages").count();
            assert_eq!((text.matches("▸").count(), text.matches("e2e").count()), (parts, parts), "{text}");
            assert_eq!(text.matches("38 %").count(), 2, "{text}");
        }
        // A column that is wider than the terminal is still shown whole.
        assert!(table.within(Some(1)).contains("examples/s"));
    }

    #[test]
    fn texts_are_broken_only_where_they_may_be() {
        assert_eq!(broken("1, 1, 1, 2", 5), ["1, 1,", "1, 2"]);
        assert_eq!(broken("cpu:threads=1,cores=0", 1), ["cpu:threads=1,", "cores=0"]);
        assert_eq!(broken("12345.6 %", 3), ["12345.6 %"]);
        assert_eq!(broken("ms a step", 4), ["ms a", "step"]);
        assert_eq!(broken("", 4), [""; 0]);
    }
}

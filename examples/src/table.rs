//! Tables on the terminal.

use std::io::{self, IsTerminal};

use comfy_table::{ContentArrangement, Table, TableComponent, presets::UTF8_HORIZONTAL_ONLY};
use interlock::{Evaluation, Report};
use interlock_models::data::DataKind;

use crate::progress::columns;

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

/// Creates a table. On a terminal, its rows become no wider than the terminal.
pub(crate) fn table(header: &[&str]) -> Table {
    table_within(header, io::stdout().is_terminal().then(columns))
}

/// Creates a table of at most this many columns of text; longer cells are broken into lines.
fn table_within(header: &[&str], columns: Option<usize>) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY).set_header(header.to_vec());
    // Draws a line below the header, and none between rows.
    table.remove_style(TableComponent::HorizontalLines).remove_style(TableComponent::MiddleIntersections);
    if let Some(columns) = columns {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(columns.try_into().unwrap_or(u16::MAX));
    }
    table
}

/// Returns a table of the stages of a report.
pub(crate) fn stages(report: &Report, measure: Measure) -> Table {
    let mut rows = table(&["stage", "device", "units", "parameters", "follows", "loss", measure.name(), "busy"]);
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

    #[test]
    fn table_is_at_most_as_wide_as_its_terminal() {
        let device = "cpu:threads=1,cores=0";
        let cells = ["0", device, "5", "1234567", "1", "2.3026", "0.1000", "100 %"];
        let header = ["stage", "device", "units", "parameters", "follows", "loss", "accuracy", "busy"];
        let widest = |columns| {
            let text = table_within(&header, columns).add_row(cells).to_string();
            text.lines().map(|line| line.chars().count()).max().unwrap()
        };
        assert!(widest(Some(80)) <= 80 && widest(Some(60)) <= 60, "{}", widest(Some(80)));
        assert!(table_within(&header, None).add_row(cells).to_string().contains(device));
    }
}

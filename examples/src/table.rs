//! Tables on the terminal.

use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use interlock::{Report, trainer::Evaluation};
use interlock_models::data::DataKind;

/// Whether a head is judged by its accuracy or by its perplexity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    Accuracy,
    Perplexity,
}

impl Measure {
    pub(crate) fn of(data: &DataKind) -> Self {
        match data {
            DataKind::Images { .. } => Self::Accuracy,
            DataKind::Text { .. } => Self::Perplexity,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::Perplexity => "perplexity",
        }
    }

    /// In words; a dash where there is no head.
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

pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header(header.to_vec());
    table
}

/// Every stage of a report.
pub(crate) fn stages(report: &Report, measure: Measure) -> Table {
    let mut rows = table(&["stage", "device", "units", "parameters", "follows", "loss", measure.name(), "busy"]);
    for stage in &report.stages {
        rows.add_row([
            stage.index.to_string(),
            stage.device.clone(),
            stage.units.to_string(),
            stage.parameters.to_string(),
            stage.follows.to_string(),
            stage.loss.map_or_else(dash, |l| format!("{l:.4}")),
            measure.show(stage.accuracy, stage.loss),
            format!("{:.0} %", 100.0 * stage.busy),
        ]);
    }
    rows
}

/// The heads of an evaluation; only stage `only`'s where one is given.
pub(crate) fn heads(evaluation: &Evaluation, measure: Measure, only: Option<usize>) -> Table {
    let mut rows = table(&["stage", "loss", measure.name()]);
    for head in evaluation.heads().iter().filter(|head| only.is_none_or(|k| k == head.stage)) {
        let loss = head.score.mean_loss();
        rows.add_row([head.stage.to_string(), format!("{loss:.4}"), measure.show(head.score.accuracy(), Some(loss))]);
    }
    rows
}

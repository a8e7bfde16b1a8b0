//! Writes a view as plain text, for `--once`.

use interlock::tools::metrics::PHASES;

use super::{
    model::{StageView, Traffic, View},
    words::{self, NONE},
};
use crate::table::table;

/// Returns the values of the pipeline at `address` as lines of text.
pub(super) fn text(address: &str, view: &View) -> String {
    let mut parts = vec![title(address, view), summary(view)];
    if !view.stages.is_empty() {
        parts.push(stages(view));
        parts.push(phases(view));
    }
    if !view.boundaries.is_empty() {
        parts.push(boundaries(view));
    }
    parts.join("\n")
}

/// Returns the line of name and state.
pub(super) fn title(address: &str, view: &View) -> String {
    let named = [&view.pipeline, &view.run, &view.model, &view.strategy].map(String::as_str);
    let [pipeline, run, model, strategy] = named.map(|name| if name.is_empty() { NONE } else { name });
    format!("{address}  {pipeline}  run {run}  {model}  {strategy}  {}", view.state)
}

/// Returns the line of progress and speed.
pub(super) fn summary(view: &View) -> String {
    let mut parts = vec![
        format!("step {}", words::count(view.step)),
        format!("{} examples/s", words::rate(view.examples_per_second)),
    ];
    if view.tokens_per_second.is_some() {
        parts.push(format!("{} tokens/s", words::rate(view.tokens_per_second)));
    }
    parts.push(format!("{} a step", words::time(view.step_seconds)));
    parts.push(format!("{} stages, {} micro-batches", view.stages.len(), words::count(view.micro_batches)));
    parts.push(format!("lr {}", words::number(view.learning_rate)));
    parts.join("  ")
}

/// Returns the stages whose losses a stage follows, and the width, such as `2 (3)`.
pub(super) fn follows(stage: &StageView) -> String {
    match (&stage.follows, stage.width) {
        (Some(follows), Some(width)) => format!("{follows} ({width:.0})"),
        (Some(follows), None) => follows.clone(),
        (None, _) => NONE.to_owned(),
    }
}

/// Returns the number of messages in the mailbox, and its capacity.
pub(super) fn mailbox(stage: &StageView) -> String {
    stage.mailbox.map_or_else(|| NONE.to_owned(), |(messages, capacity)| format!("{messages:.0}/{capacity:.0}"))
}

fn stages(view: &View) -> String {
    let header = [
        "stage",
        "device",
        "follows",
        "training loss",
        "validation loss",
        "training accuracy %",
        "validation accuracy %",
        "gradient norm",
        "busy %",
        "simulated %",
        "mailbox",
        "in flight",
        "memory",
        "last",
    ];
    let mut rows = table(&header);
    for stage in &view.stages {
        rows.add_row([
            stage.index.to_string(),
            stage.device.clone(),
            follows(stage),
            words::number(stage.loss),
            words::number(stage.validation_loss),
            words::percent(stage.accuracy),
            words::percent(stage.validation_accuracy),
            words::number(stage.gradient_norm),
            words::percent(stage.busy),
            words::percent(stage.simulated_busy),
            mailbox(stage),
            words::count(stage.in_flight),
            words::bytes(Some(stage.memory.iter().sum())),
            words::time(stage.since_progress),
        ]);
    }
    rows.to_string()
}

/// Returns a table of the phases of each stage's time, and the waiting times of its messages.
fn phases(view: &View) -> String {
    let phases = PHASES.map(words::phase);
    let mut header: Vec<&str> = vec!["stage"];
    header.extend(phases.iter().map(String::as_str));
    header.extend(["activation waits", "gradient waits", "alignment", "not finite"]);
    let mut rows = table(&header);
    for stage in &view.stages {
        let mut row = vec![stage.index.to_string()];
        row.extend((0..PHASES.len()).map(|i| match stage.phases.get(i) {
            Some(share) => words::percent(Some(*share)) + " %",
            None => NONE.to_owned(),
        }));
        row.extend([
            words::time(stage.activation_wait),
            words::time(stage.gradient_wait),
            words::number(stage.alignment),
            words::count(Some(stage.not_finite)),
        ]);
        rows.add_row(row);
    }
    rows.to_string()
}

/// Returns messages and bytes a second, and the time of a transfer, in one direction.
pub(super) fn traffic(traffic: &Traffic) -> [String; 3] {
    [
        words::rate(traffic.messages_per_second),
        words::bytes(traffic.bytes_per_second) + "/s",
        words::time(traffic.transfer),
    ]
}

fn boundaries(view: &View) -> String {
    let header = ["stages", "activations/s", "bytes", "transfer", "gradients/s", "bytes", "transfer"];
    let mut rows = table(&header);
    for boundary in &view.boundaries {
        let mut row = vec![format!("{} to {}", boundary.from, boundary.to)];
        row.extend(traffic(&boundary.activations));
        row.extend(traffic(&boundary.gradients));
        rows.add_row(row);
    }
    rows.to_string()
}

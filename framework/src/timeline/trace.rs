//! A timeline in the JSON trace event format, which <https://ui.perfetto.dev> and `chrome://tracing` show.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{Span, Timeline};
use crate::schedule::{Action, MicroBatchId};

/// A tensor that reaches a stage over a boundary: the receiver, the micro-batch, and the loss if it is a gradient.
type Arrival = (usize, MicroBatchId, Option<usize>);

impl Timeline {
    /// Returns the timeline as trace events in JSON: a thread for each stage, a slice for each action with step, micro-batch and loss, and a flow for
    /// each activation and gradient that crosses a boundary.
    pub fn to_trace(&self) -> String {
        let mut events = vec![json!({ "ph": "M", "pid": 0, "name": "process_name", "args": { "name": "interlock" } })];
        for stage in 0..self.stages {
            let about =
                |name: &str, args: Value| json!({ "ph": "M", "pid": 0, "tid": stage, "name": name, "args": args });
            events.push(about("thread_name", json!({ "name": format!("stage {stage}") })));
            events.push(about("thread_sort_index", json!({ "sort_index": stage })));
        }
        events.extend(self.spans.iter().map(slice));
        let mut consumers: HashMap<Arrival, &Span> = HashMap::new();
        // A gradient that no backward pass of its loss alone uses is part of a sum.
        let mut sums: HashMap<(usize, MicroBatchId), &Span> = HashMap::new();
        for span in &self.spans {
            if let Action::BackwardSum { micro_batch, .. } = span.action {
                sums.insert((span.stage, micro_batch), span);
            }
            if let Some(arrival) = consumes(span) {
                let first = consumers.entry(arrival).or_insert(span);
                if span.start < first.start {
                    *first = span;
                }
            }
        }
        let consumer = |arrival: Arrival| {
            let (stage, micro_batch, loss) = arrival;
            consumers.get(&arrival).or_else(|| sums.get(&(stage, micro_batch)).filter(|_| loss.is_some()))
        };
        let crossed = self.spans.iter().filter_map(|from| Some((from, *consumer(produces(from)?)?)));
        for (id, (from, to)) in crossed.enumerate() {
            let name = if from.stage < to.stage { "activation" } else { "gradient" };
            let end = |ph: &str, span: &Span, at: i64| json!({ "ph": ph, "pid": 0, "tid": span.stage, "ts": micros(at), "id": id, "name": name, "cat": "message" });
            // An arrow leaves from within its slice. At the very end, some viewers would attach it to the next slice.
            let leaves = (nanos(from.end) - 1).max(nanos(from.start));
            let mut arrives = end("f", to, nanos(to.start));
            arrives["bp"] = json!("e");
            events.extend([end("s", from, leaves), arrives]);
        }
        json!({ "displayTimeUnit": "ms", "traceEvents": events }).to_string()
    }
}

fn slice(span: &Span) -> Value {
    let Span { stage, action, .. } = span;
    let mut args = json!({ "step": action.step() });
    if let Some(micro) = action.micro_batch_index() {
        args["micro"] = json!(micro);
    }
    if let Some(loss) = action.loss() {
        args["loss"] = json!(loss);
    }
    let (start, end) = (nanos(span.start), nanos(span.end));
    json!({
        "ph": "X",
        "pid": 0,
        "tid": stage,
        "ts": micros(start),
        "dur": micros(end - start),
        "name": action.kind().name(),
        "cat": if action.trains() { "train" } else { "evaluate" },
        "args": args,
    })
}

fn nanos(seconds: f64) -> i64 {
    (seconds * 1e9).round() as i64
}

/// The format counts in microseconds.
fn micros(nanos: i64) -> f64 {
    nanos as f64 / 1e3
}

/// Returns what a neighbour receives because of this action.
fn produces(span: &Span) -> Option<Arrival> {
    match span.action {
        Action::Forward(micro_batch) => Some((span.stage + 1, micro_batch, None)),
        Action::Backward { micro_batch, loss, wants, .. } if wants.input => {
            Some((span.stage.checked_sub(1)?, micro_batch, Some(loss)))
        }
        _ => None,
    }
}

/// Returns what the stage needed from a neighbour for this action.
fn consumes(span: &Span) -> Option<Arrival> {
    match span.action {
        Action::Forward(micro_batch) => Some((span.stage, micro_batch, None)),
        Action::Backward { micro_batch, loss, .. } => Some((span.stage, micro_batch, Some(loss))),
        _ => None,
    }
}

//! The events of a run as in `events.jsonl`: one JSON object a line, written and read by the same types.
//!
//! `docs/reports.md` describes every field for those who read the file with other programs.

mod appended;
mod log;
mod read;

pub(crate) use appended::Appended;
pub(crate) use log::{EventLog, JsonLines, Sink};
pub(crate) use read::{Before, read, until};

use interlock::{
    Error, Failure, Origin, Report,
    tools::{
        trainer::{Followed, HeadScore, PhaseReport},
        transport::{Built, StageStep},
    },
};
use serde::{Deserialize, Deserializer, Serialize};

/// The file's name in a run's folder.
pub(crate) const FILE: &str = "events.jsonl";

/// The format version of the `events.jsonl` and `timeline.json` that this program writes. Files without a version have version 1, and are read too.
pub(crate) const FORMAT: u32 = 2;

/// The number of steps of which all have an event.
const ALL_STEPS: u64 = 200_000;

/// Returns how many steps have one event together, so that the file does not grow without end: one up to step 200,000, then two, and twice as many
/// whenever the number of steps has doubled. So a run of any length has about 100,000 events of steps for each doubling.
pub(crate) fn steps_an_event(step: u64) -> u64 {
    match step / ALL_STEPS {
        0 => 1,
        times => 2 << times.ilog2(),
    }
}

/// Checks that this program knows the version of a file.
///
/// # Errors
/// If it does not; the message names the known versions.
pub(crate) fn check_format(format: Option<u32>) -> Result<(), String> {
    match format.unwrap_or(1) {
        1..=FORMAT => Ok(()),
        other => {
            Err(format!("format {other} is not known; this program reads formats 1 to {FORMAT}: use a newer program"))
        }
    }
}

/// An event of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Event {
    /// Seconds since the Unix epoch.
    pub(crate) time: f64,
    /// The kind of event, with its values.
    #[serde(flatten)]
    pub(crate) what: EventKind,
}

/// The kind of an event, named in the field `event`, and its fields.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum EventKind {
    Started(Started),
    Resumed(Resumed),
    Step(Step),
    PlanChanged(PlanChanged),
    Evaluated(Evaluated),
    CheckpointSaved(CheckpointSaved),
    CheckpointFailed(CheckpointFailed),
    Restarted(Restarted),
    StepSkipped(StepSkipped),
    Finished(Finished),
    Failed(Failed),
}

/// The run begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Started {
    /// The run's name.
    pub(crate) run: String,
    /// The number of its first step.
    pub(crate) first_step: u64,
    /// The number of steps to run.
    pub(crate) steps: u64,
    /// Steps of one pass over the training set.
    pub(crate) steps_per_epoch: u64,
    /// The gradient plans decided so far.
    pub(crate) plans: Vec<PhaseReport>,
    /// Every stage.
    pub(crate) stages: Vec<Stage>,
}

/// The run continues from a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Resumed {
    /// The number of its next step.
    pub(crate) next_step: u64,
    /// The number of steps to run, with those before.
    pub(crate) steps: u64,
    /// Every stage, which may be cut otherwise than before.
    pub(crate) stages: Vec<Stage>,
}

/// A checkpoint has been written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CheckpointSaved {
    /// The number of updates before it.
    pub(crate) steps: u64,
    /// Seconds that it took to write it, while training went on.
    pub(crate) checkpoint_seconds: f64,
}

/// A checkpoint could not be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CheckpointFailed {
    /// The number of updates before it.
    pub(crate) steps: u64,
    /// The error, as text.
    pub(crate) cause: String,
}

/// After a failure the run has gone back, and goes on; the steps that it repeats are not written again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Restarted {
    /// The number of updates to which it has gone back.
    pub(crate) to_step: u64,
    /// The failure.
    #[serde(flatten)]
    pub(crate) failure: Failed,
}

/// A step has been left out, because a value was not finite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StepSkipped {
    /// Its number, counted from 0.
    pub(crate) step: u64,
}

/// A stage when it is built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stage {
    /// Its number, counted from 0.
    pub(crate) stage: usize,
    /// Its device.
    pub(crate) device: String,
    /// The number of trained elements of its main part.
    pub(crate) parameters: usize,
    /// The number of trained elements of its head.
    pub(crate) head_parameters: usize,
}

/// Every stage has finished a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Step {
    /// Its number, counted from 0.
    pub(crate) step: u64,
    /// The pass over the training set, counted from 0.
    pub(crate) epoch: u64,
    /// Examples of the batch.
    pub(crate) examples: u64,
    /// Seconds since the run's start.
    pub(crate) seconds: f64,
    /// Seconds since the end of the previous step, or of the evaluation after it; at first, since the run's start.
    pub(crate) step_seconds: f64,
    /// The metrics of all stages, in order.
    pub(crate) stages: Vec<StageMetrics>,
}

/// The metrics of a stage in a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StageMetrics {
    /// The stage.
    pub(crate) stage: usize,
    /// Its head's mean loss over the batch; null without a head.
    pub(crate) loss: Option<f64>,
    /// Its head's accuracy over the batch; null without a head, or if the loss does not define it.
    pub(crate) accuracy: Option<f64>,
    /// The learning rate.
    #[serde(deserialize_with = "number")]
    pub(crate) lr: f64,
    /// The norm of the gradient of its main parameters, before clipping.
    #[serde(deserialize_with = "number")]
    pub(crate) gradient_norm: f64,
    /// Seconds of computation.
    pub(crate) busy_seconds: f64,
    /// The cosine between the gradient that it followed and the one that it only measured; null if it measured none.
    pub(crate) alignment: Option<f64>,
}

/// The gradient plan has changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlanChanged {
    /// From this step on.
    pub(crate) from_step: u64,
    /// The losses that each stage follows.
    pub(crate) follows: Vec<Followed>,
}

/// Every head has been scored on the validation set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Evaluated {
    /// The number of updates before the evaluation.
    pub(crate) steps: u64,
    /// Seconds since the run's start.
    pub(crate) seconds: f64,
    /// Seconds that the evaluation took.
    pub(crate) evaluation_seconds: f64,
    /// Whether it is the best so far; its weights are then saved.
    pub(crate) improved: bool,
    /// Every head.
    pub(crate) heads: Vec<Head>,
}

/// One head's scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// The stage whose head it is.
    pub(crate) stage: usize,
    /// Mean loss a target.
    #[serde(deserialize_with = "number")]
    pub(crate) loss: f64,
    /// The fraction of targets predicted right; null if the loss does not define it.
    pub(crate) accuracy: Option<f64>,
}

/// The run has finished.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Finished {
    /// The contents of `report.json`.
    pub(crate) report: Report,
}

/// The run has failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failed {
    /// The error, as text.
    pub(crate) cause: String,
    /// The part that failed: `stage`, `strategy`, `coordinator`, `data`, or `callback` with its number. This and the fields below are null if they do not apply.
    #[serde(default)]
    pub(crate) origin: Option<String>,
    /// The stage that failed.
    pub(crate) stage: Option<usize>,
    /// The step in which it failed.
    pub(crate) step: Option<u64>,
    /// The micro-batch within the step.
    #[serde(alias = "micro")]
    pub(crate) micro_batch: Option<usize>,
    /// The phase of the work that failed.
    #[serde(deserialize_with = "phase")]
    pub(crate) phase: Option<String>,
}

/// Reads the name of a phase; format 1 had another name for the backward pass.
fn phase<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let phase: Option<String> = Option::deserialize(deserializer)?;
    Ok(phase.map(|phase| if phase == "pull-back" { "backward".to_owned() } else { phase }))
}

/// Reads a number; null stands for one that is not finite, which JSON does not have.
pub(crate) fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

impl From<&Built> for Stage {
    fn from(built: &Built) -> Self {
        Self {
            stage: built.stage,
            device: built.device.clone(),
            parameters: built.parameters,
            head_parameters: built.head_parameters,
        }
    }
}

impl From<&StageStep> for StageMetrics {
    fn from(step: &StageStep) -> Self {
        Self {
            stage: step.stage,
            loss: step.score.map(|score| score.mean_loss()),
            accuracy: step.score.and_then(|score| score.accuracy()),
            lr: step.updated.lr,
            gradient_norm: step.updated.gradient_norm,
            busy_seconds: to_micros(step.busy_seconds()),
            alignment: step.alignment,
        }
    }
}

impl From<&HeadScore> for Head {
    fn from(head: &HeadScore) -> Self {
        Self { stage: head.stage, loss: head.score.mean_loss(), accuracy: head.score.accuracy() }
    }
}

impl From<&Error> for Failed {
    fn from(error: &Error) -> Self {
        let cause = error.to_string();
        match error {
            Error::Failed(failure) => failure.into(),
            _ => Self { cause, origin: None, stage: None, step: None, micro_batch: None, phase: None },
        }
    }
}

impl From<&Failure> for Failed {
    fn from(failure: &Failure) -> Self {
        Self {
            cause: failure.cause.to_string(),
            origin: Some(match failure.origin {
                Origin::Stage(_) => "stage".to_owned(),
                other => other.to_string(),
            }),
            stage: failure.origin.stage(),
            step: failure.step,
            micro_batch: failure.micro_batch,
            phase: Some(failure.phase.to_string()),
        }
    }
}

/// Rounds seconds to a millionth.
fn to_micros(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_events_grows_by_as_many_for_each_doubling_of_steps() {
        let of = [0, 199_999, 200_000, 399_999, 400_000, 799_999, 800_000, u64::MAX].map(steps_an_event);
        assert_eq!(of[..7], [1, 1, 2, 2, 4, 4, 8]);
        assert_eq!(of[7], 2 << (u64::MAX / 200_000).ilog2());
        let events =
            |steps: std::ops::Range<u64>| steps.filter(|step| step.is_multiple_of(steps_an_event(*step))).count();
        assert_eq!([0..200_000, 200_000..400_000, 400_000..800_000].map(events), [200_000, 100_000, 100_000]);
    }
}

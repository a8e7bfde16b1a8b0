//! The events of a run as `events.jsonl` keeps them: one JSON object a line, written and read by the same types.
//!
//! `docs/reports.md` describes every field for those who read the file with other programs.

mod log;
mod read;

pub(crate) use log::{EventLog, JsonLines, Sink};
pub(crate) use read::read;

use interlock::{
    Error, Report,
    trainer::{HeadScore, PhaseReport},
    transport::{Built, StageStep},
};
use serde::{Deserialize, Deserializer, Serialize};

/// The file's name in a run's folder.
pub(crate) const FILE: &str = "events.jsonl";

/// Something that happened in a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Event {
    /// Seconds since the Unix epoch.
    pub(crate) time: f64,
    /// What happened.
    #[serde(flatten)]
    pub(crate) what: What,
}

/// What can happen; the name lies in the field `event`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum What {
    Started(Started),
    Step(Step),
    PlanChanged(PlanChanged),
    Evaluated(Evaluated),
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
    /// How many steps it is to make.
    pub(crate) steps: u64,
    /// Steps of one pass over the training set.
    pub(crate) steps_per_epoch: u64,
    /// Which losses train which stage, as far as that is decided.
    pub(crate) plans: Vec<PhaseReport>,
    /// Every stage.
    pub(crate) stages: Vec<Stage>,
}

/// A stage as it was built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stage {
    /// Its number, counted from 0.
    pub(crate) stage: usize,
    /// Its device.
    pub(crate) device: String,
    /// Trained elements of its main part.
    pub(crate) parameters: usize,
    /// Trained elements of its head.
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
    /// Seconds since the end of the step before; since the run's start, or the end of an evaluation, where that came last.
    pub(crate) step_seconds: f64,
    /// Every stage's part, in order.
    pub(crate) stages: Vec<StageMetrics>,
}

/// One stage's part of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StageMetrics {
    /// The stage.
    pub(crate) stage: usize,
    /// Its head's mean loss over the batch; null where it has no head.
    pub(crate) loss: Option<f64>,
    /// Its head's accuracy over the batch; null where it has no head, or the loss no such notion.
    pub(crate) accuracy: Option<f64>,
    /// The learning rate.
    #[serde(deserialize_with = "number")]
    pub(crate) lr: f64,
    /// The norm of the gradient of its main parameters, before clipping.
    #[serde(deserialize_with = "number")]
    pub(crate) gradient_norm: f64,
    /// Seconds in which it computed.
    pub(crate) busy_seconds: f64,
    /// The cosine between the gradients that it followed and measured; null where nothing was measured.
    pub(crate) alignment: Option<f64>,
}

/// Stages follow other losses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlanChanged {
    /// From this step on.
    pub(crate) from_step: u64,
    /// The stage whose loss trains each stage.
    pub(crate) follows: Vec<usize>,
}

/// Every head has been scored on the validation set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Evaluated {
    /// Updates made before.
    pub(crate) steps: u64,
    /// Seconds since the run's start.
    pub(crate) seconds: f64,
    /// Seconds that the evaluation took.
    pub(crate) evaluation_seconds: f64,
    /// Whether it is the best so far and its values were kept.
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
    /// The fraction of targets predicted right; null where the loss has no such notion.
    pub(crate) accuracy: Option<f64>,
}

/// The run has ended as it should.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Finished {
    /// What `report.json` holds.
    pub(crate) report: Report,
}

/// The run has ended before its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failed {
    /// What went wrong, in words.
    pub(crate) cause: String,
    /// The stage that failed; this and what follows is null where no stage did, or it does not apply.
    pub(crate) stage: Option<usize>,
    /// The step in which it failed.
    pub(crate) step: Option<u64>,
    /// The micro-batch within the step.
    pub(crate) micro: Option<usize>,
    /// What it was doing.
    pub(crate) phase: Option<String>,
}

/// JSON has no infinities; they are written as null.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
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
        let nowhere = Self { cause: error.to_string(), stage: None, step: None, micro: None, phase: None };
        match error {
            Error::Failed(failure) => Self {
                cause: failure.cause.to_string(),
                stage: failure.origin.stage(),
                step: failure.step,
                micro: failure.micro_batch,
                phase: Some(failure.phase.to_string()),
            },
            _ => nowhere,
        }
    }
}

/// Seconds to a millionth.
fn to_micros(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

//! Events of a run, which callbacks receive: progress bars, logs, early stopping.

use std::path::Path;

use super::{Evaluation, Report};
use crate::{
    Error, Failure, GradientPlan, PlanSchedule,
    transport::{Built, StageStep},
};

/// An event of a run.
#[derive(Debug)]
#[non_exhaustive]
pub enum TrainEvent<'a> {
    /// The run begins.
    Started {
        /// The first step.
        first_step: u64,
        /// The next step: the first one, or a later one if the run continues from a checkpoint.
        next_step: u64,
        /// The step before which the run ends.
        last_step: u64,
        /// Steps of one pass over the training set.
        steps_per_epoch: u64,
        /// The gradient plans by step, as far as they are decided.
        plans: &'a PlanSchedule,
        /// The stages.
        stages: &'a [Built],
        /// Whether the run evaluates, because a validation set was given.
        evaluates: bool,
    },
    /// One stage has finished a step; stages may be steps apart.
    StageStep(&'a StageStep),
    /// Every stage has finished a step.
    StepDone {
        /// The step, counted from 0.
        step: u64,
        /// The pass over the training set, counted from 0.
        epoch: u64,
        /// Examples of the batch.
        examples: usize,
        /// Targets of the batch that count.
        targets: f64,
        /// The report of each stage.
        stages: &'a [StageStep],
    },
    /// Stages follow or measure other losses from the next step on.
    PlanChanged {
        /// The first step with the new plan.
        from_step: u64,
        /// The plan of that step and the following ones. If single steps have another plan, such as end-to-end ones, it is the plan of the other
        /// steps.
        plan: &'a GradientPlan,
    },
    /// Every head has been scored on the validation set.
    Evaluated {
        /// The number of updates made before it.
        steps: u64,
        /// The scores.
        evaluation: &'a Evaluation,
        /// Whether it is the best so far and its weights were kept.
        improved: bool,
    },
    /// After a failure all stages have gone back, and repeat the steps since then, of which no further events are sent
    /// ([`FailuresConfig::on_failure`](super::FailuresConfig::on_failure)).
    Restarted {
        /// The failure.
        failure: &'a Failure,
        /// The number of updates to which they have gone back.
        to_step: u64,
    },
    /// A step has been left out, because a value was not finite ([`FailuresConfig::on_nonfinite`](super::FailuresConfig::on_nonfinite)).
    StepSkipped {
        /// The step, counted from 0.
        step: u64,
    },
    /// A checkpoint has been written.
    CheckpointSaved {
        /// The number of updates made before it.
        steps: u64,
        /// Its folder.
        path: &'a Path,
        /// How long it took to write it; training went on meanwhile.
        seconds: f64,
    },
    /// A checkpoint, or the best weights, could not be written. The run goes on, and earlier checkpoints are still there.
    CheckpointFailed {
        /// The number of updates made before it.
        steps: u64,
        /// The reason.
        error: &'a Error,
    },
    /// The run has ended.
    Finished {
        /// The report.
        report: &'a Report,
    },
}

impl TrainEvent<'_> {
    /// Returns the step that it is about, if it is about one.
    pub(super) fn step(&self) -> Option<u64> {
        match self {
            Self::StageStep(done) => Some(done.step),
            Self::StepDone { step, .. } | Self::StepSkipped { step } => Some(*step),
            _ => None,
        }
    }
}

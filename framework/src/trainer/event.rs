//! Events of a run, which callbacks receive: progress bars, logs, early stopping.

use super::{Evaluation, Report};
use crate::{
    GradientPlan, PlanSchedule,
    transport::{Built, StageStep},
};

/// Something that happened in a run.
#[derive(Debug)]
#[non_exhaustive]
pub enum TrainEvent<'a> {
    /// The run begins.
    Started {
        /// The first step.
        first_step: u64,
        /// The step before which the run ends.
        last_step: u64,
        /// Steps of one pass over the training set.
        steps_per_epoch: u64,
        /// The gradient plans by step, as far as they are decided.
        plans: &'a PlanSchedule,
        /// The stages.
        stages: &'a [Built],
        /// Whether the run evaluates: a validation set was given.
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
        /// Each stage's part.
        stages: &'a [StageStep],
    },
    /// From the next step on stages follow, or measure, other losses.
    PlanChanged {
        /// That step.
        from_step: u64,
        /// Its plan, and that of those behind it; where some steps in between have another, such as end-to-end ones, that of the others.
        plan: &'a GradientPlan,
    },
    /// Every head has been scored on the validation set.
    Evaluated {
        /// Updates made before.
        steps: u64,
        /// The scores.
        evaluation: &'a Evaluation,
        /// Whether it is the best so far and its values were kept.
        improved: bool,
    },
    /// The run has ended.
    Finished {
        /// What it came to.
        report: &'a Report,
    },
}

//! The events that callbacks have been told, so that repeated steps send none again.

use super::TrainEvent;

/// How far callbacks have been told of the present fit.
#[derive(Clone, Default)]
pub(super) struct Told {
    /// By stage, the step up to which it has been reported.
    stages: Vec<u64>,
    steps: u64,
    /// The number of steps before the last evaluation.
    evaluated: Option<u64>,
    /// The last step from which on a change of plans was told.
    planned: Option<u64>,
}

impl Told {
    /// Begins a fit at `step`.
    pub(super) fn begin(&mut self, step: u64) {
        *self = Self { steps: step, ..Self::default() };
    }

    /// The number of steps of which callbacks have been told.
    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    /// Returns whether an event is new, and notes it.
    pub(super) fn is_new(&mut self, event: &TrainEvent<'_>) -> bool {
        let newer = |last: &mut Option<u64>, now: u64| {
            let is_newer = last.is_none_or(|last| last < now);
            *last = (*last).max(Some(now));
            is_newer
        };
        match event {
            TrainEvent::StageStep(done) => {
                self.stages.resize(self.stages.len().max(done.stage + 1), 0);
                let until = &mut self.stages[done.stage];
                let is_new = *until <= done.step;
                *until = (*until).max(done.step + 1);
                is_new
            }
            TrainEvent::StepDone { step, .. } => {
                let is_new = self.steps <= *step;
                self.steps = self.steps.max(step + 1);
                is_new
            }
            TrainEvent::Evaluated { steps, .. } => newer(&mut self.evaluated, *steps),
            TrainEvent::PlanChanged { from_step, .. } => newer(&mut self.planned, *from_step),
            _ => true,
        }
    }
}

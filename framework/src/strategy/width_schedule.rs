//! The strategy whose widths change with the steps.

use std::sync::Arc;

use super::{EndToEnd, Strategy};
use crate::{
    Error, Result,
    plan::{GradientPlan, PlanPhase, PlanSchedule, from_step},
};

/// A strategy that uses one strategy after another, each from a step on, with end-to-end steps in between if wanted.
///
/// ```
/// use interlock::{Interlock, Local, Strategy, WidthSchedule};
///
/// let schedule = WidthSchedule::new(Local).then(500, Interlock::width(2)).end_to_end_every(10);
/// let plans = schedule.plans(4)?;
/// assert_eq!([0, 490, 500, 501, 510].map(|step| plans.at(step).farthest(0)), [0, 0, 3, 1, 3]);
/// # Ok::<(), interlock::Error>(())
/// ```
#[derive(Debug)]
pub struct WidthSchedule {
    /// In the order of their first steps, if they are valid; never empty.
    pub(super) phases: Vec<WidthPhase>,
}

/// The strategy from a step on.
#[derive(Debug)]
pub(super) struct WidthPhase {
    pub(super) from_step: u64,
    pub(super) strategy: Box<dyn Strategy>,
    /// The steps divisible by this are end-to-end.
    pub(super) end_to_end_every: Option<u64>,
}

impl WidthSchedule {
    /// Begins with `strategy`.
    pub fn new(strategy: impl Strategy + 'static) -> Self {
        Self { phases: Vec::new() }.then(0, strategy)
    }

    /// Adds `strategy`, from `from_step` on.
    #[must_use]
    pub fn then(mut self, from_step: u64, strategy: impl Strategy + 'static) -> Self {
        self.phases.push(WidthPhase { from_step, strategy: Box::new(strategy), end_to_end_every: None });
        self
    }

    /// Makes the steps divisible by `steps` end-to-end, while the strategy that was added last holds.
    #[must_use]
    pub fn end_to_end_every(mut self, steps: u64) -> Self {
        if let Some(phase) = self.phases.last_mut() {
            phase.end_to_end_every = Some(steps);
        }
        self
    }

    /// Returns the only plan of a phase.
    fn plan_of(&self, phase: &WidthPhase, stages: usize) -> Result<Arc<GradientPlan>> {
        let several = self.phases.len() > 1;
        let plans = phase.strategy.plans(stages);
        let plans = plans.map_err(|error| if several { from_step(error, phase.from_step) } else { error })?;
        match plans.phases() {
            [PlanPhase { plan, every: None, .. }] if phase.strategy.adapt(stages)?.is_none() => Ok(Arc::clone(plan)),
            _ => Err(Error::invalid(
                "strategy.width_schedule",
                format!("the plan of {:?} changes", phase.strategy),
                "use strategies of one plan",
            )),
        }
    }
}

impl Strategy for WidthSchedule {
    fn plan(&self, stages: usize) -> Result<GradientPlan> {
        Ok(self.plans(stages)?.at(0).as_ref().clone())
    }

    fn plans(&self, stages: usize) -> Result<PlanSchedule> {
        let phase = |phase: &WidthPhase| -> Result<PlanPhase> {
            let plan = self.plan_of(phase, stages)?;
            let end_to_end = || -> Result<_> {
                // Heads are where the phase has them.
                let heads = (0..stages).map(|k| plan.may_carry_head(k)).collect();
                Ok(Arc::new(EndToEnd.plan(stages)?.with_heads_at(heads)?))
            };
            let every = match phase.end_to_end_every {
                Some(steps) => Some((steps, end_to_end()?)),
                None => None,
            };
            Ok(PlanPhase { from_step: phase.from_step, plan, every })
        };
        PlanSchedule::new(self.phases.iter().map(phase).collect::<Result<_>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::{Adaptive, Interlock, Local};

    #[test]
    fn each_strategy_holds_until_the_next() {
        let schedule = WidthSchedule::new(Local).end_to_end_every(4).then(6, Interlock::widths([2, 3, 1]));
        let plans = schedule.plans(3).unwrap();
        assert_eq!([0, 1, 4, 5, 6, 8].map(|step| plans.at(step).farthest(0)), [2, 0, 2, 0, 1, 1]);
        assert_eq!(plans.at(6).farthest(1), 2);
        assert_eq!(&schedule.plan(3).unwrap(), plans.at(0).as_ref());
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        let refused = |schedule: WidthSchedule| {
            let error = schedule.plans(3).unwrap_err();
            assert!(error.is_refusal());
            error.to_string()
        };
        let error = refused(WidthSchedule::new(Local).then(8, Interlock::width(4)));
        insta::assert_snapshot!(error, @"strategy.width: width 4 for stage 0 of 3 (from step 8 on); widths are 1 (local) to 3 (end-to-end)");
        assert!(refused(WidthSchedule::new(Local).then(8, Local).then(7, Local)).contains("step 7 comes after step 8"));
        assert!(refused(WidthSchedule::new(Local).end_to_end_every(0)).contains("every 0 steps"));
        assert!(refused(WidthSchedule::new(WidthSchedule::new(Local).then(8, Local))).contains("one plan"));
        let adaptive = Adaptive { every: 4, window: 1, below: 0.0, width: 3, max_width: None };
        assert!(refused(WidthSchedule::new(adaptive)).contains("one plan"));
    }
}

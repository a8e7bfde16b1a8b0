//! The plans of one run.

use std::sync::Arc;

use serde_json::Value;

use super::{Adapt, Strategy};
use crate::{
    Error, Result,
    plan::{GradientPlan, PlanPhase, PlanSchedule},
};

/// The plans of a run as far as they are known, and the part of the strategy that decides the rest.
#[derive(Debug)]
pub struct Plans {
    schedule: PlanSchedule,
    adapt: Option<Box<dyn Adapt>>,
    /// Whether a plan may need the head of each stage.
    heads: Vec<bool>,
}

impl Plans {
    /// Returns the plans of `strategy` for a model cut into `stages` stages.
    ///
    /// # Errors
    /// If the strategy fails, or plans for another number of stages.
    pub fn of(strategy: &dyn Strategy, stages: usize) -> Result<Self> {
        let schedule = strategy.plans(stages)?;
        if schedule.stages() != stages {
            return Err(Error::invalid(
                "strategy",
                format!("it plans for {} stages", schedule.stages()),
                format!("the model is cut into {stages}"),
            ));
        }
        Ok(Self::new(schedule, strategy.adapt(stages)?))
    }

    fn new(schedule: PlanSchedule, adapt: Option<Box<dyn Adapt>>) -> Self {
        let planned = |k: usize| schedule.plans().any(|plan| plan.is_needed(k));
        let heads = (0..schedule.stages()).map(|k| planned(k) || adapt.as_ref().is_some_and(|adapt| adapt.may_need(k)));
        Self { heads: heads.collect(), schedule, adapt }
    }

    /// Returns the plans by step, as far as they are decided.
    pub fn schedule(&self) -> &PlanSchedule {
        &self.schedule
    }

    /// The number of stages.
    pub fn stages(&self) -> usize {
        self.schedule.stages()
    }

    /// Returns the plan of `step`, as far as it is decided.
    pub fn at(&self, step: u64) -> &Arc<GradientPlan> {
        self.schedule.at(step)
    }

    /// Returns whether the plan of some step may need the head of stage `k`.
    pub fn may_need(&self, k: usize) -> bool {
        self.heads[k]
    }

    /// Returns whether stage `k` may carry a head under all plans.
    pub fn may_carry_head(&self, k: usize) -> bool {
        self.schedule.plans().all(|plan| plan.may_carry_head(k))
    }

    /// Returns whether plans are decided during the run.
    pub fn adapts(&self) -> bool {
        self.adapt.is_some()
    }

    /// Returns the step below which no plan will change.
    pub fn known_until(&self) -> u64 {
        self.adapt.as_ref().map_or(u64::MAX, |adapt| adapt.known_until())
    }

    /// Observes `step`, which all stages have finished, with their measurements. Makes the change of plans that follows, and returns it.
    ///
    /// # Errors
    /// If the strategy fails, changes a known plan, plans for another number of stages or with a head that does not exist, or would leave the run
    /// without a plan for the next step.
    pub fn observe(&mut self, step: u64, alignments: &[Option<f64>]) -> Result<Option<PlanPhase>> {
        let Some(adapt) = &mut self.adapt else { return Ok(None) };
        let refuse = |problem: String, right: &str| Err(Error::invalid("strategy", problem, right));
        let known = adapt.known_until();
        let change = adapt.observe(step, alignments)?;
        let known_now = adapt.known_until();
        if known_now < known || known_now <= step.saturating_add(1) {
            let problem =
                format!("after step {step} its plans are known up to step {known_now}, before it up to {known}");
            return refuse(problem, "known_until never falls, and is beyond the step to come");
        }
        if let Some(phase) = &change {
            if phase.from_step < known {
                let problem = format!("after step {step} it changes the plan from step {} on", phase.from_step);
                return refuse(problem, &format!("known_until was {known}: the earliest step that may change"));
            }
            if let Some(k) = missing_head(&self.heads, phase.plans()) {
                let problem = format!("from step {} on it needs the head of stage {k}", phase.from_step);
                return refuse(problem, MAY_NEED);
            }
            self.schedule.change(phase.clone())?;
        }
        Ok(change)
    }

    /// Returns what the strategy has decided and remembers; none if no plan is decided during the run.
    ///
    /// # Errors
    /// If it cannot be written as JSON.
    pub fn state(&self) -> Result<Option<Value>> {
        self.adapt.as_ref().map(|adapt| adapt.state()).transpose()
    }

    /// Restores a state that [`Self::state`] returned.
    ///
    /// # Errors
    /// If no plan is decided during the run, or it is not the state of the same strategy for the same number of stages.
    pub fn restore(&mut self, state: &Value) -> Result<()> {
        let Some(adapt) = &mut self.adapt else {
            return Err(Error::invalid("strategy state", "this strategy has no state", "leave it out"));
        };
        let schedule = adapt.restore(state)?;
        if schedule.stages() != self.schedule.stages() {
            return Err(Error::invalid(
                "strategy state",
                format!("its plans are for {} stages", schedule.stages()),
                format!("the model is cut into {}", self.schedule.stages()),
            ));
        }
        if let Some(k) = missing_head(&self.heads, schedule.plans()) {
            let problem = format!("one of its plans needs the head of stage {k}");
            return Err(Error::invalid("strategy state", problem, MAY_NEED));
        }
        self.schedule = schedule;
        Ok(())
    }
}

const MAY_NEED: &str = "may_need must be true of every head that a plan to come needs";

/// Returns the first stage whose head `plans` need although it is not among `heads`.
fn missing_head<'a>(heads: &[bool], plans: impl Iterator<Item = &'a Arc<GradientPlan>>) -> Option<usize> {
    let mut missing = None;
    for plan in plans {
        let needed = (0..heads.len()).filter(|&k| k + 1 < plan.stages() && plan.is_needed(k)).find(|&k| !heads[k]);
        missing = [missing, needed].into_iter().flatten().min();
    }
    missing
}

impl From<PlanSchedule> for Plans {
    /// Returns these plans as fixed ones, whatever is measured.
    fn from(schedule: PlanSchedule) -> Self {
        Self::new(schedule, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers every step with the same change, if any, and knows what it is told to know.
    #[derive(Clone, Debug)]
    struct Says {
        change: Option<(u64, Vec<usize>)>,
        known: u64,
        known_then: u64,
    }

    impl Strategy for Says {
        fn plan(&self, stages: usize) -> Result<GradientPlan> {
            GradientPlan::new(vec![stages - 1; stages])
        }

        fn adapt(&self, _: usize) -> Result<Option<Box<dyn Adapt>>> {
            Ok(Some(Box::new(self.clone())))
        }
    }

    impl Adapt for Says {
        fn may_need(&self, k: usize) -> bool {
            k == 1
        }

        fn known_until(&self) -> u64 {
            self.known
        }

        fn observe(&mut self, _: u64, _: &[Option<f64>]) -> Result<Option<PlanPhase>> {
            self.known = self.known_then;
            let phase = |(from_step, follows): (u64, Vec<usize>)| -> Result<PlanPhase> {
                Ok(PlanPhase { from_step, plan: GradientPlan::new(follows)?.into(), every: None })
            };
            self.change.clone().map(phase).transpose()
        }

        fn state(&self) -> Result<Value> {
            Ok(Value::Null)
        }

        fn restore(&mut self, state: &Value) -> Result<PlanSchedule> {
            let follows = serde_json::from_value(state.clone()).map_err(crate::Error::other)?;
            Ok(PlanSchedule::constant(GradientPlan::new(follows)?))
        }
    }

    #[test]
    fn a_change_is_made_where_it_may_be() {
        let says = Says { change: Some((4, vec![1, 1, 2])), known: 4, known_then: 9 };
        let mut plans = Plans::of(&says, 3).unwrap();
        assert_eq!([0, 1, 2].map(|k| plans.may_need(k)), [false, true, true]);
        assert_eq!(plans.observe(3, &[None; 3]).unwrap().unwrap().from_step, 4);
        assert_eq!([3, 4].map(|step| plans.at(step).farthest(0)), [2, 1]);
        assert_eq!(plans.known_until(), 9);
        assert_eq!(Plans::from(PlanSchedule::constant(says.plan(3).unwrap())).known_until(), u64::MAX);
    }

    #[test]
    fn restored_plans_are_checked_as_changed_ones_are() {
        let mut plans = Plans::of(&Says { change: None, known: 4, known_then: 9 }, 3).unwrap();
        plans.restore(&serde_json::json!([1, 1, 2])).unwrap();
        assert_eq!(plans.at(0).farthest(0), 1);
        let mut refused = |state| plans.restore(&state).unwrap_err().to_string();
        assert!(refused(serde_json::json!([0, 1, 2])).contains("needs the head of stage 0; may_need must be true"));
        assert!(refused(serde_json::json!([1, 1])).contains("its plans are for 2 stages"));
    }

    #[test]
    fn what_would_break_the_run_is_refused() {
        let refused = |change: Option<(u64, &[usize])>, known, known_then| {
            let change = change.map(|(from_step, follows)| (from_step, follows.to_vec()));
            let mut plans = Plans::of(&Says { change, known, known_then }, 3).unwrap();
            plans.observe(3, &[None; 3]).unwrap_err().to_string()
        };
        assert!(refused(Some((4, &[1, 1, 2])), 5, 9).contains("changes the plan from step 4 on; known_until was 5"));
        assert!(refused(Some((5, &[0, 1, 2])), 5, 9).contains("needs the head of stage 0"));
        assert!(refused(Some((5, &[1, 1])), 5, 9).contains("2 stages from step 5"));
        assert!(refused(None, 4, 4).contains("known up to step 4"));
        assert!(refused(None, 9, 8).contains("known_until never falls"));
        assert!(
            Plans::from(PlanSchedule::constant(GradientPlan::new(vec![0]).unwrap())).restore(&Value::Null).is_err()
        );
    }
}

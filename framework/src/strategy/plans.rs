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
    /// The stages that carry a head if a plan needs it, or all heads are trained; all plans are moved to these.
    carriers: Vec<bool>,
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
        let carriers = vec![true; schedule.stages()];
        Self { heads: needed(&schedule, adapt.as_deref(), &carriers), schedule, adapt, carriers }
    }

    /// The same plans, those to come too, with heads only at stages `k` with `heads[k]`; the last stage has its loss. The weights of other losses move
    /// as [`GradientPlan::moved_to_heads`] says.
    ///
    /// # Errors
    /// If there is not one value for each stage, or no loss in the window of some stages; the message names all of these.
    pub fn moved_to_heads(self, mut heads: Vec<bool>) -> Result<Self> {
        if let Some(last) = heads.last_mut() {
            *last = true;
        }
        let schedule = self.schedule.moved_to_heads(&heads)?;
        Ok(Self { heads: needed(&schedule, self.adapt.as_deref(), &heads), schedule, carriers: heads, ..self })
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
        if let Some(phase) = change {
            if phase.from_step < known {
                let problem = format!("after step {step} it changes the plan from step {} on", phase.from_step);
                return refuse(problem, &format!("known_until was {known}: the earliest step that may change"));
            }
            let mut schedule = self.schedule.clone();
            schedule.change(phase)?;
            let schedule = schedule.moved_to_heads(&self.carriers)?;
            let phase = schedule.phase_at(u64::MAX).clone();
            if let Some(k) = missing_head(&self.heads, phase.plans()) {
                let problem = format!("from step {} on it needs the head of stage {k}", phase.from_step);
                return refuse(problem, MAY_NEED);
            }
            self.schedule = schedule;
            return Ok(Some(phase));
        }
        Ok(None)
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
        let schedule = schedule.moved_to_heads(&self.carriers)?;
        if let Some(k) = missing_head(&self.heads, schedule.plans()) {
            let problem = format!("one of its plans needs the head of stage {k}");
            return Err(Error::invalid("strategy state", problem, MAY_NEED));
        }
        self.schedule = schedule;
        Ok(())
    }
}

const MAY_NEED: &str = "may_need must be true of every head that a plan to come needs";

/// Returns whether a plan of `schedule`, or one to come, may need the head of each stage. Of the stages, those among `carriers` may carry one.
fn needed(schedule: &PlanSchedule, adapt: Option<&dyn Adapt>, carriers: &[bool]) -> Vec<bool> {
    let asked = |k: usize| adapt.is_some_and(|adapt| adapt.may_need(k));
    let exists = |k: usize| carriers[k] && (asked(k) || schedule.plans().all(|plan| plan.may_carry_head(k)));
    // The loss of a head that is asked for and does not exist moves: upstream to the nearest one, downstream as far as stages follow those between.
    let moves_to = |j: usize, k: usize| k > j || (0..j).rev().find(|&k| exists(k)) == Some(k);
    let replaces = |k: usize| (0..carriers.len()).any(|j| asked(j) && !exists(j) && moves_to(j, k));
    let planned = |k: usize| schedule.plans().any(|plan| plan.is_needed(k));
    (0..carriers.len()).map(|k| planned(k) || (exists(k) && (asked(k) || replaces(k)))).collect()
}

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
    use crate::strategy::{Interlock, Local, WidthSchedule};

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
    fn all_plans_are_moved_to_the_heads_that_there_are() {
        // Every second stage; Adapt asks for head 1 only, whose place heads 0, 2 and 3 may take.
        let heads = || vec![true, false, true, false];
        let says = |follows: &[usize]| {
            let says = Says { change: Some((4, follows.to_vec())), known: 4, known_then: 9 };
            Plans::of(&says, 4).unwrap().moved_to_heads(heads()).unwrap()
        };
        let follows = |plans: &Plans, step| (0..4).map(|k| plans.at(step).farthest(k)).collect::<Vec<_>>();
        let mut plans = says(&[1, 2, 2, 3]);
        assert_eq!([0, 1, 2, 3].map(|k| plans.may_need(k)), [true, false, true, true]);
        assert_eq!([0, 1, 2, 3].map(|k| plans.may_carry_head(k)), [true, false, true, true]);
        assert_eq!(follows(&plans, 0), [3, 3, 3, 3]);
        let change = plans.observe(3, &[None; 4]).unwrap().unwrap();
        assert_eq!((change.from_step, change.plan.farthest(0)), (4, 0));
        assert_eq!((follows(&plans, 3), follows(&plans, 4)), (vec![3, 3, 3, 3], vec![0, 2, 2, 3]));
        plans.restore(&serde_json::json!([1, 3, 3, 3])).unwrap();
        assert_eq!(follows(&plans, 0), [0, 3, 3, 3]);
        let error = says(&[1, 1, 2, 3]).observe(3, &[None; 4]).unwrap_err().to_string();
        assert!(error.starts_with("heads: no head in the window of stage 1 (from step 4 on)"), "{error}");
        let error = plans.restore(&serde_json::json!([1, 1, 2, 3])).unwrap_err().to_string();
        assert!(error.starts_with("heads: no head in the window of stage 1;"), "{error}");
        let error = Plans::of(&Says { change: None, known: 4, known_then: 9 }, 3).unwrap().moved_to_heads(heads());
        assert!(error.unwrap_err().to_string().contains("4 values of whether a stage carries a head"));
        // Schedules too; end-to-end steps need no head.
        let schedule = || WidthSchedule::new(Interlock::width(2)).end_to_end_every(3);
        let plans = Plans::of(&schedule(), 4).unwrap().moved_to_heads(heads()).unwrap();
        assert_eq!((follows(&plans, 1), follows(&plans, 3)), (vec![0, 2, 3, 3], vec![3, 3, 3, 3]));
        let error = Plans::of(&schedule().then(7, Local), 4).unwrap().moved_to_heads(heads()).unwrap_err().to_string();
        assert!(error.starts_with("heads: no head in the window of stage 1 (from step 7 on); use"), "{error}");
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

//! The gradient plan of each step.

use std::{fmt, sync::Arc};

use super::GradientPlan;
use crate::{Error, Result};

/// The gradient plans from one step on.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanPhase {
    /// The first step.
    pub from_step: u64,
    /// The plan of all steps that `every` does not select.
    pub plan: Arc<GradientPlan>,
    /// Another plan, for the steps divisible by this number.
    pub every: Option<(u64, Arc<GradientPlan>)>,
}

impl PlanPhase {
    /// Returns its plan, and the other plan if there is one.
    pub fn plans(&self) -> impl Iterator<Item = &Arc<GradientPlan>> {
        std::iter::once(&self.plan).chain(self.every.iter().map(|(_, plan)| plan))
    }
}

/// The plans of a run by step: a pure function, the same in every stage.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanSchedule {
    /// In ascending order of their first steps; the first begins at step 0.
    phases: Vec<PlanPhase>,
}

impl PlanSchedule {
    /// Returns the schedule of these phases; each holds until the next begins.
    ///
    /// # Errors
    /// If there is none, the first does not begin at step 0, their first steps do not ascend, a plan is for another number of stages than the
    /// first, or `every` is 0 steps.
    pub fn new(phases: Vec<PlanPhase>) -> Result<Self> {
        let refuse = |problem: String, right: &str| Err(Error::invalid("strategy.width_schedule", problem, right));
        let Some(first) = phases.first() else {
            return refuse("it has no phase".to_owned(), "give one from step 0 on");
        };
        if first.from_step != 0 {
            return refuse(format!("it begins at step {}", first.from_step), "its first phase must begin at step 0");
        }
        let stages = first.plan.stages();
        for phase in &phases {
            if let Some(plan) = phase.plans().find(|plan| plan.stages() != stages) {
                let problem = format!("a plan of {} stages from step {} on", plan.stages(), phase.from_step);
                return refuse(problem, &format!("the first is of {stages}"));
            }
            if phase.every.as_ref().is_some_and(|(steps, _)| *steps == 0) {
                return refuse("another plan every 0 steps".to_owned(), "use 1 or more");
            }
        }
        if let Some(pair) = phases.windows(2).find(|pair| pair[0].from_step >= pair[1].from_step) {
            let problem = format!("step {} comes after step {}", pair[1].from_step, pair[0].from_step);
            return refuse(problem, "list the phases in ascending order of from_step");
        }
        Ok(Self { phases })
    }

    /// Returns a schedule with one plan for all steps.
    ///
    pub fn constant(plan: impl Into<Arc<GradientPlan>>) -> Self {
        Self { phases: vec![PlanPhase { from_step: 0, plan: plan.into(), every: None }] }
    }

    /// The number of stages.
    pub fn stages(&self) -> usize {
        self.phases[0].plan.stages()
    }

    /// The plan of `step`.
    pub fn at(&self, step: u64) -> &Arc<GradientPlan> {
        let phase = self.phase_at(step);
        match &phase.every {
            Some((steps, plan)) if step.is_multiple_of(*steps) => plan,
            _ => &phase.plan,
        }
    }

    /// The phase that `step` lies in.
    pub fn phase_at(&self, step: u64) -> &PlanPhase {
        let begun = self.phases.partition_point(|phase| phase.from_step <= step);
        &self.phases[begun.saturating_sub(1)]
    }

    /// Every plan that some step may have.
    pub fn plans(&self) -> impl Iterator<Item = &Arc<GradientPlan>> {
        self.phases.iter().flat_map(PlanPhase::plans)
    }

    /// The phases in order.
    pub fn phases(&self) -> &[PlanPhase] {
        &self.phases
    }

    /// The same schedule with every plan moved to these heads, one value for each stage ([`GradientPlan::moved_to_heads`]).
    ///
    /// # Errors
    /// If some stages have no loss in the window of a plan; the message names them and the first step.
    pub(crate) fn moved_to_heads(mut self, heads: &[bool]) -> Result<Self> {
        let several = self.phases.len() > 1;
        for PlanPhase { from_step: step, plan, every } in &mut self.phases {
            for plan in std::iter::once(plan).chain(every.iter_mut().map(|(_, plan)| plan)) {
                let stays = |(k, &head): (usize, &bool)| head || !plan.may_carry_head(k);
                if heads.len() != plan.stages() || !heads.iter().enumerate().all(stays) {
                    let moved = plan.moved_to_heads(heads);
                    *plan = Arc::new(moved.map_err(|error| if several { from_step(error, *step) } else { error })?);
                }
            }
        }
        Ok(self)
    }

    /// Replaces the plans from the first step of `phase` on by `phase`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn change(&mut self, phase: PlanPhase) -> Result<()> {
        let mut phases = self.phases.clone();
        phases.retain(|known| known.from_step < phase.from_step);
        phases.push(phase);
        *self = Self::new(phases)?;
        Ok(())
    }
}

/// Returns the refusal of a plan with the first step that has it.
pub(crate) fn from_step(error: Error, step: u64) -> Error {
    match error {
        Error::Invalid { subject, problem, remedy } => {
            Error::Invalid { subject, problem: format!("{problem} (from step {step} on)"), remedy }
        }
        other => other,
    }
}

/// The table of each plan, below the steps that have it; a single plan for all steps is its table alone.
impl fmt::Display for PlanSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [PlanPhase { plan, every: None, .. }] = &*self.phases {
            return plan.fmt(f);
        }
        for (at, PlanPhase { from_step, plan, every }) in self.phases.iter().enumerate() {
            let gap = if at > 0 { "\n\n" } else { "" };
            write!(f, "{gap}from step {from_step} on:\n{plan}")?;
            if let Some((steps, plan)) = every {
                write!(f, "\nthere, in steps divisible by {steps}:\n{plan}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn width(n: usize) -> Arc<GradientPlan> {
        Arc::new(GradientPlan::of_widths(&[n; 4]).unwrap())
    }

    fn phase(from_step: u64, n: usize, every: Option<(u64, usize)>) -> PlanPhase {
        PlanPhase { from_step, plan: width(n), every: every.map(|(steps, n)| (steps, width(n))) }
    }

    #[test]
    fn a_step_has_the_plan_of_the_last_phase_that_has_begun() {
        let mut plans = PlanSchedule::new(vec![phase(0, 1, None), phase(10, 2, Some((4, 4)))]).unwrap();
        let found = |plans: &PlanSchedule, step| plans.at(step).width(0);
        assert_eq!([0, 9, 10, 11, 12, 13, 16].map(|step| found(&plans, step)), [1, 1, 2, 2, 4, 2, 4]);
        plans.change(phase(12, 3, None)).unwrap();
        assert_eq!([9, 11, 12, 16].map(|step| found(&plans, step)), [1, 2, 3, 3]);
        assert_eq!(plans.plans().count(), 4);
        assert_eq!(PlanSchedule::constant(width(2)).at(u64::MAX), &width(2));
    }

    #[test]
    fn every_phase_is_printed() {
        let plan = |widths: &[usize]| Arc::new(GradientPlan::of_widths(widths).unwrap());
        let first = PlanPhase { from_step: 0, plan: plan(&[1, 1]), every: None };
        assert_eq!(PlanSchedule::constant(first.plan.clone()).to_string(), first.plan.to_string());
        let second = PlanPhase { from_step: 7, plan: plan(&[1, 1]), every: Some((3, plan(&[2, 2]))) };
        insta::assert_snapshot!(PlanSchedule::new(vec![first, second]).unwrap(), @r"
        from step 0 on:
        stage  follows  backward      sends back        head
            0        0  0             -                 needed
            1        1  1             -                 last

        from step 7 on:
        stage  follows  backward      sends back        head
            0        0  0             -                 needed
            1        1  1             -                 last
        there, in steps divisible by 3:
        stage  follows  backward      sends back        head
            0        1  1             -                 probe
            1        1  1             1                 last
        ");
    }

    #[test]
    fn impossible_schedules_are_refused() {
        let refused = |phases| PlanSchedule::new(phases).unwrap_err().to_string();
        assert!(refused(vec![]).contains("no phase"));
        assert!(refused(vec![phase(1, 1, None)]).contains("begins at step 1"));
        assert!(refused(vec![phase(0, 1, None), phase(5, 1, None), phase(5, 2, None)]).contains("step 5"));
        assert!(refused(vec![phase(0, 1, Some((0, 2)))]).contains("every 0 steps"));
        let other = PlanPhase { plan: Arc::new(GradientPlan::of_widths(&[1; 3]).unwrap()), ..phase(5, 1, None) };
        assert!(refused(vec![phase(0, 1, None), other]).contains("3 stages from step 5"));
    }
}

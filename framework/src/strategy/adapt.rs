//! Strategies that decide plans during the run.

use std::fmt::Debug;

use serde_json::Value;

use crate::{
    Result,
    plan::{PlanPhase, PlanSchedule},
};

/// The part of a strategy that changes later plans, by how well the followed and the measured gradients of each stage agree.
///
/// It observes every step, in order, and must decide from nothing else (no clock, no random numbers of its own), so that a run can be repeated bit
/// for bit. No stage begins a step that is not below [`Self::known_until`].
///
/// ```
/// use interlock::{GradientPlan, PlanSchedule, Result, Strategy, PlanPhase, Adapt, tools::strategy::Plans};
/// use serde_json::{Value, json};
///
/// /// Begins locally and measures the next loss in step 0; end-to-end from step 2 on if the two gradients of stage 0 point in opposite directions.
/// #[derive(Debug)]
/// struct Once;
///
/// impl Strategy for Once {
///     fn plan(&self, stages: usize) -> Result<GradientPlan> {
///         GradientPlan::new((0..stages).collect())
///     }
///
///     fn plans(&self, stages: usize) -> Result<PlanSchedule> {
///         let next = (0..stages).map(|k| Some(k + 1).filter(|j| *j < stages)).collect();
///         let measuring = PlanPhase { from_step: 0, plan: self.plan(stages)?.measuring(next)?.into(), every: None };
///         PlanSchedule::new(vec![measuring, PlanPhase { from_step: 1, plan: self.plan(stages)?.into(), every: None }])
///     }
///
///     fn adapt(&self, stages: usize) -> Result<Option<Box<dyn Adapt>>> {
///         Ok(Some(Box::new(Decision { stages, wide: None })))
///     }
/// }
///
/// #[derive(Debug)]
/// struct Decision {
///     stages: usize,
///     wide: Option<bool>,
/// }
///
/// impl Adapt for Decision {
///     fn may_need(&self, _: usize) -> bool {
///         true
///     }
///
///     fn known_until(&self) -> u64 {
///         if self.wide.is_some() { u64::MAX } else { 2 }
///     }
///
///     fn observe(&mut self, step: u64, alignments: &[Option<f64>]) -> Result<Option<PlanPhase>> {
///         if step > 0 {
///             return Ok(None);
///         }
///         let wide = alignments[0].is_some_and(|cosine| cosine < 0.0);
///         self.wide = Some(wide);
///         let plan = GradientPlan::new(vec![self.stages - 1; self.stages])?;
///         Ok(wide.then(|| PlanPhase { from_step: 2, plan: plan.into(), every: None }))
///     }
///
///     fn state(&self) -> Result<Value> {
///         Ok(json!(self.wide))
///     }
///
///     fn restore(&mut self, state: &Value) -> Result<PlanSchedule> {
///         self.wide = state.as_bool();
///         let mut plans = Once.plans(self.stages)?;
///         if self.wide == Some(true) {
///             let plan = GradientPlan::new(vec![self.stages - 1; self.stages])?.into();
///             plans.change(PlanPhase { from_step: 2, plan, every: None })?;
///         }
///         Ok(plans)
///     }
/// }
///
/// let mut plans = Plans::of(&Once, 3)?;
/// plans.observe(0, &[Some(-0.5), Some(0.5), None])?;
/// assert_eq!([1, 2].map(|step| plans.at(step).farthest(0)), [0, 2]);
/// # Ok::<(), interlock::Error>(())
/// ```
pub trait Adapt: Debug + Send {
    /// Returns whether a later plan may need the head of stage `k`. Such a head is built, and trained from the first step on.
    fn may_need(&self, k: usize) -> bool;

    /// Returns the step below which all plans are known, whatever stages will measure. After step `s` has been observed it must be above `s + 1`, and
    /// it must never fall: otherwise the run fails.
    fn known_until(&self) -> u64;

    /// Observes `step`, which all stages have finished. `alignments` has one number for each stage: the cosine between the gradients of its
    /// parameters that it follows and that it measures; none if nothing was measured, or a gradient was zero.
    ///
    /// Returns the plans that replace the known ones from a step on. That step must not be below what [`Self::known_until`] was.
    ///
    /// # Errors
    /// Any error ends the run.
    fn observe(&mut self, step: u64, alignments: &[Option<f64>]) -> Result<Option<PlanPhase>>;

    /// Returns everything that it has decided and remembers: enough to continue the run.
    ///
    /// # Errors
    /// If it cannot be written as JSON.
    fn state(&self) -> Result<Value>;

    /// Restores a state that [`Self::state`] returned. Returns the plans as they were decided by then.
    ///
    /// # Errors
    /// If it is not the state of the same strategy for the same number of stages.
    fn restore(&mut self, state: &Value) -> Result<PlanSchedule>;
}

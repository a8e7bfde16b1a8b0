//! Strategies: they make gradient plans for a number of stages, fixed, changing with the steps, or decided during the run.

mod adapt;
mod adaptive;
mod config;
mod plans;
mod width_schedule;

pub use adapt::Adapt;
pub use adaptive::{Adaptive, AdaptiveState, Widened};
pub use config::{StrategyConfig, StrategyName, WidthPhaseConfig};
pub use plans::Plans;
pub use width_schedule::WidthSchedule;

use std::fmt::Debug;

use crate::{
    Error, Result,
    plan::{GradientPlan, PlanSchedule},
};

/// A strategy: decides which loss trains which stage.
///
/// ```
/// use interlock::{GradientPlan, Strategy};
///
/// /// Even stages are trained by the last head, odd ones by their own.
/// #[derive(Debug)]
/// struct EveryOther;
///
/// impl Strategy for EveryOther {
///     fn plan(&self, stages: usize) -> interlock::Result<GradientPlan> {
///         GradientPlan::new((0..stages).map(|k| if k % 2 == 0 { stages - 1 } else { k }).collect())
///     }
/// }
///
/// assert_eq!(EveryOther.plan(4)?.follows(0), [(3, 1.0)]);
/// # Ok::<(), interlock::Error>(())
/// ```
pub trait Strategy: Debug + Send + Sync {
    /// Returns the plan for a model cut into `stages` stages, at the beginning of the run.
    fn plan(&self, stages: usize) -> Result<GradientPlan>;

    /// Returns the plans of a run by step. Default: the plan of the beginning for all steps.
    fn plans(&self, stages: usize) -> Result<PlanSchedule> {
        PlanSchedule::constant(self.plan(stages)?)
    }

    /// Returns what changes these plans during the run, from what stages measure. Default: none, the plans do not change.
    fn adapt(&self, _stages: usize) -> Result<Option<Box<dyn Adapt>>> {
        Ok(None)
    }
}

impl<S: Strategy + ?Sized> Strategy for Box<S> {
    fn plan(&self, stages: usize) -> Result<GradientPlan> {
        (**self).plan(stages)
    }

    fn plans(&self, stages: usize) -> Result<PlanSchedule> {
        (**self).plans(stages)
    }

    fn adapt(&self, stages: usize) -> Result<Option<Box<dyn Adapt>>> {
        (**self).adapt(stages)
    }
}

/// Every stage is trained by its own head: no gradient crosses a boundary.
#[derive(Clone, Copy, Debug)]
pub struct Local;

/// Every stage is trained by the head of the next one.
#[derive(Clone, Copy, Debug)]
pub struct Pairwise;

/// Every stage is trained by the last one: ordinary backpropagation, without auxiliary heads.
#[derive(Clone, Copy, Debug)]
pub struct EndToEnd;

/// Interlocking backpropagation: every stage is trained by the head `width - 1` stages downstream, or by the last one.
#[derive(Clone, Debug)]
pub struct Interlock {
    widths: Widths,
}

#[derive(Clone, Debug)]
enum Widths {
    Same(usize),
    PerStage(Vec<usize>),
}

impl Interlock {
    /// Returns the strategy with one width for all stages: 1 is local, 2 pairwise, the number of stages end-to-end.
    pub fn width(width: usize) -> Self {
        Self { widths: Widths::Same(width) }
    }

    /// Returns the strategy with one width for each stage.
    pub fn widths(widths: impl Into<Vec<usize>>) -> Self {
        Self { widths: Widths::PerStage(widths.into()) }
    }
}

impl Strategy for Local {
    fn plan(&self, stages: usize) -> Result<GradientPlan> {
        GradientPlan::new((0..stages).collect())
    }
}

impl Strategy for Pairwise {
    fn plan(&self, stages: usize) -> Result<GradientPlan> {
        GradientPlan::new((0..stages).map(|k| (k + 1).min(stages - 1)).collect())
    }
}

impl Strategy for EndToEnd {
    fn plan(&self, stages: usize) -> Result<GradientPlan> {
        GradientPlan::new(vec![stages.saturating_sub(1); stages])
    }
}

impl Strategy for Interlock {
    fn plan(&self, stages: usize) -> Result<GradientPlan> {
        match &self.widths {
            Widths::Same(width) => GradientPlan::of_widths(&vec![*width; stages]),
            Widths::PerStage(widths) if widths.len() == stages => GradientPlan::of_widths(widths),
            Widths::PerStage(widths) => Err(Error::invalid(
                "strategy.widths",
                format!("{} widths for {stages} stages", widths.len()),
                "give one width for each stage",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_widths() {
        for stages in 1..6 {
            assert_eq!(Local.plan(stages).unwrap(), Interlock::width(1).plan(stages).unwrap());
            assert_eq!(EndToEnd.plan(stages).unwrap(), Interlock::width(stages).plan(stages).unwrap());
            if stages > 1 {
                assert_eq!(Pairwise.plan(stages).unwrap(), Interlock::width(2).plan(stages).unwrap());
            }
        }
        assert!(EndToEnd.plan(0).is_err());
    }
}

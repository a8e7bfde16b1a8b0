//! Strategies: from a number of stages to a gradient plan.

use std::fmt::Debug;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, plan::GradientPlan};

/// Decides which loss trains which stage.
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
/// assert_eq!(EveryOther.plan(4)?.follows(0), 3);
/// # Ok::<(), interlock::Error>(())
/// ```
pub trait Strategy: Debug + Send + Sync {
    /// The plan for a model cut into `stages` stages.
    fn plan(&self, stages: usize) -> Result<GradientPlan>;
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

/// Interlocking backpropagation: every stage is trained by the head `width - 1` stages ahead, or the last one.
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
    /// One width for all stages: 1 is local, 2 pairwise, the number of stages end-to-end.
    pub fn width(width: usize) -> Self {
        Self { widths: Widths::Same(width) }
    }

    /// One width for each stage.
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

/// The strategies that have names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StrategyName {
    /// Width 1.
    Local,
    /// Width 2.
    #[default]
    Pairwise,
    /// A width, or one for each stage.
    Interlock,
    /// The number of stages as width.
    EndToEnd,
}

/// A strategy by name, as configuration files give it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StrategyConfig {
    /// The strategy; `interlock` where a width is given, otherwise `pairwise`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<StrategyName>,
    /// The interlock width of every stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// The interlock width of each stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub widths: Option<Vec<usize>>,
}

impl StrategyConfig {
    /// The strategy that this names. A width implies `interlock`.
    ///
    /// # Errors
    /// If the keys contradict each other.
    pub fn build(&self) -> Result<Box<dyn Strategy>> {
        use StrategyName as Name;
        let refuse = |problem: &str, remedy: &str| Err(Error::invalid("strategy", problem, remedy));
        match (self.name, self.width, &self.widths) {
            (_, Some(_), Some(_)) => refuse("both width and widths are given", "give one of them"),
            (None | Some(Name::Interlock), Some(width), None) => Ok(Box::new(Interlock::width(width))),
            (None | Some(Name::Interlock), None, Some(widths)) => Ok(Box::new(Interlock::widths(widths.clone()))),
            (Some(Name::Interlock), None, None) => refuse("interlock without a width", "give strategy.width"),
            (Some(Name::Local), None, None) => Ok(Box::new(Local)),
            (None | Some(Name::Pairwise), None, None) => Ok(Box::new(Pairwise)),
            (Some(Name::EndToEnd), None, None) => Ok(Box::new(EndToEnd)),
            (Some(_), ..) => refuse("a width beside a name other than interlock", "leave the name or the width out"),
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

    #[test]
    fn a_width_implies_interlock_and_contradictions_are_refused() {
        let config = |name, width, widths| StrategyConfig { name, width, widths };
        let plan = config(None, Some(3), None).build().unwrap().plan(4).unwrap();
        assert_eq!(plan, Interlock::width(3).plan(4).unwrap());
        assert!(config(Some(StrategyName::Local), Some(1), None).build().is_err());
        assert!(config(None, Some(1), Some(vec![1])).build().is_err());
        assert!(config(Some(StrategyName::Interlock), None, None).build().is_err());
        assert!(config(None, None, Some(vec![1, 2])).build().unwrap().plan(3).is_err());
    }
}

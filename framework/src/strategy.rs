//! Strategies: they make gradient plans for a number of stages, fixed, changing with the steps, or decided during the run.

mod adapt;
mod adaptive;
mod config;
mod follow;
mod plans;
mod width_schedule;

pub use adapt::Adapt;
pub use adaptive::{Adaptive, AdaptiveState, AdaptiveWindows, Widened};
pub use config::{StrategyConfig, StrategyName, WidthPhaseConfig};
pub use follow::FollowConfig;
pub use plans::Plans;
pub use width_schedule::WidthSchedule;

use std::fmt::Debug;

use crate::{
    Error, Result,
    plan::{Blocks, GradientPlan, PlanSchedule, Window},
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
        Ok(PlanSchedule::constant(self.plan(stages)?))
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

/// Blocks of two stages. Each follows the mean of its own loss and that of the next block: [`Interlock::width`] 2 with [`Interlock::group`] 2 and
/// [`Interlock::mean`], for any number of stages.
#[derive(Clone, Copy, Debug)]
pub struct Groups;

/// Every stage is trained by the last one: ordinary backpropagation, without auxiliary heads.
#[derive(Clone, Copy, Debug)]
pub struct EndToEnd;

/// Interlocking backpropagation: every stage is trained by the losses of a window that begins with its own.
///
/// By default a stage follows the last loss of its window alone: with width `N` that of the head `N - 1` stages downstream, or of the last stage.
/// [`Self::mean`] makes it follow the mean of all losses in the window, [`Self::weights`] any weights. With [`Self::group`] windows count blocks of
/// several stages instead of stages; each block is trained by the head of its last stage.
///
/// ```
/// use interlock::{Interlock, Strategy};
///
/// // Each stage follows its own loss and that of the next stage.
/// let plan = Interlock::width(2).mean().plan(4)?;
/// assert_eq!(plan.follows(0), [(0, 0.5), (1, 0.5)]);
/// assert_eq!(plan.follows(3), [(3, 1.0)]);
///
/// // Blocks of two stages, each trained end-to-end by its last stage: no gradient leaves a block.
/// let plan = Interlock::width(1).group(2).plan(4)?;
/// assert_eq!([0, 1, 2, 3].map(|k| plan.farthest(k)), [1, 1, 3, 3]);
/// assert!(plan.losses_sent_back(2).is_empty());
/// # Ok::<(), interlock::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Interlock {
    windows: Windows,
    settings: WindowSettings,
}

/// What all windows of a strategy have in common.
#[derive(Clone, Copy, Debug)]
struct WindowSettings {
    /// Whether a stage follows the mean of its window instead of the last loss.
    mean: bool,
    group: GroupSize,
}

/// The number of stages in a block of [`Groups`].
const GROUP: usize = 2;

/// The number of stages in a block.
#[derive(Clone, Copy, Debug)]
enum GroupSize {
    Of(usize),
    /// As many as this, or all stages if there are fewer.
    UpTo(usize),
}

impl Default for WindowSettings {
    fn default() -> Self {
        Self { mean: false, group: GroupSize::Of(1) }
    }
}

impl WindowSettings {
    /// Returns the blocks of `stages` stages.
    fn blocks(self, stages: usize) -> Result<Blocks> {
        let group = match self.group {
            GroupSize::Of(group) => group,
            GroupSize::UpTo(group) => group.min(stages.max(1)),
        };
        Blocks::new(stages, group)
    }

    /// Returns a window of this width.
    fn window(self, width: usize) -> Window {
        if self.mean { Window::Mean(width) } else { Window::Last(width) }
    }
}

/// The windows of all stages.
#[derive(Clone, Debug)]
enum Windows {
    /// One width for all stages.
    Width(usize),
    /// The largest width up to this one.
    WidthUpTo(usize),
    Widths(Vec<usize>),
    Weights(Vec<f64>),
    WeightsOfStages(Vec<Vec<f64>>),
}

impl Interlock {
    /// Returns the strategy with one width for all stages: 1 is local, 2 pairwise, the number of stages end-to-end.
    pub fn width(width: usize) -> Self {
        Self::of(Windows::Width(width))
    }

    /// Returns the strategy with one width for each stage.
    pub fn widths(widths: impl Into<Vec<usize>>) -> Self {
        Self::of(Windows::Widths(widths.into()))
    }

    /// Returns the strategy in which every stage follows the losses with these weights, by distance: first the weight of its own loss, then that of
    /// the next stage, and so on. Weights that reach past the last stage count for its loss.
    pub fn weights(weights: impl Into<Vec<f64>>) -> Self {
        Self::of(Windows::Weights(weights.into()))
    }

    /// Returns the strategy with such weights for each stage.
    pub fn weights_of_stages(weights: impl Into<Vec<Vec<f64>>>) -> Self {
        Self::of(Windows::WeightsOfStages(weights.into()))
    }

    /// Returns the strategy with the largest width that there is, up to this one.
    fn width_up_to(width: usize) -> Self {
        Self::of(Windows::WidthUpTo(width))
    }

    /// Returns the strategy of [`Groups`].
    fn groups() -> Self {
        Self { settings: WindowSettings { mean: true, group: GroupSize::UpTo(GROUP) }, ..Self::width_up_to(2) }
    }

    fn of(windows: Windows) -> Self {
        Self { windows, settings: WindowSettings::default() }
    }

    /// Makes every stage follow the mean of all losses in its window instead of the last one. Changes nothing where weights are given.
    #[must_use]
    pub fn mean(self) -> Self {
        self.with(|settings| settings.mean = true)
    }

    /// Puts the stages into blocks of this many; the last block may have fewer. Widths and weights then count blocks. The last stage of a block
    /// carries its head, and its loss trains all stages of the block.
    #[must_use]
    pub fn group(self, stages: usize) -> Self {
        self.with(|settings| settings.group = GroupSize::Of(stages))
    }

    fn with(mut self, set: impl FnOnce(&mut WindowSettings)) -> Self {
        set(&mut self.settings);
        self
    }

    fn windows(&self, stages: usize) -> Result<Vec<Window>> {
        let window = |width: &usize| self.settings.window(*width);
        let each = |count: usize, what: &str| match count == stages {
            true => Ok(()),
            false => Err(Error::invalid(
                format!("strategy.{what}"),
                format!("{count} {} for {stages} stages", if what == "widths" { what } else { "lists of weights" }),
                "give one for each stage",
            )),
        };
        Ok(match &self.windows {
            Windows::Width(width) => vec![window(width); stages],
            Windows::WidthUpTo(width) => {
                vec![window((&self.settings.blocks(stages)?.count()).min(width)); stages]
            }
            Windows::Weights(weights) => vec![Window::Weights(weights.clone()); stages],
            Windows::Widths(widths) => {
                each(widths.len(), "widths")?;
                widths.iter().map(window).collect()
            }
            Windows::WeightsOfStages(weights) => {
                each(weights.len(), "follows")?;
                weights.iter().cloned().map(Window::Weights).collect()
            }
        })
    }
}

impl Strategy for Local {
    fn plan(&self, stages: usize) -> Result<GradientPlan> {
        Interlock::width(1).plan(stages)
    }
}

impl Strategy for Pairwise {
    fn plan(&self, stages: usize) -> Result<GradientPlan> {
        Interlock::width_up_to(2).plan(stages)
    }
}

impl Strategy for Groups {
    fn plan(&self, stages: usize) -> Result<GradientPlan> {
        Interlock::groups().plan(stages)
    }
}

impl Strategy for EndToEnd {
    fn plan(&self, stages: usize) -> Result<GradientPlan> {
        Interlock::width_up_to(stages).plan(stages)
    }
}

impl Strategy for Interlock {
    fn plan(&self, stages: usize) -> Result<GradientPlan> {
        GradientPlan::of_windows(self.settings.blocks(stages)?.group, &self.windows(stages)?)
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
            if stages > 2 {
                assert_eq!(Groups.plan(stages).unwrap(), Interlock::width(2).group(2).mean().plan(stages).unwrap());
            } else {
                assert!(Groups.plan(stages).unwrap().is_end_to_end());
            }
            if stages > 1 {
                assert_eq!(Pairwise.plan(stages).unwrap(), Interlock::width(2).plan(stages).unwrap());
            }
        }
        assert!(EndToEnd.plan(0).is_err());
    }

    #[test]
    fn windows_count_blocks_and_lists_are_for_every_stage() {
        let follows = |strategy: Interlock, stages: usize| -> Vec<Vec<(usize, f64)>> {
            let plan = strategy.plan(stages).unwrap();
            (0..stages).map(|k| plan.follows(k).to_vec()).collect()
        };
        assert_eq!(follows(Interlock::weights([0.5, 0.5]), 4), follows(Interlock::width(2).mean(), 4));
        assert_eq!(
            follows(Interlock::weights_of_stages([vec![0.0, 1.0], vec![0.25, 0.75], vec![2.0]]), 3),
            [vec![(1, 1.0)], vec![(1, 0.25), (2, 0.75)], vec![(2, 2.0)]]
        );
        assert_eq!(follows(Interlock::widths([2, 1, 1, 1]).group(2).mean(), 4)[0], [(1, 0.5), (3, 0.5)]);
        assert_eq!(follows(Interlock::width_up_to(9).group(2), 4), vec![vec![(3, 1.0)]; 4]);
        let refused = |strategy: Interlock| strategy.plan(4).unwrap_err().to_string();
        assert_eq!(
            refused(Interlock::widths([1, 2])),
            "strategy.widths: 2 widths for 4 stages; give one for each stage"
        );
        let lists = Interlock::weights_of_stages([vec![1.0]]);
        assert_eq!(refused(lists), "strategy.follows: 1 lists of weights for 4 stages; give one for each stage");
        assert!(refused(Interlock::width_up_to(2).group(9)).starts_with("strategy.group: blocks of 9 stages, for 4"));
    }
}

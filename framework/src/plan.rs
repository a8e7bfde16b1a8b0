//! The gradient plan: which losses a stage pulls back, and which gradients cross which boundary.
//!
//! Everything follows from one number a stage, `follows(k) ≥ k`: the head whose loss trains the parameters of stage `k`.
//!
//! - `wants(k) = { j ≥ k : some i ≤ k follows j }`: the losses that stage `k` pulls back.
//! - `crosses(k) = { j ≥ k : some i < k follows j }`: the losses whose gradient leaves stage `k` for stage `k-1`.
//! - The head of stage `k` is *needed* iff some stage follows `k`; any other head is a *probe*.
//!
//! This module knows neither tensors nor actors.

mod schedule;

pub use schedule::{PlanPhase, PlanSchedule};

use std::{collections::BTreeSet, fmt};

use crate::{Error, Result, differentiable::Wants};

/// Which losses each stage pulls back, for one cut of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GradientPlan {
    follows: Vec<usize>,
    wants: Vec<Vec<usize>>,
    crosses: Vec<Vec<usize>>,
    needed: Vec<bool>,
}

impl GradientPlan {
    /// The plan in which stage `k` follows the loss of stage `follows[k]`.
    ///
    /// # Errors
    /// If there is no stage, or a stage follows one before itself or behind the last.
    pub fn new(follows: Vec<usize>) -> Result<Self> {
        let stages = follows.len();
        if stages == 0 {
            return Err(Error::invalid("gradient plan", "there is no stage", "a model needs at least one"));
        }
        for (k, &j) in follows.iter().enumerate() {
            if !(k..stages).contains(&j) {
                return Err(Error::invalid(
                    "gradient plan",
                    format!("stage {k} follows the loss of stage {j}"),
                    format!("it can follow its own or a later one: {k} to {}", stages - 1),
                ));
            }
        }
        let (mut wants, mut crosses) = (Vec::with_capacity(stages), Vec::with_capacity(stages));
        let mut needed = vec![false; stages];
        // The losses that the stages before follow and that lie ahead.
        let mut followed = BTreeSet::new();
        for (k, &j) in follows.iter().enumerate() {
            followed = followed.split_off(&k);
            crosses.push(followed.iter().copied().collect());
            followed.insert(j);
            wants.push(followed.iter().copied().collect());
            needed[j] = true;
        }
        Ok(Self { follows, wants, crosses, needed })
    }

    /// The plan of one interlock width for each stage: `follows(k) = min(k + widths[k] - 1, K - 1)`.
    ///
    /// # Errors
    /// If a width is 0 or larger than the number of stages `K`.
    pub fn of_widths(widths: &[usize]) -> Result<Self> {
        let stages = widths.len();
        for (k, &width) in widths.iter().enumerate() {
            if width == 0 || width > stages {
                return Err(Error::invalid(
                    "strategy.width",
                    format!("width {width} for stage {k} of {stages}"),
                    format!("widths are 1 (local) to {stages} (end-to-end)"),
                ));
            }
        }
        Self::new(widths.iter().enumerate().map(|(k, width)| (k + width - 1).min(stages - 1)).collect())
    }

    /// The number of stages `K`.
    pub fn stages(&self) -> usize {
        self.follows.len()
    }

    /// Whether every stage follows the last one: plain backpropagation.
    pub fn is_end_to_end(&self) -> bool {
        self.follows.iter().all(|&j| j + 1 == self.stages())
    }

    /// The loss that trains the parameters of stage `k`.
    pub fn follows(&self, k: usize) -> usize {
        self.follows[k]
    }

    /// The losses that stage `k` pulls back, nearest first.
    pub fn wants(&self, k: usize) -> &[usize] {
        &self.wants[k]
    }

    /// The losses whose gradient stage `k` sends to stage `k-1`, nearest first.
    pub fn crosses(&self, k: usize) -> &[usize] {
        &self.crosses[k]
    }

    /// Which gradients stage `k` computes of loss `j`.
    pub fn pull_back(&self, k: usize, j: usize) -> Wants {
        Wants { input: self.crosses[k].contains(&j), parameters: self.follows[k] == j }
    }

    /// Whether some stage follows the loss of stage `k`.
    pub fn is_needed(&self, k: usize) -> bool {
        self.needed[k]
    }

    /// The number of pull-backs of one micro-batch, over all stages.
    pub fn pull_backs(&self) -> usize {
        self.wants.iter().map(Vec::len).sum()
    }
}

/// One row a stage: what it follows, relays and computes. The head of a probe is there only where all heads are trained.
impl fmt::Display for GradientPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |losses: &[usize]| match losses {
            [] => "-".to_owned(),
            _ => losses.iter().map(usize::to_string).collect::<Vec<_>>().join(" "),
        };
        write!(f, "{:>5}  {:>7}  {:<12}  {:<16}  head", "stage", "follows", "pulls back", "sends back")?;
        for k in 0..self.stages() {
            let head = match (k + 1 == self.stages(), self.is_needed(k)) {
                (true, _) => "last",
                (false, true) => "needed",
                (false, false) => "probe",
            };
            write!(
                f,
                "\n{k:>5}  {:>7}  {:<12}  {:<16}  {head}",
                self.follows[k],
                list(&self.wants[k]),
                list(&self.crosses[k])
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widths(n: usize, stages: usize) -> GradientPlan {
        GradientPlan::of_widths(&vec![n; stages]).unwrap()
    }

    #[test]
    fn pulls_back_only_what_somebody_follows() {
        assert_eq!(widths(3, 4).pull_backs(), 6);
        assert_eq!(widths(5, 8).pull_backs(), 20);
        assert_eq!(widths(1, 4).pull_backs(), 4);
        assert_eq!(widths(4, 4).pull_backs(), 4);
    }

    #[test]
    fn width_three_of_four_by_hand() {
        let plan = widths(3, 4);
        assert_eq!((0..4).map(|k| plan.follows(k)).collect::<Vec<_>>(), [2, 3, 3, 3]);
        assert_eq!(plan.wants(0), [2]);
        assert_eq!(plan.wants(1), [2, 3]);
        assert_eq!(plan.wants(2), [2, 3]);
        assert_eq!(plan.wants(3), [3]);
        assert_eq!(plan.crosses(0), [0; 0]);
        assert_eq!(plan.crosses(1), [2]);
        assert_eq!(plan.crosses(2), [2, 3]);
        assert_eq!(plan.crosses(3), [3]);
        assert_eq!(plan.pull_back(1, 2), Wants::INPUT);
        assert_eq!(plan.pull_back(1, 3), Wants::PARAMETERS);
        assert_eq!(plan.pull_back(2, 3), Wants::BOTH);
        assert!(!plan.is_needed(0) && !plan.is_needed(1) && plan.is_needed(2));
    }

    #[test]
    fn mixed_widths_relay_for_the_stages_below() {
        let plan = GradientPlan::of_widths(&[3, 1, 2, 2, 1]).unwrap();
        assert_eq!((0..5).map(|k| plan.follows(k)).collect::<Vec<_>>(), [2, 1, 3, 4, 4]);
        assert_eq!(plan.wants(1), [1, 2]);
        assert_eq!(plan.pull_back(1, 1), Wants::PARAMETERS);
        assert_eq!(plan.pull_back(1, 2), Wants::INPUT);
        assert!(!plan.is_needed(0));
    }

    #[test]
    fn prints_as_a_table() {
        insta::assert_snapshot!(widths(3, 5), @r"
        stage  follows  pulls back    sends back        head
            0        2  2             -                 probe
            1        3  2 3           2                 probe
            2        4  2 3 4         2 3               needed
            3        4  3 4           3 4               needed
            4        4  4             4                 last
        ");
    }

    #[test]
    fn refuses_what_cannot_be() {
        assert!(GradientPlan::new(vec![]).is_err());
        assert!(GradientPlan::new(vec![0, 0]).is_err());
        assert!(GradientPlan::new(vec![0, 2]).is_err());
        let error = GradientPlan::of_widths(&[0, 1]).unwrap_err().to_string();
        insta::assert_snapshot!(error, @"strategy.width: width 0 for stage 0 of 2; widths are 1 (local) to 2 (end-to-end)");
        let error = GradientPlan::of_widths(&[2, 3]).unwrap_err().to_string();
        insta::assert_snapshot!(error, @"strategy.width: width 3 for stage 1 of 2; widths are 1 (local) to 2 (end-to-end)");
    }
}

//! The gradient plan: which losses a stage pulls back, and which gradients cross which boundary.
//!
//! Everything follows from one number a stage, `follows(k) ≥ k`: the head whose loss trains the parameters of stage `k`.
//!
//! - `wants(k) = { j ≥ k : some i ≤ k follows j }`: the losses that stage `k` pulls back.
//! - `crosses(k) = { j ≥ k : some i < k follows j }`: the losses whose gradient leaves stage `k` for stage `k-1`.
//! - The head of stage `k` is *needed* iff some stage follows `k`; any other head is a *probe*.
//!
//! In single steps a stage may also *measure* a loss: it computes its parameters' gradients of that loss too, compares them with those that
//! it follows, and does not apply them. Above, a loss that is measured counts as one that is followed.
//!
//! This module knows neither tensors nor actors.

mod schedule;
mod wants;

pub use schedule::{PlanPhase, PlanSchedule};
pub use wants::Wants;

use std::{collections::BTreeSet, fmt};

use crate::{Error, Result};

/// Which losses each stage pulls back, for one cut of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GradientPlan {
    follows: Vec<usize>,
    measures: Vec<Option<usize>>,
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
        let measures = vec![None; follows.len()];
        Self::of(follows, measures)
    }

    /// The same plan, in which stage `k` also measures the loss of stage `measures[k]`.
    ///
    /// # Errors
    /// If there is not one for each stage, or a stage measures a loss before itself, behind the last, or the one that it follows.
    pub fn measuring(self, measures: Vec<Option<usize>>) -> Result<Self> {
        if measures.len() != self.stages() {
            return Err(Error::invalid(
                "gradient plan",
                format!("{} losses to measure", measures.len()),
                format!("give one, or none, for each of {} stages", self.stages()),
            ));
        }
        if let Some(k) = (0..self.stages()).find(|&k| measures[k] == Some(self.follows[k])) {
            return Err(Error::invalid(
                "gradient plan",
                format!("stage {k} measures the loss of stage {}, which it follows", self.follows[k]),
                "measure another one",
            ));
        }
        Self::of(self.follows, measures)
    }

    fn of(follows: Vec<usize>, measures: Vec<Option<usize>>) -> Result<Self> {
        let stages = follows.len();
        if stages == 0 {
            return Err(Error::invalid("gradient plan", "there is no stage", "a model needs at least one"));
        }
        for k in 0..stages {
            for (verb, j) in std::iter::once(("follows", follows[k])).chain(measures[k].map(|j| ("measures", j))) {
                if !(k..stages).contains(&j) {
                    return Err(Error::invalid(
                        "gradient plan",
                        format!("stage {k} {verb} the loss of stage {j}"),
                        format!("it can be its own or a later one: {k} to {}", stages - 1),
                    ));
                }
            }
        }
        let (mut wants, mut crosses) = (Vec::with_capacity(stages), Vec::with_capacity(stages));
        let mut needed = vec![false; stages];
        // The losses that the stages before follow or measure and that lie ahead.
        let mut asked = BTreeSet::new();
        for (k, &followed) in follows.iter().enumerate() {
            asked = asked.split_off(&k);
            crosses.push(asked.iter().copied().collect());
            for j in std::iter::once(followed).chain(measures[k]) {
                asked.insert(j);
                needed[j] = true;
            }
            wants.push(asked.iter().copied().collect());
        }
        Ok(Self { follows, measures, wants, crosses, needed })
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

    /// The loss whose gradients of the parameters stage `k` compares with those that it follows, if any.
    pub fn measures(&self, k: usize) -> Option<usize> {
        self.measures[k]
    }

    /// Whether some stage measures a loss.
    pub fn measures_any(&self) -> bool {
        self.measures.iter().any(Option::is_some)
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
    pub fn backward(&self, k: usize, j: usize) -> Wants {
        let parameters = self.follows[k] == j || self.measures[k] == Some(j);
        Wants { input: self.crosses[k].contains(&j), parameters }
    }

    /// Whether some stage follows, or measures, the loss of stage `k`.
    pub fn is_needed(&self, k: usize) -> bool {
        self.needed[k]
    }

    /// The number of pull-backs of one micro-batch, over all stages.
    pub fn backward_passes(&self) -> usize {
        self.wants.iter().map(Vec::len).sum()
    }
}

/// One row a stage: what it follows, measures (where something is), relays and computes. The head of a probe is there only where all heads
/// are trained, or where another step needs it.
impl fmt::Display for GradientPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |losses: &[usize]| match losses {
            [] => "-".to_owned(),
            _ => losses.iter().map(usize::to_string).collect::<Vec<_>>().join(" "),
        };
        let measures = |cell: &str| if self.measures_any() { format!("  {cell:>8}") } else { String::new() };
        let heading = measures("measures");
        write!(f, "{:>5}  {:>7}{heading}  {:<12}  {:<16}  head", "stage", "follows", "pulls back", "sends back")?;
        for k in 0..self.stages() {
            let head = match (k + 1 == self.stages(), self.is_needed(k)) {
                (true, _) => "last",
                (false, true) => "needed",
                (false, false) => "probe",
            };
            let measured = measures(&self.measures[k].map_or_else(|| "-".to_owned(), |j| j.to_string()));
            write!(
                f,
                "\n{k:>5}  {:>7}{measured}  {:<12}  {:<16}  {head}",
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
        assert_eq!(widths(3, 4).backward_passes(), 6);
        assert_eq!(widths(5, 8).backward_passes(), 20);
        assert_eq!(widths(1, 4).backward_passes(), 4);
        assert_eq!(widths(4, 4).backward_passes(), 4);
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
        assert_eq!(plan.backward(1, 2), Wants::INPUT);
        assert_eq!(plan.backward(1, 3), Wants::PARAMETERS);
        assert_eq!(plan.backward(2, 3), Wants::BOTH);
        assert!(!plan.is_needed(0) && !plan.is_needed(1) && plan.is_needed(2));
    }

    #[test]
    fn mixed_widths_relay_for_the_stages_below() {
        let plan = GradientPlan::of_widths(&[3, 1, 2, 2, 1]).unwrap();
        assert_eq!((0..5).map(|k| plan.follows(k)).collect::<Vec<_>>(), [2, 1, 3, 4, 4]);
        assert_eq!(plan.wants(1), [1, 2]);
        assert_eq!(plan.backward(1, 1), Wants::PARAMETERS);
        assert_eq!(plan.backward(1, 2), Wants::INPUT);
        assert!(!plan.is_needed(0));
    }

    #[test]
    fn what_is_measured_is_pulled_back_and_not_followed() {
        let plan = widths(1, 4).measuring(vec![Some(1), None, Some(3), None]).unwrap();
        assert_eq!((0..4).map(|k| plan.follows(k)).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!([plan.wants(0), plan.wants(1), plan.wants(2), plan.wants(3)], [&[0, 1][..], &[1], &[2, 3], &[3]]);
        assert_eq!((plan.crosses(1), plan.crosses(2), plan.crosses(3)), (&[1][..], &[][..], &[3][..]));
        assert_eq!(plan.backward(0, 1), Wants::PARAMETERS);
        assert_eq!(plan.backward(1, 1), Wants::BOTH);
        // A head that is only measured gives a output_gradient.
        let plan = GradientPlan::new(vec![2, 2, 2]).unwrap().measuring(vec![Some(1), None, None]).unwrap();
        assert!(plan.is_needed(1) && !plan.is_needed(0) && plan.measures_any());
        assert_eq!(plan.backward(1, 1), Wants::INPUT);
        insta::assert_snapshot!(plan, @r"
        stage  follows  measures  pulls back    sends back        head
            0        2         1  1 2           -                 probe
            1        2         -  1 2           1 2               needed
            2        2         -  2             2                 last
        ");
        let refused = |measures| widths(1, 3).measuring(measures).unwrap_err().to_string();
        assert!(refused(vec![None]).contains("1 losses to measure"));
        assert!(refused(vec![Some(0), None, None]).contains("stage 0 measures the loss of stage 0, which it follows"));
        assert!(refused(vec![None, Some(0), None]).contains("stage 1 measures the loss of stage 0"));
        assert!(refused(vec![Some(3), None, None]).contains("0 to 2"));
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

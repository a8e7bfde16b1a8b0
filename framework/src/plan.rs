//! The gradient plan: the losses that train each stage, and the gradients that cross each boundary.
//!
//! Everything follows from one set for each stage, `follows(k) = { (j, c) : j ≥ k, c > 0 }`: the losses that train the parameters of stage `k`,
//! each with its weight. Loss `j` is the loss of the head of stage `j`.
//!
//! - `wants(k) = { j ≥ k : some i ≤ k follows j }`: the losses whose gradients reach stage `k`.
//! - `losses_sent_back(k) = { j ≥ k : some i < k follows j }`: the losses whose gradient stage `k` sends to stage `k-1`.
//! - The head of stage `k` is *needed* iff some stage follows `k`; any other head is a *probe head*.
//!
//! In some steps a stage also *measures* a loss: it computes the parameter gradient of that loss too, compares it with the one that it follows,
//! and does not apply it. Above, a loss that is measured counts as one that is followed.
//!
//! A stage that follows a single loss with weight 1 computes its parameter gradients in the backward pass of that loss. Any other stage *adds up*:
//! it waits for the gradients of all losses that it follows, adds them with their weights, and runs one backward pass over the sum. What it sends to
//! the previous stage is never weighted, and does not wait for the sum.
//!
//! This module knows neither tensors nor actors.

mod schedule;
#[cfg(test)]
mod tests;
mod wants;
mod window;

pub(crate) use schedule::from_step;
pub use schedule::{PlanPhase, PlanSchedule};
pub use wants::Wants;
pub(crate) use window::Blocks;
pub use window::Window;

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The most stages of a run: each has a thread, and tables of plans have a row and a column for each.
pub(crate) const MOST_STAGES: usize = 1024;

/// The losses that train each stage, for one partition of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "PlanParts", try_from = "PlanParts")]
pub struct GradientPlan {
    /// In ascending order of the losses.
    follows: Vec<Vec<(usize, f64)>>,
    measures: Vec<Option<usize>>,
    wants: Vec<Vec<usize>>,
    crosses: Vec<Vec<usize>>,
    needed: Vec<bool>,
    /// The stages that may carry a head.
    heads: Vec<bool>,
}

/// What a [`GradientPlan`] is computed from.
#[derive(Serialize, Deserialize)]
struct PlanParts {
    follows: Vec<Vec<(usize, f64)>>,
    measures: Vec<Option<usize>>,
    heads: Vec<bool>,
}

impl From<GradientPlan> for PlanParts {
    fn from(plan: GradientPlan) -> Self {
        let GradientPlan { follows, measures, heads, .. } = plan;
        Self { follows, measures, heads }
    }
}

impl TryFrom<PlanParts> for GradientPlan {
    type Error = Error;

    fn try_from(parts: PlanParts) -> Result<Self> {
        Self::weighted(parts.follows)?.with_heads_at(parts.heads)?.measuring(parts.measures)
    }
}

/// Writes losses with their weights, rounded to three digits: `0:0.333 1:0.667`. A weight of 1 is left out.
pub(crate) fn losses_text(losses: &[(usize, f64)]) -> String {
    let loss = |&(j, weight): &(usize, f64)| match weight {
        1.0 => j.to_string(),
        weight if weight < 1e-3 => format!("{j}:{weight:.0e}"),
        weight => format!("{j}:{}", (weight * 1e3).round() / 1e3),
    };
    losses.iter().map(loss).collect::<Vec<_>>().join(" ")
}

fn refuse<T>(problem: String, remedy: impl Into<String>) -> Result<T> {
    Err(Error::invalid("gradient plan", problem, remedy))
}

fn refuse_heads<T>(values: usize, stages: usize) -> Result<T> {
    let problem = format!("{values} values of whether a stage carries a head");
    refuse(problem, format!("give one for each of {stages} stages"))
}

/// Returns a sum of weights without its rounding error if it is 1 up to that: a stage that follows one loss with weight 1 adds nothing up.
fn whole(sum: f64) -> f64 {
    if (sum - 1.0).abs() < 1e-12 { 1.0 } else { sum }
}

impl GradientPlan {
    /// The plan in which stage `k` follows the loss of stage `follows[k]`, with weight 1.
    ///
    /// # Errors
    /// If there is no stage, or a stage follows the loss of an upstream stage or of one that does not exist.
    pub fn new(follows: Vec<usize>) -> Result<Self> {
        Self::weighted(follows.into_iter().map(|j| vec![(j, 1.0)]).collect())
    }

    /// The plan in which stage `k` follows the losses `follows[k]`, each a stage and its weight, in any order.
    ///
    /// # Errors
    /// If there is no stage; or a stage follows no loss, one loss twice, the loss of an upstream stage or of one that does not exist, or one
    /// with a weight that is not above 0 and finite.
    pub fn weighted(mut follows: Vec<Vec<(usize, f64)>>) -> Result<Self> {
        for (k, followed) in follows.iter_mut().enumerate() {
            followed.sort_by_key(|&(j, _)| j);
            if followed.is_empty() {
                return refuse(format!("stage {k} follows no loss"), "give every stage at least one");
            }
            if let Some(pair) = followed.windows(2).find(|pair| pair[0].0 == pair[1].0) {
                return refuse(format!("stage {k} follows the loss of stage {} twice", pair[0].0), "add their weights");
            }
            // Gradients are weighted in f32.
            let is_usable = |weight: f64| weight as f32 > 0.0 && (weight as f32).is_finite();
            if let Some((j, weight)) = followed.iter().find(|(_, weight)| !is_usable(*weight)) {
                let problem = format!("stage {k} follows the loss of stage {j} with weight {weight}");
                return refuse(problem, "use a weight above 0 that f32 can hold, or leave the loss out");
            }
        }
        let (measures, heads) = (vec![None; follows.len()], vec![true; follows.len()]);
        Self::of(follows, measures, heads)
    }

    /// The same plan, in which only the stages `k` with `heads[k]` carry a head, even where all heads are trained. The last stage has its loss in any
    /// case. Without this, every stage may carry one.
    ///
    /// # Errors
    /// If there is not one value for each stage, or a stage follows or measures the loss of a stage without a head.
    pub fn with_heads_at(self, heads: Vec<bool>) -> Result<Self> {
        if heads.len() != self.stages() {
            return refuse_heads(heads.len(), self.stages());
        }
        Self::of(self.follows, self.measures, heads)
    }

    /// The same plan with fewer heads: of the stages that may carry one, only those with `heads[k]` do, and the last stage has its loss. The weight of
    /// a loss without a head moves to the next loss that there is in the stage's window, which reaches from the stage itself to the farthest loss that
    /// it follows; if none comes after it there, to the nearest one before it. Weights that meet add up, in the order of their losses. A stage
    /// measures the first loss that there is, from the one that it measured on, and that it does not follow; none if there is none.
    ///
    /// ```
    /// use interlock::{Interlock, Strategy};
    ///
    /// let plan = Interlock::width(3).mean().plan(4)?.moved_to_heads(&[false, true, false, false])?;
    /// assert_eq!(plan.follows(1), [(1, 1.0 / 3.0), (3, 2.0 / 3.0)]);
    /// # Ok::<(), interlock::Error>(())
    /// ```
    ///
    /// # Errors
    /// If there is not one value for each stage, or no loss in the window of some stages; the message names all of these.
    pub fn moved_to_heads(&self, heads: &[bool]) -> Result<Self> {
        let stages = self.stages();
        if heads.len() != stages {
            return refuse_heads(heads.len(), stages);
        }
        let heads: Vec<bool> = (0..stages).map(|k| k + 1 == stages || (heads[k] && self.heads[k])).collect();
        let moved = |k: usize| -> Vec<(usize, f64)> {
            let mut moved: Vec<(usize, f64)> = Vec::new();
            for &(from, weight) in &self.follows[k] {
                let after = (from..=self.farthest(k)).find(|&j| heads[j]);
                match (after.or_else(|| (k..from).rev().find(|&j| heads[j])), moved.last_mut()) {
                    (Some(to), Some((last, sum))) if *last == to => *sum = whole(*sum + weight),
                    (Some(to), _) => moved.push((to, weight)),
                    (None, _) => {}
                }
            }
            moved
        };
        let follows: Vec<_> = (0..stages).map(moved).collect();
        let without: Vec<String> = (0..stages).filter(|&k| follows[k].is_empty()).map(|k| k.to_string()).collect();
        if !without.is_empty() {
            let plural = if without.len() == 1 { "" } else { "s" };
            let problem = format!("no head in the window{plural} of stage{plural} {}", without.join(", "));
            return Err(Error::invalid("heads", problem, "use a larger width, or give a stage of each window a head"));
        }
        let unfollowed = |k: usize, j: usize| follows[k].iter().all(|&(followed, _)| followed != j);
        let next = |k: usize, j: usize| (j..stages).find(|&j| heads[j] && unfollowed(k, j));
        let measures = (0..stages).map(|k| next(k, self.measures[k]?)).collect();
        Self::of(follows, measures, heads)
    }

    /// The same plan, in which stage `k` also measures the loss of stage `measures[k]`.
    ///
    /// # Errors
    /// If there is not one for each stage; or a stage measures the loss of an upstream stage, of one that does not exist, or one that it follows.
    pub fn measuring(self, measures: Vec<Option<usize>>) -> Result<Self> {
        if measures.len() != self.stages() {
            let problem = format!("{} losses to measure", measures.len());
            return refuse(problem, format!("give one, or none, for each of {} stages", self.stages()));
        }
        for (k, measured) in measures.iter().enumerate() {
            if let Some(j) = measured.filter(|&j| self.weight(k, j).is_some()) {
                let problem = format!("stage {k} measures the loss of stage {j}, which it follows");
                return refuse(problem, "measure another loss, or none");
            }
        }
        Self::of(self.follows, measures, self.heads)
    }

    fn of(follows: Vec<Vec<(usize, f64)>>, measures: Vec<Option<usize>>, mut heads: Vec<bool>) -> Result<Self> {
        let stages = follows.len();
        if stages == 0 {
            return refuse("there is no stage".to_owned(), "a model needs at least one");
        }
        heads[stages - 1] = true;
        for k in 0..stages {
            let followed = follows[k].iter().map(|&(j, _)| ("follows", j));
            for (verb, j) in followed.chain(measures[k].map(|j| ("measures", j))) {
                if !(k..stages).contains(&j) {
                    let remedy = format!("use its own or that of a downstream stage: {k} to {}", stages - 1);
                    return refuse(format!("stage {k} {verb} the loss of stage {j}"), remedy);
                }
                if !heads[j] {
                    let problem = format!("stage {k} {verb} the loss of stage {j}, which carries no head");
                    return refuse(problem, "use the loss of a stage that carries one");
                }
            }
        }
        let (mut wants, mut crosses) = (Vec::with_capacity(stages), Vec::with_capacity(stages));
        let mut needed = vec![false; stages];
        // The losses of stage `k` and downstream that the stages so far follow or measure.
        let mut asked = BTreeSet::new();
        for (k, followed) in follows.iter().enumerate() {
            asked = asked.split_off(&k);
            crosses.push(asked.iter().copied().collect());
            for j in followed.iter().map(|&(j, _)| j).chain(measures[k]) {
                asked.insert(j);
                needed[j] = true;
            }
            wants.push(asked.iter().copied().collect());
        }
        Ok(Self { follows, measures, wants, crosses, needed, heads })
    }

    /// The plan of one interlock width for each stage, by the last loss of its window: `follows(k) = min(k + widths[k] - 1, K - 1)`.
    ///
    /// # Errors
    /// If a width is 0 or larger than the number of stages `K`.
    pub fn of_widths(widths: &[usize]) -> Result<Self> {
        let windows: Vec<_> = widths.iter().map(|&width| Window::Last(width)).collect();
        Self::of_windows(1, &windows)
    }

    /// The plan of one window for each stage. A block is `group` stages (the last block may have fewer); its last stage carries its head. The window
    /// of a stage begins with its own block, and the weights that reach past the last block count for the last stage's loss.
    ///
    /// # Errors
    /// If there is no stage, `group` is 0 or larger than the number of stages, or a window is of width 0, of more blocks than there are, or has a weight
    /// below 0 or none above 0.
    pub fn of_windows(group: usize, windows: &[Window]) -> Result<Self> {
        let follows = window::follows(group, windows)?;
        let heads = (0..windows.len()).map(|k| (k + 1) % group == 0).collect();
        Self::weighted(follows)?.with_heads_at(heads)
    }

    /// The number of stages `K`.
    pub fn stages(&self) -> usize {
        self.follows.len()
    }

    /// Whether every stage follows the last one: plain backpropagation.
    pub fn is_end_to_end(&self) -> bool {
        (0..self.stages()).all(|k| matches!(*self.follows[k], [(j, _)] if j + 1 == self.stages()))
    }

    /// Returns the losses that train the parameters of stage `k`, each with its weight, nearest first. There is at least one.
    pub fn follows(&self, k: usize) -> &[(usize, f64)] {
        &self.follows[k]
    }

    /// Returns the farthest loss that stage `k` follows.
    pub fn farthest(&self, k: usize) -> usize {
        // At least one is followed, and no loss lies upstream.
        self.follows[k].last().map_or(k, |&(j, _)| j)
    }

    /// Returns the interlock width of stage `k`: 1 if it follows only its own loss, and 1 more for each stage downstream up to the farthest loss.
    pub fn width(&self, k: usize) -> usize {
        self.farthest(k) - k + 1
    }

    /// Returns the losses, each with its weight, whose gradients stage `k` adds up before one backward pass for its parameters: all that it follows.
    /// Empty if it follows a single loss with weight 1, whose own backward pass gives the parameter gradients.
    pub fn added_up(&self, k: usize) -> &[(usize, f64)] {
        match *self.follows[k] {
            [(_, 1.0)] => &[],
            _ => &self.follows[k],
        }
    }

    /// Returns the number of backward passes of stage `k` that give parameter gradients only: one over the weighted sum of the losses that it
    /// follows, unless that is a single loss of weight 1 whose gradient is also sent on; and one of a measured loss whose gradient is not sent on.
    fn passes_of_parameters_alone(&self, k: usize) -> usize {
        let sent = |j: usize| self.crosses[k].contains(&j);
        let followed = !matches!(*self.follows[k], [(j, 1.0)] if sent(j));
        usize::from(followed) + usize::from(self.measures[k].is_some_and(|j| !sent(j)))
    }

    fn weight(&self, k: usize, j: usize) -> Option<f64> {
        self.follows[k].iter().find(|&&(followed, _)| followed == j).map(|&(_, weight)| weight)
    }

    /// Returns the loss whose parameter gradient stage `k` compares with the one that it follows, if any.
    pub fn measures(&self, k: usize) -> Option<usize> {
        self.measures[k]
    }

    /// Whether some stage measures a loss.
    pub fn measures_any(&self) -> bool {
        self.measures.iter().any(Option::is_some)
    }

    /// Returns the losses whose gradients reach stage `k`, nearest first.
    pub fn wants(&self, k: usize) -> &[usize] {
        &self.wants[k]
    }

    /// Returns the losses whose gradient stage `k` sends to stage `k-1`, nearest first.
    pub fn losses_sent_back(&self, k: usize) -> &[usize] {
        &self.crosses[k]
    }

    /// Returns which gradients of loss `j` alone stage `k` computes. None of both if it only adds the loss up ([`Self::added_up`]).
    pub fn gradients(&self, k: usize, j: usize) -> Wants {
        let alone = self.added_up(k).is_empty() && self.weight(k, j).is_some();
        Wants { input: self.crosses[k].contains(&j), parameters: alone || self.measures[k] == Some(j) }
    }

    /// Whether some stage follows, or measures, the loss of stage `k`.
    pub fn is_needed(&self, k: usize) -> bool {
        self.needed[k]
    }

    /// Whether stage `k` may carry a head; the last stage has its loss in any case.
    pub fn may_carry_head(&self, k: usize) -> bool {
        self.heads[k]
    }

    /// Returns the number of backward passes of stage `k` for one micro-batch. One that gives both gradients of a loss counts once, even where a
    /// schedule computes them one after the other.
    pub(crate) fn passes(&self, k: usize) -> usize {
        self.crosses[k].len() + self.passes_of_parameters_alone(k)
    }

    /// The number of backward passes of one micro-batch, over all stages.
    pub fn backward_passes(&self) -> usize {
        (0..self.stages()).map(|k| self.passes(k)).sum()
    }
}

/// One row for each stage: what it follows, measures (where a stage measures one), computes and sends. Weights other than 1 follow their
/// loss, as in `2:0.5`. A probe head exists only where all heads are trained, or where another step needs it.
impl fmt::Display for GradientPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |losses: &[usize]| match losses {
            [] => "-".to_owned(),
            _ => losses.iter().map(usize::to_string).collect::<Vec<_>>().join(" "),
        };
        let followed = |k: usize| losses_text(&self.follows[k]);
        let wide = (0..self.stages()).map(|k| followed(k).len()).max().unwrap_or(0).max("follows".len());
        let measures = |cell: &str| if self.measures_any() { format!("  {cell:>8}") } else { String::new() };
        let heading = measures("measures");
        write!(f, "{:>5}  {:>wide$}{heading}  {:<12}  {:<16}  head", "stage", "follows", "backward", "sends back")?;
        for k in 0..self.stages() {
            let head = match (k + 1 == self.stages(), self.is_needed(k), self.heads[k]) {
                (true, ..) => "last",
                (_, true, _) => "needed",
                (_, _, true) => "probe",
                (_, _, false) => "-",
            };
            let measured = measures(&self.measures[k].map_or_else(|| "-".to_owned(), |j| j.to_string()));
            write!(
                f,
                "\n{k:>5}  {:>wide$}{measured}  {:<12}  {:<16}  {head}",
                followed(k),
                list(&self.wants[k]),
                list(&self.crosses[k])
            )?;
        }
        Ok(())
    }
}

//! The search for the cut with the shortest simulated step.

use std::ops::Range;

use super::{PlannedCut, PlannerSetup};
use crate::{
    Error, Result,
    model::Partition,
    simulator::{Bottleneck, simulate},
};

/// The most cuts that are all compared.
const FEW: usize = 100_000;
/// The most cuts that are simulated if there are more.
const TRIES: usize = 300;
/// The most actions of all these simulations: about a fifth of a second of computation.
const ACTIONS: usize = 400_000;

impl PlannerSetup<'_> {
    /// Simulates steps with these numbers of units on each stage.
    ///
    /// # Errors
    /// If they do not fit the model or the plan.
    pub fn simulate(&self, units_per_stage: &[usize]) -> Result<PlannedCut> {
        self.check()?;
        let units = self.device(0).units.len();
        if units_per_stage.len() != self.stages()
            || units_per_stage.contains(&0)
            || units_per_stage.iter().sum::<usize>() != units
        {
            return Err(Error::invalid(
                "partition.units_per_stage",
                format!("{units_per_stage:?} is no cut of {units} units into {} stages", self.stages()),
                "give each stage at least one unit and every unit a stage",
            ));
        }
        match self.attempt(units_per_stage)? {
            Some(cut) => Ok(cut),
            None => Err(self.no_head()),
        }
    }

    /// Returns the cut with the shortest simulated step. `tied` are pairs of units that must lie on one stage.
    ///
    /// If there are few cuts, all are compared, first those whose busiest stage has least work. Otherwise the search begins with a cut whose busiest
    /// stage has least work and whose other stages share the rest evenly (both by dynamic programming), and moves boundaries by one unit as long as
    /// steps become shorter.
    ///
    /// # Errors
    /// If no cut has a head wherever the plan needs one, with tied units on one stage.
    pub fn best_cut(&self, tied: &[(usize, usize)]) -> Result<PlannedCut> {
        self.check()?;
        let units = self.device(0).units.len();
        let apart = |range: &Range<usize>| tied.iter().any(|(a, b)| range.contains(a) != range.contains(b));
        let work = |k: usize, range: Range<usize>| match apart(&range) {
            true => f64::INFINITY,
            false => self.work(k, range).unwrap_or(f64::INFINITY),
        };
        let balanced = Partition::minimize_largest(self.stages(), units, &work);
        let bound = most_work(&balanced, &work);
        if bound.is_infinite() {
            return Err(self.no_head());
        }
        match cuts(units, self.stages()).filter(|&count| count <= FEW) {
            Some(_) => self.compare_all(units, &work),
            None => self.climb(most_even(self.stages(), units, bound, &work), bound, &work),
        }
    }

    fn no_head(&self) -> Error {
        Error::invalid(
            "plan",
            format!(
                "no cut into {} stages has a head wherever the strategy needs one, and ties on one stage",
                self.stages()
            ),
            "use fewer stages, or a strategy that needs no heads (end_to_end)",
        )
    }

    fn attempt(&self, cut: &[usize]) -> Result<Option<PlannedCut>> {
        let mut start = 0;
        let mut costs = Vec::with_capacity(cut.len());
        for (k, &count) in cut.iter().enumerate() {
            let Some(stage) = self.costs(k, start..start + count) else { return Ok(None) };
            costs.push(stage);
            start += count;
        }
        let scenario = self.scenario(costs);
        let simulated = simulate(&scenario)?;
        Ok(Some(PlannedCut { units_per_stage: cut.to_vec(), scenario, simulated, proven: false }))
    }

    /// Simulates the cuts, the least busy first, until no remaining cut can be better.
    fn compare_all(&self, units: usize, work: &dyn Fn(usize, Range<usize>) -> f64) -> Result<PlannedCut> {
        let mut all = Vec::new();
        enumerate(units, self.stages(), &mut Vec::new(), &mut |cut| all.push((most_work(cut, work), cut.to_vec())));
        all.retain(|(most, _)| most.is_finite());
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut best: Option<PlannedCut> = None;
        let mut actions = 0;
        for (most, cut) in &all {
            if best.as_ref().is_some_and(|best| *most >= best.simulated.step_seconds) {
                break;
            }
            if actions > ACTIONS {
                return best.ok_or_else(|| self.no_head());
            }
            if let Some(found) = self.attempt(cut)? {
                actions += found.simulated.timeline.spans.len();
                if best.as_ref().is_none_or(|best| shorter(&found, best)) {
                    best = Some(found);
                }
            }
        }
        best.map(|best| PlannedCut { proven: true, ..best }).ok_or_else(|| self.no_head())
    }

    /// Moves boundaries by one unit as long as steps become shorter.
    fn climb(&self, start: Vec<usize>, bound: f64, work: &dyn Fn(usize, Range<usize>) -> f64) -> Result<PlannedCut> {
        let mut best = self.attempt(&start)?.ok_or_else(|| self.no_head())?;
        let (mut tries, mut actions) = (1, best.simulated.timeline.spans.len());
        'better: while best.simulated.step_seconds > bound * (1.0 + 1e-9) {
            for (from, to) in moves(&best) {
                if tries >= TRIES || actions > ACTIONS {
                    return Ok(best);
                }
                let mut cut = best.units_per_stage.clone();
                if cut[from] < 2 {
                    continue;
                }
                cut[from] -= 1;
                cut[to] += 1;
                if most_work(&cut, work) >= best.simulated.step_seconds {
                    continue;
                }
                tries += 1;
                if let Some(found) = self.attempt(&cut)? {
                    actions += found.simulated.timeline.spans.len();
                    if shorter(&found, &best) {
                        best = found;
                        continue 'better;
                    }
                }
            }
            return Ok(best);
        }
        Ok(PlannedCut { proven: true, ..best })
    }
}

fn shorter(a: &PlannedCut, b: &PlannedCut) -> bool {
    a.simulated.step_seconds < b.simulated.step_seconds * (1.0 - 1e-9)
}

/// The pairs of stages between which a unit could move: off and onto the stages of the critical path, the busiest first.
fn moves(cut: &PlannedCut) -> Vec<(usize, usize)> {
    let stages = cut.units_per_stage.len();
    let spans = &cut.simulated.timeline.spans;
    let mut on_path: Vec<usize> = match cut.simulated.critical.bottleneck {
        Bottleneck::Work { stage } => vec![stage],
        _ => cut.simulated.critical.path.iter().map(|&at| spans[at].stage).collect(),
    };
    on_path.sort_unstable();
    on_path.dedup();
    on_path.sort_by(|&a, &b| cut.simulated.work[b].total_cmp(&cut.simulated.work[a]));
    let mut moves = Vec::new();
    for k in on_path {
        let neighbours = [k.checked_sub(1), Some(k + 1).filter(|&next| next < stages)];
        moves.extend(neighbours.into_iter().flatten().map(|to| (k, to)));
        moves.extend(neighbours.into_iter().flatten().map(|from| (from, k)));
    }
    moves
}

fn most_work(cut: &[usize], work: &dyn Fn(usize, Range<usize>) -> f64) -> f64 {
    let mut start = 0;
    let mut most = 0.0_f64;
    for (k, &count) in cut.iter().enumerate() {
        most = most.max(work(k, start..start + count));
        start += count;
    }
    most
}

/// Of the cuts whose busiest stage has at most `bound` work, returns the one with the least sum of squares, which is the most even.
fn most_even(stages: usize, units: usize, bound: f64, work: &dyn Fn(usize, Range<usize>) -> f64) -> Vec<usize> {
    let square = |k: usize, range: Range<usize>| match work(k, range) {
        own if own <= bound * (1.0 + 1e-9) => own * own,
        own if own.is_finite() => f64::MAX,
        own => own,
    };
    Partition::divide(stages, units, &square, |a, b| a + b)
}

/// The number of cuts of `units` into `stages`; none if it overflows.
fn cuts(units: usize, stages: usize) -> Option<usize> {
    let (n, k) = (units - 1, (stages - 1).min(units - stages));
    (0..k).try_fold(1_usize, |count, i| Some(count.checked_mul(n - i)? / (i + 1)))
}

fn enumerate(units: usize, stages: usize, begun: &mut Vec<usize>, take: &mut dyn FnMut(&[usize])) {
    if stages == 1 {
        begun.push(units);
        take(begun);
        begun.pop();
        return;
    }
    for count in 1..=units + 1 - stages {
        begun.push(count);
        enumerate(units - count, stages - 1, begun, take);
        begun.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cut_is_counted_and_enumerated_once() {
        for units in 1..9 {
            for stages in 1..=units {
                let mut all = Vec::new();
                enumerate(units, stages, &mut Vec::new(), &mut |cut| all.push(cut.to_vec()));
                assert_eq!(Some(all.len()), cuts(units, stages));
                assert!(all.iter().all(|cut| cut.len() == stages && cut.iter().sum::<usize>() == units));
                all.dedup();
                assert_eq!(Some(all.len()), cuts(units, stages));
            }
        }
        assert_eq!(cuts(600, 300), None);
    }
}

//! The number of credits that boundaries need.

use std::sync::Arc;

use super::{Scenario, StageCosts, simulate};
use crate::{GradientPlan, PlanSchedule, Result, schedule::Policy};

/// Returns the least number of micro-batches in flight per boundary with which a step is as short as with any number. It is found by simulation, with
/// stages of equal costs (head 0.3, everything else 1) and messages that take a little time. It is at least 2, so that a stage finds its next
/// micro-batch waiting.
pub fn least_in_flight(plan: &Arc<GradientPlan>, micro_batches: usize, policy: Policy) -> Result<usize> {
    let stages = plan.stages();
    let costs = (0..stages).map(|k| StageCosts::of(1.0, if k + 1 < stages { 0.3 } else { 0.0 }, 1.0, 1.0)).collect();
    let scenario = Scenario { micro_batches, policy, hop: 0.005, ..Scenario::new(Arc::clone(plan), costs) };
    let step = |in_flight| simulate(&Scenario { in_flight, ..scenario.clone() }).map(|found| found.step_seconds);
    let enough = 2 * micro_batches + 2;
    let best = step(enough)?;
    for in_flight in 2..enough {
        if step(in_flight)? <= best * 1.005 {
            return Ok(in_flight);
        }
    }
    Ok(enough)
}

/// Returns the credits of each boundary in a run of the plans of `schedule`: those `given`, or else the most that [`least_in_flight`] gives for a plan.
pub(crate) fn credits(
    given: Option<usize>,
    schedule: &PlanSchedule,
    micro_batches: usize,
    policy: Policy,
) -> Result<usize> {
    match given {
        Some(in_flight) => Ok(in_flight.max(1)),
        None => schedule
            .plans()
            .try_fold(1, |most, plan| Ok(least_in_flight(plan, micro_batches.max(1), policy)?.max(most))),
    }
}

//! The simulator: drives the schedules with costs instead of messages, and finds step times, waits and memory.
//!
//! [`simulate`] runs the same state machines as the actors ([`StageSchedule`](crate::schedule::StageSchedule)), with a clock in whole nanoseconds. An
//! action takes the time in its stage's [`StageCosts`], a message that of the sender's [`Link`]. Steps are simulated until they repeat. Then the time
//! of a step, the idle share of each stage, and the chain of causes that determines the time of a step (the critical path) are exact.
//!
//! # What it assumes
//! - An action always takes the same time. Stages that share a device take turns, first come, first served. If devices have more threads than there
//!   are cores, they also wait for cores.
//! - The next batch is always available, and reports to the coordinator take no time.

mod costs;
mod critical;
mod deadlock;
mod in_flight;
mod simulation;

pub use costs::StageCosts;
pub use critical::{Bottleneck, CriticalPath, Segment};
pub(crate) use in_flight::credits;
pub use in_flight::least_in_flight;

use std::sync::Arc;

use crate::{GradientPlan, Result, device::link::Link, schedule::Policy, timeline::Timeline};

/// The seconds from sending a message to the moment at which a receiver of the same process, whose thread was asleep, acts on it. It also decides
/// ties: a message that arrives just as a stage ends an action is too late for the stage's next choice.
pub const HOP: f64 = 50e-6;

/// The inputs of a simulation: everything that decides how long a step takes.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The losses that train each stage.
    pub plan: Arc<GradientPlan>,
    /// The costs of each stage.
    pub costs: Vec<StageCosts>,
    /// The links over which each stage sends: to the next stage, and to the one before it.
    pub links: Vec<[Link; 2]>,
    /// Whether each stage has an auxiliary head.
    pub heads: Vec<bool>,
    /// The device of each stage, as any number: stages with the same number take turns.
    pub devices: Vec<usize>,
    /// The threads of each stage's device that are busy while it computes.
    pub threads: Vec<usize>,
    /// The cores that all devices share; none where every device has its own.
    pub cores: Option<usize>,
    /// Micro-batches a step.
    pub micro_batches: usize,
    /// Credits of each boundary: the most micro-batches in flight.
    pub in_flight: usize,
    /// The order of preference among possible actions.
    pub policy: Policy,
    /// Whether updates wait for the norm of all stages' gradients.
    pub global_norm: bool,
    /// The seconds that every message takes from actor to actor, in addition to its link.
    pub hop: f64,
}

impl Scenario {
    /// Returns a scenario in which each stage has a device of its own, with the heads that the plan needs, one micro-batch and two credits. Messages
    /// take no time.
    pub fn new(plan: impl Into<Arc<GradientPlan>>, costs: Vec<StageCosts>) -> Self {
        let plan = plan.into();
        let stages = plan.stages();
        Self {
            links: vec![[Link::default(); 2]; stages],
            heads: (0..stages).map(|k| k + 1 < stages && plan.is_needed(k)).collect(),
            devices: (0..stages).collect(),
            threads: vec![1; stages],
            cores: None,
            micro_batches: 1,
            in_flight: 2,
            policy: Policy::default(),
            global_norm: false,
            hop: 0.0,
            plan,
            costs,
        }
    }
}

/// The result of a simulation.
#[derive(Clone, Debug)]
pub struct Simulated {
    /// Seconds of a step, once steps repeat.
    pub step_seconds: f64,
    /// Whether steps repeat. If not, `step_seconds` is the mean over the second half of the simulated steps, in the stage that took longest.
    pub steady: bool,
    /// Seconds from the first micro-batch to the end of the first step.
    pub first_step_seconds: f64,
    /// Seconds of work of each stage in a step.
    pub work: Vec<f64>,
    /// The most micro-batches whose saved activations each stage held at any time.
    pub peak_live: Vec<usize>,
    /// The most micro-batches that each stage held at any time, including those that had arrived and not yet run.
    pub peak_held: Vec<usize>,
    /// The most output gradients that each stage held at any time for a weighted sum.
    pub peak_waiting_gradients: Vec<usize>,
    /// The critical path: why a step takes as long as it does.
    pub critical: CriticalPath,
    /// The actions of every stage in all simulated steps.
    pub timeline: Timeline,
    /// The number of simulated steps.
    pub steps: u64,
    /// The period of the steady state, in steps.
    pub period: u64,
}

impl Simulated {
    /// Returns the share of the time in which stage `k` is idle.
    pub fn idle(&self, k: usize) -> f64 {
        1.0 - self.work[k] / self.step_seconds
    }

    /// Returns the mean of all stages' idle shares.
    pub fn mean_idle(&self) -> f64 {
        (0..self.work.len()).map(|k| self.idle(k)).sum::<f64>() / self.work.len() as f64
    }

    /// Returns the least time that a step could take with these costs: the work of the busiest stage, or of a device that several stages share.
    pub fn lower_bound(&self, scenario: &Scenario) -> f64 {
        let mut of_device = std::collections::BTreeMap::<usize, f64>::new();
        for (device, work) in scenario.devices.iter().zip(&self.work) {
            *of_device.entry(*device).or_default() += work;
        }
        let busiest = of_device.into_values().fold(0.0, f64::max);
        let cores = scenario.cores.map_or(0.0, |cores| {
            let busy = scenario.threads.iter().zip(&self.work).map(|(&threads, work)| threads.min(cores) as f64 * work);
            busy.sum::<f64>() / cores as f64
        });
        busiest.max(cores)
    }
}

/// Simulates `scenario` until its steps repeat themselves.
///
/// # Errors
/// If its parts are not for the same number of stages or a number is out of range; [`Error::Deadlock`](crate::Error::Deadlock) if the stages
/// wait for each other forever.
pub fn simulate(scenario: &Scenario) -> Result<Simulated> {
    simulation::Simulation::new(scenario)?.run()
}

#[cfg(test)]
mod tests;

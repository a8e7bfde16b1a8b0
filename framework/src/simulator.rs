//! The schedule, driven by costs instead of messages: how long a step takes, who waits for whom, and what is held meanwhile.
//!
//! [`simulate`] runs the very state machines that the actors run ([`StageSchedule`](crate::schedule::StageSchedule)), with a clock in whole
//! nanoseconds: an action takes what its stage's [`StageCosts`] say, a message what the sender's [`Link`] says. Steps are simulated until
//! they repeat themselves; then the time of a step, the share of it in which each stage is idle, and the chain of causes that makes it as long
//! as it is (the critical path) are exact.
//!
//! # What it assumes
//! - An action always takes the same time. Stages that share a device take turns, first come, first served; where devices have more threads
//!   than there are cores, they wait for cores likewise.
//! - The next batch is always there; reports to the outside cost nothing.

mod costs;
mod critical;
mod deadlock;
mod in_flight;
mod world;

pub use costs::StageCosts;
pub use critical::{Bottleneck, CriticalPath, Segment};
pub use in_flight::least_in_flight;

use std::sync::Arc;

use crate::{GradientPlan, Result, device::link::Link, schedule::Policy, timeline::Timeline};

/// Seconds from the sending of a message to the moment when a receiver of the same process, whose thread slept, acts on it. Ties are decided by
/// it: what arrives just as a stage is done comes too late for what it does next.
pub const HOP: f64 = 50e-6;

/// Everything that decides how long a step takes.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Which losses train which stage.
    pub plan: Arc<GradientPlan>,
    /// What each stage costs.
    pub costs: Vec<StageCosts>,
    /// How what each stage sends is on its way: to both of its neighbours, each way by itself.
    pub links: Vec<Link>,
    /// Whether each stage has an auxiliary head.
    pub heads: Vec<bool>,
    /// The device of each stage, by any numbers.
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
    /// Seconds that any message takes from actor to actor, beside its link.
    pub hop: f64,
}

impl Scenario {
    /// Stages of these costs, each on a device of its own, with the heads that the plan needs, one micro-batch and two credits; messages take
    /// no time.
    pub fn new(plan: impl Into<Arc<GradientPlan>>, costs: Vec<StageCosts>) -> Self {
        let plan = plan.into();
        let stages = plan.stages();
        Self {
            links: vec![Link::default(); stages],
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

/// What a simulation found.
#[derive(Clone, Debug)]
pub struct Simulated {
    /// Seconds a step, once steps repeat themselves.
    pub step_seconds: f64,
    /// Whether they did; otherwise `step_seconds` is the mean of the second half of what was simulated, of the
    /// stage that took longest.
    pub steady: bool,
    /// Seconds from the first micro-batch to the end of the first step.
    pub first_step_seconds: f64,
    /// Seconds a step that each stage works.
    pub work: Vec<f64>,
    /// The most micro-batches of which each stage held what its forward pass saved, at any time.
    pub peak_live: Vec<usize>,
    /// The most micro-batches that each stage held at any time, those that had arrived and not yet run included.
    pub peak_held: Vec<usize>,
    /// Why a step takes as long as it does.
    pub critical: CriticalPath,
    /// What every stage did when, all simulated steps.
    pub timeline: Timeline,
    /// The steps that were simulated.
    pub steps: u64,
    /// The period of the steady state, in steps.
    pub period: u64,
}

impl Simulated {
    /// The share of the time in which stage `k` does nothing.
    pub fn idle(&self, k: usize) -> f64 {
        1.0 - self.work[k] / self.step_seconds
    }

    /// The mean of all stages' idle shares.
    pub fn mean_idle(&self) -> f64 {
        (0..self.work.len()).map(|k| self.idle(k)).sum::<f64>() / self.work.len() as f64
    }

    /// The least that a step could take with these costs: the busiest stage's work, or that of a device which several stages share.
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
    world::World::new(scenario)?.run()
}

#[cfg(test)]
mod tests;

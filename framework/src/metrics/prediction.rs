//! The share of a step in which stages should be idle, simulated with the times that they take.

use std::sync::Arc;

use metrics::Gauge;

use super::table;
use crate::{
    GradientPlan,
    schedule::{ActionKind, Work},
    simulator::{Scenario, StageCosts, simulate},
    transport::StageStep,
};

/// Steps of a plan before it is simulated for the first time; then again whenever there are four times as many.
const FIRST: u64 = 20;

/// Pipelines of more stages times micro-batches are not simulated beside their own run.
const MOST: usize = 1024;

/// Simulates the plan in force with the mean times of its steps so far.
///
/// An action's time includes what it waited for cores or for a device that stages share, so that the simulation leaves both out. What remains is what
/// the schedule itself makes stages wait; where they are measured to be idle longer, it is the runtime, the data or the machine.
pub(crate) struct Prediction {
    /// With everything but costs.
    scenario: Scenario,
    work: Vec<Work>,
    steps: u64,
    next: u64,
    gauges: Vec<Gauge>,
}

impl Prediction {
    /// Of runs like this one, whose costs are not known yet.
    pub(crate) fn new(scenario: Scenario) -> Self {
        let work = vec![Work::default(); scenario.plan.stages()];
        Self { scenario, work, steps: 0, next: FIRST, gauges: Vec::new() }
    }

    /// From now on this plan is in force.
    pub(crate) fn plan(&mut self, plan: &Arc<GradientPlan>) {
        if !Arc::ptr_eq(plan, &self.scenario.plan) {
            self.scenario.plan = Arc::clone(plan);
            self.work.fill(Work::default());
            (self.steps, self.next) = (0, FIRST);
        }
    }

    /// Every stage has done a step under `plan`. Steps under another than the one in force, end-to-end ones in between, say, are left out.
    pub(crate) fn step_done(&mut self, plan: &Arc<GradientPlan>, stages: &[StageStep]) {
        if !Arc::ptr_eq(plan, &self.scenario.plan) || self.work.len() * self.scenario.micro_batches > MOST {
            return;
        }
        for (sum, stage) in self.work.iter_mut().zip(stages) {
            *sum += stage.work;
        }
        self.steps += 1;
        if self.steps == self.next {
            self.next *= 4;
            self.show();
        }
    }

    fn show(&mut self) {
        self.scenario.costs = self.work.iter().map(costs).collect();
        // What the run does cannot be refused here: where it cannot be simulated, there is no prediction.
        let Ok(simulated) = simulate(&self.scenario) else { return };
        if self.gauges.is_empty() {
            self.gauges = (0..self.work.len()).map(|k| table::STAGE_PREDICTED_IDLE.gauge(&[&k.to_string()])).collect();
        }
        for (k, gauge) in self.gauges.iter().enumerate() {
            gauge.set(simulated.idle(k).max(0.0));
        }
    }
}

/// The mean costs of a stage's actions. Whether its parameters' gradients came alone or behind the input's does not change with the step, nor
/// whether its head is a probe.
fn costs(work: &Work) -> StageCosts {
    let mean = |kind| work.mean_seconds(kind);
    let (head, parameters) = (mean(ActionKind::Head), mean(ActionKind::ParameterGradient));
    StageCosts {
        forward: mean(ActionKind::Forward),
        head,
        probe: head,
        input: mean(ActionKind::InputGradient),
        parameters,
        both: mean(ActionKind::BothGradients),
        parameters_only: parameters,
        norm: mean(ActionKind::Norm),
        update: mean(ActionKind::Update),
        activation_bytes: work.activation_bytes,
        gradient_bytes: work.gradient_bytes,
    }
}

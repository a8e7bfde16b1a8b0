//! The idle share of each stage, simulated with the measured times.

use std::sync::Arc;

use metrics::Gauge;

use crate::{
    GradientPlan,
    metrics::table,
    schedule::{ActionKind, StageWork},
    simulator::{Scenario, StageCosts, simulate},
    transport::StageStep,
};

/// The number of steps of a plan before its first simulation. It is simulated again each time this number has quadrupled.
const FIRST: u64 = 20;

/// The largest number of stages times micro-batches that is simulated during a run.
const MOST: usize = 1024;

/// Simulates the present plan with the mean times of its steps so far.
///
/// The measured time of an action includes waits for cores or for a shared device, so the simulation has neither. The result is the idle time
/// that the schedule itself causes. If stages are measured to be idle longer, the cause is the runtime, the data or the machine.
#[derive(Clone)]
pub(crate) struct SimulatedIdle {
    /// Everything but the costs.
    scenario: Scenario,
    work: Vec<StageWork>,
    steps: u64,
    next: u64,
    gauges: Vec<Gauge>,
}

impl SimulatedIdle {
    /// Returns a simulation of runs of this scenario, whose costs are not known yet.
    pub(crate) fn new(scenario: Scenario) -> Self {
        let work = vec![StageWork::default(); scenario.plan.stages()];
        Self { scenario, work, steps: 0, next: FIRST, gauges: Vec::new() }
    }

    /// Sets the present plan.
    pub(crate) fn plan(&mut self, plan: &Arc<GradientPlan>) {
        if !Arc::ptr_eq(plan, &self.scenario.plan) {
            self.scenario.plan = Arc::clone(plan);
            self.work.fill(StageWork::default());
            (self.steps, self.next) = (0, FIRST);
        }
    }

    /// Adds a step that every stage has finished under `plan`. Steps under another plan, such as single end-to-end steps, are ignored.
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
            // A run that cannot be simulated shows no share; that is no error of the run.
            if let Some(idle) = self.idle() {
                self.show(&idle);
            }
        }
    }

    /// Returns the share of a step in which each stage is idle.
    fn idle(&mut self) -> Option<Vec<f64>> {
        self.scenario.costs = self.work.iter().map(costs).collect();
        let simulated = simulate(&self.scenario).ok()?;
        Some((0..self.work.len()).map(|k| simulated.idle(k).max(0.0)).collect())
    }

    fn show(&mut self, idle: &[f64]) {
        if self.gauges.is_empty() {
            self.gauges = (0..idle.len()).map(|k| table::STAGE_PREDICTED_IDLE.gauge(&[&k.to_string()])).collect();
        }
        self.gauges.iter().zip(idle).for_each(|(gauge, share)| gauge.set(*share));
    }
}

/// Returns the mean costs of a stage's actions. Two things are the same in all steps: whether its parameter gradients come alone or after the input
/// gradient, and whether its head is a probe.
fn costs(work: &StageWork) -> StageCosts {
    let mean = |kind| work.mean_seconds(kind);
    let (head, parameters) = (mean(ActionKind::Head), mean(ActionKind::ParameterGradient));
    StageCosts {
        forward: mean(ActionKind::Forward),
        head,
        probe: head,
        input: mean(ActionKind::InputGradient),
        parameters,
        both: mean(ActionKind::BothGradients),
        // The measured time of a sum includes the adding up.
        parameters_only: parameters,
        add: 0.0,
        norm: mean(ActionKind::Norm),
        update: mean(ActionKind::Update),
        activation_bytes: work.activation_bytes,
        gradient_bytes: work.gradient_bytes,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Strategy, stage::Updated, strategy::Interlock};

    /// A step of a stage whose phases take so many milliseconds: forward, head, input gradient and parameter gradient; 0 is left out.
    fn step(stage: usize, phases: [u64; 4]) -> StageStep {
        let kinds = [ActionKind::Forward, ActionKind::Head, ActionKind::InputGradient, ActionKind::ParameterGradient];
        let mut work = StageWork::default();
        for (kind, ms) in kinds.into_iter().zip(phases).filter(|(_, ms)| *ms > 0) {
            work.add(kind, Duration::from_millis(ms));
        }
        let updated = Updated { lr: 0.1, gradient_norm: 1.0 };
        StageStep { stage, step: 0, score: None, updated, alignment: None, work, spans: Vec::new() }
    }

    fn plan(width: usize, stages: usize) -> Arc<GradientPlan> {
        Arc::new(Interlock::width(width).plan(stages).unwrap())
    }

    fn idle(simulated: &mut SimulatedIdle) -> Vec<f64> {
        simulated.idle().unwrap().into_iter().map(|share| (share * 1e6).round() / 1e6).collect()
    }

    #[test]
    fn what_the_plan_makes_stages_wait_follows_from_their_times() {
        // Local learning: nobody waits for anybody but the busiest stage, which takes 10 ms a step; the others take 5 and 2.
        let local = plan(1, 3);
        let mut simulated = SimulatedIdle::new(Scenario::new(Arc::clone(&local), vec![StageCosts::default(); 3]));
        let steps = [step(0, [2, 1, 0, 2]), step(1, [4, 2, 0, 4]), step(2, [1, 0, 0, 1])];
        simulated.step_done(&local, &steps);
        assert_eq!(idle(&mut simulated), [0.5, 0.0, 0.8]);

        // End-to-end, one micro-batch: only one stage works at a time, but for the parameter gradient of the last, which the first does not
        // wait for: a step takes 2 + 4 + 6 + 8 ms.
        let whole = plan(2, 2);
        let mut simulated = SimulatedIdle::new(Scenario::new(Arc::clone(&whole), vec![StageCosts::default(); 2]));
        let steps = [step(0, [2, 0, 0, 8]), step(1, [4, 0, 6, 3])];
        simulated.step_done(&whole, &steps);
        assert_eq!(idle(&mut simulated), [0.5, 0.35]);
    }

    #[test]
    fn a_change_of_plan_begins_anew_and_other_plans_do_not_count() {
        let (first, second) = (plan(1, 2), plan(2, 2));
        let mut simulated = SimulatedIdle::new(Scenario::new(Arc::clone(&first), vec![StageCosts::default(); 2]));
        let steps = [step(0, [2, 0, 0, 2]), step(1, [1, 0, 0, 1])];
        simulated.step_done(&first, &steps);
        simulated.step_done(&second, &[step(0, [100, 0, 0, 0]), step(1, [0, 0, 0, 0])]);
        assert_eq!((simulated.steps, idle(&mut simulated)), (1, vec![0.0, 0.5]));
        simulated.plan(&first);
        assert_eq!(simulated.steps, 1);
        simulated.plan(&second);
        assert_eq!((simulated.steps, simulated.work[0]), (0, StageWork::default()));
        (0..FIRST).for_each(|_| simulated.step_done(&second, &steps));
        assert_eq!((simulated.next, simulated.gauges.len()), (4 * FIRST, 2));
    }
}

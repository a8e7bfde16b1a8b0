//! The metrics of a run as a whole.

use std::time::Instant;

use metrics::{Counter, Gauge, Histogram};

use super::TrainEvent;
use crate::{
    GradientPlan, Score,
    metrics::{Metric, table},
    transport::{Built, StageStep},
};

/// The state of a run; the label `state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunState {
    Starting,
    Training,
    Evaluating,
    Checkpointing,
    Finished,
    Failed,
}

impl RunState {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Starting, "starting"),
        (Self::Training, "training"),
        (Self::Evaluating, "evaluating"),
        (Self::Checkpointing, "checkpointing"),
        (Self::Finished, "finished"),
        (Self::Failed, "failed"),
    ];
}

/// The handles of one stage's losses, gradients and plan.
#[derive(Clone)]
struct Learned {
    /// One for each split; created when the head has its first score, since a stage may have no head.
    loss: [Option<Gauge>; 2],
    accuracy: [Option<Gauge>; 2],
    gradient_norm: Gauge,
    alignment: Option<Gauge>,
    width: Gauge,
    rank: String,
    device: String,
    /// The label of the stages whose losses it follows, as last set.
    follows: Option<String>,
}

const SPLITS: [&str; 2] = ["train", "validation"];

/// The handles of a trainer.
#[derive(Clone)]
pub(crate) struct RunMetrics {
    states: [(RunState, Gauge); RunState::ALL.len()],
    stages: Vec<Learned>,
    learning_rate: Gauge,
    samples: Counter,
    tokens: Counter,
    steps: Counter,
    current_step: Gauge,
    step_duration: Histogram,
    /// The time at which the present step began; none before training begins.
    since: Option<Instant>,
}

impl RunMetrics {
    /// Returns the handles of a run of these stages, which is starting. `ranks` has the rank of each stage.
    pub(crate) fn new(stages: &[Built], ranks: &[usize], plan: &GradientPlan, micro_batches: usize) -> Self {
        table::PIPELINE_STAGES.gauge(&[]).set(stages.len() as f64);
        table::PIPELINE_MICROBATCHES.gauge(&[]).set(micro_batches as f64);
        let learned = |(built, rank): (&Built, &usize)| {
            let stage = built.stage.to_string();
            Learned {
                loss: [None, None],
                accuracy: [None, None],
                gradient_norm: table::GRADIENT_NORM.gauge(&[&stage]),
                alignment: None,
                width: table::STAGE_INTERLOCK_WIDTH.gauge(&[&stage]),
                rank: rank.to_string(),
                device: built.device.clone(),
                follows: None,
            }
        };
        let mut metrics = Self {
            states: RunState::ALL.map(|(state, name)| (state, table::RUN_STATE.gauge(&[name]))),
            stages: stages.iter().zip(ranks).map(learned).collect(),
            learning_rate: table::LEARNING_RATE.gauge(&[]),
            samples: table::SAMPLES.counter(&[]),
            tokens: table::TOKENS.counter(&[]),
            steps: table::STEPS.counter(&[]),
            current_step: table::CURRENT_STEP.gauge(&[]),
            step_duration: table::STEP_DURATION.histogram(&[]),
            since: None,
        };
        metrics.state(RunState::Starting);
        metrics.follow(plan);
        metrics
    }

    /// Sets the state of the run.
    pub(crate) fn state(&self, now: RunState) {
        for (state, gauge) in &self.states {
            gauge.set(f64::from(u8::from(*state == now)));
        }
    }

    /// Marks the present moment as the beginning of the next step.
    pub(crate) fn trains(&mut self) {
        self.state(RunState::Training);
        self.since = Some(Instant::now());
    }

    /// Records an event.
    pub(crate) fn observe(&mut self, event: &TrainEvent<'_>) {
        match event {
            TrainEvent::StageStep(done) => self.stage_step(done),
            TrainEvent::StepDone { step, examples, targets, .. } => self.step_done(step + 1, *examples, *targets),
            TrainEvent::PlanChanged { plan, .. } => self.follow(plan),
            TrainEvent::Evaluated { evaluation, .. } => {
                evaluation.heads().iter().for_each(|head| self.scored(head.stage, 1, head.score));
            }
            TrainEvent::Started { next_step, .. } => self.current_step.set(*next_step as f64),
            TrainEvent::Restarted { .. }
            | TrainEvent::StepSkipped { .. }
            | TrainEvent::CheckpointSaved { .. }
            | TrainEvent::CheckpointFailed { .. }
            | TrainEvent::Finished { .. } => {}
        }
    }

    fn follow(&mut self, plan: &GradientPlan) {
        for (k, stage) in self.stages.iter_mut().enumerate() {
            let losses: Vec<String> = plan.follows(k).iter().map(|(loss, _)| loss.to_string()).collect();
            let follows = losses.join(",");
            if stage.follows.as_ref() == Some(&follows) {
                continue;
            }
            let info = |follows: &str| table::STAGE_INFO.gauge(&[&k.to_string(), &stage.rank, &stage.device, follows]);
            info(&follows).set(1.0);
            if let Some(before) = stage.follows.replace(follows) {
                info(&before).set(0.0);
            }
            stage.width.set(plan.width(k) as f64);
        }
    }

    fn stage_step(&mut self, done: &StageStep) {
        let k = done.stage;
        if let Some(score) = done.score {
            self.scored(k, 0, score);
        }
        let stage = &mut self.stages[k];
        stage.gradient_norm.set(done.updated.gradient_norm);
        if let Some(cosine) = done.alignment {
            let gauge = || table::STAGE_ALIGNMENT.gauge(&[&k.to_string()]);
            stage.alignment.get_or_insert_with(gauge).set(cosine);
        }
        if k + 1 == self.stages.len() {
            self.learning_rate.set(done.updated.lr);
        }
    }

    /// Records that every stage has made `steps` updates.
    fn step_done(&mut self, steps: u64, examples: usize, targets: f64) {
        self.steps.increment(1);
        self.current_step.set(steps as f64);
        self.samples.increment(examples as u64);
        if targets > examples as f64 {
            self.tokens.increment(targets.round() as u64);
        }
        let now = Instant::now();
        if let Some(since) = self.since.replace(now) {
            self.step_duration.record(now - since);
        }
    }

    fn scored(&mut self, k: usize, split: usize, score: Score) {
        let stage = &mut self.stages[k];
        let set = |gauge: &mut Option<Gauge>, metric: &Metric, value: f64| {
            gauge.get_or_insert_with(|| metric.gauge(&[&k.to_string(), SPLITS[split]])).set(value);
        };
        set(&mut stage.loss[split], &table::LOSS, score.mean_loss());
        if let Some(accuracy) = score.accuracy() {
            set(&mut stage.accuracy[split], &table::ACCURACY, accuracy);
        }
    }
}

//! The trainer: a model, a strategy and devices in, a trained model and a report out.

mod builder;
mod evaluation;
mod loader;
mod observer;
mod prediction;
mod recording;
mod report;
mod run_metrics;
mod stop;
mod trained;

pub use builder::{Layout, TrainerBuilder};
pub use observer::{Observer, TrainEvent};
pub use report::{BestReport, Evaluation, EveryReport, FinalReport, HeadScore, PhaseReport, Report, StageReport};
pub use stop::Stopper;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use candle_core::Tensor;
use serde_json::Value;

use crate::{
    Dataset, Error, GradientPlan, Loss, ModelSpec, Partition, PlanSchedule, Result,
    actor::{Feed, Pipeline, PipelineEvent},
    schedule::Purpose,
    timeline::Timeline,
    transport::Built,
};
use loader::{Loader, Order};
use prediction::Prediction;
use recording::Recording;
use run_metrics::{RunMetrics, RunState};
use trained::Trained;

/// What a run trains on, and what it is evaluated on.
#[derive(Clone, Copy)]
pub struct Split<'a> {
    /// The training set.
    pub train: &'a dyn Dataset,
    /// The validation set.
    pub validation: Option<&'a dyn Dataset>,
}

impl<'a, D: Dataset> From<&'a D> for Split<'a> {
    fn from(train: &'a D) -> Self {
        Self { train, validation: None }
    }
}

impl<'a, T: Dataset, V: Dataset> From<(&'a T, &'a V)> for Split<'a> {
    fn from((train, validation): (&'a T, &'a V)) -> Self {
        Self { train, validation: Some(validation) }
    }
}

/// How long to train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Passes over the training set.
    Epochs(u64),
    /// Optimizer steps.
    Steps(u64),
}

/// What makes one evaluation better than another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Criterion {
    /// The last stage's loss, the lower the better.
    Loss,
    /// The last stage's accuracy, the higher the better.
    Accuracy,
}

/// The values at the best evaluation so far.
#[derive(Clone, Debug)]
pub struct Best {
    /// The number of updates made.
    pub steps: u64,
    /// The evaluation.
    pub evaluation: Evaluation,
    /// Every stage's parameters and buffers by name, in order of stages.
    pub stages: Vec<Vec<(String, Tensor)>>,
}

#[derive(Clone, Debug)]
struct Settings {
    seed: u64,
    batch_size: usize,
    micro_batches: usize,
    length: Length,
    eval_every: Option<u64>,
    drop_last: bool,
    keep_best: Option<Criterion>,
    /// How many steps are kept of what stages did when.
    record: Option<u64>,
}

/// Trains one model over a pipeline of stage actors.
///
/// # Example
/// A builder names what differs from the defaults. With a model and a data set of one's own (see the [crate]'s example):
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// # use candle_nn::linear;
/// # use interlock::{Autograd, Batch, Dataset, ModelSpec, Result, Unit, differentiation::autograd::FromModule, random::Key};
/// # struct Net;
/// # impl ModelSpec for Net {
/// #     fn units(&self) -> Result<Vec<Unit>> {
/// #         let unit = |name: &str| {
/// #             Unit::new(name, [4], |vb| Autograd::build(vb, |vb| Ok(FromModule(linear(4, 4, vb)?))))
/// #         };
/// #         Ok(vec![unit("first"), unit("second"), unit("third")])
/// #     }
/// #     fn head(&self, _: usize, _: &str) -> Result<Unit> {
/// #         Ok(Unit::new("", [4], |vb| Autograd::build(vb, |vb| Ok(FromModule(linear(4, 4, vb)?)))))
/// #     }
/// # }
/// # struct Corners(usize);
/// # impl Dataset for Corners {
/// #     fn len(&self) -> usize {
/// #         self.0
/// #     }
/// #     fn batch(&self, numbers: &[usize], _: Option<Key>) -> Result<Batch> {
/// #         let classes: Vec<u32> = numbers.iter().map(|n| (n % 4) as u32).collect();
/// #         let points = Tensor::eye(4, DType::F32, &Device::Cpu)?.embedding(&Tensor::new(&*classes, &Device::Cpu)?)?;
/// #         Ok(Batch { inputs: points.into(), targets: Tensor::new(classes, &Device::Cpu)? })
/// #     }
/// # }
/// use interlock::{Interlock, TrainEvent, Trainer, trainer::Criterion};
///
/// # let (model, train, validation) = (Net, Corners(64), Corners(8));
/// let mut trainer = Trainer::builder(model)
///     .strategy(Interlock::width(2))
///     .probes() // heads that train nobody but themselves, for early exits
///     .stages(3)
///     .micro_batches(2)
///     .epochs(8)
///     .keep_best(Criterion::Accuracy)
///     .observer(|event: &TrainEvent<'_>| {
///         if let TrainEvent::Evaluated { steps, evaluation, .. } = event {
///             eprintln!("after {steps} steps: loss {}", evaluation.last().score.mean_loss());
///         }
///     })
///     .build()?;
///
/// let report = trainer.fit((&train, &validation))?;
/// println!("accuracy {:?}", report.final_scores.accuracy);
/// for head in trainer.evaluate(&validation)?.heads() {
///     println!("head of stage {}: accuracy {:?}", head.stage, head.score.accuracy());
/// }
/// let parameters = trainer.snapshot()?; // by name, as the model calls them
/// # assert_eq!(report.final_scores.accuracy, Some(1.0));
/// # assert_eq!(parameters.len(), 10);
/// # Ok::<(), interlock::Error>(())
/// ```
pub struct Trainer {
    pipeline: Pipeline,
    plans: PlanSchedule,
    settings: Settings,
    partition: Partition,
    loss: Arc<dyn Loss>,
    observers: Vec<Box<dyn Observer>>,
    steps: u64,
    best: Option<Best>,
    recording: Option<Recording>,
    stopper: Stopper,
    metrics: RunMetrics,
    prediction: Prediction,
    /// A run that failed has left the stages in the middle of a step.
    failed: bool,
}

impl Trainer {
    /// A builder for `model`, with one stage, pairwise strategy and stochastic gradient descent unless told otherwise.
    pub fn builder(model: impl ModelSpec + 'static) -> TrainerBuilder {
        TrainerBuilder::new(Arc::new(model))
    }

    /// The gradient plans by step, as they are decided by now.
    pub fn plans(&self) -> &PlanSchedule {
        &self.plans
    }

    /// The gradient plan of now; where some steps have another, such as end-to-end ones in between, that of the others.
    pub fn plan(&self) -> &GradientPlan {
        &self.plans.phase_at(self.steps).plan
    }

    /// What a strategy that decides on the way has decided and remembers; none for others.
    ///
    /// # Errors
    /// If the strategy cannot tell, or the pipeline has ended.
    pub fn strategy_state(&self) -> Result<Option<Value>> {
        self.pipeline.strategy_state()
    }

    /// Which units lie on which stage.
    pub fn partition(&self) -> &Partition {
        &self.partition
    }

    /// The stages as they were built.
    pub fn stages(&self) -> &[Built] {
        self.pipeline.built()
    }

    /// Optimizer steps made.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The values at the best evaluation, where the builder asked to keep them.
    pub fn best(&self) -> Option<&Best> {
        self.best.as_ref()
    }

    /// When each stage did what in the last training steps, counted from the first action of them; none unless
    /// [`TrainerBuilder::record`] asked for it. Evaluations are left out; a stage may have begun the first of the steps while others
    /// were at the one before.
    pub fn timeline(&self) -> Option<Timeline> {
        self.recording.as_ref().map(|recording| recording.timeline(self.stages().len()))
    }

    /// A copy of every parameter and buffer, by name.
    pub fn snapshot(&self) -> Result<BTreeMap<String, Tensor>> {
        self.check_usable()?;
        self.pipeline.snapshot()
    }

    /// A copy of every parameter and buffer of each stage, in order of stages.
    pub fn snapshot_by_stage(&self) -> Result<Vec<Vec<(String, Tensor)>>> {
        self.check_usable()?;
        self.pipeline.snapshot_by_stage()
    }

    /// What ends a run of this trainer early, from another thread or an observer.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Scores every head on `data`, through the same actors.
    pub fn evaluate(&mut self, data: &dyn Dataset) -> Result<Evaluation> {
        self.check_usable()?;
        match self.run_evaluation(data, &Stopper::new())? {
            Some(evaluation) => Ok(evaluation),
            None => Err(Error::Stopped),
        }
    }

    /// How long the next call of [`Self::fit`] trains; as long as the builder said unless told otherwise.
    pub fn set_length(&mut self, length: Length) {
        self.settings.length = length;
    }

    /// Trains as long as the builder or [`Self::set_length`] said, or until a [`Stopper`] is asked to end the run.
    ///
    /// # Errors
    /// If the data are too few or cannot be read, or a stage fails. After a failure the trainer can be used no more: the stages
    /// may have been stopped in the middle of a step.
    pub fn fit<'a>(&mut self, data: impl Into<Split<'a>>) -> Result<Report> {
        self.check_usable()?;
        let ended = self.run(data.into());
        self.metrics.state(if ended.is_ok() { RunState::Finished } else { RunState::Failed });
        ended
    }

    fn check_usable(&self) -> Result<()> {
        if self.failed {
            return Err(Error::invalid(
                "trainer",
                "its run has failed, so its stages are in the middle of a step",
                "build a new trainer",
            ));
        }
        Ok(())
    }

    fn tell(&mut self, event: &TrainEvent<'_>) {
        self.metrics.observe(event);
        for observer in &mut self.observers {
            observer.observe(event);
        }
    }

    fn run(&mut self, data: Split<'_>) -> Result<Report> {
        let order = Order {
            examples: data.train.len(),
            batch_size: self.settings.batch_size,
            drop_last: self.settings.drop_last,
            seed: self.settings.seed,
        };
        let per_epoch = order.steps_per_epoch()?;
        if data.validation.is_some_and(|validation| validation.is_empty()) {
            return Err(evaluation::empty());
        }
        let first = self.steps;
        let last = first.saturating_add(match self.settings.length {
            Length::Epochs(epochs) => epochs.saturating_mul(per_epoch),
            Length::Steps(steps) => steps,
        });
        let eval_every = self.settings.eval_every.unwrap_or(per_epoch);
        // Until the end of the run, any way out leaves the stages in the middle of something.
        self.failed = true;
        self.pipeline.begin(last)?;
        let plans = self.plans.clone();
        let built = self.stages().to_vec();
        self.tell(&TrainEvent::Started {
            first_step: first,
            last_step: last,
            steps_per_epoch: per_epoch,
            plans: &plans,
            stages: &built,
        });

        let stopper = self.stopper.clone();
        let mut trained = Trained { per_epoch, ..Trained::default() };
        let mut evaluation = None;
        while self.steps < last && !stopper.is_requested() {
            let until = match data.validation {
                Some(_) => ((self.steps / eval_every + 1) * eval_every).min(last),
                None => last,
            };
            evaluation = None;
            self.train_until(data.train, order, until, &mut trained)?;
            if let Some(validation) = data.validation.filter(|_| self.steps == until) {
                self.metrics.state(RunState::Evaluating);
                let Some(found) = self.run_evaluation(validation, &stopper)? else { break };
                self.pipeline.observe_validation(found.last().score.mean_loss())?;
                let steps = self.steps;
                let improved = self.remember(&found)?;
                self.tell(&TrainEvent::Evaluated { steps, evaluation: &found, improved });
                evaluation = Some(found);
            }
        }
        self.failed = false;
        let unevaluated = data.validation.is_some() && evaluation.is_none();
        trained.stopped = stopper.is_requested() && (self.steps < last || unevaluated);
        if trained.stopped {
            stopper.done();
        }
        let report = Report::new(self, &trained, evaluation);
        self.tell(&TrainEvent::Finished { report: &report });
        Ok(report)
    }

    /// Runs the steps up to `until` (exclusive), or those that have been fed when the run is asked to end, and waits for the last of them.
    fn train_until(&mut self, data: &dyn Dataset, order: Order, until: u64, trained: &mut Trained) -> Result<()> {
        self.metrics.trains();
        let start = Instant::now();
        let (micro_batches, loss) = (self.settings.micro_batches, Arc::clone(&self.loss));
        std::thread::scope(|scope| {
            let loader = Loader::training(scope, data, order, self.steps..until)?;
            let mut fed = self.steps;
            let mut waiting = 0;
            let mut examples = VecDeque::new();
            let mut until = until;
            while self.steps < until {
                if self.stopper.is_requested() {
                    until = fed;
                    if self.steps == until {
                        break;
                    }
                }
                // One batch more than the pipeline takes is handed over, so that it never waits for this thread.
                while fed < until && waiting < 2 {
                    let batch = loader.next()?;
                    let total = loss.count(&batch.targets)?;
                    examples.push_back((batch.len()?, total));
                    let pieces = batch.split(micro_batches)?;
                    let of = pieces.len();
                    self.pipeline.feed(Feed { purpose: Purpose::Train, step: fed, pieces, first: 0, of, total })?;
                    fed += 1;
                    waiting += 1;
                }
                match self.pipeline.next()? {
                    PipelineEvent::Fed { .. } => waiting -= 1,
                    PipelineEvent::StageStep(stage) => self.tell(&TrainEvent::StageStep(&stage)),
                    PipelineEvent::StepDone { step, stages, change } => {
                        let (count, targets) = examples.pop_front().unwrap_or_default();
                        self.steps = step + 1;
                        trained.add(&stages, count);
                        self.prediction.step_done(self.plans.at(step), &stages);
                        if let Some(recording) = &mut self.recording {
                            recording.add(&stages);
                        }
                        self.tell(&TrainEvent::StepDone {
                            step,
                            epoch: step / trained.per_epoch,
                            examples: count,
                            targets,
                            stages: &stages,
                        });
                        if let Some(phase) = change {
                            self.plans.change(phase)?;
                        }
                        self.tell_of_plan();
                    }
                    other => return Err(Error::Internal(format!("{other:?} came in the middle of training"))),
                }
            }
            Ok(())
        })?;
        trained.time += start.elapsed();
        Ok(())
    }

    /// Tells of a phase of plans that begins with the next step.
    fn tell_of_plan(&mut self) {
        let phase = self.plans.phase_at(self.steps);
        if phase.from_step == self.steps {
            let (from_step, plan) = (phase.from_step, Arc::clone(&phase.plan));
            self.prediction.plan(&plan);
            self.tell(&TrainEvent::PlanChanged { from_step, plan: &plan });
        }
    }

    /// Keeps a copy of everything if `found` is the best so far; whether it is.
    fn remember(&mut self, found: &Evaluation) -> Result<bool> {
        let Some(criterion) = self.settings.keep_best else { return Ok(false) };
        let value = |evaluation: &Evaluation| {
            let last = evaluation.last().score;
            match criterion {
                Criterion::Loss => -last.mean_loss(),
                Criterion::Accuracy => last.accuracy().unwrap_or_else(|| -last.mean_loss()),
            }
        };
        if self.best.as_ref().is_some_and(|best| value(&best.evaluation) >= value(found)) {
            return Ok(false);
        }
        let stages = self.pipeline.snapshot_by_stage()?;
        self.best = Some(Best { steps: self.steps, evaluation: found.clone(), stages });
        Ok(true)
    }
}

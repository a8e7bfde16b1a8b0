//! The trainer: trains a model by a strategy on devices, and reports on it.

mod best;
mod builder;
mod callback;
mod calls;
mod checkpoint;
mod evaluation;
mod event;
mod example_order;
mod fit;
mod loader;
pub(crate) mod predictor;
mod recording;
mod recovery;
mod rehearsal;
mod report;
mod run_metrics;
mod simulated_idle;
mod state;
mod stop;
mod told;
mod trained;

pub use best::{Best, Criterion};
pub use builder::{Layout, LeastMemory, TrainerBuilder};
pub use callback::{Callback, Control, EarlyStopping, EarlyStoppingConfig};
pub use checkpoint::{Checkpoint, CheckpointConfig};
pub use event::TrainEvent;
pub use predictor::Predictor;
pub use recovery::{FailuresConfig, OnFailure, OnNonfinite};
pub use report::{
    BestReport, Evaluation, EveryReport, FinalReport, Followed, HeadScore, PhaseReport, Report, StageReport,
};
pub use state::TrainerState;
pub use stop::Stopper;

use std::{
    cell::Cell,
    sync::{Arc, Mutex},
};

use serde_json::Value;

use crate::{
    DataFrom, Dataset, Error, GradientPlan, Loss, ModelSpec, PlanSchedule, Result, Weights, actor::Pipeline,
    error::guarded, model::Partition, stage::StageBlueprint, timeline::Timeline, transport::Built,
};
use calls::Calls;
use checkpoint::{Attached, Captures, Store};
use example_order::{Division, ExampleOrder};
use recording::Recording;
use recovery::{Launch, Recovery};
use run_metrics::{RunMetrics, RunState};
use simulated_idle::SimulatedIdle;
use state::FitState;
use told::Told;

/// The training set and the validation set of a fit, made from one data set or from a pair of them. An [`Arc`] of a data set is a data set too: keep a clone to
/// use it again.
#[derive(Clone)]
pub struct Split {
    /// The training set.
    pub train: Arc<dyn Dataset>,
    /// The validation set.
    pub validation: Option<Arc<dyn Dataset>>,
}

impl<D: Dataset + 'static> From<D> for Split {
    fn from(train: D) -> Self {
        Self { train: Arc::new(train), validation: None }
    }
}

impl<T: Dataset + 'static, V: Dataset + 'static> From<(T, V)> for Split {
    fn from((train, validation): (T, V)) -> Self {
        Self { train: Arc::new(train), validation: Some(Arc::new(validation)) }
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

impl Length {
    /// # Errors
    /// If it is zero.
    fn validate(self) -> Result<()> {
        match self {
            Self::Epochs(0) => Err(Error::invalid("epochs", "0", "use 1 or more")),
            Self::Steps(0) => Err(Error::invalid("steps", "0", "use 1 or more")),
            _ => Ok(()),
        }
    }
}

#[derive(Clone, Debug)]
struct FitSettings {
    data_from: DataFrom,
    seed: u64,
    first_step: u64,
    batch_size: usize,
    /// Of each replica.
    micro_batches: usize,
    replicas: usize,
    length: Length,
    eval_every: Option<u64>,
    drop_last: bool,
    keep_best: Option<Criterion>,
    /// The number of steps whose recorded actions are kept.
    record: Option<u64>,
}

impl FitSettings {
    /// Returns the division into batches of a model that needs `least` examples in a micro-batch.
    fn division(&self, least: usize) -> Division {
        let Self { batch_size, replicas, drop_last, .. } = *self;
        Division { batch_size, micro_batches: self.micro_batches_of_step(), replicas, drop_last, least }
    }

    /// Returns the number of micro-batches of a batch, of all replicas.
    fn micro_batches_of_step(&self) -> usize {
        self.micro_batches * self.replicas
    }
}

/// Trains one model over a pipeline of stage actors.
///
/// # Example
/// With your own model and data set (see the [crate]'s example):
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// # use candle_nn::linear;
/// # use interlock::{Autograd, Batch, Dataset, ModelSpec, Result, Unit, FromModule, Key};
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
/// use interlock::{Interlock, TrainEvent, Trainer, Criterion};
///
/// # let (model, train, validation) = (Net, Corners(64), Corners(8));
/// let mut trainer = Trainer::builder(model)
///     .strategy(Interlock::width(2))
///     .probes() // heads that train only themselves, for early exits
///     .stages(3)
///     .micro_batches(2)
///     .epochs(8)
///     .keep_best(Criterion::Accuracy)
///     .callback(|event: &TrainEvent<'_>| {
///         if let TrainEvent::Evaluated { steps, evaluation, .. } = event {
///             eprintln!("after {steps} steps: loss {}", evaluation.last().score.mean_loss());
///         }
///     })
///     .build()?;
///
/// # let validation = std::sync::Arc::new(validation);
/// let report = trainer.fit((train, validation.clone()))?; // two `Arc`s, or data sets themselves
/// println!("accuracy {:?}", report.final_scores.accuracy);
/// for head in trainer.evaluate(validation)?.heads() {
///     println!("head of stage {}: accuracy {:?}", head.stage, head.score.accuracy());
/// }
/// let weights = trainer.snapshot()?; // by name, as the model calls them
/// # assert_eq!(report.final_scores.accuracy, Some(1.0));
/// # assert_eq!(weights.len(), 10);
/// # Ok::<(), interlock::Error>(())
/// ```
pub struct Trainer {
    pipeline: Pipeline,
    /// The stages' blueprints, for predictors.
    blueprints: Vec<StageBlueprint>,
    plans: PlanSchedule,
    settings: FitSettings,
    partition: Partition,
    loss: Arc<dyn Loss>,
    callbacks: Vec<Box<dyn Callback>>,
    /// The reason for which a callback ends the present fit.
    stop_reason: Option<String>,
    steps: u64,
    /// The order in which the last fit read its training set.
    order: Option<ExampleOrder>,
    /// Whether the last fit was stopped, so that the next one continues its epoch.
    interrupted: bool,
    /// Where the present fit, or the last one, began, and its totals by the last step at which stages were asked for their state.
    fit: Option<FitState>,
    /// Whether the next fit continues the one that a checkpoint was written in ([`TrainerBuilder::resume`]).
    resumes: bool,
    /// Whether the evaluation after the last step has not been made, because the fit was stopped before it.
    evaluation_due: bool,
    captures: Captures,
    store: Option<Arc<Store>>,
    /// Whether the best weights could not be written.
    best_is_unwritten: bool,
    /// Files that checkpoints have beside their own.
    attached: Attached,
    snapshot_every: Option<u64>,
    /// Whether a fit that is stopped ends with a checkpoint.
    checkpoint_on_stop: bool,
    /// Also known to the trainer that is left over while another thread has this one.
    best: Arc<Mutex<Option<Arc<Best>>>>,
    recording: Option<Recording>,
    stopper: Stopper,
    metrics: RunMetrics,
    simulated_idle: SimulatedIdle,
    launch: Arc<Launch>,
    recovery: Recovery,
    told: Told,
    /// Whether the learning rate depends on evaluations.
    reduces_on_plateau: bool,
    /// The steps in which the learning rate rises.
    warmup_steps: u64,
    /// Whether all gradients have been checked.
    rehearsed: Cell<bool>,
    calls: Calls,
    /// Whether a fit or an evaluation failed and left the stages in the middle of a step.
    failed: bool,
}

impl Trainer {
    /// Returns a builder for `model`. Defaults: one stage, the strategy [`Groups`](crate::Groups) and stochastic gradient descent.
    pub fn builder(model: impl ModelSpec + 'static) -> TrainerBuilder {
        TrainerBuilder::new(Arc::new(model))
    }

    /// Returns the gradient plans by step, as far as they are decided.
    pub fn plans(&self) -> &PlanSchedule {
        &self.plans
    }

    /// Returns the gradient plan of the next step. If single steps have another plan, such as end-to-end ones, it is the plan of the other steps.
    pub fn plan(&self) -> &GradientPlan {
        &self.plans.phase_at(self.steps).plan
    }

    /// Returns the state of a strategy that decides plans during the run; none for other strategies.
    ///
    /// # Errors
    /// If the strategy cannot return its state, or the pipeline has ended.
    pub fn strategy_state(&self) -> Result<Option<Value>> {
        self.pipeline.strategy_state()
    }

    /// Returns the partition of the model into stages.
    pub fn partition(&self) -> &Partition {
        &self.partition
    }

    /// Returns a description of each stage.
    pub fn stages(&self) -> &[Built] {
        self.pipeline.built()
    }

    /// Returns the number of optimizer steps since the model's first, including those before [`TrainerBuilder::first_step`].
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Returns the actions of each stage in the last training steps, with times counted from the first of them; none if [`TrainerBuilder::record`]
    /// was not set. Evaluations are left out. A stage may have begun the first of these steps while others were still in the previous one.
    pub fn timeline(&self) -> Option<Timeline> {
        self.recording.as_ref().map(|recording| recording.timeline(self.stages().len()))
    }

    /// Returns a copy of every parameter and buffer.
    pub fn snapshot(&self) -> Result<Weights> {
        self.check_usable()?;
        self.pipeline.snapshot()
    }

    /// Returns a predictor with the present weights. It has stages of its own on the same devices; later training does not change it.
    ///
    /// # Errors
    /// If a stage cannot be built, or the trainer has failed.
    pub fn predictor(&self) -> Result<Predictor> {
        Predictor::build(&self.blueprints, self.snapshot()?.into())
    }

    /// Adds a callback. Events reach it after those of the builder ([`TrainerBuilder::callback`]). The state of a trainer ([`Self::state`]) has those
    /// of all its callbacks, and the trainer that continues from it must have the same ones from its builder.
    pub fn callback(&mut self, callback: impl Callback + 'static) {
        self.callbacks.push(Box::new(callback));
    }

    /// Returns a handle that ends a run of this trainer early, from another thread or a callback.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Scores every head on `data`, with the same actors.
    ///
    /// # Errors
    /// If the data set is empty or invalid, a stage fails, or the caller's code panics. After an error before the first batch has been fed, the
    /// trainer can be used as before; after others it cannot, since its stages may be in the middle of a step.
    pub fn evaluate(&mut self, data: impl Dataset + 'static) -> Result<Evaluation> {
        let data: Arc<dyn Dataset> = Arc::new(data);
        self.on_its_own_thread(move |trainer| {
            let found = guarded(|| trainer.run_evaluation(&data, &Stopper::new()));
            trainer.calls.release(data);
            found?.ok_or(Error::Stopped)
        })
    }

    /// Sets how long the next calls of [`Self::fit`] train; the builder's length by default.
    pub fn set_length(&mut self, length: Length) {
        self.settings.length = length;
    }

    /// Trains for the builder's length or that of [`Self::set_length`], or until a [`Stopper`] or a callback ends the run.
    ///
    /// A further `fit` keeps the parameters, the optimizer's state and the step count, begins a new epoch, and trains for the same length again,
    /// also on a data set of another size. Epochs are counted through all fits, so that no two are shuffled alike. The learning-rate schedule
    /// goes on by the step count; a schedule without a `total_steps` of its own ends with the last step of the present fit.
    ///
    /// After a fit that was stopped, the next fit of as many examples goes on where the stopped one ended, in the middle of its epoch. So the steps
    /// that were left (see [`Self::set_length`]) end where the whole fit would have ended, to the bit.
    ///
    /// If the examples that are left after the last whole batch of an epoch are too few for the model, since batch norm would see a single value
    /// for each channel, they join that batch, unless [`TrainerBuilder::drop_last`] leaves them out.
    ///
    /// # Errors
    /// If the data are too few or wrong, a micro-batch has too few examples for the model ([`Self::check`]), a stage fails, or a callback fails,
    /// or the caller's code panics.
    ///
    /// An error before the first step, such as that of an empty data set or of a setting that needs a validation set where there is none, changes nothing, and the
    /// trainer can be used as before. After an error between steps, such as that of a callback at an evaluation, the next fit of as many examples goes on in the
    /// same epoch. After all other errors the trainer cannot be used any more: its stages may be in the middle of a step.
    ///
    /// With [`FailuresConfig::stall_timeout`], the fit runs on a thread of its own, and an error names code of yours that does not end in that time. That thread
    /// is left alone, and the trainer has the state of before the fit, except for [`Self::best`] and [`Self::last_checkpoint`].
    pub fn fit(&mut self, data: impl Into<Split>) -> Result<Report> {
        let data = data.into();
        self.on_its_own_thread(move |trainer| {
            let ended = guarded(|| trainer.run(&data));
            trainer.calls.release(data);
            if !trainer.calls.are_left() {
                if ended.is_err() {
                    trainer.save_newest();
                }
                trainer.metrics.state(if ended.is_ok() { RunState::Finished } else { RunState::Failed });
            }
            ended
        })
    }

    /// Checks the data of a later [`Self::fit`], as it does itself before its first step. Nothing is changed.
    ///
    /// # Errors
    /// If the training set is empty, or a setting needs a validation set where there is none; or if a micro-batch has fewer examples than the
    /// model needs in training: batch norm needs more than one value for each channel; or if a gradient is zero or incomplete
    /// ([`Autograd`](crate::Autograd)).
    pub fn check(&mut self, data: impl Into<Split>) -> Result<()> {
        let data = data.into();
        self.on_its_own_thread(move |trainer| {
            let checked = guarded(|| trainer.order_of(&data).map(drop));
            trainer.calls.release(data);
            checked
        })
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
}

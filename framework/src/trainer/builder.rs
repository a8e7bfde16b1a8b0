//! The builder of trainers.

mod layout;
mod least_memory;
mod planning;
mod start;

pub use layout::Layout;
pub use least_memory::LeastMemory;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;

use super::{
    Callback, Checkpoint, CheckpointConfig, Criterion, FailuresConfig, FitSettings, Length, Stopper, TrainerState,
    checkpoint::Attached, guarded,
};
use crate::{
    ActivationDtype, DataFrom, Error, Groups, Loss, ModelSpec, Predictor, Result, StageDevice, Strategy,
    device::PlainCpu,
    loss::CrossEntropy,
    model::{Weights, partition::PartitionConfig},
    optimizer::{
        OptimizerConfig,
        clip::ClipConfig,
        lr_schedule::{LrRule, LrScheduleConfig},
    },
    ranks::Ranks,
    schedule::PolicyName,
    stage::{EmaConfig, HeadsConfig, HeadsTrained, Recompute, ReplicaStatistics},
    stage::{
        OptimizerFactory,
        initial::{AllowedDifferences, Missing, adapted},
    },
};

/// A builder of [`Trainer`](super::Trainer)s. It holds and checks the settings, and starts the pipeline.
#[must_use]
pub struct TrainerBuilder {
    model: Arc<dyn ModelSpec>,
    strategy: Box<dyn Strategy>,
    strategy_state: Option<Value>,
    restored: Option<TrainerState>,
    /// Whether the fit in which the state was taken is continued.
    resumes: bool,
    /// The folder of the run, and when checkpoints are written to it.
    checkpoint: Option<(PathBuf, CheckpointConfig)>,
    attached: Attached,
    failures: Option<FailuresConfig>,
    partition: PartitionConfig,
    devices: Vec<Arc<dyn StageDevice>>,
    optimizer: Arc<dyn OptimizerFactory>,
    clip: Option<ClipConfig>,
    ema: Option<EmaConfig>,
    lr_schedule: LrRule,
    loss: Arc<dyn Loss>,
    head_losses: HashMap<usize, Arc<dyn Loss>>,
    heads: HeadsConfig,
    recompute: Recompute,
    dtype: Option<ActivationDtype>,
    policy: PolicyName,
    in_flight: Option<usize>,
    initial: Option<Arc<Weights>>,
    allowed: AllowedDifferences,
    /// Patterns of names that start from the seed although `initial` has them.
    skipped: Vec<String>,
    callbacks: Vec<Box<dyn Callback>>,
    stopper: Stopper,
    settings: FitSettings,
    ranks: Option<Ranks>,
    replica_statistics: ReplicaStatistics,
    /// The stages of each rank of a replica.
    stages_of_ranks: Option<Vec<Vec<usize>>>,
    /// What all ranks must agree in, beside what this builder knows.
    agreement: String,
}

impl TrainerBuilder {
    pub(super) fn new(model: Arc<dyn ModelSpec>) -> Self {
        Self {
            model,
            strategy: Box::new(Groups),
            strategy_state: None,
            restored: None,
            resumes: false,
            checkpoint: None,
            attached: Attached::new(),
            failures: None,
            partition: PartitionConfig::default(),
            devices: vec![Arc::new(PlainCpu)],
            optimizer: Arc::new(OptimizerConfig::default()),
            clip: None,
            ema: None,
            lr_schedule: LrScheduleConfig::default().into(),
            loss: Arc::new(CrossEntropy::default()),
            head_losses: HashMap::new(),
            heads: HeadsConfig::default(),
            recompute: Recompute::None,
            dtype: None,
            policy: PolicyName::default(),
            in_flight: None,
            initial: None,
            allowed: AllowedDifferences::default(),
            skipped: Vec::new(),
            callbacks: Vec::new(),
            stopper: Stopper::new(),
            settings: FitSettings {
                data_from: DataFrom::default(),
                seed: 0,
                first_step: 0,
                batch_size: 32,
                micro_batches: 1,
                replicas: 1,
                length: Length::Epochs(1),
                eval_every: None,
                drop_last: false,
                keep_best: None,
                record: None,
            },
            ranks: None,
            replica_statistics: ReplicaStatistics::default(),
            stages_of_ranks: None,
            agreement: String::new(),
        }
    }

    /// Sets the strategy, which decides which losses train which stage. Default: [`Groups`].
    pub fn strategy(self, strategy: impl Strategy + 'static) -> Self {
        self.strategy_boxed(Box::new(strategy))
    }

    /// Sets a strategy that is chosen at run time.
    pub fn strategy_boxed(self, strategy: Box<dyn Strategy>) -> Self {
        Self { strategy, ..self }
    }

    /// Continues the strategy from the state of another run, as [`Trainer::strategy_state`](super::Trainer::strategy_state) returned it. With
    /// [`Self::first_step`], the weights of that run and the same data, the strategy decides as it would have in one uninterrupted run.
    pub fn strategy_state(self, state: impl Into<Option<Value>>) -> Self {
        Self { strategy_state: state.into(), ..self }
    }

    /// Sets the number of the first optimizer step, for a run that continues another. Learning rates, gradient plans and the order of the data
    /// continue from it. Default: 0.
    pub fn first_step(mut self, step: u64) -> Self {
        self.settings.first_step = step;
        self
    }

    /// Continues from the state of another trainer ([`Trainer::state`](super::Trainer::state)), whose weights of the same moment must be given as
    /// [`Self::initial_values`]. Model, partition, optimizer, strategy, seed, batch size and the callbacks with their order must be those of that trainer. It
    /// sets [`Self::first_step`] and [`Self::strategy_state`]; the length is that of the steps to come.
    ///
    /// The first fit on as many examples continues in the middle of the epoch, even if that trainer's fit ended there. So both together compute the same
    /// bits as one long fit, if they evaluate after the same steps.
    pub fn restore(mut self, state: TrainerState) -> Self {
        self.settings.first_step = state.steps();
        self.strategy_state = state.strategy();
        Self { restored: Some(state), ..self }
    }

    /// Continues from the newest whole checkpoint of the run in the folder `run` ([`Self::checkpoint`]), or from the checkpoint in this folder, as
    /// [`Self::resume_from`] does. A damaged checkpoint is skipped with a warning.
    ///
    /// # Errors
    /// If there is no whole checkpoint.
    pub fn resume(self, run: impl AsRef<Path>) -> Result<Self> {
        let run = run.as_ref();
        match Checkpoint::newest(run)? {
            Some((checkpoint, _)) => Ok(self.resume_from(checkpoint)),
            None => Err(Error::file(run, "there is no checkpoint in it; name the folder of a run with checkpoints")),
        }
    }

    /// Continues from a checkpoint: as [`Self::restore`] with its weights, except that the first fit is the rest of the fit in which the checkpoint was
    /// taken. So the length is that of the whole fit, whose report has all of it, and the result is that of the fit without interruption, to the bit.
    ///
    /// Under another partition, parameters and the state of their optimizers are the same; a head that followed another unit, or has another shape, starts
    /// anew, with a warning. A strategy that decides plans during training needs the same partition.
    pub fn resume_from(self, checkpoint: Checkpoint) -> Self {
        let Checkpoint { weights, state } = checkpoint;
        Self { resumes: true, ..self.initial_values(weights).restore(state) }
    }

    /// Writes checkpoints during training, on a thread of their own, into the folder `run`, which need not exist: `run/checkpoints/step-N`. With
    /// [`Self::keep_best`] also the best weights, to `run/best`. A checkpoint that cannot be written is a warning, and training goes on.
    ///
    /// For a checkpoint each stage copies its weights and its state when it has finished the step, and goes on. A fit ends with a checkpoint. Default:
    /// none is written.
    pub fn checkpoint(mut self, run: impl Into<PathBuf>, config: CheckpointConfig) -> Self {
        self.settings.keep_best = config.keep_best.or(self.settings.keep_best);
        Self { checkpoint: Some((run.into(), config)), ..self }
    }

    /// Writes a file of this name and content into every checkpoint, such as the configuration of the run.
    pub fn attach(mut self, name: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        self.attached.insert(name.into(), content.into().into());
        self
    }

    /// Sets what a fit does about failures. It then keeps a copy of weights and state in memory after every step that is a multiple of
    /// [`FailuresConfig::snapshot_every`]. A fit that ends with a failure leaves the newest one as a checkpoint, if checkpoints are written, and
    /// [`Trainer::last_checkpoint`](super::Trainer::last_checkpoint) returns it. Default: a failure ends the fit, no copies are kept,
    /// and code of yours may take any time.
    pub fn failures(self, config: impl Into<Option<FailuresConfig>>) -> Self {
        Self { failures: config.into(), ..self }
    }

    /// Cuts the model into `stages` stages of about equal cost. Default: one stage for each device.
    pub fn stages(self, stages: usize) -> Self {
        Self { partition: PartitionConfig { stages: Some(stages), units_per_stage: None }, ..self }
    }

    /// Cuts the model into stages with these numbers of units.
    pub fn units_per_stage(self, units: impl Into<Vec<usize>>) -> Self {
        Self { partition: PartitionConfig { stages: None, units_per_stage: Some(units.into()) }, ..self }
    }

    /// Cuts the model as a partition from a configuration file says.
    pub fn partition(self, partition: PartitionConfig) -> Self {
        Self { partition, ..self }
    }

    /// Sets the devices. Stage `k` is pinned to device `k mod` their number. If neither the number of stages nor their units are given, each device
    /// has one stage. Default: candle's CPU device.
    pub fn devices(self, devices: impl Into<Vec<Arc<dyn StageDevice>>>) -> Self {
        Self { devices: devices.into(), ..self }
    }

    /// Returns the devices that stages are pinned to.
    pub fn pinned_to(&self) -> &[Arc<dyn StageDevice>] {
        &self.devices
    }

    /// Sets the optimizer: an [`OptimizerConfig`] for a built-in one, or your own [`OptimizerFactory`]. Default: stochastic gradient descent with
    /// learning rate 0.1 and momentum 0.9.
    pub fn optimizer(self, optimizer: impl OptimizerFactory + 'static) -> Self {
        Self { optimizer: Arc::new(optimizer), ..self }
    }

    /// Sets gradient clipping. Default: none.
    pub fn clip(self, clip: impl Into<Option<ClipConfig>>) -> Self {
        Self { clip: clip.into(), ..self }
    }

    /// Keeps an exponential moving average of the weights in each stage, which evaluations, the best weights and every copy of the weights use.
    /// Default: none. [`EmaConfig`] has the details.
    pub fn ema(self, ema: impl Into<Option<EmaConfig>>) -> Self {
        Self { ema: ema.into(), ..self }
    }

    /// Sets the learning rate over time: a configured schedule, or a function from the step to the factor on the optimizer's base rate, such as
    /// `|step: u64| 0.5_f64.powi((step / 100) as i32)`. Default: constant. [`LrRule`] has the details.
    pub fn lr_schedule(self, lr_schedule: impl Into<LrRule>) -> Self {
        Self { lr_schedule: lr_schedule.into(), ..self }
    }

    /// Sets the loss of every head and of the last stage. Default: cross-entropy.
    pub fn loss(self, loss: impl Loss + 'static) -> Self {
        Self { loss: Arc::new(loss), ..self }
    }

    /// Sets the loss of the head of stage `k` only. It must count as many targets as the common loss does.
    pub fn head_loss(mut self, k: usize, loss: impl Loss + 'static) -> Self {
        self.head_losses.insert(k, Arc::new(loss));
        self
    }

    /// Sets the auxiliary heads. Default: the model's own, at the stages whose loss some stage follows.
    pub fn heads(self, heads: HeadsConfig) -> Self {
        Self { heads, ..self }
    }

    /// Adds probe heads: every stage that may carry a head has one, and a head that no stage follows trains only itself.
    pub fn probes(mut self) -> Self {
        self.heads.train = HeadsTrained::All;
        self
    }

    /// Sets the stages that save only their input and repeat the forward pass before the backward pass: less memory, more time, the same bits.
    /// Default: none.
    pub fn recompute(self, recompute: Recompute) -> Self {
        Self { recompute, ..self }
    }

    /// Sets the dtype in which stages send `f32` activations and gradients and layers save activations. Default: `bf16` for stages on devices that compute in
    /// `bf16`, which take nothing else; `f32` for others.
    pub fn dtype(self, dtype: ActivationDtype) -> Self {
        Self { dtype: Some(dtype), ..self }
    }

    /// Sets the order of a stage's actions when several are possible. It changes how long steps take, not their results. Default: `Interlock`.
    pub fn policy(self, policy: PolicyName) -> Self {
        Self { policy, ..self }
    }

    /// Sets how many micro-batches may be in flight at each boundary. Default: the fewest that cost the schedule no time.
    pub fn in_flight(self, in_flight: impl Into<Option<usize>>) -> Self {
        Self { in_flight: in_flight.into(), ..self }
    }

    /// Spreads the stages over several processes. Every rank makes the same builder; rank 0 calls [`Self::build`] and trains, the others call
    /// [`Self::serve`], or [`Self::serve_with`] with several replicas. By default each rank has about as many stages, in order ([`Self::stages_of_ranks`]).
    ///
    /// The result is that of one process, to the bit. A failure of any rank ends the run: [`FailuresConfig`] cannot ask for restarts.
    pub fn ranks(self, ranks: &Ranks) -> Self {
        Self { ranks: Some(ranks.clone()), ..self }
    }

    /// Trains `replicas` copies of each stage, each with as many ranks ([`Self::ranks`]): with `P` ranks a replica, rank `r * P + p` has part `p` of replica
    /// `r`. A batch is cut into [`Self::micro_batches`] micro-batches for each replica, and the gradients of all are added up before each update: the result is
    /// that of one replica with `replicas` times as many micro-batches, up to the order of sums, and always has the same bits. Default: 1.
    ///
    /// Weights, states and evaluations are those of the first replica.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.settings.replicas = replicas;
        self
    }

    /// Sets which ranks read the training set, if there are several replicas. Default: the rank with the first stage of each ([`Self::serve_with`]).
    pub fn data_from(mut self, from: DataFrom) -> Self {
        self.settings.data_from = from;
        self
    }

    /// Sets which running statistics batch norms have with several replicas. Default: each replica keeps its own.
    pub fn replica_statistics(self, statistics: ReplicaStatistics) -> Self {
        Self { replica_statistics: statistics, ..self }
    }

    /// Sets the stages of each rank, such as `vec![vec![0, 1], vec![2]]`; with several replicas, of each rank of a replica.
    pub fn stages_of_ranks(self, stages: impl Into<Option<Vec<Vec<usize>>>>) -> Self {
        Self { stages_of_ranks: stages.into(), ..self }
    }

    /// Sets what all ranks must agree in, a line each, such as checksums of files. A rank that differs is named, and nothing is trained. Compared in any case:
    /// version, partition, replicas, placement, seed, batch size, micro-batches, optimizer, clipping, moving average, dtype, heads, recomputation; not the model, losses
    /// and functions of yours.
    pub fn agreement(self, lines: impl Into<String>) -> Self {
        Self { agreement: lines.into(), ..self }
    }

    /// Sets the number of micro-batches of a batch, of each replica. Default: 1.
    pub fn micro_batches(mut self, micro_batches: usize) -> Self {
        self.settings.micro_batches = micro_batches;
        self
    }

    /// Sets the number of examples of a step. Default: 32.
    pub fn batch_size(mut self, batch_size: usize) -> Self {
        self.settings.batch_size = batch_size;
        self
    }

    /// Trains for this many passes over the training set. Default: 1.
    pub fn epochs(mut self, epochs: u64) -> Self {
        self.settings.length = Length::Epochs(epochs);
        self
    }

    /// Trains for this many optimizer steps, instead of [`Self::epochs`].
    pub fn steps(mut self, steps: u64) -> Self {
        self.settings.length = Length::Steps(steps);
        self
    }

    /// Evaluates after every step whose number is a multiple of `steps`; fits then need a validation set. Default: after each epoch, if a fit has one.
    pub fn eval_every(mut self, steps: impl Into<Option<u64>>) -> Self {
        self.settings.eval_every = steps.into();
        self
    }

    /// Leaves out the last batch of an epoch if it has fewer examples than the others. Default: false; a last batch that is too small for the model
    /// joins the one before it ([`Trainer::fit`](super::Trainer::fit)).
    pub fn drop_last(mut self, drop_last: bool) -> Self {
        self.settings.drop_last = drop_last;
        self
    }

    /// Keeps a copy of the weights of the best evaluation, for [`Trainer::best`](super::Trainer::best); fits then need a validation set. Default: none.
    pub fn keep_best(mut self, criterion: impl Into<Option<Criterion>>) -> Self {
        self.settings.keep_best = criterion.into();
        self
    }

    /// Records the actions of every stage and their times in the last `steps` training steps, for [`Trainer::timeline`](super::Trainer::timeline). It
    /// changes no result. Default: nothing is recorded.
    pub fn record(mut self, steps: impl Into<Option<u64>>) -> Self {
        self.settings.record = steps.into();
        self
    }

    /// Sets the seed of initial values, shuffling, augmentation and dropout. Default: 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.settings.seed = seed;
        self
    }

    /// Starts from these weights instead of values from the seed. Their names and shapes must be those of the model; [`Self::layout`] refuses
    /// others and lists them. Weights of other programs get the model's own names first ([`ModelSpec::adapt`]).
    ///
    /// Auxiliary heads are found by the unit that they follow ([`Weights::units_per_stage`]), also under another partition. A head that is not there
    /// with the same names and shapes starts from the seed, and heads that the model does not have are not used; a warning lists both. A
    /// misspelt name of a head's parameter is unknown like any other.
    ///
    /// For a model with another last layer, leave its names out with [`Self::skip_initial_values`].
    pub fn initial_values(self, values: impl Into<Arc<Weights>>) -> Self {
        Self { initial: Some(values.into()), ..self }
    }

    /// Starts the parameters and buffers whose names match one of these patterns (`*`, `?` and `[…]`, such as `fc.*`) from the seed, although the
    /// initial values have them.
    pub fn skip_initial_values(mut self, patterns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.skipped.extend(patterns.into_iter().map(Into::into));
        self
    }

    /// Allows main parameters and buffers that have no initial value; they start from the seed, and a warning lists them. Default: not allowed.
    pub fn allow_missing(mut self, allow: bool) -> Self {
        self.allowed.missing = if allow { Missing::All } else { Missing::None };
        self
    }

    /// Allows that at most half of the main parameters and buffers have no initial value; as [`Self::allow_missing`]. Default: not allowed.
    pub fn allow_half_missing(mut self, allow: bool) -> Self {
        self.allowed.missing = if allow { Missing::Half } else { Missing::None };
        self
    }

    /// Allows initial values whose names are not in the model; they are not used, and a warning lists them. Default: not allowed.
    pub fn allow_unknown(mut self, allow: bool) -> Self {
        self.allowed.unknown = allow;
        self
    }

    /// Allows auxiliary heads that have no initial values at their unit and in their shape; they start from the seed, and a warning lists them. Default:
    /// allowed, except with [`Self::restore`].
    pub fn allow_missing_heads(mut self, allow: bool) -> Self {
        self.allowed.heads = allow;
        self
    }

    /// Adds a callback, which follows every run and may end it: your own [`Callback`], or a function of [`TrainEvent`](super::TrainEvent) that only
    /// watches. Events reach callbacks in the order in which the callbacks were added.
    pub fn callback(mut self, callback: impl Callback + 'static) -> Self {
        self.callbacks.push(Box::new(callback));
        self
    }

    /// Sets the stopper, which may exist before the trainer. Fits end early when it is asked to. [`Trainer::stopper`](super::Trainer::stopper)
    /// returns the same one.
    pub fn stop_on(self, stopper: &Stopper) -> Self {
        Self { stopper: stopper.clone(), ..self }
    }

    /// Builds a predictor of the model with these weights, such as those of a [`Weights::load`]. It has the stages, devices and heads of the
    /// trainer that this builder would build; weights of heads that it does not have are not used. As in [`Self::initial_values`], heads are found by
    /// the unit that they follow; a head that the weights do not hold cannot predict.
    ///
    /// # Errors
    /// As [`Self::layout`], or if a main weight is missing, unknown or of another shape, or a stage cannot be built.
    pub fn predictor(&self, weights: impl Into<Arc<Weights>>) -> Result<Predictor> {
        let layout = self.layout()?;
        guarded(|| Predictor::build(&layout.blueprints, adapted(&*self.model, &weights.into())?))
    }
}

//! The configuration of a run. Values of `--set` override those of a file, which override defaults.

mod check;
mod devices;
mod placement;
mod rivals;
pub(crate) mod seed;
mod settings;

pub(crate) use devices::Devices;
pub(crate) use placement::PlacementChoice;
pub(crate) use settings::{ConfigText, Setting, is_within};

use std::path::{Path, PathBuf};

use interlock::{
    ActivationDtype, Checkpoint, CheckpointConfig, ClipConfig, Criterion, DataFrom, EarlyStopping, EarlyStoppingConfig,
    EmaConfig, Error, FailuresConfig, HeadsConfig, LrScheduleConfig, OptimizerConfig, Precision, Recompute,
    ReplicaStatistics, Result, Trainer, TrainerBuilder, Weights,
    tools::{model::PartitionConfig, schedule::PolicyName, strategy::StrategyConfig},
};
use interlock_models::data::{Data, DataKind, Description};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    memory::{self, LeastStep},
    program::{DataSection, ModelSection, Program},
    progress::{emulation, note_emulation},
    ranks::ranks,
    serve::agreement,
};

/// The configuration of a run of a program.
pub(crate) type ConfigOf<P> = RunConfig<<P as Program>::Model, <P as Program>::Data>;

/// The configuration of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[serde(bound = "M: ModelSection, D: DataSection")]
#[schemars(bound = "M: ModelSection, D: DataSection")]
pub(crate) struct RunConfig<M, D> {
    /// The run's name; the run folder begins with it.
    #[serde(default = "default_name")]
    pub(crate) name: String,
    /// The seed of initial values, shuffling, augmentation and dropout.
    #[serde(default, with = "seed")]
    #[schemars(schema_with = "seed::schema")]
    pub(crate) seed: u64,
    /// Passes over the training set; 1 if neither this nor `steps` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(crate) epochs: Option<u64>,
    /// Optimizer steps, instead of `epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(crate) steps: Option<u64>,
    /// Examples a step.
    #[serde(default = "default_batch_size")]
    #[schemars(range(min = 1))]
    pub(crate) batch_size: usize,
    /// Number of micro-batches that a batch is cut into; with several replicas, for each of them.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub(crate) micro_batches: usize,
    /// Copies of each stage, among which the micro-batches of a batch are divided and whose gradients are added up. More than one need as many ranks, or a
    /// multiple.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 1))]
    pub(crate) replicas: usize,
    /// Which ranks read the training set, with several replicas: the rank with the first stage of each reads the replica's examples (`"all"`), or rank 0
    /// reads all and sends them (`"first"`), so that only its host needs the files.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) data_from: DataFrom,
    /// The running statistics of batch norms with several replicas, which see different examples.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) replica_statistics: ReplicaStatistics,
    /// Whether the examples that are left after the last whole batch of an epoch are left out. By default they are a smaller batch, or join the
    /// last whole one if they are too few for batch norm, which needs more than one value for each channel.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) drop_last: bool,
    /// Micro-batches in flight at each boundary; by default the smallest number, at least 2, that does not make a simulated step longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(crate) in_flight: Option<usize>,
    /// The devices. `"auto"` takes the GPUs of the machine; if there are none, it divides its cores among the stages. With a name, or a list of names,
    /// stage `k` is pinned to device `k mod` their number.
    #[serde(default)]
    #[schemars(extend("examples" = [["cpu:threads=2", "cuda:0"]]))]
    pub(crate) devices: Devices,
    /// The precision in which layers compute on devices whose names do not say in which: `bf16` rounds the factors of products of matrices and of
    /// convolutions, and the activations that are saved and sent; sums, statistics, losses, parameters and their gradients stay `f32`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) precision: Precision,
    /// The dtype of activations and gradients between stages, and of saved activations. Default: `f32`; on devices that compute in `bf16` it is `bf16`, and
    /// cannot be `f32`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dtype: Option<ActivationDtype>,
    /// The stages that save only their input and run the forward pass again before the backward pass: `true` for all, or a list. This takes
    /// less memory and more time, and gives the same results.
    #[serde(default)]
    pub(crate) recompute: Recompute,
    /// Steps between two evaluations; by default an epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(crate) eval_every: Option<u64>,
    /// Weights to start from: a run folder, a safetensors file, an index of such files, or a folder with `model.safetensors`; also of other programs:
    /// GPT-2 of transformers and nanoGPT, ResNets of torchvision and timm. At least half of the model's tensors must be there; the others start from
    /// the seed, with a warning. Auxiliary heads start from those that followed the same units; others start from the seed, with a warning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) init_from: Option<PathBuf>,
    /// Whether `init_from` may have less than half of the model's tensors.
    #[serde(default, skip_serializing_if = "is_false", alias = "init_allow_missing")]
    pub(crate) init_partial: bool,
    /// Names that start from the seed although `init_from` has them, as patterns with `*`, `?` and `[…]`: the last layer, for other classes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("examples" = [["fc.*"]]))]
    pub(crate) init_skip: Vec<String>,
    /// The data set.
    pub(crate) data: D,
    /// The model.
    pub(crate) model: M,
    /// The division of the model into stages; by default into as many as there are devices (one under `"auto"`).
    #[serde(default)]
    #[schemars(extend("examples" = [{"stages": 4}]))]
    pub(crate) partition: PartitionConfig,
    /// The stages and the devices of each rank, if the run is started as several processes; `"auto"` spreads the stages by the cores of the ranks, and chooses the cut if none is given.
    #[serde(default)]
    #[schemars(extend("examples" = ["auto", {"stages": [[0, 1], [2, 3]]}]))]
    pub(crate) placement: PlacementChoice,
    /// The strategy, which chooses the losses that train each stage.
    #[serde(default)]
    #[schemars(extend("examples" = [{"width": 2}]))]
    pub(crate) strategy: StrategyConfig,
    /// The auxiliary heads.
    #[serde(default)]
    #[schemars(extend("examples" = [{"train": "all"}]))]
    pub(crate) heads: HeadsConfig,
    /// The update rule.
    #[serde(default)]
    #[schemars(extend("examples" = [{"kind": "adamw", "lr": 1e-3}]))]
    pub(crate) optimizer: OptimizerConfig,
    /// Gradient clipping; by default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("examples" = [{"max_norm": 1.0}]))]
    pub(crate) clip: Option<ClipConfig>,
    /// The learning rate over time.
    #[serde(default)]
    #[schemars(extend("examples" = [{"kind": "cosine", "warmup_steps": 100}]))]
    pub(crate) lr_schedule: LrScheduleConfig,
    /// Ends the run when its evaluations do not improve any more; by default it trains for its full length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("examples" = [{"patience": 5}]))]
    pub(crate) early_stopping: Option<EarlyStoppingConfig>,
    /// An exponential moving average of the weights, which evaluations and the saved weights use; by default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("examples" = [{"decay": 0.999}]))]
    pub(crate) ema: Option<EmaConfig>,
    /// Settings of the pipeline.
    #[serde(default)]
    #[schemars(extend("examples" = [{"schedule": "one_f_one_b"}]))]
    pub(crate) pipeline: PipelineConfig,
    /// The checkpoints of the run, from which `train --resume` continues.
    #[serde(default)]
    #[schemars(extend("examples" = [{"every_steps": 500, "keep": 2}]))]
    pub(crate) checkpoint: CheckpointConfig,
    /// What the run does about failures.
    #[serde(default)]
    #[schemars(extend("examples" = [{"on_failure": "restart"}]))]
    pub(crate) failures: FailuresConfig,
}

/// The limit of time, in seconds, for code that may block, if the configuration gives none.
const STALL_TIMEOUT: f64 = 600.0;

/// Settings of the pipeline, which do not change the results.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PipelineConfig {
    /// Which action a stage starts when several are ready.
    pub(crate) schedule: PolicyName,
}

fn default_name() -> String {
    "run".to_owned()
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn default_batch_size() -> usize {
    32
}

fn one() -> usize {
    1
}

fn is_one(number: &usize) -> bool {
    *number == 1
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Loads the configuration at `path`, or the program's built-in one, and applies `sets` (`key.path=value`).
///
/// # Errors
/// As [`ConfigText::with`], or if the file cannot be read.
pub(crate) fn load<P: Program>(path: Option<&Path>, sets: &[String]) -> Result<ConfigOf<P>> {
    ConfigText::read::<P>(path)?.with(&Setting::sets(sets)?)
}

impl<M: ModelSection, D: DataSection> RunConfig<M, D> {
    /// Returns the configuration as the text of a file.
    pub(crate) fn to_toml(&self) -> Result<String> {
        toml::to_string(self)
            .map_err(|e| Error::invalid("configuration", e.to_string(), "this is a defect; please report it"))
    }

    /// Opens the data and checks everything that can be checked before anything is written.
    pub(crate) fn prepare(&self) -> Result<Prepared> {
        self.prepare_from(None)
    }

    /// As [`Self::prepare`], for a run that continues from a checkpoint.
    pub(crate) fn prepare_from(&self, checkpoint: Option<&Checkpoint>) -> Result<Prepared> {
        if self.epochs.is_some() && self.steps.is_some() {
            return Err(Error::invalid("epochs", "steps are given too", "give one of them"));
        }
        for (key, is_given) in [("init_partial", self.init_partial), ("init_skip", !self.init_skip.is_empty())] {
            if is_given && self.init_from.is_none() {
                let remedy = format!("name the weights to start from, or leave {key} out");
                return Err(Error::invalid("init_from", format!("{key} is given without it"), remedy));
            }
        }
        if self.name.is_empty() || self.name.contains(['/', '\\']) {
            return Err(Error::invalid("name", format!("{:?}", self.name), "use a name without slashes"));
        }
        let data = self.data.open()?;
        let builder = match checkpoint {
            Some(checkpoint) => self.untrained(&data.description)?.resume_from(checkpoint.clone()),
            None => self.builder(&data.description)?,
        };
        let builder = self.on_devices(builder).map_err(|error| self.in_own_words(error))?;
        let layout = builder.layout().map_err(|error| self.in_own_words(error))?;
        let examples = self.batch_size.min(data.train.len());
        let least = LeastStep {
            stages: layout.least_memory(),
            example: memory::example(&data.description.kind),
            // The last examples of an epoch may be fewer; micro-batches of fewer than two may be joined.
            examples: [examples, examples / (self.micro_batches * self.replicas).max(1)],
            is_emulated: emulation(&builder).is_some(),
            has_average: self.ema.is_some_and(|ema| ema.from_step == 0),
        };
        Ok(Prepared { data, builder, initial_values: layout.initial_values(), least })
    }

    /// Opens the data and checks everything as [`Self::prepare`] does, and that a step may fit in memory; for a run that continues, from its checkpoint.
    pub(crate) fn prepare_to_train(&self, checkpoint: Option<&Checkpoint>) -> Result<Prepared> {
        let prepared = self.prepare_from(checkpoint)?;
        // Of several ranks, each has a part only.
        if ranks().is_none() {
            prepared.least.check(&self.optimizer)?;
        }
        Ok(prepared)
    }

    /// Names the keys of the configuration in an error about initial values, which names methods of the builder.
    fn in_own_words(&self, error: Error) -> Error {
        match (error, &self.init_from) {
            (Error::Invalid { subject, problem, remedy }, Some(path)) if subject == "initial values" => {
                let words = [
                    ("skip_initial_values: ", "init_skip: "),
                    ("set allow_missing", "set init_partial = true"),
                    ("with skip_initial_values", "with init_skip = [\"NAME\"]"),
                ];
                let own = |text: String| words.iter().fold(text, |text, (method, key)| text.replace(method, key));
                let (problem, remedy) = (own(problem), own(remedy));
                Error::invalid(format!("init_from = {}", path.display()), problem, remedy)
            }
            (error, _) => error,
        }
    }

    /// Returns a builder with everything but devices, which starts from `init_from`.
    pub(crate) fn builder(&self, description: &Description) -> Result<TrainerBuilder> {
        let builder = self.untrained(description)?;
        Ok(match &self.init_from {
            Some(path) => {
                let weights = Weights::load_within(path, memory::available().unwrap_or(u64::MAX))
                    .map_err(|error| in_init_from(&error))?;
                let builder = builder.initial_values(weights).skip_initial_values(&self.init_skip).allow_unknown(true);
                match self.init_partial {
                    true => builder.allow_missing(true),
                    false => builder.allow_half_missing(true),
                }
            }
            None => builder,
        })
    }

    /// Returns a builder for the model of a finished run with these weights, on the named devices or else on those of this configuration. Reads
    /// neither data nor `init_from`. Notes on stderr that emulated devices compute nothing.
    pub(crate) fn of_finished_run(
        &self,
        description: &Description,
        weights: &Weights,
        devices: &[String],
    ) -> Result<TrainerBuilder> {
        let partition = self.partition_of_finished_run(description, weights)?;
        // Nothing is trained, so that it does not matter what the optimizer would do.
        let builder = self.untrained(description)?.partition(partition).optimizer(OptimizerConfig::default()).ema(None);
        // Nor how many processes trained it.
        let builder = builder.replicas(1).stages_of_ranks(None);
        if let Some(devices) = Devices::of_arguments(devices) {
            return devices.give_to(builder, self.precision).inspect(note_emulation);
        }
        let given = self.devices.give_to(builder, self.precision).inspect(note_emulation);
        given.map_err(|error| match (error, &self.devices) {
            (Error::Invalid { subject, problem, remedy }, Devices::Named(_)) => {
                Error::invalid(subject, problem, format!("{remedy}, or choose others, such as --devices cpu"))
            }
            (error, _) => error,
        })
    }

    /// Returns the partition of a finished run with these weights: the one that they state, if it is one of this model. Weights of earlier versions
    /// state none; their run's partition does not depend on the devices that they are used on now.
    fn partition_of_finished_run(&self, description: &Description, weights: &Weights) -> Result<PartitionConfig> {
        let units = self.model.build((&description.kind).into())?.units()?.len();
        let sum = |stated: &[usize]| stated.iter().fold(0_usize, |sum, units| sum.saturating_add(*units));
        if let Some(stated) = weights.units_per_stage().filter(|stated| sum(stated) == units) {
            return Ok(PartitionConfig { stages: None, units_per_stage: Some(stated.to_vec()) });
        }
        let default = match &self.devices {
            Devices::Named(names) => names.len(),
            Devices::Auto => 1,
        };
        Ok(match &self.partition {
            PartitionConfig { stages: None, units_per_stage: None } => {
                PartitionConfig { stages: Some(default), units_per_stage: None }
            }
            partition => partition.clone(),
        })
    }

    /// Opens the devices for the stages of `builder`, of this rank if there are several, and sets them.
    pub(crate) fn on_devices(&self, builder: TrainerBuilder) -> Result<TrainerBuilder> {
        match ranks() {
            None => self.devices.give_to(builder, self.precision),
            Some(ranks) => self.devices.give_to_rank(builder, self.precision, ranks, self.placement.devices()),
        }
    }

    /// Refuses what only several ranks can have, if there is one process.
    pub(crate) fn check_ranks(&self) -> Result<()> {
        match (ranks(), self.placement.devices()) {
            (None, Some(_)) => Err(Error::invalid(
                "placement.devices",
                "there is only one process",
                "start several, or name the devices in devices",
            )),
            _ => Ok(()),
        }
    }

    /// Returns a builder with everything but devices and values to start from.
    pub(crate) fn untrained(&self, description: &Description) -> Result<TrainerBuilder> {
        let (partition, stages_of_ranks) = self.placed();
        let strategy = self.strategy.build()?;
        let model = self.model.build((&description.kind).into())?;
        let builder = Trainer::builder(model)
            .strategy_boxed(strategy)
            .partition(partition)
            .stages_of_ranks(stages_of_ranks)
            .heads(self.heads.clone())
            .recompute(self.recompute.clone())
            .optimizer(self.optimizer.clone())
            .clip(self.clip.clone())
            .lr_schedule(self.lr_schedule.clone())
            .ema(self.ema)
            .policy(self.pipeline.schedule)
            .in_flight(self.in_flight)
            .micro_batches(self.micro_batches)
            .replicas(self.replicas)
            .replica_statistics(self.replica_statistics)
            .data_from(self.data_from)
            .batch_size(self.batch_size)
            .drop_last(self.drop_last)
            .eval_every(self.eval_every)
            .seed(self.seed)
            .failures(FailuresConfig {
                stall_timeout: self.failures.stall_timeout.or(Some(STALL_TIMEOUT)),
                ..self.failures.clone()
            })
            .keep_best(self.checkpoint.keep_best.unwrap_or(match description.kind {
                DataKind::Images { .. } | DataKind::Vectors { .. } => Criterion::Accuracy,
                DataKind::Text { .. } => Criterion::Loss,
            }));
        let builder = match self.dtype {
            Some(dtype) => builder.dtype(dtype),
            None => builder,
        };
        let builder = match ranks() {
            Some(ranks) => builder.ranks(ranks).agreement(agreement()),
            None => builder,
        };
        let builder = match &self.early_stopping {
            Some(config) => builder.callback(EarlyStopping::new(config.clone())?),
            None => builder,
        };
        Ok(match (self.epochs, self.steps) {
            (_, Some(steps)) => builder.steps(steps),
            (epochs, None) => builder.epochs(epochs.unwrap_or(1)),
        })
    }
}

/// Names the key in an error about the file to start from.
fn in_init_from(error: &Error) -> Error {
    let remedy = "name a safetensors file, its index, or the folder of a finished run";
    match error {
        Error::File { path, cause } => Error::invalid(format!("init_from = {}", path.display()), cause, remedy),
        other => Error::invalid("init_from", other.to_string(), remedy),
    }
}

/// A run that is ready to start.
pub(crate) struct Prepared {
    pub(crate) data: Data,
    pub(crate) builder: TrainerBuilder,
    /// How many of the model's tensors `init_from` has, in words, if it is given.
    pub(crate) initial_values: Option<String>,
    /// What a step takes at least.
    pub(crate) least: LeastStep,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BuiltIn;

    fn load(sets: &[&str]) -> Result<ConfigOf<BuiltIn>> {
        super::load::<BuiltIn>(None, &sets.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn printed_configuration_parses_back_to_itself() {
        let config = load(&["clip.max_norm=1", "strategy.widths=[1,2,2,1]"]).unwrap();
        let again: ConfigOf<BuiltIn> = toml::from_str(&config.to_toml().unwrap()).unwrap();
        assert_eq!(config, again);
    }

    #[test]
    fn devices_are_auto_or_named_alone_or_in_a_list() {
        let names = |devices: &[&str]| Devices::Named(devices.iter().map(|&name| name.to_owned()).collect());
        let devices = |value: &str| load(&[&format!("devices={value}")]).unwrap().devices;
        assert_eq!(devices("auto"), Devices::Auto);
        assert_eq!(devices("cpu"), names(&["cpu"]));
        assert_eq!(devices("cpu:threads=1,cores=0,cuda:0"), names(&["cpu:threads=1,cores=0", "cuda:0"]));
        assert_eq!(devices("[\"cpu\", \"cuda:0\"]"), names(&["cpu", "cuda:0"]));
    }

    #[test]
    fn placement_is_auto_or_lists() {
        for placement in ["auto", "{stages=[[0], [1]]}", "{}"] {
            let config = load(&[&format!("placement={placement}")]).unwrap();
            let again: ConfigOf<BuiltIn> = toml::from_str(&config.to_toml().unwrap()).unwrap();
            assert_eq!(config, again);
            assert_eq!(config.placement == PlacementChoice::Auto, placement == "auto");
        }
        for wrong in ["all", "{stage=[[0]]}", "[[0]]"] {
            let error = load(&[&format!("placement={wrong}")]).unwrap_err().to_string();
            assert!(error.contains("placement"), "{error}");
        }
    }

    #[test]
    fn early_stopping_and_the_moving_average_are_read_and_written() {
        let sets = ["early_stopping={patience=3, metric=\"accuracy\"}", "ema={decay=0.99, from_step=10}"];
        let config = load(&sets).unwrap();
        let again: ConfigOf<BuiltIn> = toml::from_str(&config.to_toml().unwrap()).unwrap();
        assert_eq!(config, again);
        let expected = EarlyStoppingConfig { patience: 3, min_delta: 0.0, metric: Criterion::Accuracy };
        assert_eq!(config.early_stopping, Some(expected));
        assert_eq!(config.ema, Some(EmaConfig { decay: 0.99, from_step: 10 }));
        assert!(load(&["early_stopping.metric=speed", "early_stopping.patience=1"]).is_err());
    }
}

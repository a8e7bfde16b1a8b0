//! The configuration of a run. Values of `--set` override those of a file, which override defaults.

mod devices;

pub(crate) use devices::Devices;

use std::path::{Path, PathBuf};

use interlock::{
    ActivationDtype, ClipConfig, Criterion, EarlyStopping, EarlyStoppingConfig, EmaConfig, Error, HeadsConfig,
    LrScheduleConfig, OptimizerConfig, Recompute, Result, Trainer, TrainerBuilder, Weights,
    tools::{model::PartitionConfig, schedule::PolicyName, strategy::StrategyConfig},
};
use interlock_models::{
    InputShape, ModelConfig,
    data::{Data, DataConfig, DataKind, Description},
    heads,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// The configuration that `interlock` runs by default.
pub(crate) const BUILT_IN: &str = include_str!("../configs/fashion-mnist.toml");

/// The configuration of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunConfig {
    /// The run's name; the run folder begins with it.
    #[serde(default = "default_name")]
    pub(crate) name: String,
    /// The seed of initial values, shuffling, augmentation and dropout.
    #[serde(default)]
    pub(crate) seed: u64,
    /// Passes over the training set; 1 if neither this nor `steps` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) epochs: Option<u64>,
    /// Optimizer steps, instead of `epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) steps: Option<u64>,
    /// Examples a step.
    #[serde(default = "default_batch_size")]
    pub(crate) batch_size: usize,
    /// Number of micro-batches that a batch is cut into.
    #[serde(default = "default_micro_batches")]
    pub(crate) micro_batches: usize,
    /// Micro-batches in flight at each boundary; by default the least that costs the schedule no time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) in_flight: Option<usize>,
    /// The devices. `"auto"` takes the GPUs of the machine; if there are none, it divides its cores among the stages. With a list, stage `k` is
    /// pinned to device `k mod` its length.
    #[serde(default)]
    pub(crate) devices: Devices,
    /// The dtype of activations and gradients between stages, and of saved activations. Layers compute in `f32` in either case.
    #[serde(default)]
    pub(crate) dtype: ActivationDtype,
    /// The stages that save only their input and run the forward pass again before the backward pass: `true` for all, or a list. This takes
    /// less memory and more time, and gives the same results.
    #[serde(default)]
    pub(crate) recompute: Recompute,
    /// Steps between two evaluations; by default an epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) eval_every: Option<u64>,
    /// Values to start from: a safetensors file, an index or a run folder. Auxiliary heads start from those that followed the same units; others start
    /// from the seed, with a warning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) init_from: Option<PathBuf>,
    /// Whether parameters (not those of heads) that `init_from` lacks start from the seed, with a warning that lists them; by default they are an error.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) init_allow_missing: bool,
    /// Whether `init_from` may have tensors (beside those of heads) that the model has no name for, with a warning that lists them; by default it may.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub(crate) init_allow_unknown: bool,
    /// The data set.
    pub(crate) data: DataConfig,
    /// The model.
    pub(crate) model: ModelConfig,
    /// The division of the model into stages; by default into as many as there are devices (one under `"auto"`).
    #[serde(default)]
    pub(crate) partition: PartitionConfig,
    /// The strategy, which chooses the losses that train each stage.
    #[serde(default)]
    pub(crate) strategy: StrategyConfig,
    /// The auxiliary heads.
    #[serde(default)]
    #[schemars(description = format!("The auxiliary heads. A description is a list of parts, joined by `_`: {}.", heads::PARTS.join(", ")))]
    pub(crate) heads: HeadsConfig,
    /// The update rule.
    #[serde(default)]
    pub(crate) optimizer: OptimizerConfig,
    /// Gradient clipping; by default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) clip: Option<ClipConfig>,
    /// The learning rate over time.
    #[serde(default)]
    pub(crate) lr_schedule: LrScheduleConfig,
    /// Ends the run when its evaluations do not improve any more; by default it trains for its full length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) early_stopping: Option<EarlyStoppingConfig>,
    /// An exponential moving average of the weights, which evaluations and the saved weights use; by default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ema: Option<EmaConfig>,
    /// Settings of the pipeline.
    #[serde(default)]
    pub(crate) pipeline: PipelineConfig,
}

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

fn yes() -> bool {
    true
}

fn is_true(value: &bool) -> bool {
    *value
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn default_batch_size() -> usize {
    32
}

fn default_micro_batches() -> usize {
    1
}

/// Keys that exclude each other: if the command line sets the first, the others are removed from the file's values. `key[]` is the key where its value
/// is a list.
const RIVALS: [(&str, &str, &[&str]); 14] = [
    ("strategy", "width", &["name", "widths", "width_schedule", "adaptive", "follow[]", "follows"]),
    ("strategy", "widths", &["name", "width", "width_schedule", "adaptive", "follow[]", "follows"]),
    ("strategy", "name", &["width", "widths", "width_schedule", "adaptive", "follow[]", "follows"]),
    ("strategy", "width_schedule", &["name", "width", "widths", "end_to_end_every", "adaptive", "follow[]", "follows"]),
    ("strategy", "adaptive", &["name", "width", "widths", "end_to_end_every", "width_schedule", "follow[]", "follows"]),
    ("strategy", "follow", &["follows"]),
    ("strategy", "follow[]", &["name", "width", "widths", "width_schedule", "adaptive"]),
    ("strategy", "follows", &["name", "width", "widths", "width_schedule", "adaptive", "follow"]),
    ("partition", "stages", &["units_per_stage"]),
    ("partition", "units_per_stage", &["stages"]),
    ("heads", "arch", &["archs"]),
    ("heads", "every", &["archs"]),
    ("heads", "archs", &["arch", "every"]),
    ("", "steps", &["epochs"]),
];

impl RunConfig {
    /// Loads the file at `path`, or the built-in configuration, and applies `sets` (`key.path=value`).
    ///
    /// # Errors
    /// If the file cannot be read, a key is unknown or a value has the wrong type; the message names the key.
    pub(crate) fn load(path: Option<&Path>, sets: &[String]) -> Result<Self> {
        ConfigText::read(path)?.with(&Setting::sets(sets)?)
    }

    /// Returns the configuration as the text of a file.
    pub(crate) fn to_toml(&self) -> Result<String> {
        toml::to_string(self)
            .map_err(|e| Error::invalid("configuration", e.to_string(), "this is a defect; please report it"))
    }

    /// Opens the data and checks everything that can be checked before anything is written.
    pub(crate) fn prepare(&self) -> Result<Prepared> {
        if self.epochs.is_some() && self.steps.is_some() {
            return Err(Error::invalid("epochs", "steps are given too", "give one of them"));
        }
        if self.init_from.is_none() && (self.init_allow_missing || !self.init_allow_unknown) {
            let problem = "init_allow_missing or init_allow_unknown is given without it";
            return Err(Error::invalid(
                "init_from",
                problem,
                "name the weights to start from, or leave the others out",
            ));
        }
        if self.name.is_empty() || self.name.contains(['/', '\\']) {
            return Err(Error::invalid("name", format!("{:?}", self.name), "use a name without slashes"));
        }
        let data = self.data.open()?;
        let builder = self.devices.give_to(self.builder(&data.description)?)?;
        builder.layout()?;
        Ok(Prepared { data, builder })
    }

    /// Returns a builder with everything but devices, which starts from `init_from`.
    pub(crate) fn builder(&self, description: &Description) -> Result<TrainerBuilder> {
        let builder = self.untrained(description)?;
        Ok(match &self.init_from {
            Some(path) => builder
                .initial_values(Weights::load(path)?)
                .allow_missing(self.init_allow_missing)
                .allow_unknown(self.init_allow_unknown),
            None => builder,
        })
    }

    /// Returns a builder for the model of a finished run with these weights, on the named devices or else on those of this configuration. Reads
    /// neither data nor `init_from`.
    pub(crate) fn of_finished_run(
        &self,
        description: &Description,
        weights: &Weights,
        devices: &[String],
    ) -> Result<TrainerBuilder> {
        let partition = self.partition_of_finished_run(description, weights)?;
        let builder = self.untrained(description)?.partition(partition);
        if let Some(devices) = Devices::of_arguments(devices) {
            return devices.give_to(builder);
        }
        self.devices.give_to(builder).map_err(|error| match (error, &self.devices) {
            (Error::Invalid { subject, problem, remedy }, Devices::Named(_)) => {
                Error::invalid(subject, problem, format!("{remedy}, or choose others, such as --devices cpu"))
            }
            (error, _) => error,
        })
    }

    /// Returns the partition of a finished run with these weights: the one that they state, if it is one of this model. Weights of earlier versions
    /// state none; their run's partition does not depend on the devices that they are used on now.
    fn partition_of_finished_run(&self, description: &Description, weights: &Weights) -> Result<PartitionConfig> {
        let units = self.model.build(shape_of(description))?.units()?.len();
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

    /// Returns a builder with everything but devices and values to start from.
    fn untrained(&self, description: &Description) -> Result<TrainerBuilder> {
        let strategy = self.strategy.build()?;
        let model = self.model.build(shape_of(description))?;
        let builder = Trainer::builder(model)
            .strategy_boxed(strategy)
            .partition(self.partition.clone())
            .heads(self.heads.clone())
            .recompute(self.recompute.clone())
            .dtype(self.dtype)
            .optimizer(self.optimizer.clone())
            .clip(self.clip.clone())
            .lr_schedule(self.lr_schedule.clone())
            .ema(self.ema)
            .policy(self.pipeline.schedule)
            .in_flight(self.in_flight)
            .micro_batches(self.micro_batches)
            .batch_size(self.batch_size)
            .eval_every(self.eval_every)
            .seed(self.seed)
            .keep_best(match description.kind {
                DataKind::Images { .. } => Criterion::Accuracy,
                DataKind::Text { .. } => Criterion::Loss,
            });
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

/// A run that is ready to start.
pub(crate) struct Prepared {
    pub(crate) data: Data,
    pub(crate) builder: TrainerBuilder,
}

/// Returns the shapes of inputs and outputs of a model for these data.
pub(crate) fn shape_of(description: &Description) -> InputShape {
    match &description.kind {
        DataKind::Images { channels, height, width, classes, .. } => {
            InputShape::Images { channels: *channels, height: *height, width: *width, classes: *classes }
        }
        DataKind::Text { vocab, context } => InputShape::Text { vocab: vocab.len(), context: *context },
    }
}

/// The text of a configuration, in which values can be set.
pub(crate) struct ConfigText {
    /// The file's name.
    subject: String,
    text: String,
}

impl ConfigText {
    /// Reads the file at `path`, or the built-in configuration.
    pub(crate) fn read(path: Option<&Path>) -> Result<Self> {
        Ok(match path {
            Some(path) => Self {
                subject: path.display().to_string(),
                text: std::fs::read_to_string(path).map_err(|e| Error::file(path, e))?,
            },
            None => Self { subject: "built-in configuration".to_owned(), text: BUILT_IN.to_owned() },
        })
    }

    /// Returns the configuration with these settings, each applied after the one before.
    ///
    /// # Errors
    /// If a key is unknown or a value has the wrong type; the message names the key and the settings.
    pub(crate) fn with(&self, settings: &[Setting]) -> Result<RunConfig> {
        let refused = |subject: &str, e: toml::de::Error| {
            Error::invalid(subject, e.to_string().trim_end().to_owned(), "`interlock config --schema` lists every key")
        };
        let mut table: Table = toml::from_str(&self.text).map_err(|e| refused(&self.subject, e))?;
        if settings.is_empty() {
            // Parsed from the text, so that messages name the line.
            return toml::from_str(&self.text).map_err(|e| refused(&self.subject, e));
        }
        for setting in settings {
            setting.apply(&mut table, settings)?;
        }
        table.try_into().map_err(|e| refused(&Setting::list(settings), e))
    }
}

/// A key of the configuration and the value that the command line gives it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Setting {
    /// The option and its value, for messages.
    pub(crate) given: String,
    /// The path of the key, such as `optimizer.lr`.
    pub(crate) key: String,
    pub(crate) value: Value,
}

impl Setting {
    /// Reads the `key.path=value` of an option. What is not a TOML value is a string, so that quotes may be left out.
    pub(crate) fn parse(option: &str, text: &str) -> Result<Self> {
        let given = format!("{option} {text}");
        let refuse = |problem: &str| {
            Err(Error::invalid(&given, problem.to_owned(), "write key.path=value, such as optimizer.lr=0.1"))
        };
        let Some((key, text)) = text.split_once('=') else {
            return refuse("there is no =");
        };
        let key = key.trim().to_owned();
        if key.split('.').any(str::is_empty) {
            return refuse("a part of the key is empty");
        }
        let value = toml::from_str::<Table>(&format!("value = {text}"))
            .ok()
            .and_then(|mut table| table.remove("value"))
            .unwrap_or_else(|| Value::String(text.to_owned()));
        Ok(Self { given, key, value })
    }

    /// Reads the values of `--set`.
    pub(crate) fn sets(texts: &[String]) -> Result<Vec<Self>> {
        texts.iter().map(|text| Self::parse("--set", text)).collect()
    }

    /// Returns these settings as the command line gives them.
    pub(crate) fn list(settings: &[Self]) -> String {
        settings.iter().map(|setting| setting.given.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// Sets the value in the table. Removes the values that contradict it, unless a setting of `all` gives them.
    fn apply(&self, table: &mut Table, all: &[Self]) -> Result<()> {
        let (parent, last) = self.key.rsplit_once('.').unwrap_or(("", &self.key));
        let mut at = table;
        for key in parent.split('.').filter(|key| !key.is_empty()) {
            let next = at.entry(key.to_owned()).or_insert_with(|| Value::Table(Table::new()));
            match next {
                Value::Table(next) => at = next,
                _ => {
                    let problem = format!("{key} is a value, not a table");
                    return Err(Error::invalid(&self.given, problem, "see `interlock config` for the keys"));
                }
            }
        }
        let asked = |rival: &str| {
            let path = if parent.is_empty() { rival.to_owned() } else { format!("{parent}.{rival}") };
            all.iter().any(|setting| is_within(&setting.key, &path))
        };
        let value = &self.value;
        let is_set = |key: &str| key == last || (value.is_array() && key.strip_suffix("[]") == Some(last));
        for (_, _, rivals) in RIVALS.iter().filter(|(table, key, _)| *table == parent && is_set(key)) {
            for rival in *rivals {
                let (key, only_lists) = rival.strip_suffix("[]").map_or((*rival, false), |key| (key, true));
                // A strategy's name does not remove the table of that strategy's own keys.
                let stays = asked(key)
                    || value.as_str() == Some(key)
                    || (only_lists && !at.get(key).is_some_and(Value::is_array));
                if !stays {
                    at.remove(key);
                }
            }
        }
        // Another kind of data, model or schedule has other keys.
        if last == "kind" && parent != "optimizer" && at.get("kind") != Some(value) {
            at.clear();
        }
        at.insert(last.to_owned(), value.clone());
        Ok(())
    }
}

/// Returns whether a key is `path` or lies in that table.
pub(crate) fn is_within(key: &str, path: &str) -> bool {
    key.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(sets: &[&str]) -> Result<RunConfig> {
        RunConfig::load(None, &sets.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    fn apply(table: &mut Table, set: &str, all: &[String]) -> Result<()> {
        Setting::parse("--set", set)?.apply(table, &Setting::sets(all)?)
    }

    #[test]
    fn printed_configuration_parses_back_to_itself() {
        let config = load(&["clip.max_norm=1", "strategy.widths=[1,2,2,1]"]).unwrap();
        let again: RunConfig = toml::from_str(&config.to_toml().unwrap()).unwrap();
        assert_eq!(config, again);
    }

    #[test]
    fn set_value_replaces_values_that_contradict_it() {
        let config = load(&["strategy.width=3", "steps=5", "name=abc", "optimizer.lr=1"]).unwrap();
        assert_eq!((config.strategy.width, config.strategy.name), (Some(3), None));
        assert_eq!((config.steps, config.epochs, config.name.as_str()), (Some(5), None, "abc"));
        let config = load(&["model.kind=mlp", "model.hidden=[8]", "heads.arch=fc"]).unwrap();
        assert!(matches!(config.model, ModelConfig::Mlp(_)));
        // Contradictory values on the command line remain an error.
        assert!(load(&["strategy.width=3", "strategy.name=local"]).unwrap().strategy.build().is_err());
    }

    #[test]
    fn strategies_that_change_widths_are_read_and_written_and_replace_others() {
        let phases =
            "strategy.width_schedule=[{from_step=0, width=1}, {from_step=9, widths=[2,1], end_to_end_every=3}]";
        let adaptive = ["strategy.adaptive.every=5", "strategy.adaptive.window=2", "strategy.adaptive.below=0.1"];
        let named = [&["strategy.name=adaptive"], &adaptive[..]].concat();
        let whole = ["strategy.adaptive={every=5, window=2, below=0.1, width=2, max_width=3}"];
        let steps = ["strategy.end_to_end_every=4"];
        let within = [&["strategy.adaptive.every=7"], &whole[..]].concat();
        for sets in [&[phases][..], &named, &whole, &steps] {
            let config = load(sets).unwrap();
            let again: RunConfig = toml::from_str(&config.to_toml().unwrap()).unwrap();
            assert_eq!(config, again);
            config.strategy.build().unwrap();
        }
        assert!(load(&within).is_ok());
        let config = load(&named).unwrap();
        let adaptive = config.strategy.adaptive.unwrap();
        assert_eq!((adaptive.every, adaptive.width, adaptive.max_width), (5, 1, None));

        // A file has the table `adaptive`: setting its own name keeps the table, and setting another removes it.
        let over = |set: &str| {
            let mut table: Table = toml::from_str(&load(&named).unwrap().to_toml().unwrap()).unwrap();
            apply(&mut table, set, &[set.to_owned()]).unwrap();
            table.try_into::<RunConfig>().unwrap().strategy
        };
        assert!(over("strategy.name=adaptive").adaptive.is_some());
        for set in ["strategy.name=local", "strategy.width=2", phases] {
            let strategy = over(set);
            assert!(strategy.adaptive.is_none(), "{set}");
            strategy.build().unwrap();
        }
        // A single key of `adaptive` is an error, since the others are missing.
        let error = load(&["strategy.adaptive.every=5"]).unwrap_err().to_string();
        assert!(error.contains("window"), "{error}");
    }

    #[test]
    fn lists_of_weights_and_widths_replace_each_other() {
        let over = |file: &str, set: &str| {
            let mut table: Table = toml::from_str(&format!("[strategy]\n{file}")).unwrap();
            apply(&mut table, set, &[set.to_owned()]).unwrap();
            let strategy: interlock::tools::strategy::StrategyConfig =
                table.remove("strategy").unwrap().try_into().unwrap();
            strategy.build().unwrap();
            serde_json::to_string(&strategy).unwrap()
        };
        assert_eq!(over("name = \"local\"\ngroup = 2", "strategy.follow=[1, 2]"), r#"{"follow":[1.0,2.0],"group":2}"#);
        assert_eq!(over("name = \"local\"", "strategy.follow=mean"), r#"{"name":"local","follow":"mean"}"#);
        assert_eq!(over("follow = [1]", "strategy.width=2"), r#"{"width":2}"#);
        assert_eq!(over("follow = \"mean\"", "strategy.width=2"), r#"{"width":2,"follow":"mean"}"#);
        assert_eq!(over("follows = [[1]]", "strategy.name=local"), r#"{"name":"local"}"#);
        assert_eq!(over("follows = [[1]]", "strategy.follow=mean"), r#"{"follow":"mean"}"#);
        assert_eq!(over("width = 2\nfollow = \"mean\"", "strategy.follows=[[1]]"), r#"{"follows":[[1.0]]}"#);
        assert!(load(&["strategy.follow=[1]", "strategy.width=2"]).unwrap().strategy.build().is_err());
    }

    #[test]
    fn descriptions_for_each_stage_replace_one_for_all_and_the_reverse() {
        let over = |first: &[&str], set: &str| {
            let mut table: Table = toml::from_str(&load(first).unwrap().to_toml().unwrap()).unwrap();
            apply(&mut table, set, &[set.to_owned()]).unwrap();
            table.try_into::<RunConfig>().unwrap().heads
        };
        let archs = r#"heads.archs=["fc", ""]"#;
        let each = over(&["heads.arch=fc", "heads.every=2"], archs);
        assert_eq!((each.arch, each.every, each.archs), (None, None, Some(vec!["fc".to_owned(), String::new()])));
        // The built-in configuration has an `arch`.
        for set in ["heads.arch=ln_fc", "heads.every=3"] {
            assert_eq!(over(&[archs], set).archs, None, "{set}");
        }
        let both = load(&["heads.arch=fc", "heads.every=2"]).unwrap().heads;
        assert_eq!((both.arch.as_deref(), both.every), (Some("fc"), Some(2)));
        assert!(load(&["heads.arch=fc", archs]).unwrap().heads.carriers(3).is_err());
    }

    #[test]
    fn errors_name_the_key_or_value() {
        let refused = |set: &str, word: &str| {
            let error = load(&[set]).unwrap_err();
            assert!(error.is_refusal() && error.to_string().contains(word), "{error}");
        };
        refused("optimizer.learning_rate=0.1", "learning_rate");
        refused("batch_size=many", "batch_size");
        refused("batch_size=-1", "batch_size");
        refused("seed", "no =");
        refused("seed.x=1", "seed is a value");
        refused("colour=blue", "colour");
        refused("devices=cpu", "\"auto\", or a list of names");
        refused("devices=3", "\"auto\", or a list of names");
        refused("devices=[1]", "expected a string");
    }

    #[test]
    fn early_stopping_and_the_moving_average_are_read_and_written() {
        let sets = ["early_stopping={patience=3, metric=\"accuracy\"}", "ema={decay=0.99, from_step=10}"];
        let config = load(&sets).unwrap();
        let again: RunConfig = toml::from_str(&config.to_toml().unwrap()).unwrap();
        assert_eq!(config, again);
        let expected = EarlyStoppingConfig { patience: 3, min_delta: 0.0, metric: Criterion::Accuracy };
        assert_eq!(config.early_stopping, Some(expected));
        assert_eq!(config.ema, Some(EmaConfig { decay: 0.99, from_step: 10 }));
        assert!(load(&["early_stopping.metric=speed", "early_stopping.patience=1"]).is_err());
    }
}

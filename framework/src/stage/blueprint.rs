//! Blueprints: a model, a partition and settings become stages that build themselves on their devices.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{
    EmaConfig, Head, Recompute, ReplicaStatistics, Stage, Trainable,
    initial::head_builder,
    monitor::Monitor,
    readout::{self, LastMatrix, ReadoutRole, Versions},
    shapes::{asked, builds},
};
use crate::{
    ActivationDtype, Error, Failure, Loss, ModelSpec, Origin, ParameterStore, Phase, Result, Sequential, StageDevice,
    Unit,
    device::{Part, PartKind},
    model::{Partition, Weights},
    optimizer::{clip::ClipConfig, lr_schedule::LrSchedule},
    stage::named_unit::NamedUnit,
    stage::optimizer_factory::{OptimizerContext, OptimizerFactory},
    strategy::Plans,
};

/// Which auxiliary heads are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum HeadsTrained {
    /// Those whose loss some stage follows, or may follow in another step.
    #[default]
    Needed,
    /// All heads that the strategy and the other keys allow: one a stage, or one a block of stages. Heads that no stage follows are probe heads,
    /// which train only themselves.
    All,
}

/// The last matrix of auxiliary heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum HeadsReadout {
    /// Every head has a matrix of its own, which it trains.
    #[default]
    Own,
    /// The last matrix of every head is a read-only copy of the last stage's: it costs no gradient, no optimizer state and no update.
    Shared,
}

/// The auxiliary heads, as configuration files give them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct HeadsConfig {
    /// The description of every auxiliary head; by default the model's own choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// A description for each stage but the last, instead of `arch` and `every`. A stage with an empty one, `""`, carries no head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archs: Option<Vec<String>>,
    /// Only every n-th stage carries a head: stages n-1, 2n-1 and so on. In groups, those of them that end a block. Default: 1, every stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub every: Option<usize>,
    /// Which auxiliary heads exist.
    pub train: HeadsTrained,
    /// The last matrix of the heads: their own, or shared with the last stage. A shared one needs a model and heads that end in linear layers without
    /// bias and of the same width.
    pub readout: HeadsReadout,
    /// The refresh interval r of a shared readout, in steps: at step s heads use the last stage's matrix as it was before step r·(⌊s/r⌋-1), but not
    /// before the run's first step. Default: 50.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub readout_refresh: Option<u64>,
}

impl HeadsConfig {
    /// Returns which of `stages` stages carry a head, if the strategy lets them. The last one, which has its loss, counts as one that does.
    ///
    /// # Errors
    /// If the keys contradict each other, `every` is 0, or `archs` has not one description for each stage but the last.
    pub fn carriers(&self, stages: usize) -> Result<Vec<bool>> {
        let refuse =
            |key: &str, problem: String, right: &str| Err(Error::invalid(format!("heads.{key}"), problem, right));
        if self.every == Some(0) {
            return refuse("every", "0".to_owned(), "use 1 or more");
        }
        if let Some(archs) = &self.archs {
            if self.arch.is_some() || self.every.is_some() {
                let other = if self.arch.is_some() { "arch" } else { "every" };
                return refuse("archs", format!("{other} is given too"), "give one of them");
            }
            if archs.len() + 1 != stages {
                let right = format!("give {}, one for each stage but the last", stages.saturating_sub(1));
                return refuse("archs", format!("{} descriptions for {stages} stages", archs.len()), &right);
            }
        }
        let carries = |k: usize| match (&self.archs, self.every) {
            (Some(archs), _) => !archs[k].is_empty(),
            (None, every) => (k + 1).is_multiple_of(every.unwrap_or(1)),
        };
        Ok((0..stages).map(|k| k + 1 == stages || carries(k)).collect())
    }

    /// Returns the refresh interval of a shared readout; none if heads have their own.
    ///
    /// # Errors
    /// If it is 0, or given although nothing is shared.
    pub(crate) fn shared_refresh(&self) -> Result<Option<u64>> {
        match (self.readout, self.readout_refresh) {
            (HeadsReadout::Own, Some(steps)) => {
                let remedy = "leave it out, or set readout = \"shared\"";
                Err(Error::invalid(
                    "heads.readout_refresh",
                    format!("{steps}, but heads have their own readout"),
                    remedy,
                ))
            }
            (HeadsReadout::Own, None) => Ok(None),
            (HeadsReadout::Shared, steps) => readout::refresh(steps).map(Some),
        }
    }

    /// Returns whether stage `k` has an auxiliary head under `plans`. A head that any step may need exists and is trained from the first step on. The
    /// last stage never has one.
    pub fn has_head(&self, plans: &Plans, k: usize) -> bool {
        k + 1 < plans.stages() && ((self.train == HeadsTrained::All && plans.may_carry_head(k)) || plans.may_need(k))
    }

    /// Returns the description of the head of stage `k` of `model`.
    pub fn arch_of<'a>(&'a self, k: usize, model: &'a dyn ModelSpec) -> &'a str {
        let given = match &self.archs {
            Some(archs) => archs.get(k),
            None => self.arch.as_ref(),
        };
        given.map_or_else(|| model.default_head(), String::as_str)
    }

    /// Returns the descriptions that heads of `model` may have, each once and in alphabetical order.
    pub(crate) fn distinct_archs<'a>(&'a self, model: &'a dyn ModelSpec) -> BTreeSet<&'a str> {
        match &self.archs {
            Some(archs) => archs.iter().map(String::as_str).filter(|arch| !arch.is_empty()).collect(),
            None => BTreeSet::from([self.arch_of(0, model)]),
        }
    }
}

/// The settings that all stages of a run share.
#[derive(Clone)]
pub struct StageSettings {
    /// The seed of initial values and dropout.
    pub seed: u64,
    /// Makes the optimizers; per-stage overrides are applied when stages are built.
    pub optimizer: Arc<dyn OptimizerFactory>,
    /// Gradient clipping.
    pub clip: Option<ClipConfig>,
    /// The learning rate of each step, for the optimizer's base rate 1.
    pub lr_schedule: LrSchedule,
    /// The loss of every head without a loss of its own.
    pub loss: Arc<dyn Loss>,
    /// Losses of single stages' heads.
    pub head_losses: HashMap<usize, Arc<dyn Loss>>,
    /// Initial values by name; names that are missing start from the seed.
    pub given: Arc<Weights>,
    /// The auxiliary heads.
    pub heads: HeadsConfig,
    /// The stages that repeat their forward pass instead of saving its activations.
    pub recompute: Recompute,
    /// The moving average of the weights; none by default.
    pub ema: Option<EmaConfig>,
    /// The dtype in which stages send and save. Default: the device's precision.
    pub dtype: Option<ActivationDtype>,
    /// The running statistics of several replicas.
    pub replica_statistics: ReplicaStatistics,
    /// Whether the gradients of units are checked when they are built.
    pub check_gradients: bool,
}

/// A blueprint of a stage: everything that the stage is built from. It can be sent to the stage's thread.
#[derive(Clone)]
pub struct StageBlueprint {
    /// The stage's number, counted from 0.
    pub index: usize,
    /// The number of stages.
    pub stages: usize,
    /// The device it is pinned to.
    pub device: Arc<dyn StageDevice>,
    /// The neighbours whose tensors this stage checks for non-finite values, because they are on asynchronous devices and this one is not.
    unseen: Vec<usize>,
    /// The number of its first unit in the model.
    first_unit: usize,
    /// The shape of its input for one example, as the upstream unit declares it; none for the first stage.
    input: Option<Vec<usize>>,
    units: Vec<Unit>,
    head: Option<Unit>,
    /// Its part in the shared readout, if there is one and an upstream stage or this one has a head.
    readout: Option<ReadoutRole>,
    settings: Arc<StageSettings>,
}

impl StageBlueprint {
    /// Returns the blueprints of all stages of `model`, cut as `partition` says and trained by `plans`. Stage `k` is pinned to device
    /// `k mod devices.len()`.
    ///
    /// # Errors
    /// If there is no device, a head's description does not fit, or two heads would have the same parameters.
    pub fn of(
        model: &dyn ModelSpec,
        partition: &Partition,
        plans: &Plans,
        devices: &[Arc<dyn StageDevice>],
        settings: &Arc<StageSettings>,
    ) -> Result<Vec<Self>> {
        let units = model.units()?;
        let stages = partition.stages();
        if devices.is_empty() {
            return Err(Error::invalid("devices", "the list is empty", "give at least one, such as \"cpu\""));
        }
        let mut names = HashSet::new();
        if let Some(twice) = units.iter().map(|u| &u.name).filter(|n| !n.is_empty()).find(|n| !names.insert(n.as_str()))
        {
            return Err(Error::invalid(
                "model",
                format!("two units are called {twice:?}"),
                "give each a name of its own",
            ));
        }
        let has_head: Vec<bool> = (0..stages).map(|index| settings.heads.has_head(plans, index)).collect();
        let shared = match settings.heads.shared_refresh()?.filter(|_| has_head.contains(&true)) {
            Some(refresh) => Some((refresh, LastMatrix::of_model(&units)?)),
            None => None,
        };
        let device = |index: usize| &devices[index % devices.len()];
        (0..stages)
            .map(|index| {
                let range = partition.units(index);
                let head = match has_head[index] {
                    true => Some(model.head(range.end - 1, settings.heads.arch_of(index, model))?),
                    false => None,
                };
                let relays = has_head[..index].contains(&true);
                let readout = match shared.as_ref().filter(|_| relays || has_head[index]) {
                    Some((refresh, matrix)) => {
                        let copy = head.as_ref().map(|head| matrix.of_head(head, index)).transpose()?;
                        Some(ReadoutRole { refresh: *refresh, matrix: matrix.clone(), copy, relays })
                    }
                    None => None,
                };
                let neighbours = index.checked_sub(1).into_iter().chain(Some(index + 1).filter(|&k| k < stages));
                let is_unseen = |k: &usize| device(*k).is_asynchronous() && !device(index).is_asynchronous();
                Ok(Self {
                    index,
                    stages,
                    device: Arc::clone(device(index)),
                    unseen: neighbours.filter(is_unseen).collect(),
                    first_unit: range.start,
                    input: range.start.checked_sub(1).map(|upstream| units[upstream].output.clone()),
                    units: units[range].to_vec(),
                    head,
                    readout,
                    settings: Arc::clone(settings),
                })
            })
            .collect()
    }

    /// Returns whether the stage has an auxiliary head.
    pub fn has_head(&self) -> bool {
        self.head.is_some()
    }

    /// Returns the floating-point operations of a forward pass of one example, including the head; 0 if the model does not state them.
    pub fn flops(&self) -> f64 {
        self.units.iter().chain(&self.head).map(|unit| unit.flops).sum()
    }

    /// Builds the stage, on the calling thread and for its device.
    pub fn build(&self) -> Result<Stage, Failure> {
        let build = || -> Result<Stage> {
            let device = crate::device::for_stage(&self.device)?;
            let here = Self { device: Arc::clone(&device), ..self.clone() };
            crate::device::run_on(&*device, || here.assemble()).map_err(|error| device.hooks().explain(error))
        };
        build().map_err(|cause| Failure::new(Origin::Stage(self.index), Phase::Build, cause))
    }

    /// Sets the settings, such as other initial values.
    pub(crate) fn set(&mut self, settings: &Arc<StageSettings>) {
        self.settings = Arc::clone(settings);
    }

    /// Returns the initial values among those of the whole model that the stage uses.
    pub(crate) fn own_values(&self) -> Vec<(String, Tensor)> {
        let given = &self.settings.given;
        if given.is_empty() {
            return Vec::new();
        }
        let (main, _) = asked(given, |root| self.units.iter().filter(|unit| !builds(unit, root)).count() == 0);
        let head = self.head.iter().map(|unit| asked(given, |root| builds(unit, &head_builder(root, self.index))).0);
        let names: BTreeSet<String> = head.flat_map(BTreeMap::into_keys).chain(main.into_keys()).collect();
        let is_own = |name: &str| names.contains(name) || self.shared_matrix() == Some(name);
        given.iter().filter(|(name, _)| is_own(name)).map(|(name, value)| (name.to_owned(), value.clone())).collect()
    }

    /// Sets the initial values.
    pub(crate) fn set_values(&mut self, given: &Arc<Weights>) {
        self.settings = Arc::new(StageSettings { given: Arc::clone(given), ..(*self.settings).clone() });
    }

    /// Returns the refresh interval of the readout that the stage's head shares, if it does.
    pub(crate) fn shared_refresh(&self) -> Option<u64> {
        self.readout.as_ref().filter(|role| role.copy.is_some()).map(|role| role.refresh)
    }

    /// Returns the name of the last stage's matrix, if heads share it.
    pub(crate) fn shared_matrix(&self) -> Option<&str> {
        self.readout.as_ref().map(|role| role.matrix.name.as_str())
    }

    /// The same blueprint with other initial values, for stages that compute no gradients; without the head if `has_head` is false.
    pub(crate) fn for_predictions(&self, given: Arc<Weights>, has_head: bool) -> Self {
        let settings = StageSettings { given, check_gradients: false, ..(*self.settings).clone() };
        let head = self.head.clone().filter(|_| has_head);
        // The weights hold copies of a shared readout under the names of heads' own.
        Self { settings: Arc::new(settings), head, readout: None, ..self.clone() }
    }

    /// Returns the units of the main part.
    pub(crate) fn units(&self) -> &[Unit] {
        &self.units
    }

    /// Returns the auxiliary head.
    pub(crate) fn head(&self) -> Option<&Unit> {
        self.head.as_ref()
    }

    /// Returns the number of the stage's last unit in the model, which the head follows.
    pub(crate) fn last_unit(&self) -> usize {
        self.first_unit + self.units.len().saturating_sub(1)
    }

    fn assemble(&self) -> Result<Stage> {
        let settings = &self.settings;
        let config = settings.optimizer.constants().for_stage(self.index);
        let store = || ParameterStore::new(settings.seed, Arc::clone(&settings.given));
        let finish = |kind: PartKind, last: Option<&Unit>, store, module| -> Result<_> {
            let part = Part { stage: self.index, kind, output: last.map_or(&[], |unit| &unit.output) };
            let context = OptimizerContext { constants: &config, part: &part, device: &*self.device };
            let optimizer = context.optimizer(&*settings.optimizer)?;
            let parameters = Trainable::new(store, &config, optimizer)?.with_average(settings.ema);
            Ok((self.device.hooks().prepare(&part, module)?, parameters))
        };

        let device = self.device.device();
        let check = |unit: NamedUnit| match settings.check_gradients {
            true => unit.check_gradients(device).map(|()| unit),
            false => Ok(unit),
        };
        let main = store();
        let root = main.builder(device);
        let mut input = self.input.as_deref();
        let mut units = Sequential::default();
        for (number, unit) in (self.first_unit..).zip(&self.units) {
            units.push(check(NamedUnit::build(number, unit, input, &root)?)?);
            input = Some(&unit.output);
        }
        let (module, parameters) = finish(PartKind::Main, self.units.last(), main, Box::new(units) as Box<_>)?;
        let mut versions = None;
        if let Some(ReadoutRole { refresh, matrix, .. }) =
            self.readout.as_ref().filter(|_| self.index + 1 == self.stages)
        {
            versions = Some(Versions::new(*refresh, &matrix.name, parameters.store(), true)?);
        }
        let head = match &self.head {
            Some(unit) => {
                let store = store();
                let root = head_builder(&store.builder(device), self.index);
                let copy = self.readout.as_ref().and_then(|role| role.copy(&root.prefix()));
                if let Some(copy) = &copy {
                    store.set_copy(copy.clone());
                }
                let head = NamedUnit::build_head(self.last_unit(), unit, input.unwrap_or_default(), &root)?;
                let head = check(head)?;
                let (module, parameters) = finish(PartKind::Head, Some(unit), store, Box::new(head))?;
                if let (Some(role), Some(copy)) = (&self.readout, &copy) {
                    versions = Some(Versions::new(role.refresh, &copy.name, parameters.store(), false)?);
                }
                Some(Head { module, parameters })
            }
            None => None,
        };
        let loss = settings.head_losses.get(&self.index).unwrap_or(&settings.loss);
        Ok(Stage {
            index: self.index,
            stages: self.stages,
            seed: settings.seed,
            device: Arc::clone(&self.device),
            module,
            parameters,
            head,
            readout: versions,
            sends_readout: self.readout.as_ref().is_some_and(|role| role.relays),
            loss: Arc::clone(loss),
            clip: settings.clip.clone(),
            lr_schedule: settings.lr_schedule.for_base(config.lr),
            recompute: settings.recompute.is_for(self.index),
            dtype: self.device.precision().dtype(settings.dtype, self.device.name())?,
            statistics: settings.replica_statistics,
            monitor: Monitor::on(&*self.device),
            score: None,
            received_non_finite: None,
            unseen: self.unseen.clone(),
            waiting: HashMap::new(),
            live: HashMap::new(),
        })
    }
}

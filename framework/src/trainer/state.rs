//! The state of a trainer beside its weights, and how another trainer continues from it.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Best, Evaluation, FitSettings, HeadScore, Trainer, calls, example_order::ExampleOrder, guarded};
use crate::{
    Error, Result, Weights,
    model::Partition,
    stage::{
        self, StageState,
        initial::{head_unit, is_head},
    },
    strategy::Plans,
};

/// The version of the serialized form.
const FORMAT: u32 = 1;

/// All that a trainer needs beside its weights to continue exactly: the number of steps, the position in the training set, and the states
/// of optimizers, moving averages, learning-rate schedule, strategy and callbacks, and the best evaluation with its weights.
///
/// [`Trainer::state`] returns it, and [`TrainerBuilder::restore`](super::TrainerBuilder::restore) takes it together with the weights of the same moment.
/// The serialized form has everything but the tensors; those are written as weights are:
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// # use candle_nn::linear;
/// # use interlock::{Autograd, Batch, Dataset, FromModule, Key, ModelSpec, Result, Unit};
/// # struct Net;
/// # impl ModelSpec for Net {
/// #     fn units(&self) -> Result<Vec<Unit>> {
/// #         Ok(vec![Unit::new("first", [4], |vb| Autograd::build(vb, |vb| Ok(FromModule(linear(4, 4, vb)?))))])
/// #     }
/// # }
/// # struct Corners;
/// # impl Dataset for Corners {
/// #     fn len(&self) -> usize {
/// #         64
/// #     }
/// #     fn batch(&self, numbers: &[usize], _: Option<Key>) -> Result<Batch> {
/// #         let classes: Vec<u32> = numbers.iter().map(|n| (n % 4) as u32).collect();
/// #         let points = Tensor::eye(4, DType::F32, &Device::Cpu)?.embedding(&Tensor::new(&*classes, &Device::Cpu)?)?;
/// #         Ok(Batch { inputs: points.into(), targets: Tensor::new(classes, &Device::Cpu)? })
/// #     }
/// # }
/// # let folder = tempfile::tempdir()?;
/// # let [weights, tensors, values] = ["weights", "tensors", "state.json"].map(|name| folder.path().join(name));
/// # [&weights, &tensors].map(std::fs::create_dir);
/// use interlock::{Trainer, TrainerState, Weights, tools::files};
///
/// let mut trainer = Trainer::builder(Net).steps(3).build()?;
/// trainer.fit(Corners)?;
/// let state = trainer.state()?;
/// trainer.snapshot()?.save(&weights)?;
/// state.tensors.save(&tensors)?;
/// files::write(&values, serde_json::to_string(&state)?)?;
///
/// let mut state: TrainerState = serde_json::from_str(&std::fs::read_to_string(&values)?)?;
/// state.tensors = Weights::load(&tensors)?;
/// let builder = Trainer::builder(Net).initial_values(Weights::load(&weights)?).restore(state);
/// let mut trainer = builder.steps(2).build()?;
/// assert_eq!(trainer.fit(Corners)?.steps, 5); // the same weights as after five steps without interruption
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerState {
    /// Its tensors by name, a shard for each stage, and another for its best weights; not serialized.
    #[serde(skip)]
    pub tensors: Weights,
    format: u32,
    steps: u64,
    seed: u64,
    batch_size: usize,
    #[serde(default = "one_replica")]
    replicas: usize,
    drop_last: bool,
    units_per_stage: Vec<usize>,
    position: Option<Position>,
    strategy: Option<StrategyState>,
    callbacks: Vec<Value>,
    best: Option<BestState>,
    stages: Vec<StageState>,
    /// The fit that was not finished; none before the first one.
    #[serde(default)]
    fit: Option<FitState>,
    /// Whether the evaluation after the last step has not been made.
    #[serde(default)]
    evaluation_due: bool,
}

fn one_replica() -> usize {
    1
}

/// The totals of a fit by a step, and where it began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FitState {
    pub(super) first_step: u64,
    pub(super) examples: u64,
    pub(super) seconds: f64,
    /// The seconds of computation of each stage.
    pub(super) busy: Vec<f64>,
    /// If the fit has ended, the step before which it was to end, and the reason for which a callback ended it before.
    #[serde(default)]
    pub(super) last_step: u64,
    #[serde(default)]
    pub(super) stop_reason: Option<String>,
}

/// The trainer's own part of a state, to which those of the stages are added.
pub(super) struct OwnState {
    state: TrainerState,
    best: Option<Arc<Best>>,
    /// The names of the parameters and buffers of each stage.
    names: Vec<Vec<String>>,
}

impl OwnState {
    pub(super) fn units_per_stage(&self) -> Vec<usize> {
        self.state.units_per_stage.clone()
    }

    /// Returns the whole state, with the tensors of the stages' states and then the best weights, both by stage.
    pub(super) fn with_stages(self, mut stages: Vec<StageState>) -> TrainerState {
        let Self { state, best: found, names } = self;
        let tensors = stages.iter_mut().map(|stage| std::mem::take(&mut stage.tensors).into_iter().collect());
        let mut tensors: Vec<Vec<(String, Tensor)>> = tensors.collect();
        tensors.extend(found.iter().flat_map(|found| {
            let of_stage = |names: &Vec<String>| {
                let weights = names.iter().map(|name| (name, found.weights.get(name)));
                weights.filter_map(|(name, tensor)| Some((best(name), tensor?.clone()))).collect()
            };
            names.iter().map(of_stage)
        }));
        TrainerState { tensors: Weights::of_stages(tensors), stages, ..state }
    }
}

/// The order in which the training set is read.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Position {
    examples: usize,
    /// The epoch that begins at `first_step`.
    first_epoch: u64,
    first_step: u64,
    /// The fewest examples of a micro-batch that the model could be trained with.
    #[serde(default)]
    least: usize,
}

/// The state of a strategy that decides plans during training; it may be null.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StrategyState {
    state: Value,
}

/// The best evaluation. Its weights are tensors of the state.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BestState {
    steps: u64,
    heads: Vec<HeadScore>,
    seconds: f64,
}

/// The name of one of the best weights.
fn best(name: &str) -> String {
    format!("best.{name}")
}

fn refuse<T>(problem: impl Into<String>, remedy: impl Into<String>) -> Result<T> {
    Err(Error::invalid("trainer state", problem, remedy))
}

impl TrainerState {
    /// The number of optimizer steps that had been made.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The number of examples of the training set; none before the first fit.
    pub fn examples(&self) -> Option<usize> {
        self.position.map(|position| position.examples)
    }

    /// The state of the strategy, if it decides plans during training.
    pub(super) fn strategy(&self) -> Option<Value> {
        self.strategy.as_ref().map(|strategy| strategy.state.clone())
    }

    /// Checks that the state fits a run with these parts.
    ///
    /// # Errors
    /// If it is of a run with others; the message says which.
    pub(super) fn check(
        &self,
        settings: &FitSettings,
        partition: &Partition,
        plans: &Plans,
        has_weights: bool,
        may_regroup: bool,
    ) -> Result<()> {
        if self.format != FORMAT {
            let problem = format!("it has format {}", self.format);
            return refuse(problem, format!("this version reads format {FORMAT}"));
        }
        if !has_weights {
            return refuse("there are no weights with it", "give those of the same moment (initial_values)");
        }
        if settings.first_step != self.steps {
            let problem = format!("it is of step {}, and first_step is {}", self.steps, settings.first_step);
            return refuse(problem, "leave first_step out");
        }
        let units = partition.units_per_stage();
        if self.is_regrouped(partition) && !may_regroup {
            let problem = format!("its stages have {:?} units, those of the model {units:?}", self.units_per_stage);
            return refuse(problem, "cut the model as in that run (units_per_stage)");
        }
        if plans.adapts() != self.strategy.is_some() {
            let decides = |adapts: bool| if adapts { "decides plans" } else { "decides no plans" };
            let (was, is) = (decides(self.strategy.is_some()), decides(plans.adapts()));
            return refuse(
                format!("its strategy {was} during training, this one {is}"),
                "use the strategy of that run",
            );
        }
        let then = (self.seed, self.batch_size, self.replicas, self.drop_last);
        let now = (settings.seed, settings.batch_size, settings.replicas, settings.drop_last);
        if then != now {
            let text = |(seed, batch, replicas, drop_last)| {
                let replicas = if then.2 == now.2 { String::new() } else { format!(", replicas {replicas}") };
                format!("seed {seed}, batch size {batch}{replicas}, drop_last {drop_last}")
            };
            let problem = format!("its run had {}, this one has {}", text(then), text(now));
            return refuse(problem, "use the settings of that run");
        }
        if self.position.is_some_and(|position| position.first_step > self.steps) {
            return refuse("its epoch begins after its last step", "give the state as it was saved");
        }
        Ok(())
    }

    /// The totals of the fit that was not finished.
    pub(super) fn fit(&self) -> Option<&FitState> {
        self.fit.as_ref()
    }

    /// Returns whether the evaluation after the last step has not been made.
    pub(super) fn evaluation_is_due(&self) -> bool {
        self.evaluation_due
    }

    /// Counts a step that changes nothing. The last stage publishes its matrix, which is called `matrix`, if heads share it and it is time.
    pub(super) fn leave_out_step(&mut self, weights: &Weights, matrix: Option<&str>) {
        self.steps += 1;
        let refresh = self.stages.iter().find_map(StageState::readout_refresh);
        if let (Some(refresh), Some(matrix)) = (refresh, matrix) {
            let own = self.tensors.get(&format!("parameters.{matrix}")).or_else(|| weights.get(matrix)).cloned();
            stage::leave_out_update(&mut self.tensors, self.steps, refresh, own);
        }
    }

    /// Returns the states of the stages, with their tensors.
    pub(super) fn into_stages(self) -> Vec<StageState> {
        let mut tensors: BTreeMap<String, Tensor> = self.tensors.into_iter().collect();
        let mut stages = self.stages;
        stages.iter_mut().enumerate().for_each(|(k, stage)| stage.take_tensors(k, &mut tensors));
        stages
    }

    /// Returns whether its stages are not those of this partition.
    pub(super) fn is_regrouped(&self, partition: &Partition) -> bool {
        self.units_per_stage != partition.units_per_stage()
    }

    /// Returns the numbers that heads have under another partition: those of the stages that end in the same unit.
    fn heads_under(&self, partition: &Partition) -> BTreeMap<usize, usize> {
        let stages = 0..self.units_per_stage.len().saturating_sub(1);
        let new = |old: usize| {
            let unit = head_unit(&self.units_per_stage, old)?;
            (0..partition.stages() - 1).find(|&k| partition.units(k).end == unit + 1)
        };
        stages.filter_map(|old| Some((old, new(old)?))).collect()
    }

    /// The weights of the best evaluation, with these names in each stage.
    fn best_weights<'a>(&self, stages: impl Iterator<Item = &'a [String]>) -> Result<Weights> {
        let tensor = |name: &String| match self.tensors.get(&best(name)) {
            Some(tensor) => Ok(Some((name.clone(), tensor.clone()))),
            // The best evaluation was made under another partition, without this head.
            None if is_head(name) => Ok(None),
            None => refuse(format!("the tensor {} is missing", best(name)), "give the tensors that were saved with it"),
        };
        let stages = stages
            .map(|names| names.iter().filter_map(|name| tensor(name).transpose()).collect())
            .collect::<Result<Vec<_>>>()?;
        Ok(Weights::of_stages(stages).with_units_per_stage(self.units_per_stage.clone()))
    }
}

impl TrainerState {
    /// The weights of the best evaluation, as those of another partition: with the heads that it has too.
    fn regrouped_best_weights(&self, partition: &Partition) -> Weights {
        let heads = self.heads_under(partition);
        let best = self.tensors.iter().filter_map(|(name, tensor)| {
            let name = name.strip_prefix("best.")?;
            Some((stage::regrouped_name(name, &heads)?, tensor.clone()))
        });
        best.collect::<Weights>().with_units_per_stage(partition.units_per_stage())
    }
}

impl Trainer {
    /// Returns all that it needs beside its weights to continue exactly. Together with [`Self::snapshot`] it makes a checkpoint: a trainer that
    /// [`TrainerBuilder::restore`](super::TrainerBuilder::restore) makes of both computes the same bits as this one in one long fit.
    ///
    /// # Errors
    /// If the trainer has failed, or an optimizer, the strategy or a callback fails to return its state. After an error of an optimizer the trainer
    /// cannot be used any more.
    pub fn state(&self) -> Result<TrainerState> {
        self.check_usable()?;
        guarded(|| self.collect_state())
    }

    fn collect_state(&self) -> Result<TrainerState> {
        let own = self.own_state(self.strategy_state()?, None)?;
        Ok(own.with_stages(self.pipeline.state()?))
    }

    /// Returns the trainer's own part of its state, with this state of the strategy and these totals of the present fit.
    pub(super) fn own_state(&self, strategy: Option<Value>, fit: Option<FitState>) -> Result<OwnState> {
        let mut callbacks: Vec<Value> = self
            .callbacks
            .iter()
            .enumerate()
            .map(|(i, to)| self.calls.during(calls::state(i), || to.state()))
            .collect::<Result<_>>()?;
        // Callbacks that only watch may differ in the trainer that continues.
        let remember = callbacks.iter().rposition(|state| !state.is_null()).map_or(0, |last| last + 1);
        callbacks.truncate(remember);
        let best = self.best().map(|best| BestState {
            steps: best.steps,
            heads: best.evaluation.heads().to_vec(),
            seconds: best.evaluation.seconds(),
        });
        let state = TrainerState {
            tensors: Weights::default(),
            format: FORMAT,
            steps: self.steps,
            seed: self.settings.seed,
            batch_size: self.settings.batch_size,
            replicas: self.settings.replicas,
            drop_last: self.settings.drop_last,
            units_per_stage: self.partition.units_per_stage().to_vec(),
            position: self.order.map(|order| {
                let (first_epoch, first_step) = order.begins();
                Position { examples: order.examples, first_epoch, first_step, least: order.division.least }
            }),
            fit: fit.or_else(|| self.fit.clone()),
            evaluation_due: self.evaluation_due,
            strategy: strategy.map(|state| StrategyState { state }),
            callbacks,
            best,
            stages: Vec::new(),
        };
        let names = self.stages().iter().map(|built| built.names.clone()).collect();
        Ok(OwnState { state, best: self.best(), names })
    }

    /// Continues from `state`, which [`TrainerState::check`] has found to fit; the strategy has been restored before.
    ///
    /// # Errors
    /// If it is not the state of such a trainer.
    pub(super) fn restore(&mut self, state: TrainerState) -> Result<()> {
        let regrouped = state.is_regrouped(&self.partition);
        if state.callbacks.len() > self.callbacks.len() {
            let problem = format!(
                "it is of {} callbacks that remember something, or lie before one that does; this trainer has {}",
                state.callbacks.len(),
                self.callbacks.len()
            );
            return refuse(problem, "add the same callbacks in the same order");
        }
        guarded(|| self.callbacks.iter_mut().zip(&state.callbacks).try_for_each(|(to, state)| to.restore(state)))?;
        if let Some(best) = state.best.as_ref().filter(|_| self.settings.keep_best.is_some()) {
            let evaluation = Evaluation::restored(best.heads.clone(), best.seconds)?;
            let weights = match regrouped {
                true => state.regrouped_best_weights(&self.partition),
                false => state.best_weights(self.stages().iter().map(|built| built.names.as_slice()))?,
            };
            self.set_best(Arc::new(Best { steps: best.steps, evaluation, weights }));
        }
        if let Some(Position { examples, first_epoch, first_step, least }) = state.position {
            let order = ExampleOrder::new(examples, self.settings.division(least.max(1)), self.settings.seed)?
                .beginning(first_epoch, first_step);
            (self.order, self.interrupted) = (Some(order), true);
        }
        let heads = state.heads_under(&self.partition);
        (self.fit, self.evaluation_due) = (state.fit.clone(), state.evaluation_due);
        let mut stages = state.into_stages();
        if regrouped {
            let names: Vec<&[String]> = self.stages().iter().map(|built| built.names.as_slice()).collect();
            stages = stage::regrouped(stages, &heads, &names)?;
        }
        self.pipeline.restore(stages)
    }
}

//! The layout of a run: the model cut into stages and checked against all settings.

use std::{collections::HashMap, sync::Arc};

use super::{FitSettings, TrainerBuilder};
use crate::{
    Error, Result,
    model::{Partition, Unit},
    optimizer::lr_schedule::LrSchedule,
    plan::MOST_STAGES,
    stage::initial::{AllowedDifferences, InitialValues, ValueDifferences, adapted},
    stage::{StageBlueprint, StageSettings},
    strategy::Plans,
    trainer::{TrainerState, guarded},
};

/// The most micro-batches of a batch.
const MOST_MICRO_BATCHES: usize = 1 << 12;
/// The most replicas of a stage.
const MOST_REPLICAS: usize = 1 << 12;
/// The most stages times micro-batches: a simulated step, by which the credits are found, has a few actions for each.
const MOST_CELLS: usize = 1 << 16;
/// The most micro-batches in flight at a boundary.
const MOST_IN_FLIGHT: usize = 1 << 16;
/// The most steps of a recording.
const MOST_RECORDED: usize = 100_000;

/// A model, its partition and its plans, checked against each other: a run without the threads of its devices.
pub struct Layout {
    /// The units of each stage.
    pub partition: Partition,
    /// The gradient plan of each step, and the strategy that decides later plans.
    pub plans: Plans,
    /// The blueprint of each stage, in order.
    pub blueprints: Vec<StageBlueprint>,
    /// The settings that the stages share.
    pub settings: Arc<StageSettings>,
    /// The number of micro-batches of a batch.
    pub micro_batches: usize,
    /// How the initial values, if there are any, differ from the model.
    pub(super) differences: Option<ValueDifferences>,
}

impl Layout {
    /// Returns how many of the model's tensors have initial values, in words; none if no initial values were given.
    pub fn initial_values(&self) -> Option<String> {
        self.differences.as_ref().map(ValueDifferences::summary)
    }

    /// Returns whether stages compute at the same time for a good part of a step. They do not if a single micro-batch passes through all stages and
    /// its gradient comes back through all of them.
    pub fn stages_overlap(&self) -> bool {
        self.micro_batches > 1 || !self.plans.schedule().plans().all(|plan| plan.is_end_to_end())
    }
}

impl TrainerBuilder {
    /// Cuts the model, and checks everything that can be checked without building a stage.
    ///
    /// # Errors
    /// If a setting is out of range, the parts do not fit each other, or the initial values are of another model; the message names the key.
    pub fn layout(&self) -> Result<Layout> {
        guarded(|| self.checked_layout())
    }

    fn checked_layout(&self) -> Result<Layout> {
        self.check_settings()?;
        let (partition, plans) = self.cut()?;
        let stages = partition.stages();
        if stages * self.settings.micro_batches > MOST_CELLS {
            let problem = format!("{} with {stages} stages", self.settings.micro_batches);
            let right = format!("use at most {}, or fewer stages", MOST_CELLS / stages);
            return Err(Error::invalid("micro_batches", problem, right));
        }
        self.optimizer.constants().validate(stages)?;
        self.recompute.validate(stages)?;
        if let Some(k) = self.head_losses.keys().find(|&&k| k >= stages) {
            return Err(Error::invalid(
                "head_loss",
                format!("there is no stage {k}"),
                format!("stages are 0 to {}", stages - 1),
            ));
        }
        let mut settings = Arc::new(StageSettings {
            seed: self.settings.seed,
            optimizer: Arc::clone(&self.optimizer),
            clip: self.clip.clone(),
            lr_schedule: LrSchedule::new(self.lr_schedule.clone())?,
            loss: Arc::clone(&self.loss),
            head_losses: self.head_losses.clone(),
            given: Arc::default(),
            heads: self.heads.clone(),
            recompute: self.recompute.clone(),
            ema: self.ema,
            dtype: self.dtype,
            replica_statistics: self.replica_statistics,
            check_gradients: true,
        });
        let mut blueprints = StageBlueprint::of(&*self.model, &partition, &plans, &self.devices, &settings)?;
        if let Some(&k) = self.head_losses.keys().find(|&&k| k + 1 < stages && !blueprints[k].has_head()) {
            let (why, remedy) = match plans.may_carry_head(k) {
                true => ("no stage follows its loss", "build all heads (TrainerBuilder::probes)"),
                false => {
                    ("`heads` or the strategy gives it none", "give it one (heads.every, heads.archs, strategy.group)")
                }
            };
            return Err(Error::invalid(
                "head_loss",
                format!("stage {k} has no head, since {why}"),
                format!("leave it out, or {remedy}"),
            ));
        }
        let mut differences = None;
        if let Some(given) = &self.initial {
            let initial = InitialValues::of(adapted(&*self.model, given)?, &self.skipped, &blueprints)?;
            // A run that is restored continues exactly or not at all, unless it gets another partition.
            let is_exact = |state: &TrainerState| !(self.resumes && state.is_regrouped(&partition));
            let heads = self.allowed.heads && !self.restored.as_ref().is_some_and(is_exact);
            initial.differences.refuse("initial values", AllowedDifferences { heads, ..self.allowed })?;
            settings = Arc::new(StageSettings { given: initial.values, ..(*settings).clone() });
            blueprints.iter_mut().for_each(|stage| stage.set(&settings));
            differences = Some(initial.differences);
        }
        if let Some(state) = &self.restored {
            state.check(&self.settings, &partition, &plans, self.initial.is_some(), self.resumes)?;
        }
        let micro_batches = self.settings.micro_batches;
        Ok(Layout { partition, plans, blueprints, settings, micro_batches, differences })
    }

    /// Checks the settings that do not depend on the model.
    fn check_settings(&self) -> Result<()> {
        let number = |key: &str, value: usize, most: usize| match value {
            0 => Err(Error::invalid(key, "0", "use 1 or more")),
            _ if value > most => Err(Error::invalid(key, value.to_string(), format!("use 1 to {most}"))),
            _ => Ok(()),
        };
        let steps = |steps: Option<u64>| steps.unwrap_or(1).try_into().unwrap_or(usize::MAX);
        let FitSettings { batch_size, micro_batches, replicas, .. } = self.settings;
        number("batch_size", batch_size, usize::MAX)?;
        number("micro_batches", micro_batches, MOST_MICRO_BATCHES)?;
        number("replicas", replicas, MOST_REPLICAS)?;
        if micro_batches * replicas > batch_size {
            let (given, most) = match replicas {
                1 => (micro_batches.to_string(), batch_size),
                _ => (format!("{micro_batches} of each of {replicas} replicas"), batch_size / replicas),
            };
            return Err(match most {
                0 => Error::invalid(
                    "replicas",
                    replicas.to_string(),
                    format!("use at most {batch_size}: a batch has {batch_size} examples"),
                ),
                _ => Error::invalid(
                    "micro_batches",
                    given,
                    format!("a batch has {batch_size} examples: use 1 to {most}"),
                ),
            });
        }
        number("in_flight", self.in_flight.unwrap_or(1), MOST_IN_FLIGHT)?;
        number("eval_every", steps(self.settings.eval_every), usize::MAX)?;
        number("record", steps(self.settings.record), MOST_RECORDED)?;
        self.settings.length.validate()?;
        if let Some((_, config)) = &self.checkpoint {
            config.validate()?;
        }
        if let Some(clip) = &self.clip {
            clip.validate()?;
        }
        if self.devices.is_empty() {
            return Err(Error::invalid("devices", "the list is empty", "give at least one, or leave the default"));
        }
        if let Some(ema) = &self.ema {
            ema.validate()?;
        }
        Ok(())
    }

    /// Cuts the model into stages, with the plans for their number.
    fn cut(&self) -> Result<(Partition, Plans)> {
        let units = self.model.units()?;
        let stages = self.partition.units_per_stage.as_ref().map(Vec::len).or(self.partition.stages);
        if let Some(stages) = stages.filter(|&stages| stages > MOST_STAGES) {
            let right = format!("use 1 to {} stages", MOST_STAGES.min(units.len()));
            return Err(Error::invalid("partition.stages", format!("{stages} stages"), right));
        }
        match (&self.partition.units_per_stage, self.partition.stages) {
            (Some(_), Some(_)) => {
                Err(Error::invalid("partition", "both stages and units_per_stage are given", "give one of them"))
            }
            (Some(units_per_stage), None) => {
                let partition = Partition::new(units_per_stage.clone(), &units)?;
                let plans = self.plans(partition.stages())?;
                Ok((partition, plans))
            }
            (None, stages) => {
                let stages = stages.unwrap_or(self.devices.len());
                Partition::check_stages(stages, &units)?;
                let plans = self.plans(stages)?;
                Ok((self.divided(stages, &units, &plans)?, plans))
            }
        }
    }

    /// Divides the units among stages, so that the most expensive stage costs as little as possible.
    ///
    /// Probe heads must not change the rest of the network, so they cost nothing here, and stages that may carry a head end where the model has one, even
    /// if it is not built.
    fn divided(&self, stages: usize, units: &[Unit], plans: &Plans) -> Result<Partition> {
        let may_carry = |stage: usize| plans.may_carry_head(stage) || plans.may_need(stage);
        let arch_of = |stage: usize| self.heads.arch_of(stage, &*self.model);
        // The operations of the head after each unit, if there can be one, by its description.
        let mut heads: HashMap<&str, Vec<Option<f64>>> = HashMap::new();
        for arch in (0..stages - 1).filter(|&stage| may_carry(stage)).map(arch_of) {
            let flops = |unit| Some(self.model.head(unit, arch).ok()?.flops);
            heads.entry(arch).or_insert_with(|| (0..units.len()).map(flops).collect());
        }
        // Makes the stages that `placed` selects end where the model has a head for them.
        let cut = |placed: &dyn Fn(usize) -> bool| {
            let cost = |stage: usize, unit: usize| match may_carry(stage).then(|| heads[arch_of(stage)][unit]).flatten()
            {
                Some(flops) if plans.may_need(stage) => flops,
                None if placed(stage) => f64::MAX,
                _ => 0.0,
            };
            Partition::balanced(stages, units, cost)
        };
        // If a head that is built has no place, the stages' blueprints are refused.
        cut(&may_carry).or_else(|_| cut(&|stage| self.heads.has_head(plans, stage))).or_else(|_| cut(&|_| false))
    }

    /// Returns the plans of the strategy, continued from its state if one was given.
    fn plans(&self, stages: usize) -> Result<Plans> {
        let mut plans = self.plans_from_start(stages)?;
        if let Some(state) = &self.strategy_state {
            plans.restore(state).map_err(|error| match error {
                Error::Invalid { problem, .. } if self.resumes => Error::invalid(
                    "partition",
                    format!("the strategy cannot go on from what it has decided in that run: {problem}"),
                    "keep the partition of that run; only strategies that decide nothing during training can change it",
                ),
                other => other,
            })?;
        }
        Ok(plans)
    }

    /// Returns the plans of the strategy at the beginning of a run, moved to the configured heads.
    pub(super) fn plans_from_start(&self, stages: usize) -> Result<Plans> {
        Plans::of(&*self.strategy, stages)?.moved_to_heads(self.heads.carriers(stages)?)
    }
}

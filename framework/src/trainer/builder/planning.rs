//! The planner's view of the run that a builder describes.

use std::sync::Arc;

use super::TrainerBuilder;
use crate::{
    Batch, Dataset, Result,
    device::link::Link,
    optimizer::clip::ClipScope,
    planner::{MemoryMeter, Placement, PlannerSetup, Profile, Replicas},
    simulator::credits,
    trainer::{calls::Calls, rehearsal},
};

impl TrainerBuilder {
    /// Measures what the units of the model cost on the devices with `batch`, a micro-batch; see [`Profile::measure`].
    ///
    /// # Errors
    /// As [`Self::layout`] and [`Profile::measure`].
    pub fn profile(&self, batch: &Batch, meter: Option<&dyn MemoryMeter>) -> Result<Profile> {
        Profile::measure(&*self.model, &self.layout()?.settings, &self.devices, batch, meter)
    }

    /// Returns the number of examples of the largest batch of an epoch. It is above the batch size where the last examples of the epoch join the
    /// batch before them; see [`Trainer::fit`](crate::Trainer::fit).
    ///
    /// # Errors
    /// As [`Self::layout`] and [`Trainer::check`](crate::Trainer::check), or if a stage cannot be built.
    pub fn largest_batch(&self, train: &dyn Dataset) -> Result<usize> {
        let order =
            rehearsal::order_of(train, train.len(), &self.settings, &self.layout()?.blueprints, &Calls::default())?;
        Ok(order.largest_batch())
    }

    /// Returns the planner's setup of this run: `stages` stages whose cut is to be found, with the costs of `profile`, on `placement`. If plans
    /// change during the run, it has those of the last phase that is known.
    ///
    /// # Errors
    /// If the strategy has no plan for so many stages, or the costs are not of this model.
    pub fn setup<'a>(&self, stages: usize, profile: &'a Profile, placement: Placement) -> Result<PlannerSetup<'a>> {
        let plans = self.plans_from_start(stages)?;
        let head = |k| self.heads.has_head(&plans, k).then(|| self.heads.arch_of(k, &*self.model).to_owned());
        let heads: Vec<Option<String>> = (0..stages).map(head).collect();
        profile.validate(&*self.model, &heads.iter().flatten().map(String::as_str).collect())?;
        let phases = plans.schedule().phases();
        let plan = Arc::clone(&phases[phases.len() - 1].plan);
        let (micro_batches, policy) = (self.settings.micro_batches, self.policy.into());
        let in_flight = credits(self.in_flight, plans.schedule(), micro_batches, policy)?;
        Ok(PlannerSetup {
            profile,
            heads,
            micro_batches,
            in_flight,
            policy,
            global_norm: self.clip.as_ref().is_some_and(|clip| clip.scope == ClipScope::Global),
            readout_refresh: self.heads.shared_refresh()?,
            recompute: self.recompute.clone(),
            placement,
            links: vec![[Link::default(); 2]; stages],
            replicas: Replicas::default(),
            plan,
        })
    }

    /// Returns the pairs of units that share parameters and must lie on one stage.
    ///
    /// # Errors
    /// If the model cannot list its units.
    pub fn tied_units(&self) -> Result<Vec<(usize, usize)>> {
        let units = self.model.units()?;
        Ok(units.iter().enumerate().filter_map(|(at, unit)| Some((unit.tied_to?, at))).collect())
    }
}

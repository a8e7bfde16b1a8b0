//! The setup of a simulation: adds up the costs of units to those of stages, and makes the scenario that is simulated.

use std::{ops::Range, sync::Arc};

use super::{
    PlannedCut,
    profile::{DeviceCosts, HeadCosts, Profile, UnitCosts},
};
use crate::{
    Error, GradientPlan, Result, StageDevice, Wants,
    device::link::Link,
    schedule::{Policy, readout::check_refresh},
    simulator::{HOP, Scenario, Simulated, StageCosts},
    stage::Recompute,
};

/// Data-parallel replicas: several copies of every stage, which divide each batch. Their gradients are added up before the update: each replica adds up a part
/// and sends it to the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Replicas {
    /// The number of copies.
    pub count: usize,
    /// The link between two of them.
    pub link: Link,
}

impl Default for Replicas {
    fn default() -> Self {
        Self { count: 1, link: Link::default() }
    }
}

impl Replicas {
    /// Returns the seconds to add up `bytes` of gradients over all `R` of them: twice, each sends and receives `R-1` pieces of an `R`-th.
    pub fn all_reduce(&self, bytes: u64) -> f64 {
        let replicas = self.count.max(1) as f64;
        match self.count {
            0 | 1 => 0.0,
            _ => 2.0 * (self.link.latency + (replicas - 1.0) * bytes as f64 / replicas / self.link.bandwidth),
        }
    }
}

/// The placement of stages on devices.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// The device of each stage, as any number: stages with the same number take turns.
    pub devices: Vec<usize>,
    /// The cores that are busy while each stage computes.
    pub threads: Vec<usize>,
    /// The number of cores; none if they are never short.
    pub cores: Option<usize>,
}

impl Placement {
    /// Places stage `k` on device `k mod devices.len()`, on a machine of `cores` cores.
    pub fn on(devices: &[Arc<dyn StageDevice>], stages: usize, cores: usize) -> Self {
        let device = |k: usize| &devices[k % devices.len()];
        let place = |k: usize| match device(k).hooks().takes_turns() {
            // The first entry of the same device.
            true => (0..devices.len()).find(|&i| Arc::ptr_eq(&devices[i], device(k))).unwrap_or(k),
            false => devices.len() + k,
        };
        Self {
            devices: (0..stages).map(place).collect(),
            threads: (0..stages).map(|k| device(k).hooks().threads()).collect(),
            cores: Some(cores),
        }
    }

    /// Places every stage on a device of its own, which shares nothing with the others.
    pub fn dedicated(stages: usize) -> Self {
        Self { devices: (0..stages).collect(), threads: vec![0; stages], cores: None }
    }
}

/// The setup of a simulation: everything but the cut.
#[derive(Clone, Debug)]
pub struct PlannerSetup<'a> {
    /// The costs of units, for micro-batches of the planned size.
    pub profile: &'a Profile,
    /// The losses that train each stage.
    pub plan: Arc<GradientPlan>,
    /// The description of each stage's auxiliary head; none for a stage without one.
    pub heads: Vec<Option<String>>,
    /// Micro-batches a step.
    pub micro_batches: usize,
    /// Credits of each boundary: the most micro-batches in flight.
    pub in_flight: usize,
    /// The order of a stage's actions when several are possible.
    pub policy: Policy,
    /// Whether updates wait for the norm of all stages' gradients.
    pub global_norm: bool,
    /// The refresh interval of the readout that heads share with the last stage, if they do.
    pub readout_refresh: Option<u64>,
    /// The stages that repeat their forward pass before their backward passes.
    pub recompute: Recompute,
    /// The placement of the stages.
    pub placement: Placement,
    /// The links over which each stage sends: to the next stage, and to the one before it.
    pub links: Vec<[Link; 2]>,
    /// Data-parallel replicas.
    pub replicas: Replicas,
}

impl PlannerSetup<'_> {
    /// The number of stages.
    pub fn stages(&self) -> usize {
        self.plan.stages()
    }

    /// Returns the costs of units on the device of stage `k`.
    pub(super) fn device(&self, k: usize) -> &DeviceCosts {
        &self.profile.devices[self.profile.order[k % self.profile.order.len()]]
    }

    fn has_head(&self, k: usize) -> bool {
        self.heads[k].is_some()
    }

    /// Returns the costs of the head of stage `k` after `last_unit`, `Some(None)` if the stage has no head; none if the model has no such head there.
    fn head<'u>(&self, k: usize, last_unit: &'u UnitCosts) -> Option<Option<&'u HeadCosts>> {
        match &self.heads[k] {
            Some(arch) => last_unit.heads.get(arch).map(Some),
            None => Some(None),
        }
    }

    /// Checks that no stage waits for a version of the readout that its head shares with the last stage, as a run does when it begins.
    ///
    /// # Errors
    /// If [`Self::readout_refresh`] is shorter than the lead that credits allow; the message names the least interval that is long enough.
    pub fn check_readout(&self) -> Result<()> {
        match self.readout_refresh.zip((0..self.stages()).find(|&k| self.has_head(k))) {
            Some((refresh, k)) => check_refresh(refresh, k, self.stages(), self.in_flight, self.micro_batches),
            None => Ok(()),
        }
    }

    /// Checks that the model has a unit for each stage.
    ///
    /// # Errors
    /// If there are fewer units than stages.
    pub(super) fn check(&self) -> Result<()> {
        let units = self.device(0).units.len();
        if self.stages() > units {
            return Err(Error::invalid(
                "partition.stages",
                format!("{} stages for a model of {units} units", self.stages()),
                format!("1 to {units} stages are possible"),
            ));
        }
        Ok(())
    }

    /// Returns the costs of stage `k` with these units; none if it needs a head and there is none after its last unit.
    pub(super) fn costs(&self, k: usize, units: Range<usize>) -> Option<StageCosts> {
        let device = self.device(k);
        let own = &device.units[units.clone()];
        let sum = |of: fn(&UnitCosts) -> f64| own.iter().map(of).sum::<f64>();
        let last = k + 1 == self.stages();
        let (first_unit, last_unit) = (&own[0], &own[own.len() - 1]);
        let before = units.start.checked_sub(1).map(|unit| &device.units[unit]);
        // Arriving tensors are widened; leaving tensors are checked and rounded.
        let taken_in = before.map_or(0.0, |unit| unit.receive);
        let given_back = before.map_or(0.0, |unit| unit.send);
        let (given, taken_back) = if last { (0.0, 0.0) } else { (last_unit.send, last_unit.receive) };
        let forward = sum(|unit| unit.forward);
        // The repeated forward pass before the first backward pass of a micro-batch, spread over all its backward passes.
        let again = match self.recompute.is_for(k) {
            true => forward / self.plan.passes(k).max(1) as f64,
            false => 0.0,
        };
        let head = self.head(k, last_unit)?;
        let gradients = total([sum_bytes(own, |unit| unit.gradient_bytes), head.map_or(0, |head| head.gradient_bytes)]);
        let update = sum(|unit| unit.update) + head.map_or(0.0, |head| head.update);
        let chain = again + taken_back;
        let action = device.action;
        Some(StageCosts {
            forward: action + taken_in + forward + given,
            head: action + if last { device.loss } else { head.map_or(0.0, |head| head.needed) },
            probe: action + head.map_or(0.0, |head| head.probe),
            input: action + chain + sum(|unit| unit.input_gradient) + given_back,
            parameters: action + sum(|unit| unit.parameter_gradient),
            both: action + chain + sum(|unit| unit.both) + given_back,
            parameters_only: action + chain + first_unit.parameters_only + own[1..].iter().map(|u| u.both).sum::<f64>(),
            add: last_unit.add,
            norm: action,
            update: action + update + self.replicas.all_reduce(gradients),
            activation_bytes: last_unit.output_bytes,
            gradient_bytes: total([before.map_or(0, |unit| unit.output_bytes), self.readout_traffic(k)]),
        })
    }

    /// Returns the bytes of the shared readout for each gradient that stage `k` sends: a version in each refresh interval, if a stage upstream has a
    /// head, spread over all gradients in between.
    fn readout_traffic(&self, k: usize) -> u64 {
        let Some(refresh) = self.readout_refresh.filter(|_| (0..k).any(|upstream| self.has_head(upstream))) else {
            return 0;
        };
        let crossing = self.plan.wants(k).iter().filter(|&&loss| self.plan.gradients(k, loss).input).count();
        let gradients = ((crossing * self.micro_batches) as u64).saturating_mul(refresh);
        self.readout_bytes(k).checked_div(gradients).unwrap_or(0)
    }

    /// Returns the bytes of the shared readout; 0 if nothing is shared.
    fn readout_bytes(&self, k: usize) -> u64 {
        let heads = self.device(k).units.iter().flat_map(|unit| unit.heads.values());
        heads.map(|head| head.readout_bytes).max().unwrap_or(0)
    }

    /// Returns the seconds that stage `k` works in a step.
    pub(super) fn work(&self, k: usize, units: Range<usize>) -> Option<f64> {
        let costs = self.costs(k, units)?;
        let micro = costs.forward
            + match (k + 1 == self.stages(), self.plan.is_needed(k), self.has_head(k)) {
                (true, ..) | (_, true, _) => costs.head,
                (_, _, true) => costs.probe,
                _ => 0.0,
            }
            + self.plan.wants(k).iter().map(|&loss| self.backward(&costs, k, loss)).sum::<f64>()
            + if self.plan.added_up(k).is_empty() { 0.0 } else { costs.sum_of_losses(&self.plan, k) };
        let norm = if self.global_norm { costs.norm } else { 0.0 };
        Some(self.micro_batches as f64 * micro + norm + costs.update)
    }

    fn backward(&self, costs: &StageCosts, k: usize, loss: usize) -> f64 {
        let wants = self.plan.gradients(k, loss);
        match (wants.input, wants.parameters) {
            (true, true) if self.policy.fuses() => costs.both.min(costs.input + costs.parameters),
            (true, true) => costs.input + costs.parameters,
            (true, false) => costs.input,
            (false, true) => costs.parameters_only,
            (false, false) => 0.0,
        }
    }

    /// Returns the scenario of a cut into stages of these costs.
    pub(super) fn scenario(&self, costs: Vec<StageCosts>) -> Scenario {
        let stages = self.stages();
        let Placement { devices, threads, cores } = self.placement.clone();
        Scenario {
            links: self.links.clone(),
            heads: (0..stages).map(|k| self.has_head(k)).collect(),
            devices,
            threads,
            cores,
            micro_batches: self.micro_batches,
            in_flight: self.in_flight,
            policy: self.policy,
            global_norm: self.global_norm,
            hop: HOP,
            ..Scenario::new(Arc::clone(&self.plan), costs)
        }
    }

    /// Returns the most bytes that each stage of `cut` holds; none if the profile lacks them.
    pub fn memory(&self, cut: &PlannedCut) -> Option<Vec<u64>> {
        let mut start = 0;
        let stages = cut.units_per_stage.iter().enumerate();
        stages
            .map(|(k, &count)| {
                let units = start..start + count;
                start = units.end;
                self.stage_memory(k, units, &cut.simulated)
            })
            .collect()
    }

    fn stage_memory(&self, k: usize, units: Range<usize>, simulated: &Simulated) -> Option<u64> {
        let device = self.device(k);
        let own = &device.units[units.clone()];
        let last_unit = &own[own.len() - 1];
        let last = k + 1 == self.stages();
        let head = self.head(k, last_unit)?;
        // The last stage holds the version in force and the next, too.
        let versions = if last && self.heads.iter().any(Option::is_some) { 2 } else { 0 };
        let held = total([
            sum_bytes(own, |u| total([u.parameter_bytes, u.gradient_bytes, u.optimizer_bytes])),
            self.readout_bytes(k).saturating_mul(versions),
            head.map_or(0, |h| total([h.parameter_bytes, h.gradient_bytes, h.optimizer_bytes])),
        ]);
        let (live, waiting) = (simulated.peak_live[k] as u64, (simulated.peak_held[k] - simulated.peak_live[k]) as u64);
        let gradients = last_unit.output_bytes.saturating_mul(simulated.peak_waiting_gradients[k] as u64);
        let input = units.start.checked_sub(1).map_or(0, |unit| device.units[unit].output_bytes);
        let known = |of: fn(&UnitCosts) -> Option<u64>| own.iter().map(of).collect::<Option<Vec<u64>>>();
        let full = total(known(|unit| unit.saved_bytes)?);
        // The first backward pass of a micro-batch repeats the forward pass, and its activations stay until the last one.
        let (saved, repeated) = match (self.recompute.is_for(k), self.plan.passes(k) > 1) {
            (false, _) => (full, 0),
            (true, false) => (input, full),
            (true, true) => (full.max(input), 0),
        };
        let apart =
            !self.policy.fuses() && self.plan.wants(k).iter().any(|&loss| self.plan.gradients(k, loss) == Wants::BOTH);
        let pending = if apart { total(known(|unit| unit.pending_bytes)?) } else { 0 };
        let mut most = known(|unit| unit.transient_bytes)?.into_iter().max().unwrap_or(0);
        if last {
            most = most.max(device.loss_bytes?);
        }
        if let Some(head) = head {
            most = most.max(head.transient_bytes?);
        }
        Some(total([
            held,
            saved.saturating_mul(live),
            input.saturating_mul(waiting),
            gradients,
            pending,
            most,
            repeated,
            device.scratch_bytes.unwrap_or(0),
        ]))
    }
}

/// Returns the sum of bytes, which a profile from a file may state in any number.
fn total(bytes: impl IntoIterator<Item = u64>) -> u64 {
    bytes.into_iter().fold(0, u64::saturating_add)
}

fn sum_bytes(units: &[UnitCosts], of: fn(&UnitCosts) -> u64) -> u64 {
    total(units.iter().map(of))
}

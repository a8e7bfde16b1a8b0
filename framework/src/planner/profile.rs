//! The cost of each unit of a model on given devices, in time and in memory, measured in training steps through all units.
//!
//! The costs of a stage are sums over its units. In time: a forward pass takes the sum of `forward`. An *input pass* (the input gradient only) takes
//! the sum of `input_gradient`, and the *parameter pass* that follows it the sum of `parameter_gradient`. A pass that gives parameter gradients only
//! takes the sum of `both`, with `parameters_only` in place of its first unit's. A relayed loss takes the sum of `input_gradient`. A stage that
//! follows several losses, or one with a weight, pays the `add` of its last unit for each of them before its parameter pass. What leaves a stage costs
//! the `send` of the unit before the boundary, in both directions, and what arrives its `receive`. A stage that recomputes pays `forward` twice.
//!
//! In memory: parameters, gradients and optimizer state count once. Each micro-batch in work adds the sums of `saved_bytes` and, between input pass
//! and parameter pass, of `pending_bytes`. The largest `transient_bytes` of the running pass comes on top. The last backward pass frees saved
//! activations unit by unit, from the last to the first.

mod chain;
mod memory;
mod parts;
mod reader;
mod time;

#[cfg(test)]
mod tests;

pub use reader::MemoryMeter;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    thread,
};

use serde::{Deserialize, Serialize};

use self::{
    chain::{Chain, Piece},
    memory::Memory,
    parts::ProfiledUnits,
    time::Times,
};
use crate::{
    ActivationDtype, Batch, Error, ModelSpec, Result, StageDevice, Unit,
    device::run_on,
    stage::{Payload, StageSettings},
};

/// What a model costs on some devices. Times are in seconds, memory in bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Examples of the micro-batch that all costs are of.
    pub examples: usize,
    /// The costs on each distinct device, measured while all of them computed.
    pub devices: Vec<DeviceCosts>,
    /// The index in [`Self::devices`] of each device in the list that was given.
    pub order: Vec<usize>,
}

/// What a model costs on one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceCosts {
    /// The device's name.
    pub device: String,
    /// The dtype in which its stages sent and saved activations.
    pub dtype: ActivationDtype,
    /// Seconds to hand a piece of work over to the device's threads and learn that it is done: once an action of a stage.
    pub action: f64,
    /// The units from input to output.
    pub units: Vec<UnitCosts>,
    /// Seconds of the loss after the last unit, with its gradient.
    pub loss: f64,
    /// The most bytes in use while it is computed, beyond what units saved.
    pub loss_bytes: Option<u64>,
    /// Bytes that the device's threads keep from one piece of work to the next.
    pub scratch_bytes: Option<u64>,
}

/// What one unit costs on one device.
///
/// Times are of one micro-batch, but for the update's. Bytes of `None` could not be measured: neither the device nor a meter reported the memory in use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitCosts {
    /// The unit's name.
    pub name: String,
    /// Seconds of a forward pass in training.
    pub forward: f64,
    /// Seconds of an input pass; 0 for the model's first unit, which is never asked for one.
    pub input_gradient: f64,
    /// Seconds of the parameter pass that follows an input pass, with the adding up of gradients; 0 for the model's first unit.
    pub parameter_gradient: f64,
    /// Seconds of a backward pass that gives input gradient and parameter gradients, with the adding up; 0 for the model's first unit.
    pub both: f64,
    /// Seconds of a backward pass that gives parameter gradients only, with the adding up: what a stage's first unit does where the previous stage
    /// wants no gradient.
    pub parameters_only: f64,
    /// Seconds of the optimizer's update of its parameters and of their moving averages, once a step.
    pub update: f64,
    /// Seconds that its output takes to leave a stage, checked and rounded; the gradient that comes back over the boundary takes as long.
    /// 0 for the model's last unit.
    pub send: f64,
    /// Seconds that its output takes to be widened again where it arrives; its gradient likewise. 0 for the model's last unit.
    pub receive: f64,
    /// Seconds to add one gradient of its output, as it arrives over a boundary or from the loss, to a weighted sum.
    pub add: f64,
    /// Bytes of its output as it crosses a boundary.
    pub output_bytes: u64,
    /// Bytes of its parameters and buffers. Those of a unit that is tied to an earlier one count there, and so does its update.
    pub parameter_bytes: u64,
    /// Bytes of its parameters' gradients, from a step's first backward pass to its update.
    pub gradient_bytes: u64,
    /// Bytes of the optimizer's state for its parameters, and of their moving averages.
    pub optimizer_bytes: u64,
    /// Bytes that its saved activations hold from its forward pass to its last backward pass. Its input counts here, or at the previous unit if that
    /// one saves its output anyway. The batch itself does not count.
    pub saved_bytes: Option<u64>,
    /// Bytes in use beyond them between input pass and parameter pass, for each loss whose backward pass is split into the two.
    pub pending_bytes: Option<u64>,
    /// The most bytes in use during any of its passes beyond what it and the previous units have saved: inputs, outputs, output gradients and
    /// intermediate values, without its parameters' gradients.
    pub transient_bytes: Option<u64>,
    /// The auxiliary heads after it by their descriptions, all that the settings name; none after the model's last unit, and where the model has none.
    pub heads: BTreeMap<String, HeadCosts>,
}

/// What an auxiliary head costs on one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadCosts {
    /// Seconds of forward pass, loss, and backward pass to the unit's output and the head's parameters: a head that a stage follows.
    pub needed: f64,
    /// The same without the gradient of the unit's output: a head that no stage follows.
    pub probe: f64,
    /// Seconds of the update of its parameters, once a step.
    pub update: f64,
    /// Bytes of its parameters and buffers. A matrix that it shares with the last stage counts twice: the version in use and the next.
    pub parameter_bytes: u64,
    /// Bytes of the matrix that it shares with the last stage; 0 if it has its own.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub readout_bytes: u64,
    /// Bytes of its parameters' gradients.
    pub gradient_bytes: u64,
    /// Bytes of the optimizer's state for its parameters, and of their moving averages.
    pub optimizer_bytes: u64,
    /// The most bytes in use while it computes beyond what the units have saved: the unit's output, and all that the head needs, without its
    /// parameters' gradients.
    pub transient_bytes: Option<u64>,
}

fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

impl Profile {
    /// Measures `model` on `devices` with `batch`, a micro-batch: first the memory on one device after the other, then the time on all of
    /// them together, since stages that run at the same time slow each other down. A device that is given twice is measured once.
    ///
    /// Steps are made at learning rate 0, so that they repeat each other. The bytes in use are those that a device reports or, if it does not report
    /// them, those of `meter`.
    ///
    /// # Errors
    /// If there is no device, if no unit can have a head that the settings name, or if a unit fails; the message names the unit.
    pub fn measure(
        model: &dyn ModelSpec,
        settings: &StageSettings,
        devices: &[Arc<dyn StageDevice>],
        batch: &Batch,
        meter: Option<&dyn MemoryMeter>,
    ) -> Result<Self> {
        if devices.is_empty() {
            return Err(Error::invalid("devices", "the list is empty", "give at least one, such as \"cpu\""));
        }
        let examples = batch.len()?;
        if examples == 0 {
            return Err(Error::invalid("batch", "there is no example", "give a micro-batch as steps will have it"));
        }
        let mut distinct: Vec<&Arc<dyn StageDevice>> = Vec::new();
        let mut order = Vec::with_capacity(devices.len());
        for device in devices {
            let known = distinct.iter().position(|known| Arc::ptr_eq(known, device));
            order.push(known.unwrap_or(distinct.len()));
            if known.is_none() {
                distinct.push(device);
            }
        }
        let total = settings.loss.count(&batch.targets)?.max(1.0);
        let mut measured = Vec::with_capacity(distinct.len());
        for &device in &distinct {
            let payload =
                Payload { inputs: batch.inputs.try_map(|t| device.bring(t))?, targets: batch.targets.clone(), total };
            let read = reader::MemoryReader::of(&**device, meter);
            measured.push(run_on(&**device, || {
                let parts = ProfiledUnits::build(model, settings, &**device)?;
                let mut chain = Chain::new(parts, &**device, settings, payload)?;
                let memory = read.map(|read| Memory::measure(&mut chain, read)).transpose()?;
                Ok::<_, Error>((chain, memory))
            })?);
        }
        let together = time::Together::new(distinct.len());
        let devices = thread::scope(|scope| {
            let threads: Vec<_> = measured
                .into_iter()
                .map(|(mut chain, memory)| {
                    let together = &together;
                    scope.spawn(move || {
                        let times = Times::measure(&mut chain, together)?;
                        Ok(DeviceCosts::of(&chain, &times, memory.as_ref()))
                    })
                })
                .collect();
            let join = |thread: thread::ScopedJoinHandle<'_, Result<DeviceCosts>>| {
                thread.join().unwrap_or_else(|panic| Err(Error::panicked(&*panic)))
            };
            threads.into_iter().map(join).collect::<Vec<_>>().into_iter().collect::<Result<Vec<_>>>()
        })?;
        Ok(Self { examples, devices, order })
    }

    /// Checks that these are the costs of `model` and of its heads with these descriptions.
    ///
    /// # Errors
    /// If there is no device or no example, if the units are not the model's, if a head is missing that the model has, or if a time is not finite or
    /// below 0.
    pub fn validate(&self, model: &dyn ModelSpec, archs: &BTreeSet<&str>) -> Result<()> {
        let refuse = |problem: String| {
            Err(Error::invalid(
                "costs of units",
                problem,
                "measure the model that is planned for, with its heads (`interlock bench units`)",
            ))
        };
        if self.devices.is_empty() || self.order.is_empty() || self.examples == 0 {
            return refuse("there is no device, or no example".to_owned());
        }
        if let Some(wrong) = self.order.iter().find(|&&place| place >= self.devices.len()) {
            return refuse(format!("order names device {wrong}, there are {}", self.devices.len()));
        }
        let units = model.units()?;
        for device in &self.devices {
            if device.units.len() != units.len() {
                let problem =
                    format!("{} units on {}, the model has {}", device.units.len(), device.device, units.len());
                return refuse(problem);
            }
            for (i, (unit, Unit { name, .. })) in device.units.iter().zip(&units).enumerate() {
                if unit.name != *name {
                    return refuse(format!("unit {i} is {:?}, the model's is {name:?}", unit.name));
                }
                let mut missing = archs.iter().filter(|&&arch| i + 1 < units.len() && !unit.heads.contains_key(arch));
                if let Some(arch) = missing.find(|&&arch| model.head(i, arch).is_ok()) {
                    return refuse(format!("the head {arch:?} after unit {i} is missing"));
                }
                let heads = unit.heads.values().flat_map(|head| [head.needed, head.probe, head.update]);
                let times = [
                    unit.forward,
                    unit.input_gradient,
                    unit.parameter_gradient,
                    unit.both,
                    unit.parameters_only,
                    unit.add,
                    unit.update,
                    unit.send,
                    unit.receive,
                    unit.add,
                    device.action,
                    device.loss,
                ];
                let mut all = times.into_iter().chain(heads);
                if let Some(wrong) = all.find(|seconds| !(seconds.is_finite() && *seconds >= 0.0)) {
                    return refuse(format!("unit {i} has a cost of {wrong} seconds"));
                }
            }
        }
        Ok(())
    }

    /// Returns the costs on the device of stage `k`: number `k mod n` of the `n` devices that were given.
    pub fn on(&self, k: usize) -> Option<&DeviceCosts> {
        let place = self.order.get(k.checked_rem(self.order.len())?)?;
        self.devices.get(*place)
    }
}

impl DeviceCosts {
    fn of(chain: &Chain<'_>, times: &Times, memory: Option<&Memory>) -> Self {
        let last = chain.parts.units.len() - 1;
        let units = chain.parts.units.iter().enumerate().map(|(i, unit)| {
            let own = memory.map(|memory| &memory.units[i]);
            // An optimizer need not report its state.
            let [parameter_bytes, gradient_bytes, reported] = unit.bytes();
            let optimizer_bytes = reported.max(own.map_or(0, |own| own.optimizer));
            let heads = chain.parts.heads[i].iter().enumerate().map(|(n, (arch, head))| {
                let [parameter_bytes, gradient_bytes, reported] = head.bytes();
                let own = own.map(|own| &own.heads[n]);
                let costs = HeadCosts {
                    needed: times.of(i, Piece::HeadNeeded(n)),
                    probe: times.of(i, Piece::HeadProbe(n)),
                    update: times.of(i, Piece::HeadUpdate(n)),
                    parameter_bytes: parameter_bytes + head.readout,
                    readout_bytes: head.readout,
                    gradient_bytes,
                    optimizer_bytes: reported.max(own.map_or(0, |own| own.optimizer)),
                    transient_bytes: own.and_then(|own| own.transient),
                };
                (arch.clone(), costs)
            });
            UnitCosts {
                name: unit.name.clone(),
                forward: times.of(i, Piece::Forward),
                input_gradient: times.of(i, Piece::Input),
                parameter_gradient: times.of(i, Piece::Parameters),
                both: times.of(i, Piece::Both),
                parameters_only: times.of(i, Piece::ParametersOnly),
                update: times.of(i, Piece::Update),
                send: times.of(i, Piece::Send),
                receive: times.of(i, Piece::Receive),
                add: times.of(i, Piece::SumOfTwo) / 2.0,
                output_bytes: chain.outputs[i] as u64,
                parameter_bytes,
                gradient_bytes,
                optimizer_bytes,
                saved_bytes: own.map(|own| own.saved),
                pending_bytes: own.map(|own| own.pending),
                transient_bytes: own.and_then(|own| own.transient),
                heads: heads.collect(),
            }
        });
        Self {
            device: chain.device.name().to_owned(),
            dtype: chain.dtype,
            action: times.action,
            units: units.collect(),
            loss: times.of(last, Piece::Loss),
            loss_bytes: memory.and_then(|memory| memory.loss),
            scratch_bytes: memory.map(|memory| memory.scratch),
        }
    }
}

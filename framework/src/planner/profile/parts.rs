//! The units and heads of a model, each with its own parameters and optimizer.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use crate::{
    Differentiable, Error, ModelSpec, ParameterGradients, ParameterStore, Phase, Result, StageDevice, Unit,
    device::{Part, PartKind},
    optimizer::ClipFactor,
    stage::{EmaConfig, StageSettings, Trainable, monitor::Monitor},
    stage::{OptimizerContext, initial::head_builder, readout::LastMatrix},
};

/// A unit or a head.
pub(super) struct ProfiledUnit {
    pub(super) name: String,
    pub(super) module: Box<dyn Differentiable>,
    /// None for a unit that is tied to an earlier one, which holds the parameters.
    pub(super) parameters: Option<Trainable>,
    /// Bytes of the matrix that a head shares with the last stage; 0 for others.
    pub(super) readout: u64,
}

/// The units of a model, and their heads.
pub(super) struct ProfiledUnits {
    pub(super) units: Vec<ProfiledUnit>,
    /// The heads after each unit, with their descriptions.
    pub(super) heads: Vec<Vec<(String, ProfiledUnit)>>,
    /// For each unit, the unit that holds its parameters.
    owners: Vec<usize>,
    /// Checks values as a stage's monitor does.
    pub(super) monitor: Monitor,
}

impl ProfiledUnit {
    /// Bytes of parameters and buffers, of gradients, and of the optimizer's state with the moving averages, once a step has been made.
    pub(super) fn bytes(&self) -> [u64; 3] {
        let bytes = |of: fn(&Trainable) -> usize| self.parameters.as_ref().map_or(0, of) as u64;
        [bytes(Trainable::parameter_bytes), bytes(Trainable::trained_bytes), bytes(Trainable::optimizer_bytes)]
    }

    /// Updates the parameters at learning rate 0.
    pub(super) fn update(&mut self, monitor: &mut Monitor) -> Result<()> {
        let Some(parameters) = &mut self.parameters else { return Ok(()) };
        parameters.update(0.0, &ClipFactor::NONE, monitor)?;
        parameters.update_average(0)
    }
}

/// Describes a unit or its head to its device. A device that wraps stages wraps each unit as if it were one.
fn piece(i: usize, kind: PartKind, unit: &Unit) -> Part<'_> {
    Part { stage: i, kind, output: &unit.output }
}

/// Does `work` on behalf of a unit; errors and panics name it.
pub(super) fn guarded<R>(unit: usize, name: &str, phase: Phase, work: impl FnOnce() -> Result<R>) -> Result<R> {
    let done = catch_unwind(AssertUnwindSafe(work));
    let cause = match done {
        Ok(Ok(result)) => return Ok(result),
        Ok(Err(error)) => error,
        Err(panic) => Error::panicked(&*panic),
    };
    Err(Error::Unit { unit, name: name.to_owned(), phase, cause: Box::new(cause) })
}

impl ProfiledUnits {
    /// Builds all units and heads for `device`, on the calling thread.
    pub(super) fn build(model: &dyn ModelSpec, settings: &StageSettings, device: &dyn StageDevice) -> Result<Self> {
        let units = model.units()?;
        if units.is_empty() {
            return Err(Error::invalid("model", "it has no units", "give at least one"));
        }
        let heads = heads(model, settings, units.len())?;
        let matrix = match settings.heads.shared_refresh()?.filter(|_| heads.iter().any(|after| !after.is_empty())) {
            Some(_) => Some(LastMatrix::of_model(&units)?),
            None => None,
        };
        let config = &settings.optimizer.constants();
        let store = || ParameterStore::new(settings.seed, settings.given.clone());
        let trainable = |store, piece: &Part<'_>| {
            let context = OptimizerContext { constants: config, part: piece, device };
            let trainable = Trainable::new(store, config, context.optimizer(&*settings.optimizer)?)?;
            // From the first update on, since later ones cost the same.
            Ok::<_, Error>(trainable.with_average(settings.ema.map(|ema| EmaConfig { from_step: 0, ..ema })))
        };

        let mut owners: Vec<usize> = Vec::with_capacity(units.len());
        let mut stores = Vec::with_capacity(units.len());
        let mut built = Vec::with_capacity(units.len());
        for (i, unit) in units.iter().enumerate() {
            let owner = unit.tied_to.and_then(|other| owners.get(other).copied()).unwrap_or(i);
            owners.push(owner);
            stores.push(if owner == i { store() } else { ParameterStore::clone(&stores[owner]) });
            let root = stores[i].builder(device.device());
            let build = || device.hooks().prepare(&piece(i, PartKind::Main, unit), unit.build(&root)?);
            let module = guarded(i, &unit.name, Phase::Build, build)?;
            built.push(ProfiledUnit { name: unit.name.clone(), module, parameters: None, readout: 0 });
        }
        // Only when all are built: a unit may ask for parameters in the store of an earlier one.
        for (i, store) in stores.into_iter().enumerate().filter(|&(i, _)| owners[i] == i) {
            built[i].parameters = Some(trainable(store, &piece(i, PartKind::Main, &units[i]))?);
        }
        let head = |i: usize, head: &Unit| {
            // Given values are under the numbers of stages, which are not those of the units here.
            let (store, name) = (ParameterStore::new(settings.seed, Arc::default()), units[i].name.clone());
            let root = head_builder(&store.builder(device.device()), i);
            let mut readout = 0;
            if let Some(matrix) = &matrix {
                let name = matrix.of_head(head, i)?;
                store.set_copy(matrix.copied_to(format!("{}.{name}", root.prefix())));
                readout = matrix.bytes();
            }
            let piece = piece(i, PartKind::Head, head);
            let module = guarded(i, &name, Phase::Head, || device.hooks().prepare(&piece, head.build(&root)?))?;
            Ok::<_, Error>(ProfiledUnit { name, module, parameters: Some(trainable(store, &piece)?), readout })
        };
        let after = |(i, heads): (usize, BTreeMap<String, Unit>)| {
            heads.into_iter().map(|(arch, unit)| Ok((arch, head(i, &unit)?))).collect()
        };
        let heads = heads.into_iter().enumerate().map(after).collect::<Result<_>>()?;
        Ok(Self { heads, units: built, owners, monitor: Monitor::on(device) })
    }

    /// Adds gradients that unit `i` gave.
    pub(super) fn accumulate(&mut self, i: usize, gradients: ParameterGradients) -> Result<()> {
        match &mut self.units[self.owners[i]].parameters {
            Some(parameters) => parameters.accumulate(gradients, &mut self.monitor),
            None => Ok(()),
        }
    }
}

/// Returns the heads that the model has after each of `count` units, by their descriptions; none after the last unit.
///
/// # Errors
/// If the settings name a head that the model has after no unit.
fn heads(model: &dyn ModelSpec, settings: &StageSettings, count: usize) -> Result<Vec<BTreeMap<String, Unit>>> {
    let config = &settings.heads;
    let named = config.arch.is_some() || config.archs.is_some();
    let mut all = vec![BTreeMap::new(); count];
    for arch in config.distinct_archs(model) {
        let (mut possible, mut refused) = (false, None);
        for (i, after) in all[..count - 1].iter_mut().enumerate() {
            match model.head(i, arch) {
                Ok(head) => {
                    possible = true;
                    after.insert(arch.to_owned(), head);
                }
                Err(error) => refused = Some(error),
            }
        }
        if let Some(error) = refused.filter(|_| named && !possible) {
            return Err(error);
        }
    }
    Ok(all)
}

//! The shared readout: heads whose last matrix is a read-only copy of the last stage's.
//!
//! Version `v` of the matrix is what it is before step `v`. With a refresh interval of `r`, the last stage publishes a version before every step that
//! is a multiple of `r`, and at step `s` heads use version `r · (⌊s / r⌋ − 1)`, but never one from before the run's first step. So a version has at
//! least `r` steps for its way upstream, and what a head computes depends on the step alone. Before the first step nothing is sent: each stage makes
//! the matrix as the last stage does, from the initial values or from the seed.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};

use super::{Stage, shapes::zeros};
use crate::{
    Error, Failure, Origin, ParameterStore, Phase, Result, Unit, Weights, model::parameters::ReadOnlyCopy, optimizer,
    schedule::readout::version_at,
};

/// The default refresh interval, in steps.
const REFRESH: u64 = 50;

fn refuse<T>(problem: String, remedy: &str) -> Result<T> {
    Err(Error::invalid("heads.readout", problem, remedy))
}

/// Returns the refresh interval that `readout_refresh` sets.
///
/// # Errors
/// If it is 0.
pub(super) fn refresh(configured: Option<u64>) -> Result<u64> {
    match configured.unwrap_or(REFRESH) {
        0 => Err(Error::invalid("heads.readout_refresh", "0", "use 1 or more")),
        steps => Ok(steps),
    }
}

/// The last tensor that a unit asks for: the matrix of a linear layer without a bias.
#[derive(Clone, Debug)]
pub(crate) struct LastMatrix {
    pub(super) name: String,
    init: Init,
    shape: Shape,
}

impl LastMatrix {
    /// Returns the last matrix of the model. It must not be tied to an earlier unit.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn of_model(units: &[Unit]) -> Result<Self> {
        let last = units.len().saturating_sub(1);
        if let Some((at, unit)) =
            units.iter().enumerate().find(|(at, u)| u.tied_to.is_some_and(|to| to.max(*at) == last))
        {
            let problem = format!("unit {at} shares parameters with unit {}", unit.tied_to.unwrap_or_default());
            return refuse(problem, "untie them (model.tied = false), or use readout = \"own\"");
        }
        Self::of(&units[last], "the model")
    }

    /// Returns the name, within the head of stage `stage`, of the matrix that is a copy of this one.
    ///
    /// # Errors
    /// If there is none, or its shape differs.
    pub(crate) fn of_head(&self, head: &Unit, stage: usize) -> Result<String> {
        let own = Self::of(head, &format!("the head of stage {stage}"))?;
        if own.shape == self.shape {
            return Ok(own.name);
        }
        refuse(
            format!(
                "{} of the head of stage {stage} is {:?}, {} of the last stage is {:?}",
                own.name,
                own.shape.dims(),
                self.name,
                self.shape.dims()
            ),
            "use heads whose last layer has the width of the model's last layer, or readout = \"own\"",
        )
    }

    /// Returns a copy of it that is called `name`.
    pub(crate) fn copied_to(&self, name: String) -> ReadOnlyCopy {
        ReadOnlyCopy { name, original: self.name.clone(), init: self.init }
    }

    /// Returns its bytes, in `f32`.
    pub(crate) fn bytes(&self) -> u64 {
        self.shape
            .dims()
            .iter()
            .fold(DType::F32.size_in_bytes() as u64, |bytes, &extent| bytes.saturating_mul(extent as u64))
    }

    fn of(unit: &Unit, what: &str) -> Result<Self> {
        let asked = LastRequest::default();
        unit.build(&VarBuilder::from_backend(Box::new(asked.clone()), DType::F32, Device::Cpu))?;
        let remedy =
            "end model and heads in a linear layer without bias (such as ln_fc for a GPT), or use readout = \"own\"";
        let last = asked.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match last {
            Some(own) if own.shape.rank() == 2 && unit.output.last().is_some_and(|n| own.shape.dims().contains(n)) => {
                Ok(own)
            }
            Some(own) if own.name.ends_with("bias") => {
                refuse(format!("the last layer of {what} has a bias, {}", own.name), remedy)
            }
            Some(own) => {
                let problem =
                    format!("{what} ends in {} of shape {:?}, no matrix to its outputs", own.name, own.shape.dims());
                refuse(problem, remedy)
            }
            None => refuse(format!("{what} ends in a unit without parameters"), remedy),
        }
    }
}

/// A builder backend that returns zeros and remembers the last tensor that was asked for.
#[derive(Clone, Default)]
struct LastRequest(Arc<Mutex<Option<LastMatrix>>>);

impl SimpleBackend for LastRequest {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let zeros = zeros(name, &shape, dtype, device);
        let name = name.to_owned();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(LastMatrix { name, init, shape });
        zeros
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        Err(candle_core::Error::CannotFindTensor { path: name.to_owned() }.bt())
    }

    fn contains_tensor(&self, _: &str) -> bool {
        false
    }
}

/// A stage's part in the shared readout.
#[derive(Clone, Debug)]
pub(super) struct ReadoutRole {
    pub(super) refresh: u64,
    /// The matrix of the model's last unit.
    pub(super) matrix: LastMatrix,
    /// The name of the copy within the stage's head, if it has one.
    pub(super) copy: Option<String>,
    /// Whether an upstream stage has a head, so that versions are sent on.
    pub(super) relays: bool,
}

impl ReadoutRole {
    /// Returns the copy in the stage's head, if it has one, whose names begin with `prefix`.
    pub(super) fn copy(&self, prefix: &str) -> Option<ReadOnlyCopy> {
        self.copy.as_ref().map(|name| self.matrix.copied_to(format!("{prefix}.{name}")))
    }
}

/// The matrix as it is before a step.
#[derive(Clone, Debug)]
pub struct ReadoutVersion {
    /// The step.
    pub step: u64,
    /// The matrix.
    pub matrix: Tensor,
}

impl ReadoutVersion {
    /// Returns the bytes of the matrix.
    pub fn bytes(&self) -> usize {
        optimizer::bytes(&self.matrix)
    }
}

/// The versions of the matrix that a stage holds: that in force at the present step, and newer ones.
pub(super) struct Versions {
    refresh: u64,
    /// The last stage's matrix, or the head's copy, which holds the version in force.
    var: Var,
    in_force: u64,
    /// The version in force, in the last stage only.
    source: Option<Tensor>,
    newer: VecDeque<ReadoutVersion>,
    /// The version that was published by the last update and is not yet sent.
    published: Option<ReadoutVersion>,
}

/// Returns a copy of the present values.
fn copy(var: &Var) -> Result<Tensor> {
    Ok(var.as_tensor().copy()?.detach())
}

/// The prefix of the names of versions in the state of a trainer; the step follows.
const PREFIX: &str = "readout.";

/// Returns the versions among the tensors of a state, in order.
pub(super) fn versions_in(tensors: &BTreeMap<String, Tensor>) -> Vec<ReadoutVersion> {
    let version = |(name, matrix): (&String, &Tensor)| {
        Some(ReadoutVersion { step: name.strip_prefix(PREFIX)?.parse().ok()?, matrix: matrix.clone() })
    };
    let mut versions: Vec<_> = tensors.iter().filter_map(version).collect();
    versions.sort_by_key(|version| version.step);
    versions
}

/// Brings the versions among the tensors of a state to a step whose predecessor is left out: `matrix` is the last stage's, which does not change.
pub(crate) fn leave_out_update(tensors: &mut Weights, step: u64, refresh: u64, matrix: Option<Tensor>) {
    if let Some(matrix) = matrix.filter(|_| step.is_multiple_of(refresh)) {
        tensors.insert(state_name(step), matrix);
    }
    let steps = |name: &str| name.strip_prefix(PREFIX)?.parse::<u64>().ok();
    let mut held: Vec<u64> = tensors.names().filter_map(steps).collect();
    held.sort_unstable();
    // Version 0, or that of the run's first step, is in force until another one is.
    let in_force = held.iter().copied().filter(|version| *version <= version_at(refresh, step)).max();
    for before in held.into_iter().filter(|version| in_force.is_some_and(|in_force| *version < in_force)) {
        tensors.remove(&state_name(before));
    }
}

/// Returns the name of a version in the state of a trainer.
pub(super) fn state_name(step: u64) -> String {
    format!("{PREFIX}{step}")
}

impl Versions {
    /// Holds the matrix called `name` in `store` as the version before the first step.
    pub(super) fn new(refresh: u64, name: &str, store: &ParameterStore, is_source: bool) -> Result<Self> {
        let entry = store.entries().into_iter().find(|entry| entry.name == name);
        let entry = entry.ok_or_else(|| Error::Internal(format!("the shared matrix {name} is missing")))?;
        let source = if is_source { Some(copy(&entry.var)?) } else { None };
        Ok(Self { refresh, var: entry.var, in_force: 0, source, newer: VecDeque::new(), published: None })
    }

    /// Makes `version` the one in force.
    fn use_version(&mut self, version: ReadoutVersion) -> Result<()> {
        self.in_force = version.step;
        match &mut self.source {
            Some(source) => *source = version.matrix,
            None => self.var.set(&version.matrix)?,
        }
        Ok(())
    }

    /// Notes that the update before `step` is done: the last stage publishes its matrix if it is time, and the version of `step` comes into force.
    pub(super) fn updated(&mut self, step: u64) -> Result<()> {
        if self.source.is_some() && step.is_multiple_of(self.refresh) {
            let version = ReadoutVersion { step, matrix: copy(&self.var)? };
            self.newer.push_back(version.clone());
            self.published = Some(version);
        }
        let wanted = version_at(self.refresh, step);
        while let Some(version) = self.newer.pop_front() {
            if version.step > wanted {
                self.newer.push_front(version);
                break;
            }
            self.use_version(version)?;
        }
        match wanted <= self.in_force {
            true => Ok(()),
            false => Err(Error::Internal(format!("version {wanted} of the shared matrix has not arrived"))),
        }
    }

    /// Returns the versions that the last stage holds; none in other stages.
    pub(super) fn held(&self) -> impl Iterator<Item = (u64, &Tensor)> {
        let newer = self.newer.iter().filter(|_| self.source.is_some());
        let in_force = self.source.iter().map(|matrix| (self.in_force, matrix));
        in_force.chain(newer.map(|version| (version.step, &version.matrix)))
    }

    /// Returns the refresh interval.
    pub(super) fn refresh(&self) -> u64 {
        self.refresh
    }
}

impl Stage {
    /// Sets the first step of the run, before it.
    pub(crate) fn set_first_step(&mut self, step: u64) {
        if let Some(versions) = &mut self.readout {
            versions.in_force = step;
        }
    }

    /// Returns the refresh interval, if the stage's head shares its matrix.
    pub(crate) fn copies_readout(&self) -> Option<u64> {
        self.readout.as_ref().filter(|versions| versions.source.is_none()).map(|versions| versions.refresh)
    }

    /// Returns whether the stage sends versions of the shared matrix to the previous one.
    pub(crate) fn sends_readout(&self) -> bool {
        self.sends_readout
    }

    /// Stores a version of the shared matrix for a later step, if the stage's head shares it.
    pub(crate) fn accept_readout(&mut self, version: ReadoutVersion) -> Result<(), Failure> {
        let Some(versions) = self.readout.as_mut().filter(|versions| versions.source.is_none()) else { return Ok(()) };
        let ReadoutVersion { step, matrix } = version;
        let matrix = self.device.bring(&matrix).map_err(|error| {
            Failure::new(Origin::Stage(self.index), Phase::Transfer, self.device.hooks().explain(error))
        })?;
        versions.newer.push_back(ReadoutVersion { step, matrix });
        Ok(())
    }

    /// Returns the version of the shared matrix that the last update published, if it did and nobody has taken it.
    pub(crate) fn take_published(&mut self) -> Result<Option<ReadoutVersion>> {
        let published = self.readout.as_mut().and_then(|versions| versions.published.take());
        let release =
            |ReadoutVersion { step, matrix }| Ok(ReadoutVersion { step, matrix: self.device.release(&matrix)? });
        published.map(release).transpose()
    }

    /// Continues with the versions of a trainer's state, whose refresh interval is given.
    ///
    /// # Errors
    /// If its run shared no matrix, with another interval, or versions are missing.
    pub(super) fn restore_readout(&mut self, refresh: Option<u64>, versions: Vec<ReadoutVersion>) -> Result<()> {
        let own = self.readout.as_ref().map(|versions| versions.refresh);
        if own != refresh {
            let words = |refresh: Option<u64>| match refresh {
                Some(steps) => format!("shares its readout, refreshed every {steps} steps"),
                None => "shares no readout".to_owned(),
            };
            let problem = format!("in it stage {} {}, in this run it {}", self.index, words(refresh), words(own));
            return Err(Error::invalid("trainer state", problem, "set heads as in that run"));
        }
        let Some(held) = &mut self.readout else { return Ok(()) };
        let mut versions = versions.into_iter();
        let Some(first) = versions.next() else {
            let remedy = "give the tensors that were saved with the state";
            return Err(Error::invalid("trainer state", "the versions of the shared readout are missing", remedy));
        };
        let here = |ReadoutVersion { step, matrix }| {
            Ok::<_, Error>(ReadoutVersion { step, matrix: self.device.bring(&matrix)? })
        };
        held.use_version(here(first)?)?;
        held.newer = versions.map(here).collect::<Result<_>>()?;
        Ok(())
    }
}

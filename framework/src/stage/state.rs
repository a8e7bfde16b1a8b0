//! The weights of a stage, and its state beside them.

mod regroup;

pub(crate) use regroup::{regrouped, regrouped_name};

use std::{collections::BTreeMap, fs, path::Path};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{
    Stage, Trainable,
    initial::is_head,
    readout::{self, Versions},
    trainable::state::{PartState, Tensors},
};
use crate::{Error, Result, model::ShardFile, optimizer::lr_schedule::Plateau};

/// What a stage needs beside its weights to continue exactly: the states of its optimizers, its moving averages and its learning-rate
/// schedule.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageState {
    /// Its tensors by name; not serialized.
    #[serde(skip)]
    pub(crate) tensors: BTreeMap<String, Tensor>,
    /// The shape of every parameter and buffer by name.
    shapes: BTreeMap<String, Vec<usize>>,
    main: PartState,
    head: Option<PartState>,
    plateau: Plateau,
    /// The refresh interval of the shared readout, whose versions are tensors of the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    readout_refresh: Option<u64>,
    /// Whether it is made of the states of the stages of another partition. Then a head that is not in it starts anew.
    #[serde(skip)]
    is_regrouped: bool,
}

/// A [`StageState`] without its tensors, which can be sent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StateNote {
    /// As JSON: the state of an optimizer may be of any form.
    rest: String,
    names: Vec<String>,
    is_regrouped: bool,
}

/// A copy of a stage's weights, and its state beside them.
#[derive(Debug)]
pub struct StageCapture {
    pub(crate) weights: Vec<(String, Tensor)>,
    pub(crate) state: StageState,
    /// The files with the tensors of both, which are not here then.
    pub(crate) files: Option<StageFiles>,
}

/// The files with the tensors of a capture.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StageFiles {
    pub(crate) weights: ShardFile,
    pub(crate) state: ShardFile,
}

/// Where a capture of a stage goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CaptureTo {
    /// To the coordinator.
    Coordinator,
    /// If the stage is on another rank, to files in this folder, if it is there; else to the coordinator.
    Folder(String),
}

impl CaptureTo {
    /// To files in `folder`, or else to the coordinator.
    pub(crate) fn files_in(folder: Option<&Path>) -> Self {
        folder.and_then(Path::to_str).map_or(Self::Coordinator, |folder| Self::Folder(folder.to_owned()))
    }
}

impl StageCapture {
    /// Writes the tensors to files in `folder`, and keeps these instead.
    ///
    /// # Errors
    /// If one cannot be written; the tensors stay then.
    pub(crate) fn write_to(&mut self, folder: &Path, stage: usize) -> Result<()> {
        let place = |of: &str| folder.join(format!("{of}-{stage}.safetensors"));
        let weights = ShardFile::write(place("weights"), &self.weights)?;
        let tensors: Vec<(String, Tensor)> = self.state.tensors.clone().into_iter().collect();
        let state = ShardFile::write(place("state"), &tensors);
        // What does not help must not fill the disk.
        let state = state.inspect_err(|_| drop(fs::remove_file(place("weights"))))?;
        self.files = Some(StageFiles { weights, state });
        self.weights = Vec::new();
        self.state.tensors = BTreeMap::new();
        Ok(())
    }
}

/// What the names of tensors of a stage's optimizers begin with: those of its main part, and those of its head.
fn prefixes(stage: usize) -> [String; 2] {
    ["main", "head"].map(|part| format!("optimizer.{stage}.{part}"))
}

impl StageState {
    /// The refresh interval of the shared readout, if the stage takes part in it.
    pub(crate) fn readout_refresh(&self) -> Option<u64> {
        self.readout_refresh
    }

    /// Returns the state without its tensors, and these.
    ///
    /// # Errors
    /// If it has a value that JSON lacks.
    pub(crate) fn into_note(mut self) -> Result<(StateNote, Vec<Tensor>)> {
        let (names, tensors) = std::mem::take(&mut self.tensors).into_iter().unzip();
        let rest = serde_json::to_string(&self).map_err(Error::other)?;
        Ok((StateNote { rest, names, is_regrouped: self.is_regrouped }, tensors))
    }

    /// Returns the state that [`Self::into_note`] was made of; it takes as many of `tensors` as it had.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn of_note(note: StateNote, tensors: &mut impl Iterator<Item = Tensor>) -> Result<Self> {
        let state: Self = serde_json::from_str(&note.rest).map_err(Error::other)?;
        Ok(Self { tensors: note.names.into_iter().zip(tensors).collect(), is_regrouped: note.is_regrouped, ..state })
    }

    /// Takes the tensors of stage `k` out of those of all stages.
    pub(crate) fn take_tensors(&mut self, k: usize, all: &mut Tensors) {
        let prefixes = prefixes(k).map(|prefix| format!("{prefix}."));
        let is_own = |name: &str| {
            let parameter = name.strip_prefix("parameters.");
            parameter.is_some_and(|name| self.shapes.contains_key(name)) || prefixes.iter().any(|p| name.starts_with(p))
        };
        let (own, others) = std::mem::take(all).into_iter().partition(|(name, _)| is_own(name));
        (self.tensors, *all) = (own, others);
        // Every stage may hold the versions of the shared readout.
        let versions = readout::versions_in(all).into_iter();
        self.tensors.extend(versions.map(|version| (readout::state_name(version.step), version.matrix)));
    }
}

impl Stage {
    /// Returns a copy of every parameter and buffer of the stage and its head, by name; of parameters the moving average, where there is one
    /// ([`EmaConfig`](crate::EmaConfig)).
    pub fn snapshot(&self) -> Result<Vec<(String, Tensor)>> {
        let mut tensors = self.parameters.snapshot()?;
        if let Some(head) = &self.head {
            tensors.extend(head.parameters.snapshot()?);
        }
        Ok(tensors)
    }

    /// Returns a copy of all that the stage needs to continue exactly, between two steps.
    ///
    /// # Errors
    /// As [`Self::snapshot`] and [`Self::state`].
    pub(crate) fn capture(&self) -> Result<StageCapture> {
        Ok(StageCapture { weights: self.snapshot()?, state: self.state()?, files: None })
    }

    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let entries = self.parts().flat_map(|part: &Trainable| part.store().entries());
        entries.map(|entry| (entry.name, entry.var.dims().to_vec())).collect()
    }

    /// Returns the state, between steps.
    ///
    /// # Errors
    /// If an optimizer fails to return its own, or a value cannot be read.
    pub(crate) fn state(&self) -> Result<StageState> {
        let mut tensors = BTreeMap::new();
        let [main, head] = prefixes(self.index);
        for (step, matrix) in self.readout.iter().flat_map(Versions::held) {
            tensors.insert(readout::state_name(step), matrix.clone());
        }
        Ok(StageState {
            shapes: self.shapes(),
            main: self.parameters.state(&main, &mut tensors)?,
            head: self.head_parameters().map(|part| part.state(&head, &mut tensors)).transpose()?,
            plateau: self.lr_schedule.plateau(),
            readout_refresh: self.readout.as_ref().map(Versions::refresh),
            tensors,
            is_regrouped: false,
        })
    }

    /// Continues from what [`Self::state`] of such a stage returned, before the first step. The stage must have been built with that one's weights.
    ///
    /// # Errors
    /// If it is the state of a stage with other parameters or optimizers, or a tensor is missing.
    pub(crate) fn restore(&mut self, state: StageState) -> Result<()> {
        let StageState { mut tensors, shapes, main, head, plateau, readout_refresh, is_regrouped } = state;
        let present = self.shapes();
        // A head is continued whole or not at all.
        let fits = |name: &String| shapes.get(name) == present.get(name);
        let head = head.filter(|_| !is_regrouped || present.keys().filter(|name| is_head(name)).all(fits));
        let begins = |name: &str| is_regrouped && is_head(name);
        let differs = |name: &&String| shapes.get(*name) != present.get(*name) && !begins(name);
        if let Some(name) = shapes.keys().chain(present.keys()).find(differs) {
            let of = |shapes: &BTreeMap<String, Vec<usize>>| {
                shapes.get(name).map_or_else(|| "absent".to_owned(), |shape| format!("of shape {shape:?}"))
            };
            let problem = format!("{name} is {} in it, and {} in the model", of(&shapes), of(&present));
            return Err(Error::invalid("trainer state", problem, "give the state of this model, with the same heads"));
        }
        let prefixes = prefixes(self.index);
        self.parameters.restore(&prefixes[0], main, &mut tensors)?;
        // Both have a head, or neither: a head without parameters has nothing to restore.
        if let (Some(own), Some(state)) = (&mut self.head, head) {
            own.parameters.restore(&prefixes[1], state, &mut tensors)?;
        }
        // Under another partition it is another stage that has a head, or none.
        let readout_refresh = readout_refresh.filter(|_| !is_regrouped || self.readout.is_some());
        self.restore_readout(readout_refresh, readout::versions_in(&tensors))?;
        self.lr_schedule.restore(plateau);
        Ok(())
    }
}

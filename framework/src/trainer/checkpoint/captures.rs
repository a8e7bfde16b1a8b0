//! When the state of a running trainer is captured, and how a capture becomes a checkpoint.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{Checkpoint, CheckpointConfig, Store};
use crate::{
    Weights,
    model::ShardFile,
    stage::{StageCapture, StageState},
    trainer::state::OwnState,
};

/// Why a step is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// To be written.
    Checkpoint,
    /// To be kept in memory only.
    Snapshot,
}

impl Reason {
    /// Makes the folder for what other ranks write of the capture after `steps` steps; none if they send it.
    pub(crate) fn folder_for_ranks(self, store: Option<&Store>, steps: u64) -> Option<TempDir> {
        store.filter(|_| self == Self::Checkpoint)?.folder_for_ranks(steps)
    }
}

/// The two halves of a capture, which arrive in any order.
struct Open {
    reason: Reason,
    /// What other ranks write.
    folder: Option<TempDir>,
    own: Option<OwnState>,
    stages: Option<Vec<StageCapture>>,
}

/// A complete capture: a checkpoint, and the files in which other ranks have written those of its tensors that are not here.
#[derive(Clone, Debug)]
pub(crate) struct Captured {
    pub(crate) checkpoint: Arc<Checkpoint>,
    pub(crate) files: Arc<RankFiles>,
}

/// The files that other ranks have written for a checkpoint, by stage.
#[derive(Debug, Default)]
pub(crate) struct RankFiles {
    pub(crate) weights: BTreeMap<usize, ShardFile>,
    pub(crate) state: BTreeMap<usize, ShardFile>,
    /// The folder that they are in, which is removed with this.
    folder: Option<TempDir>,
}

impl Captured {
    /// Puts the captures of all stages together with the trainer's own state.
    pub(crate) fn new(own: OwnState, stages: Vec<StageCapture>, folder: Option<TempDir>) -> Self {
        let mut files = RankFiles::default();
        let parts = stages.into_iter().enumerate().map(|(k, StageCapture { weights, state, files: written })| {
            if let Some(written) = written {
                files.weights.insert(k, written.weights);
                files.state.insert(k, written.state);
            }
            (weights, state)
        });
        let (weights, states): (Vec<_>, Vec<StageState>) = parts.unzip();
        let weights = Weights::of_stages(weights).with_units_per_stage(own.units_per_stage());
        let state = own.with_stages(states);
        // An empty folder is of no use any more.
        files.folder = folder.filter(|_| !files.weights.is_empty());
        Self { checkpoint: Arc::new(Checkpoint { weights, state }), files: Arc::new(files) }
    }

    /// Returns whether all of it is here.
    fn is_here(&self) -> bool {
        self.files.weights.is_empty()
    }
}

/// When the state is captured.
#[derive(Clone)]
pub(crate) struct Timing {
    /// Steps and time between two checkpoints; none if none is written.
    every: Option<(Option<u64>, Duration)>,
    /// Steps between two captures that are kept in memory.
    snapshot_every: Option<u64>,
    last_checkpoint: Instant,
}

impl Timing {
    pub(crate) fn new(config: Option<&CheckpointConfig>, snapshot_every: Option<u64>) -> Self {
        let every = config.map(|config| (config.every_steps, Duration::from_secs_f64(config.every_minutes * 60.0)));
        Self { every, snapshot_every, last_checkpoint: Instant::now() }
    }

    /// Returns whether the state after `steps` steps is to be captured, and why. The time until the next checkpoint then begins anew.
    pub(crate) fn reason(&mut self, steps: u64) -> Option<Reason> {
        let is_due = |(every, time): (Option<u64>, Duration)| {
            every.is_some_and(|every| steps.is_multiple_of(every)) || self.last_checkpoint.elapsed() >= time
        };
        if self.every.is_some_and(is_due) {
            self.last_checkpoint = Instant::now();
            return Some(Reason::Checkpoint);
        }
        self.snapshot_every.filter(|every| steps.is_multiple_of(*every)).map(|_| Reason::Snapshot)
    }
}

/// The captures of a run: those in progress, and the newest one.
pub(crate) struct Captures {
    pub(crate) timing: Timing,
    /// By the number of steps made.
    open: BTreeMap<u64, Open>,
    done: Arc<Mutex<Newest>>,
}

/// The newest complete captures.
#[derive(Default)]
struct Newest {
    /// In memory.
    capture: Option<Captured>,
    /// On disk: its steps and its folder.
    saved: Option<(u64, PathBuf)>,
    /// The steps of the last checkpoint that was handed to the store.
    written: Option<u64>,
}

impl Captures {
    pub(crate) fn new(timing: Timing) -> Self {
        Self { timing, open: BTreeMap::new(), done: Arc::default() }
    }

    /// Returns others that have the same newest capture, now and later.
    pub(crate) fn sharing(&self) -> Self {
        Self { timing: self.timing.clone(), open: BTreeMap::new(), done: Arc::clone(&self.done) }
    }

    fn done(&self) -> MutexGuard<'_, Newest> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to count the time until the next checkpoint.
    pub(crate) fn begin(&mut self) {
        self.timing.last_checkpoint = Instant::now();
    }

    /// Notes that the state after `steps` steps is being captured.
    pub(crate) fn begun(&mut self, steps: u64, reason: Reason, folder: Option<TempDir>) {
        if reason == Reason::Checkpoint {
            self.begin();
        }
        self.open.insert(steps, Open { reason, folder, own: None, stages: None });
    }

    /// Returns whether a capture is in progress whose steps may all be done.
    pub(crate) fn are_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Returns whether the trainer's own state after `steps` steps is wanted.
    pub(crate) fn wants(&self, steps: u64) -> bool {
        self.open.contains_key(&steps)
    }

    /// Adds the trainer's own half. Returns the checkpoint to write, if it is complete now and is to be written.
    pub(crate) fn add_own(&mut self, steps: u64, own: OwnState) -> Option<Captured> {
        if let Some(open) = self.open.get_mut(&steps) {
            open.own = Some(own);
        }
        self.complete(steps)
    }

    /// Adds the stages' half, likewise.
    pub(crate) fn add_stages(&mut self, steps: u64, stages: Vec<StageCapture>) -> Option<Captured> {
        if let Some(open) = self.open.get_mut(&steps) {
            open.stages = Some(stages);
        }
        self.complete(steps)
    }

    fn complete(&mut self, steps: u64) -> Option<Captured> {
        let is_complete = |open: &Open| open.own.is_some() && open.stages.is_some();
        if !self.open.get(&steps).is_some_and(is_complete) {
            return None;
        }
        let Open { reason, folder, own, stages } = self.open.remove(&steps)?;
        self.completed(Captured::new(own?, stages?, folder), reason)
    }

    /// Keeps a complete capture, if all of it is here. Returns it if it is to be written.
    pub(crate) fn completed(&self, captured: Captured, reason: Reason) -> Option<Captured> {
        let mut done = self.done();
        if captured.is_here() {
            done.capture = Some(captured.clone());
        }
        if reason == Reason::Snapshot {
            return None;
        }
        done.written = Some(captured.checkpoint.steps());
        Some(captured)
    }

    /// Returns whether the checkpoint after `steps` steps was the last one that was handed to the store, or continued from.
    pub(crate) fn is_written(&self, steps: u64) -> bool {
        self.done().written == Some(steps)
    }

    /// Notes that the trainer continues from the checkpoint after `steps` steps.
    pub(crate) fn continues_from(&self, steps: u64) {
        self.done().written = Some(steps);
    }

    /// The newest capture in memory.
    pub(crate) fn newest(&self) -> Option<Arc<Checkpoint>> {
        self.done().capture.as_ref().map(|captured| Arc::clone(&captured.checkpoint))
    }

    /// Notes that a capture has been saved.
    pub(crate) fn saved(&self, steps: u64, folder: &Path) {
        self.done().saved = Some((steps, folder.to_owned()));
    }

    /// Returns the steps and the folder of the last one that has been saved, if it is newer than the newest in memory.
    pub(crate) fn newest_on_disk(&self) -> Option<(u64, PathBuf)> {
        let done = self.done();
        let in_memory = done.capture.as_ref().map(|captured| captured.checkpoint.steps());
        done.saved.clone().filter(|(steps, _)| in_memory.is_none_or(|in_memory| in_memory < *steps))
    }

    /// Returns the newest capture if it has not been handed to the store; afterwards it counts as handed over.
    pub(crate) fn take_unwritten(&self) -> Option<Captured> {
        let mut done = self.done();
        let written = done.written;
        let is_newer = |newest: &Captured| written.is_none_or(|steps| steps < newest.checkpoint.steps());
        let newest = done.capture.clone().filter(is_newer)?;
        done.written = Some(newest.checkpoint.steps());
        Some(newest)
    }

    /// Forgets captures in progress, because the stages have failed.
    pub(crate) fn abandon(&mut self) {
        self.open.clear();
    }
}

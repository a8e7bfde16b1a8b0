//! Checkpoints: all that a trainer needs to continue exactly, in memory and in folders.

mod captures;
mod during_fit;
mod store;

use captures::{Captured, RankFiles};
pub(super) use captures::{Captures, Reason, Timing};
use store::Saved;
pub(super) use store::Store;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Criterion, Trainer, TrainerState};
use crate::{
    Error, Result, Weights,
    checkpoint::{self, Manifest},
    files,
};

/// The file with the state of a trainer, without its tensors.
const STATE: &str = "trainer.json";
/// The folder with the tensors of the state.
const TENSORS: &str = "state";

/// When checkpoints are written, as configuration files give it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps between two checkpoints. Default: only the time counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub every_steps: Option<u64>,
    /// Minutes of training between two checkpoints.
    pub every_minutes: f64,
    /// The number of checkpoints that are kept, the newest ones; 0: none is written.
    pub keep: usize,
    /// The measure of the last stage by which the best weights are chosen, which are kept too. Default: accuracy for images and vectors, loss for texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_best: Option<Criterion>,
    /// Whether a run that is stopped, by a signal or a callback, ends with a checkpoint.
    pub on_stop: bool,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_steps: None, every_minutes: 10.0, keep: 3, keep_best: None, on_stop: true }
    }
}

impl CheckpointConfig {
    /// # Errors
    /// If a setting is out of range; the message names its key.
    pub(super) fn validate(&self) -> Result<()> {
        if self.every_steps == Some(0) {
            return Err(Error::invalid("checkpoint.every_steps", "0", "use 1 or more, or keep = 0 for no checkpoints"));
        }
        if self.every_minutes.is_nan()
            || self.every_minutes <= 0.0
            || Duration::try_from_secs_f64(self.every_minutes * 60.0).is_err()
        {
            let value = self.every_minutes.to_string();
            return Err(Error::invalid("checkpoint.every_minutes", value, "use a number above 0, such as 10"));
        }
        Ok(())
    }
}

/// All that a trainer needs to continue exactly: its weights, and its state beside them.
///
/// A trainer writes checkpoints while it trains ([`TrainerBuilder::checkpoint`](super::TrainerBuilder::checkpoint)), and another one continues from
/// the last of them ([`TrainerBuilder::resume`](super::TrainerBuilder::resume)):
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
/// # let run = folder.path().join("run");
/// use interlock::{CheckpointConfig, Trainer};
///
/// let every_step = CheckpointConfig { every_steps: Some(1), ..CheckpointConfig::default() };
/// let builder = || Trainer::builder(Net).checkpoint(&run, every_step.clone());
/// builder().steps(3).build()?.fit(Corners)?; // or the machine fails after three steps
///
/// let mut trainer = builder().resume(&run)?.steps(5).build()?;
/// assert_eq!(trainer.steps(), 3);
/// assert_eq!(trainer.fit(Corners)?.steps, 5); // the same weights as after five steps in one go
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Every parameter and buffer.
    pub weights: Weights,
    /// Everything else.
    pub state: TrainerState,
}

/// Files of the caller's that checkpoints have too, by name.
pub(super) type Attached = BTreeMap<String, Arc<[u8]>>;

impl Checkpoint {
    /// Returns the number of optimizer steps that had been made.
    pub fn steps(&self) -> u64 {
        self.state.steps()
    }

    /// Writes the checkpoint to `RUN/checkpoints/step-N`, where `run` is the folder `RUN` and `N` its number of steps; an older one of the same steps is
    /// replaced. Each stage has files of its own. Returns the folder.
    ///
    /// # Errors
    /// If a file cannot be written; nothing of it is left then.
    pub fn save(&self, run: impl AsRef<Path>) -> Result<PathBuf> {
        self.save_with(run.as_ref(), &Attached::new(), &RankFiles::default())
    }

    /// As [`Self::save`], with other files beside its own, and with tensors that other ranks have written.
    fn save_with(&self, run: &Path, attached: &Attached, of_ranks: &RankFiles) -> Result<PathBuf> {
        let path = checkpoint::place(run, self.steps());
        let all = path.parent().unwrap_or(run);
        files::create_folder(all)?;
        let hidden = |ending: &str| all.join(format!(".step-{}{ending}", self.steps()));
        let (aside, old) = (hidden(checkpoint::PART), hidden(checkpoint::OLD));
        // Between the two renames of a replacement, the new one counts where it is ([`checkpoint::checkpoints_in`]).
        let saved = self.write_to(&aside, attached, of_ranks).and_then(|()| {
            let replace = || {
                if path.exists() {
                    checkpoint::remove(&old);
                    fs::rename(&path, &old)?;
                }
                fs::rename(&aside, &path)
            };
            replace().map_err(|e| Error::file(&path, e))?;
            files::sync_folder_of(&path).map_err(|e| Error::file(&path, e))
        });
        // What cannot be removed does no harm: it is no checkpoint, and the next write removes it.
        checkpoint::remove(&aside);
        checkpoint::remove(&old);
        saved.map(|()| path)
    }

    fn write_to(&self, folder: &Path, attached: &Attached, of_ranks: &RankFiles) -> Result<()> {
        let make = |folder: &Path| fs::create_dir(folder).map_err(|e| Error::file(folder, e));
        checkpoint::remove(folder);
        make(folder)?;
        let tensors = folder.join(TENSORS);
        make(&tensors)?;
        let mut known = self.weights.save_with(folder, &of_ranks.weights)?;
        let of_state = self.state.tensors.save_with(&tensors, &of_ranks.state)?;
        known.extend(of_state.into_iter().map(|(file, entry)| (format!("{TENSORS}/{file}"), entry)));
        let path = folder.join(STATE);
        let text = serde_json::to_string_pretty(&self.state).map_err(|e| Error::file(&path, e))?;
        files::write(&path, text)?;
        for (name, bytes) in attached {
            files::write(&folder.join(name), bytes)?;
        }
        Manifest::write(folder, self.steps(), &known)
    }

    /// Reads the checkpoint in the folder `path`, after comparing all its files with their checksums.
    ///
    /// # Errors
    /// If a file is missing or is not as it was written; the error names the file.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let manifest = Manifest::verified(path)?;
        let file = path.join(STATE);
        let text = fs::read_to_string(&file).map_err(|e| Error::file(&file, e))?;
        let mut state: TrainerState = serde_json::from_str(&text).map_err(|e| Error::file(&file, e))?;
        if state.steps() != manifest.steps {
            let cause = format!("it is of step {}, its manifest of step {}", state.steps(), manifest.steps);
            return Err(Error::file(file, cause));
        }
        state.tensors = Weights::load(path.join(TENSORS))?;
        Ok(Self { weights: Weights::load(path)?, state })
    }

    /// Reads the newest whole checkpoint of the run in the folder `run`, or the checkpoint in this folder. A damaged one is skipped with a warning that
    /// names its file. Returns it with its folder; none if there is no checkpoint at all.
    ///
    /// # Errors
    /// If all checkpoints are damaged: the error of the newest one.
    pub fn newest(run: impl AsRef<Path>) -> Result<Option<(Self, PathBuf)>> {
        let mut first = None;
        for (steps, path) in checkpoint::checkpoints_in(run.as_ref()) {
            match Self::load(&path) {
                Ok(checkpoint) => return Ok(Some((checkpoint, path))),
                Err(error) => {
                    tracing::warn!("the checkpoint after {steps} steps is not used: {error}");
                    first.get_or_insert(error);
                }
            }
        }
        first.map_or(Ok(None), Err)
    }
}

impl Trainer {
    /// Writes checkpoints of later fits into the folder `run`, as [`TrainerBuilder::checkpoint`](super::TrainerBuilder::checkpoint) says.
    ///
    /// # Errors
    /// If a setting is out of range, the folder has a checkpoint of more steps than this trainer has made, or the thread that writes cannot be started.
    pub fn checkpoint_to(&mut self, run: impl AsRef<Path>, config: &CheckpointConfig) -> Result<()> {
        config.validate()?;
        if config.keep > 0 {
            checkpoint::begin_after(run.as_ref(), self.steps)?;
            self.captures.timing = Timing::new(Some(config), self.snapshot_every);
            let (attached, has_other_ranks) = (self.attached.clone(), self.pipeline.has_other_ranks());
            let store = Store::start(run.as_ref(), config, attached, self.patience(), has_other_ranks)?;
            self.store = Some(Arc::new(store));
            self.checkpoint_on_stop = config.on_stop;
        }
        Ok(())
    }

    /// Returns a copy of all that is needed to continue exactly: [`Self::snapshot`] and [`Self::state`].
    ///
    /// # Errors
    /// As these.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        Ok(Checkpoint { weights: self.snapshot()?, state: self.state()? })
    }

    /// Returns the newest checkpoint that was captured during a fit, also after the fit has failed. With several ranks, of which each has written a part of it, it
    /// is read again.
    pub fn last_checkpoint(&self) -> Option<Arc<Checkpoint>> {
        self.read_again(|_, folder| Checkpoint::load(folder).map(Arc::new)).or_else(|| self.captures.newest())
    }

    /// Returns the number of steps of [`Self::last_checkpoint`] and its weights, without reading more than these.
    pub fn last_weights(&self) -> Option<(u64, Weights)> {
        let in_memory = || self.captures.newest().map(|newest| (newest.steps(), newest.weights.clone()));
        self.read_again(|steps, folder| Ok((steps, Weights::load(folder)?))).or_else(in_memory)
    }

    /// Reads from the newest checkpoint that this trainer has saved, if it is newer than that in memory.
    fn read_again<T>(&self, read: impl FnOnce(u64, &Path) -> Result<T>) -> Option<T> {
        let (steps, folder) = self.captures.newest_on_disk()?;
        read(steps, &folder).inspect_err(|error| tracing::warn!("{error}")).ok()
    }
}

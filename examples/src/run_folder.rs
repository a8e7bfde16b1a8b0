//! The folder of a run: configuration, environment, events, weights, report, log, decisions of its strategy, and status.

mod place;

use place::{LOCK, lock, remove};
pub(crate) use place::{create, not_through_symlinks, refuse_existing, refuse_no_place};

use std::{
    ffi::OsStr,
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use interlock::{
    Error, Report, Result, Weights,
    tools::{
        checkpoint::{BEST, MODEL, Manifest, WEIGHTS},
        files,
        timeline::Timeline,
        trainer::Best,
    },
};
use interlock_models::data::Description;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    bounded,
    config::{ConfigOf, RunConfig},
    environment::{self, Environment},
    events::{self, Before, EventLog, JsonLines, Sink},
    memory,
    program::{DataSection, ModelSection, Program, program},
    tensorboard::{self, TensorBoard},
    terminal::note,
};

pub(crate) const CONFIG: &str = "config.toml";
pub(crate) const DATA: &str = "data.json";
const STATUS: &str = "status.json";
pub(crate) const REPORT: &str = "report.json";
/// The file with the addresses of the metrics of all ranks, while they are served.
const TARGETS: &str = "targets.json";
/// The file with the timeline of the last steps.
const TIMELINE: &str = "timeline.json";

/// The contents of `timeline.json`.
#[derive(Serialize)]
struct TimelineFile<'a> {
    format: u32,
    #[serde(flatten)]
    timeline: &'a Timeline,
}

/// The format version of a `timeline.json`; none in format 1.
#[derive(Deserialize)]
struct TimelineFormat {
    format: Option<u32>,
}

/// The state of a run, as in `status.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum Status {
    /// Running, or killed.
    Running,
    /// Finished.
    Finished,
    /// Stopped after a step by a signal, with weights and report.
    Stopped {
        /// The number of finished optimizer steps.
        steps: u64,
    },
    /// Failed.
    Failed {
        /// The error.
        cause: String,
    },
}

/// The folder of one run.
#[derive(Clone, Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    /// Whether its final status has been written; only the first one is.
    ended: Arc<Mutex<bool>>,
    /// The locked file of a run that this process writes: it stays locked as long as this is here.
    _lock: Option<Arc<File>>,
}

impl RunFolder {
    /// Locks a folder, which need not have a run, for this process.
    ///
    /// # Errors
    /// If another process writes a run in it.
    pub(crate) fn lock(path: &Path) -> Result<Self> {
        Ok(Self { _lock: Some(lock(path)?), path: path.to_owned(), ended: Arc::default() })
    }

    /// Returns whether the folder at `path` has nothing of a run but what [`Self::begin`] writes before the configuration.
    pub(crate) fn is_hardly_begun(path: &Path) -> bool {
        let early = [LOCK, DATA, environment::FILE, STATUS];
        let is_early = |name: &OsStr| {
            early.iter().any(|file| name == *file) || Path::new(name).extension().is_some_and(|end| end == "part")
        };
        let entries = std::fs::read_dir(path);
        entries.is_ok_and(|mut entries| entries.all(|entry| entry.is_ok_and(|entry| is_early(&entry.file_name()))))
    }

    /// Begins a run in this folder, whose lock this process has: writes configuration, description of the data, environment and status. Events of a run that
    /// was interrupted before its first checkpoint are removed.
    pub(crate) fn begin<M: ModelSection, D: DataSection>(
        self,
        config: &RunConfig<M, D>,
        data: &Description,
    ) -> Result<Self> {
        let folder = self;
        let path = &folder.path;
        remove(&[&path.join(events::FILE)], &[&path.join(tensorboard::FOLDER), &path.join(BEST)])?;
        folder.write_json(DATA, data)?;
        folder.write_json(environment::FILE, &Environment::of_this_process())?;
        folder.write_json(STATUS, &Status::Running)?;
        // Last: a folder with a configuration is that of a run, with all other files.
        files::write(&folder.path.join(CONFIG), config.to_toml()?)?;
        Ok(folder)
    }

    /// Opens the folder of a run in any state.
    ///
    /// # Errors
    /// If it is not the folder of a run.
    pub(crate) fn open_any(path: &Path) -> Result<Self> {
        let folder = Self { path: path.to_owned(), ended: Arc::default(), _lock: None };
        folder.config_text()?;
        Ok(folder)
    }

    /// Opens the folder of a run to continue it, and locks it.
    ///
    /// # Errors
    /// If it is not the folder of a run, or another process writes it.
    pub(crate) fn open_to_continue(path: &Path) -> Result<Self> {
        let folder = Self::open_any(path)?;
        Ok(Self { _lock: Some(lock(path)?), ..folder })
    }

    /// Continues the run with this configuration.
    pub(crate) fn continue_with<M: ModelSection, D: DataSection>(&self, config: &RunConfig<M, D>) -> Result<()> {
        files::write(&self.path.join(CONFIG), config.to_toml()?)?;
        self.write_json(environment::FILE, &Environment::of_this_process())?;
        self.write_json(STATUS, &Status::Running)?;
        // What it ended with before is in its checkpoints, and would be taken for the end of this run.
        let model = self.path.join(MODEL);
        // Without their index they are no weights, if the program is killed in between.
        remove(&[&self.path.join(REPORT), &model.join(WEIGHTS)], &[&model])
    }

    /// Returns whether the run has weights of its end.
    pub(crate) fn has_weights(&self) -> bool {
        [self.path.join(MODEL), self.path.clone()].iter().any(|folder| folder.join(WEIGHTS).is_file())
    }

    /// Opens the folder of a run that has weights: those of its end, or else of its last checkpoint, which a line on stderr says.
    ///
    /// # Errors
    /// If it is not the folder of a run, or the run has no weights yet.
    pub(crate) fn open<P: Program>(path: &Path) -> Result<(Self, ConfigOf<P>, Description)> {
        let folder = Self::open_any(path)?;
        let config = folder.config::<ConfigOf<P>>()?;
        let status = folder.status()?;
        let has_ended = matches!(status, Status::Finished | Status::Stopped { .. });
        if !(has_ended && folder.has_weights()) {
            let why = match &status {
                _ if has_ended => format!("{MODEL}/{WEIGHTS} is missing"),
                Status::Failed { cause } => format!("the run has failed ({cause})"),
                _ => "the run has not finished".to_owned(),
            };
            match Manifest::newest(path) {
                _ if folder.has_weights() => note(&format!("{why}; its last weights are used")),
                Some(manifest) => note(&format!("{why}; its weights after {} steps are used", manifest.steps)),
                // Who reads the weights is told what is missing.
                None if has_ended => {}
                None => return Err(Error::file(path.join(STATUS), format!("{why}; it has no weights yet"))),
            }
        }
        let data = folder.data()?;
        Ok((folder, config, data))
    }

    /// Returns the configuration, or the part of it that `T` has.
    pub(crate) fn config<T: DeserializeOwned>(&self) -> Result<T> {
        toml::from_str(&self.config_text()?).map_err(|e| Error::file(self.path.join(CONFIG), e))
    }

    /// Returns the text of the configuration.
    pub(crate) fn config_text(&self) -> Result<String> {
        let file = self.path.join(CONFIG);
        bounded::read(&file, bounded::CONFIG).map_err(|e| {
            let right = format!("name a folder that `{} train` has written", program());
            Error::file(&file, format!("{e}; {} is not the folder of a run: {right}", self.path.display()))
        })
    }

    /// Returns the state of the run.
    pub(crate) fn status(&self) -> Result<Status> {
        self.read_json(STATUS)
    }

    /// Returns the description of the data.
    pub(crate) fn data(&self) -> Result<Description> {
        self.read_json(DATA)
    }

    /// Returns the program and the machine of the run, or none for folders of earlier versions.
    pub(crate) fn environment(&self) -> Result<Option<Environment>> {
        self.read_json_if_there(environment::FILE)
    }

    /// Returns the timeline of the last steps, or none while the run is running.
    pub(crate) fn timeline(&self) -> Result<Option<Timeline>> {
        let format: Option<TimelineFormat> = self.read_json_if_there(TIMELINE)?;
        let format = format.and_then(|file| file.format);
        events::check_format(format).map_err(|problem| Error::file(self.path.join(TIMELINE), problem))?;
        self.read_json_if_there(TIMELINE)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the last part of the folder's path.
    pub(crate) fn name(&self) -> String {
        self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned()
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("run.log")
    }

    /// Creates the files of events: `events.jsonl`, and one for TensorBoard if `tensorboard` is set or the run has had one. For a run that continues
    /// after `after` steps, the events of later steps are removed.
    pub(crate) fn event_log(&self, run: &str, tensorboard: bool, after: Option<u64>) -> Result<EventLog> {
        let file = self.path.join(events::FILE);
        let (lines, before) = match after {
            Some(steps) => JsonLines::continue_after(&file, steps)?,
            None => (JsonLines::create(&file)?, Before::default()),
        };
        let mut sinks: Vec<Box<dyn Sink>> = vec![Box::new(lines)];
        let folder = self.path.join(tensorboard::FOLDER);
        if tensorboard || (after.is_some() && folder.is_dir()) {
            let mut board = TensorBoard::create(&folder, after)?;
            // TensorBoard leaves out the evaluation after the last step, too.
            before.evaluated.iter().try_for_each(|event| board.write(event))?;
            sinks.push(Box::new(board));
        }
        Ok(EventLog::new(run, sinks, after.map(|_| before.seconds)))
    }

    /// Writes the timeline of the last steps.
    pub(crate) fn write_timeline(&self, timeline: &Timeline) -> Result<()> {
        let path = self.path.join(TIMELINE);
        // On one line, since there may be thousands of actions.
        let file = TimelineFile { format: events::FORMAT, timeline };
        let text = serde_json::to_string(&file).map_err(|e| Error::file(&path, e))?;
        files::write(&path, text + "\n")
    }

    /// Writes the final status. Only the first call has an effect; any thread may call.
    pub(crate) fn end(&self, status: &Status) -> Result<()> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if !*ended {
            self.write_json(STATUS, status)?;
            *ended = true;
        }
        Ok(())
    }

    /// Returns whether the final status has been written.
    pub(crate) fn has_ended(&self) -> bool {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the addresses of the metrics of all ranks, or removes them if there are none.
    pub(crate) fn write_targets(&self, targets: Option<&serde_json::Value>) -> Result<()> {
        match targets {
            Some(targets) => self.write_json(TARGETS, targets),
            None => remove(&[&self.path.join(TARGETS)], &[]),
        }
    }

    /// Writes the state of a strategy that decides during the run.
    pub(crate) fn write_strategy(&self, state: &serde_json::Value) -> Result<()> {
        self.write_json("strategy.json", state)
    }

    /// Writes the weights to use.
    pub(crate) fn write_weights(&self, weights: &Weights) -> Result<()> {
        let folder = self.path.join(MODEL);
        files::create_folder(&folder)?;
        weights.save(&folder)
    }

    /// Writes the weights of the best evaluation, for a run without checkpoints; with checkpoints they are written when they are found.
    pub(crate) fn write_best(&self, best: &Best) -> Result<()> {
        let folder = self.path.join(BEST);
        files::create_folder(&folder)?;
        best.weights.save(&folder)
    }

    /// Writes the report and the final status.
    pub(crate) fn finish(&self, report: &Report) -> Result<()> {
        self.write_json(REPORT, report)?;
        self.end(&match report.stopped {
            true => Status::Stopped { steps: report.steps },
            false => Status::Finished,
        })
    }

    /// Loads the weights of the last step, or with `best` those of the best evaluation.
    pub(crate) fn weights(&self, best: bool) -> Result<Weights> {
        let folder = self.path.join(BEST);
        let load = |folder: &Path| Weights::load_within(folder, memory::available().unwrap_or(u64::MAX));
        if !best || folder.join(WEIGHTS).is_file() {
            return load(if best { &folder } else { &self.path });
        }
        // Runs of earlier versions have none if the last evaluation was the best one.
        match self.read_json_if_there::<Report>(REPORT)?.and_then(|report| Some((report.best?.steps, report.steps))) {
            Some((best, steps)) if best != steps => {
                Err(Error::file(folder, format!("the best weights, after {best} steps, are missing; leave --best out")))
            }
            _ => load(&self.path),
        }
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        write_json(&self.path.join(name), value)
    }

    fn read_json_if_there<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<Option<T>> {
        self.path.join(name).exists().then(|| self.read_json(name)).transpose()
    }

    fn read_json<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<T> {
        read_json(&self.path.join(name))
    }
}

/// Reads a JSON file of a run.
pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(file: &Path) -> Result<T> {
    let remedy = format!("name the folder of another run, which `{} train` has written", program());
    let text = bounded::read(file, bounded::JSON).map_err(|e| Error::file(file, format!("{e}; {remedy}")))?;
    serde_json::from_str(&text).map_err(|e| Error::file(file, format!("{e}; {remedy}")))
}

/// Writes `value` as JSON to the path that a user names.
pub(crate) fn write_output_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::file(path, e))?;
    files::write_output(path, text + "\n")
}

/// Writes `value` as JSON. The file is written completely or not at all.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::file(path, e))?;
    files::write(path, text + "\n")
}

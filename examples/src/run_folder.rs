//! The folder of a run: configuration, environment, events, weights, report, log, decisions of its strategy, and status.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use interlock::{
    Error, Report, Result, Weights,
    tools::{files, timeline::Timeline, trainer::Best},
};
use interlock_models::data::Description;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    bounded,
    config::{ConfigOf, RunConfig},
    environment::{self, Environment},
    events::{self, EventLog, JsonLines, Sink},
    memory,
    program::{DataSection, ModelSection, Program, program},
    tensorboard::{self, TensorBoard},
};

const CONFIG: &str = "config.toml";
const DATA: &str = "data.json";
const STATUS: &str = "status.json";
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
}

/// Returns the default folder of a new run: `runs/<name>-<time>`.
pub(crate) fn fresh(name: &str) -> PathBuf {
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let time: String = time.chars().filter(char::is_ascii_digit).collect();
    let base = PathBuf::from("runs").join(format!("{name}-{}-{}", &time[..8], &time[8..]));
    let numbered = (2_u32..).map(|n| PathBuf::from(format!("{}-{n}", base.display())));
    std::iter::once(base.clone()).chain(numbered).find(|path| !path.exists()).unwrap_or(base)
}

/// Checks that there is nothing at `path`, the value of `--out`.
///
/// # Errors
/// If there is.
pub(crate) fn refuse_existing(path: &Path) -> Result<()> {
    if path.exists() {
        return Err(Error::invalid(
            format!("--out {}", path.display()),
            "it exists",
            "name a folder that does not exist, or omit --out",
        ));
    }
    Ok(())
}

/// Checks that a file can be written to `path`, the value of option `name`.
///
/// # Errors
/// If its folder does not exist, or it is a folder itself.
pub(crate) fn refuse_no_place(name: &str, path: &Path) -> Result<()> {
    let refuse =
        |problem: String, right: &str| Err(Error::invalid(format!("{name} {}", path.display()), problem, right));
    if path.is_dir() {
        return refuse("it is a folder".to_owned(), "name a file");
    }
    match path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
        Some(parent) => refuse(format!("there is no folder {}", parent.display()), "create it first, or name another"),
        None => Ok(()),
    }
}

impl RunFolder {
    /// Creates the folder, and writes configuration, description of the data, environment and status.
    pub(crate) fn create<M: ModelSection, D: DataSection>(
        path: PathBuf,
        config: &RunConfig<M, D>,
        data: &Description,
    ) -> Result<Self> {
        files::create_folder(&path)?;
        let folder = Self { path, ended: Arc::default() };
        files::write(&folder.path.join(CONFIG), config.to_toml()?)?;
        folder.write_json(DATA, data)?;
        folder.write_json(environment::FILE, &Environment::of_this_process())?;
        folder.write_json(STATUS, &Status::Running)?;
        Ok(folder)
    }

    /// Opens the folder of a run in any state.
    ///
    /// # Errors
    /// If it is not the folder of a run.
    pub(crate) fn open_any(path: &Path) -> Result<Self> {
        let folder = Self { path: path.to_owned(), ended: Arc::default() };
        folder.config_text()?;
        Ok(folder)
    }

    /// Opens the folder of a run that has weights: one that finished or was stopped.
    ///
    /// # Errors
    /// If it is not the folder of a run, or the run is still running or has failed.
    pub(crate) fn open<P: Program>(path: &Path) -> Result<(Self, ConfigOf<P>, Description)> {
        let folder = Self { path: path.to_owned(), ended: Arc::default() };
        let config = folder.config::<ConfigOf<P>>()?;
        match folder.status()? {
            Status::Finished | Status::Stopped { .. } => {}
            Status::Running => {
                return Err(Error::file(
                    path.join(STATUS),
                    "the run has not finished; use the folder of a finished run",
                ));
            }
            Status::Failed { cause } => {
                return Err(Error::file(path.join(STATUS), format!("the run has failed ({cause}); it has no weights")));
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

    /// Creates the files of events: `events.jsonl`, and one for TensorBoard if `tensorboard` is set.
    pub(crate) fn event_log(&self, run: &str, tensorboard: bool) -> Result<EventLog> {
        let mut sinks: Vec<Box<dyn Sink>> = vec![Box::new(JsonLines::create(&self.path.join(events::FILE))?)];
        if tensorboard {
            sinks.push(Box::new(TensorBoard::create(&self.path.join(tensorboard::FOLDER))?));
        }
        Ok(EventLog::new(run, sinks))
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

    /// Writes the state of a strategy that decides during the run.
    pub(crate) fn write_strategy(&self, state: &serde_json::Value) -> Result<()> {
        self.write_json("strategy.json", state)
    }

    /// Writes the weights, the weights of the best evaluation if they differ, the report, and the final status.
    pub(crate) fn finish(&self, weights: &Weights, best: Option<&Best>, report: &Report) -> Result<()> {
        weights.save(&self.path)?;
        if let Some(best) = best.filter(|best| best.steps != report.steps) {
            let folder = self.path.join("best");
            files::create_folder(&folder)?;
            best.weights.save(&folder)?;
        }
        self.write_json("report.json", report)?;
        self.end(&match report.stopped {
            true => Status::Stopped { steps: report.steps },
            false => Status::Finished,
        })
    }

    /// Loads the weights of the last step, or with `best` those of the best evaluation.
    pub(crate) fn weights(&self, best: bool) -> Result<Weights> {
        let folder = self.path.join("best");
        let folder = if best && folder.exists() { &folder } else { &self.path };
        Weights::load_within(folder, memory::available().unwrap_or(u64::MAX))
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        write_json(&self.path.join(name), value)
    }

    fn read_json_if_there<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<Option<T>> {
        self.path.join(name).exists().then(|| self.read_json(name)).transpose()
    }

    fn read_json<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<T> {
        let file = self.path.join(name);
        let remedy = format!("name the folder of another run, which `{} train` has written", program());
        let text = bounded::read(&file, bounded::JSON).map_err(|e| Error::file(&file, format!("{e}; {remedy}")))?;
        serde_json::from_str(&text).map_err(|e| Error::file(&file, format!("{e}; {remedy}")))
    }
}

/// Writes `value` as JSON. The file is written completely or not at all.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::file(path, e))?;
    files::write(path, text + "\n")
}

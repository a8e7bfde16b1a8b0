//! The one error type of this crate.
//!
//! Every message says where something went wrong, what was wrong, and what would be right.

mod note;

pub(crate) use note::FailureNote;

use std::{
    error::Error as StdError,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

/// The phase of a run in which a failure arose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Phase {
    /// Building the stage's units on its device.
    Build,
    /// Making a batch.
    Load,
    /// The forward pass through the stage.
    Forward,
    /// The head's forward pass, its loss and its own gradients.
    Head,
    /// A backward pass through the stage.
    Backward,
    /// The optimizer's update.
    Update,
    /// Telling the learning-rate schedule the run's length or a validation loss.
    LearningRate,
    /// Sending a message or receiving one.
    Transfer,
    /// Reading or writing parameter values.
    Snapshot,
    /// Reading or restoring the state of a stage.
    State,
    /// Deciding the plans of later steps.
    Plan,
    /// Handling an event of the run.
    Event,
}

impl Phase {
    /// Returns its name, as used in messages and events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Load => "load",
            Self::Forward => "forward",
            Self::Head => "head",
            Self::Backward => "backward",
            Self::Update => "update",
            Self::LearningRate => "learning rate",
            Self::Transfer => "transfer",
            Self::Snapshot => "snapshot",
            Self::State => "state",
            Self::Plan => "plan",
            Self::Event => "event",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The part of a run in which a failure arose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Origin {
    /// A stage, counted from 0.
    Stage(usize),
    /// The strategy, which decides the gradient plans.
    Strategy,
    /// The coordinator, which feeds the first stage and gathers what stages report.
    Coordinator,
    /// A data set.
    Data,
    /// A callback, counted from 0 in the order in which they were added.
    Callback(usize),
    /// A rank: a process that has some of the stages.
    Rank(usize),
}

impl Origin {
    /// Returns the stage, if the origin is a stage.
    pub fn stage(self) -> Option<usize> {
        match self {
            Self::Stage(stage) => Some(stage),
            _ => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stage(stage) => write!(f, "stage {stage}"),
            Self::Strategy => f.write_str("strategy"),
            Self::Coordinator => f.write_str("coordinator"),
            Self::Data => f.write_str("data"),
            Self::Callback(number) => write!(f, "callback {number}"),
            Self::Rank(rank) => write!(f, "rank {rank}"),
        }
    }
}

/// The failure that ended a run: where it arose, when, and its cause.
///
/// [`source`](std::error::Error::source) is the cause, and [`Display`](fmt::Display) includes the cause's text.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Failure {
    /// The part of the run in which it arose.
    pub origin: Origin,
    /// The replica that a stage, or the data that it reads, belongs to; none if there is only one.
    pub replica: Option<usize>,
    /// The step, counted from 0; none while building or outside any step.
    pub step: Option<u64>,
    /// The micro-batch within the step; none in phases that concern the whole step.
    pub micro_batch: Option<usize>,
    /// What was being done.
    pub phase: Phase,
    /// What went wrong.
    pub cause: Arc<Error>,
}

impl Failure {
    /// Returns a failure that belongs to no step.
    pub fn new(origin: Origin, phase: Phase, cause: Error) -> Self {
        Self { origin, replica: None, step: None, micro_batch: None, phase, cause: Arc::new(cause) }
    }

    /// Returns the stage in which the failure arose, if it was a stage.
    pub fn stage(&self) -> Option<usize> {
        self.origin.stage()
    }

    /// Returns the same failure in a replica, if it is a stage's or of the data that this reads, and there are several.
    #[must_use]
    pub(crate) fn in_replica(self, replica: usize, replicas: usize) -> Self {
        let is_of_replica = replicas > 1 && matches!(self.origin, Origin::Stage(_) | Origin::Data);
        Self { replica: self.replica.or(is_of_replica.then_some(replica)), ..self }
    }

    /// Returns the same failure in step `step`.
    #[must_use]
    pub fn in_step(self, step: u64) -> Self {
        Self { step: Some(step), ..self }
    }

    /// Returns the same failure in a micro-batch of its step.
    #[must_use]
    pub fn in_micro_batch(self, micro_batch: impl Into<Option<usize>>) -> Self {
        Self { micro_batch: micro_batch.into(), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.origin)?;
        if let (Origin::Stage(_) | Origin::Data, Some(replica)) = (self.origin, self.replica) {
            write!(f, " of replica {replica}")?;
        }
        if let Some(step) = self.step {
            write!(f, ", step {step}")?;
        }
        if let Some(micro_batch) = self.micro_batch {
            write!(f, ", micro-batch {micro_batch}")?;
        }
        match &*self.cause {
            // The cause's text already names this phase.
            Error::Unit { phase, .. } if *phase == self.phase => write!(f, ", {}", self.cause),
            cause => write!(f, ", {}: {cause}", self.phase),
        }
    }
}

impl StdError for Failure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.cause)
    }
}

/// The kind of a non-finite value (infinity or NaN).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum NonFinite {
    /// The loss of a head.
    Loss,
    /// A gradient.
    Gradient,
    /// The output of a stage.
    Activation,
    /// A parameter after its update.
    Parameter,
}

impl NonFinite {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Loss, Self::Gradient, Self::Activation, Self::Parameter];

    /// Its name: `loss`, `gradient`, `activation` or `parameter`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Gradient => "gradient",
            Self::Activation => "activation",
            Self::Parameter => "parameter",
        }
    }
}

/// One stage's wait for another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The stage that waits.
    pub stage: usize,
    /// The stage that it waits for; none where it waits for the next batch.
    pub on: Option<usize>,
    /// What it waits for, in words.
    pub what: String,
}

/// A deadlock: stages that wait for each other, so that the work can never be finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlock {
    /// The waits, each for the next one's stage: a cycle, or a chain whose last stage waits for the next batch.
    pub cycle: Vec<Wait>,
}

impl fmt::Display for Deadlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Wait { stage, on, what }) in self.cycle.iter().enumerate() {
            let and = if i == 0 { "" } else { ", " };
            match on {
                Some(on) => write!(f, "{and}stage {stage} waits for {what} of stage {on}")?,
                None => write!(f, "{and}stage {stage} waits for {what}")?,
            }
        }
        Ok(())
    }
}

/// Everything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting, a plan or an input that cannot be used; nothing was changed.
    #[error("{subject}: {problem}; {remedy}")]
    Invalid {
        /// The key, argument or object that is wrong, such as `strategy.width`.
        subject: String,
        /// What is wrong with it.
        problem: String,
        /// What would be right.
        remedy: String,
    },
    /// A run failed; it cannot go on.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// A unit of a model, or the head that follows it, failed.
    #[error("unit {unit} {name:?}, {phase}: {cause}")]
    Unit {
        /// The unit, counted from 0.
        unit: usize,
        /// Its name, which may be empty.
        name: String,
        /// What it was doing.
        phase: Phase,
        /// What went wrong.
        #[source]
        cause: Box<Error>,
    },
    /// Code of a model, a data set, a strategy or this crate panicked.
    #[error("panicked: {0}")]
    Panicked(String),
    /// A rule of this crate was broken by this crate itself.
    #[error("internal error: {0}; please report it")]
    Internal(String),
    /// A mailbox was full although credits were available.
    #[error("internal error: the mailbox of {0} overflowed although credits were available; please report it")]
    MailboxFull(String),
    /// An actor's thread has ended: it was killed from outside, or the pipeline is being dropped.
    #[error("{0} has ended; build a new trainer")]
    Ended(String),
    /// A thread could not be started.
    #[error("the thread {name} cannot be started: {cause}; end other programs or raise the limit of threads")]
    Thread {
        /// What the thread is for.
        name: &'static str,
        /// What the system said.
        #[source]
        cause: std::io::Error,
    },
    /// The run was asked to stop before there was a result.
    #[error("stopped on request")]
    Stopped,
    /// A device computed something wrong when it was opened.
    #[error("{device}: its self-test failed, {problem}; check the driver and its version")]
    DeviceSelfTest {
        /// The device's name.
        device: String,
        /// What it computed.
        problem: String,
    },
    /// A loss, an activation, a gradient or a parameter is not finite; the text names it.
    #[error("{1}; a smaller learning rate or clipping (clip.max_norm) may help")]
    NotFinite(NonFinite, String),
    /// A value arrived as infinity or NaN, and no stage produced it.
    #[error(
        "received a non-finite value that no stage produced: it was corrupted in transfer; check the devices and the links between them"
    )]
    CorruptedInTransfer,
    /// Something that a run waits for does not end ([`FailuresConfig::stall_timeout`](crate::FailuresConfig::stall_timeout)).
    #[error("{0}")]
    Stalled(String),
    /// A process that has some of the stages cannot be reached any more.
    #[error("{0}")]
    RankLost(String),
    /// A simulated schedule stopped: stages wait for each other.
    #[error("deadlock: {0}")]
    Deadlock(Deadlock),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A file could not be read or written.
    #[error("{path}: {cause}", path = shown(.path))]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system or the format said.
        cause: String,
    },
    /// A data set could not deliver a batch.
    #[error("{0}")]
    Data(String),
    /// An error of a user's own code: a model, a loss, an optimizer, a strategy or a data set.
    #[error(transparent)]
    Other(#[from] Box<dyn StdError + Send + Sync>),
}

/// Returns a path on one line.
fn shown(path: &std::path::Path) -> String {
    let escape = |c: char| match c.is_control() {
        true => format!("\\u{:04x}", u32::from(c)),
        false => c.to_string(),
    };
    path.display().to_string().chars().map(escape).collect()
}

impl Error {
    /// Returns an [`Error::Invalid`] with these three parts.
    pub fn invalid(subject: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Invalid { subject: subject.into(), problem: problem.into(), remedy: remedy.into() }
    }

    /// Returns an [`Error::File`] about `path`.
    pub fn file(path: impl Into<PathBuf>, cause: impl fmt::Display) -> Self {
        Self::File { path: path.into(), cause: cause.to_string() }
    }

    /// Wraps a user's own error; [`source`](std::error::Error::source) returns it.
    pub fn other(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Other(error.into())
    }

    /// Returns whether an input was refused before anything was done (a program then exits with code 2).
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Invalid { .. } | Self::File { .. } => true,
            Self::Failed(failure) => {
                (failure.origin == Origin::Data || failure.phase == Phase::Build) && failure.cause.is_refusal()
            }
            Self::Unit { cause, .. } => cause.is_refusal(),
            _ => false,
        }
    }

    /// Returns the error for a caught panic.
    pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Self {
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Self::Panicked(text.unwrap_or_else(|| "without a message".to_owned()))
    }
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Runs work that calls code of the user; its panic on this thread becomes an error.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(Error::panicked(&*panic)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_shown_on_one_line() {
        let error = Error::file("a\nb\u{1b}[31m/é c", "it is missing");
        assert_eq!(error.to_string(), "a\\u000ab\\u001b[31m/é c: it is missing");
    }
}

//! The one error type of this crate.
//!
//! Every message says what was wrong, where, and what would be right.

use std::{fmt, path::PathBuf};

use crate::simulator::Deadlock;

/// What a computation on behalf of one stage was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Building the stage's units on its device.
    Build,
    /// The forward pass through the stage.
    Forward,
    /// The head's forward pass, its loss and its own gradients.
    Head,
    /// Pulling a gradient back through the stage.
    Backward,
    /// The optimizer's update.
    Update,
    /// Sending to or receiving from a neighbour.
    Transfer,
    /// Taking or giving parameter values.
    Snapshot,
    /// Deciding the plans of steps to come. The strategy does, for all stages: the stage named is the first.
    Plan,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Build => "build",
            Self::Forward => "forward",
            Self::Head => "head",
            Self::Backward => "pull-back",
            Self::Update => "update",
            Self::Transfer => "transfer",
            Self::Snapshot => "snapshot",
            Self::Plan => "plan",
        })
    }
}

/// A failure inside one stage: the root cause of a failed run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageFailure {
    /// The stage, counted from 0.
    pub stage: usize,
    /// The step, counted from 0; none while building or outside any step.
    pub step: Option<u64>,
    /// The micro-batch within the step; none in phases that concern the whole step.
    pub micro_batch: Option<usize>,
    /// What the stage was doing.
    pub phase: Phase,
    /// What went wrong, in words.
    pub cause: String,
}

impl fmt::Display for StageFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stage {}", self.stage)?;
        if let Some(step) = self.step {
            write!(f, ", step {step}")?;
        }
        if let Some(micro) = self.micro_batch {
            write!(f, ", micro-batch {micro}")?;
        }
        write!(f, ", {}: {}", self.phase, self.cause)
    }
}

/// What sort of value was infinite or not a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NonFinite {
    /// The loss of a head.
    Loss,
    /// A gradient.
    Gradient,
    /// What a stage gives to the next.
    Activation,
    /// A parameter after its update.
    Parameter,
}

impl NonFinite {
    /// Every sort.
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
    /// A stage failed; the run cannot go on.
    #[error("{0}")]
    Stage(StageFailure),
    /// A unit of a model, or the head behind it, failed while it was measured.
    #[error("unit {unit} {name:?}, {phase}: {cause}")]
    Unit {
        /// The unit, counted from 0.
        unit: usize,
        /// Its name, which may be empty.
        name: String,
        /// What it was doing.
        phase: Phase,
        /// What went wrong, in words.
        cause: String,
    },
    /// The pipeline ended without saying why: a thread of it was killed from outside.
    #[error("the pipeline has ended: {0}")]
    Ended(String),
    /// A loss, an activation, a gradient or a parameter is infinite or not a number; the words tell which.
    #[error("{1}; a smaller learning rate or clipping (clip.max_norm) may help")]
    NotFinite(NonFinite, String),
    /// A simulated schedule came to a halt: stages wait for each other.
    #[error("deadlock: {0}")]
    Deadlock(Deadlock),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A file could not be read or written.
    #[error("{path}: {cause}", path = .path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system or the format said.
        cause: String,
    },
    /// A data set could not deliver a batch.
    #[error("data: {0}")]
    Data(String),
}

impl Error {
    /// An [`Error::Invalid`] from its three parts.
    pub fn invalid(subject: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Invalid { subject: subject.into(), problem: problem.into(), remedy: remedy.into() }
    }

    /// An [`Error::File`] about `path`.
    pub fn file(path: impl Into<PathBuf>, cause: impl fmt::Display) -> Self {
        Self::File { path: path.into(), cause: cause.to_string() }
    }

    /// Whether this is bad input that was refused before anything was done (exit code 2 of a program).
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Invalid { .. } | Self::File { .. })
    }
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The words of a caught panic.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

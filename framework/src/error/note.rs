//! Failures in the form in which one rank tells another of them.

use std::{path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Error, Failure, NonFinite, Origin, Phase};

/// A failure that can be sent. What it does not know of the cause is its text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FailureNote {
    origin: Origin,
    replica: Option<usize>,
    step: Option<u64>,
    micro_batch: Option<usize>,
    phase: Phase,
    cause: ErrorNote,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum ErrorNote {
    Invalid { subject: String, problem: String, remedy: String },
    Failed(Box<FailureNote>),
    Unit { unit: usize, name: String, phase: Phase, cause: Box<ErrorNote> },
    Panicked(String),
    Internal(String),
    MailboxFull(String),
    Ended(String),
    Stopped,
    NotFinite(NonFinite, String),
    CorruptedInTransfer,
    Stalled(String),
    RankLost(String),
    File { path: PathBuf, cause: String },
    Data(String),
    Other(String),
}

impl From<&Failure> for FailureNote {
    fn from(failure: &Failure) -> Self {
        let Failure { origin, replica, step, micro_batch, phase, cause } = failure;
        Self {
            origin: *origin,
            replica: *replica,
            step: *step,
            micro_batch: *micro_batch,
            phase: *phase,
            cause: (&**cause).into(),
        }
    }
}

impl From<FailureNote> for Failure {
    fn from(note: FailureNote) -> Self {
        let FailureNote { origin, replica, step, micro_batch, phase, cause } = note;
        Self { origin, replica, step, micro_batch, phase, cause: Arc::new(cause.into()) }
    }
}

impl From<&Error> for ErrorNote {
    fn from(error: &Error) -> Self {
        match error {
            Error::Invalid { subject, problem, remedy } => {
                Self::Invalid { subject: subject.clone(), problem: problem.clone(), remedy: remedy.clone() }
            }
            Error::Failed(failure) => Self::Failed(Box::new(failure.into())),
            Error::Unit { unit, name, phase, cause } => {
                Self::Unit { unit: *unit, name: name.clone(), phase: *phase, cause: Box::new((&**cause).into()) }
            }
            Error::Panicked(text) => Self::Panicked(text.clone()),
            Error::Internal(text) => Self::Internal(text.clone()),
            Error::MailboxFull(name) => Self::MailboxFull(name.clone()),
            Error::Ended(name) => Self::Ended(name.clone()),
            Error::Stopped => Self::Stopped,
            Error::NotFinite(kind, text) => Self::NotFinite(*kind, text.clone()),
            Error::CorruptedInTransfer => Self::CorruptedInTransfer,
            Error::Stalled(text) => Self::Stalled(text.clone()),
            Error::RankLost(text) => Self::RankLost(text.clone()),
            Error::File { path, cause } => Self::File { path: path.clone(), cause: cause.clone() },
            Error::Data(text) => Self::Data(text.clone()),
            other => Self::Other(other.to_string()),
        }
    }
}

impl From<ErrorNote> for Error {
    fn from(note: ErrorNote) -> Self {
        match note {
            ErrorNote::Invalid { subject, problem, remedy } => Self::Invalid { subject, problem, remedy },
            ErrorNote::Failed(failure) => Self::Failed((*failure).into()),
            ErrorNote::Unit { unit, name, phase, cause } => {
                Self::Unit { unit, name, phase, cause: Box::new((*cause).into()) }
            }
            ErrorNote::Panicked(text) => Self::Panicked(text),
            ErrorNote::Internal(text) => Self::Internal(text),
            ErrorNote::MailboxFull(name) => Self::MailboxFull(name),
            ErrorNote::Ended(name) => Self::Ended(name),
            ErrorNote::Stopped => Self::Stopped,
            ErrorNote::NotFinite(kind, text) => Self::NotFinite(kind, text),
            ErrorNote::CorruptedInTransfer => Self::CorruptedInTransfer,
            ErrorNote::Stalled(text) => Self::Stalled(text),
            ErrorNote::RankLost(text) => Self::RankLost(text),
            ErrorNote::File { path, cause } => Self::File { path, cause },
            ErrorNote::Data(text) => Self::Data(text),
            ErrorNote::Other(text) => Self::other(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_arrive_as_they_were_sent() {
        let unit =
            |cause| Error::Unit { unit: 3, name: "conv".to_owned(), phase: Phase::Forward, cause: Box::new(cause) };
        let inner = Failure::new(Origin::Data, Phase::Load, Error::Data("batch 3".to_owned()));
        for cause in [
            Error::invalid("a", "b", "c"),
            Error::Failed(inner),
            unit(Error::Panicked("p".to_owned())),
            unit(Error::NotFinite(NonFinite::Loss, "the loss".to_owned())),
            Error::MailboxFull("stage 1".to_owned()),
            Error::Ended("stage 1".to_owned()),
            Error::Stopped,
            Error::CorruptedInTransfer,
            Error::Stalled("it".to_owned()),
            Error::file("f", "g"),
            Error::Internal("i".to_owned()),
            Error::other("of a user"),
            Error::Thread { name: "t", cause: std::io::Error::other("full") },
        ] {
            let failure = Failure::new(Origin::Stage(2), Phase::Forward, cause).in_step(7).in_micro_batch(1);
            let bytes = postcard::to_stdvec(&FailureNote::from(&failure)).unwrap();
            let back = Failure::from(postcard::from_bytes::<FailureNote>(&bytes).unwrap());
            assert_eq!(back.to_string(), failure.to_string());
            assert_eq!(back.cause.is_refusal(), failure.cause.is_refusal());
            assert_eq!((back.origin, back.step, back.micro_batch), (Origin::Stage(2), Some(7), Some(1)));
        }
    }
}

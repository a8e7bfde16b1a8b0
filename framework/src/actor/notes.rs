//! The messages between actors in the form in which one rank sends them to another: a note, and tensors.

use std::{sync::Arc, time::Duration};

use actix::Addr;
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{
    address::{COORDINATOR, StageAddress, send},
    coordinator::Coordinator,
    messages::{
        Activation, Begin, Capture, Change, Credit, CreditOfReplica, Fenced, FollowPlans, GiveRead, Gradient, Norm,
        Read, Readout, Reported, Restore, Shared, TakeSnapshot, TakeState, TransferTimes, Validated,
    },
};
use crate::{
    Activation as Tensors, Error, GradientPlan, PlanSchedule, Result, Score,
    data::Examples,
    error::FailureNote,
    plan::PlanPhase,
    ranks::{RankMessage, packed, unpacked},
    schedule::MicroBatchId,
    stage::{CaptureTo, Payload, ReadoutVersion, StageCapture, StageFiles, StageState, StateNote},
    transport::{Built, CoordinatorMessage, GradientShare, StageStep},
};

/// The header of a message.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    /// The pipeline that it belongs to ([`Ranks::next_pipeline`](crate::ranks::Ranks::next_pipeline)).
    pub(super) pipeline: u64,
    pub(super) note: Note,
    /// The axes of each tensor, in the order in which they lie in memory.
    axes: Vec<Vec<u8>>,
}

/// What a message says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Note {
    /// From rank 0: build your stages.
    Start(StartNote),
    /// To a stage.
    ToStage { stage: usize, note: StageNote },
    /// To the coordinator.
    ToCoordinator(CoordinatorNote),
    /// From the coordinator: tell when all that came before this is in the mailboxes.
    Fence,
    /// From rank 0: the pipeline ends; with the failure, if it failed.
    End(Option<FailureNote>),
}

/// What a rank needs to build its stages, beside what it has built a layout of.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StartNote {
    /// What all ranks must agree in, a line each.
    pub(super) agreement: String,
    pub(super) in_flight: usize,
    pub(super) first_step: u64,
    /// The moment from which recorded times count, since the beginning of 1970; none if nothing is recorded.
    pub(super) record: Option<Duration>,
    /// The names of the initial values, whose tensors come with the note.
    pub(super) values: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PhaseNote {
    from_step: u64,
    plan: GradientPlan,
    every: Option<(u64, GradientPlan)>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum StageNote {
    FollowPlans(Vec<PhaseNote>),
    Change(Box<PhaseNote>),
    /// The last tensor has the targets.
    Activation {
        micro_batch: MicroBatchId,
        total: f64,
    },
    /// For the rank, which reads the examples for the stage.
    Read {
        micro_batch: MicroBatchId,
        examples: Examples,
        total: f64,
    },
    /// The same.
    GiveRead,
    Gradient {
        micro_batch: MicroBatchId,
        loss: usize,
    },
    Readout {
        step: u64,
    },
    Credit,
    Share {
        from: usize,
        step: u64,
        is_sum: bool,
    },
    Norm {
        step: u64,
        norm: f64,
    },
    Validated {
        loss: f64,
    },
    Begin {
        total_steps: u64,
    },
    TakeSnapshot,
    TakeState,
    Capture {
        step: Option<u64>,
        to: CaptureTo,
    },
    Restore(StateNote),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum CoordinatorNote {
    /// The first stage's.
    Credit,
    /// The answer to a fence.
    Fenced,
    Built(Built),
    Scored {
        stage: usize,
        micro_batch: MicroBatchId,
        score: Option<Score>,
    },
    StepDone(StageStep),
    SquaredNorms {
        stage: usize,
        step: u64,
        norms: Vec<f64>,
    },
    Snapshot {
        stage: usize,
        names: Vec<String>,
    },
    State {
        stage: usize,
        state: StateNote,
    },
    Captured {
        stage: usize,
        step: Option<u64>,
        names: Vec<String>,
        state: StateNote,
        files: Option<StageFiles>,
    },
    Restored {
        stage: usize,
    },
    ReceivedNonFinite(FailureNote),
    Failed(FailureNote),
}

impl Header {
    /// Returns the message of a note and its tensors.
    pub(super) fn message(pipeline: u64, note: Note, tensors: &[Tensor]) -> Result<RankMessage> {
        let packed: Result<Vec<_>> = tensors.iter().map(packed).collect();
        let (tensors, axes) = packed?.into_iter().unzip();
        let header = postcard::to_stdvec(&Self { pipeline, note, axes }).map_err(Error::other)?;
        Ok(RankMessage { header, tensors })
    }

    /// Reads a message.
    ///
    /// # Errors
    /// If it is none of this version of the program.
    pub(super) fn read(message: RankMessage) -> Result<(Self, Vec<Tensor>)> {
        let RankMessage { header, tensors } = message;
        let header: Self = postcard::from_bytes(&header)
            .map_err(|e| Error::Internal(format!("a message of another rank cannot be read: {e}")))?;
        if header.axes.len() != tensors.len() {
            return Err(Error::Internal(format!(
                "a message of another rank has {} tensors instead of {}",
                tensors.len(),
                header.axes.len()
            )));
        }
        let tensors =
            tensors.iter().zip(&header.axes).map(|(tensor, axes)| unpacked(tensor, axes)).collect::<Result<_>>()?;
        Ok((header, tensors))
    }
}

impl From<&PlanPhase> for PhaseNote {
    fn from(phase: &PlanPhase) -> Self {
        let PlanPhase { from_step, plan, every } = phase;
        let every = every.as_ref().map(|(steps, plan)| (*steps, (**plan).clone()));
        Self { from_step: *from_step, plan: (**plan).clone(), every }
    }
}

impl From<PhaseNote> for PlanPhase {
    fn from(note: PhaseNote) -> Self {
        let PhaseNote { from_step, plan, every } = note;
        Self { from_step, plan: Arc::new(plan), every: every.map(|(steps, plan)| (steps, Arc::new(plan))) }
    }
}

/// A message to a stage that can be sent to another rank.
pub(super) trait IntoNote {
    fn into_note(self) -> Result<(StageNote, Vec<Tensor>)>;
}

/// Makes a message without tensors a note.
macro_rules! plain_notes {
    ($($message:pat => $type:ty: $note:expr;)*) => {
        $(impl IntoNote for $type {
            fn into_note(self) -> Result<(StageNote, Vec<Tensor>)> {
                let $message = self;
                Ok(($note, Vec::new()))
            }
        })*
    };
}

plain_notes! {
    FollowPlans { plans } => FollowPlans: StageNote::FollowPlans(plans.phases().iter().map(PhaseNote::from).collect());
    Change { phase } => Change: StageNote::Change(Box::new((&phase).into()));
    Credit => Credit: StageNote::Credit;
    Read { micro_batch, examples, total } => Read: StageNote::Read { micro_batch, examples, total };
    GiveRead => GiveRead: StageNote::GiveRead;
    Norm { step, norm } => Norm: StageNote::Norm { step, norm };
    Validated { loss } => Validated: StageNote::Validated { loss };
    Begin { total_steps } => Begin: StageNote::Begin { total_steps };
    TakeSnapshot => TakeSnapshot: StageNote::TakeSnapshot;
    TakeState => TakeState: StageNote::TakeState;
    Capture { step, to } => Capture: StageNote::Capture { step, to };
}

impl IntoNote for Activation {
    fn into_note(self) -> Result<(StageNote, Vec<Tensor>)> {
        let Self { micro_batch, payload: Payload { inputs, targets, total }, .. } = self;
        let mut tensors = inputs.into_tensors();
        tensors.push(targets);
        Ok((StageNote::Activation { micro_batch, total }, tensors))
    }
}

impl IntoNote for Gradient {
    fn into_note(self) -> Result<(StageNote, Vec<Tensor>)> {
        let Self { micro_batch, loss, tensors, .. } = self;
        Ok((StageNote::Gradient { micro_batch, loss }, tensors.into_tensors()))
    }
}

impl IntoNote for Readout {
    fn into_note(self) -> Result<(StageNote, Vec<Tensor>)> {
        let ReadoutVersion { step, matrix } = self.version;
        Ok((StageNote::Readout { step }, vec![matrix]))
    }
}

impl IntoNote for Shared {
    fn into_note(self) -> Result<(StageNote, Vec<Tensor>)> {
        let GradientShare { from, step, is_sum, values } = self.0;
        Ok((StageNote::Share { from, step, is_sum }, vec![values]))
    }
}

impl IntoNote for Restore {
    fn into_note(self) -> Result<(StageNote, Vec<Tensor>)> {
        let (state, tensors) = self.state.into_note()?;
        Ok((StageNote::Restore(state), tensors))
    }
}

fn without_tensor() -> Error {
    Error::Internal("a message of another rank lacks a tensor".to_owned())
}

impl StageNote {
    /// Makes it a message again and gives it to `to`.
    pub(super) fn deliver(self, mut tensors: Vec<Tensor>, to: &StageAddress) -> Result<()> {
        let times = TransferTimes::now();
        match self {
            Self::FollowPlans(phases) => {
                let plans = PlanSchedule::new(phases.into_iter().map(PlanPhase::from).collect())?;
                to.send(FollowPlans { plans })
            }
            Self::Change(phase) => to.send(Change { phase: (*phase).into() }),
            Self::Activation { micro_batch, total } => {
                let targets = tensors.pop().ok_or_else(without_tensor)?;
                let payload = Payload { inputs: Tensors::new(tensors), targets, total };
                to.send(Activation { micro_batch, payload, times })
            }
            Self::Read { .. } | Self::GiveRead => Err(Error::Internal("a stage was told to read examples".to_owned())),
            Self::Gradient { micro_batch, loss } => {
                to.send(Gradient { micro_batch, loss, tensors: Tensors::new(tensors), times })
            }
            Self::Readout { step } => {
                let matrix = tensors.pop().ok_or_else(without_tensor)?;
                to.send(Readout { version: ReadoutVersion { step, matrix } })
            }
            Self::Credit => to.send(Credit),
            Self::Share { from, step, is_sum } => {
                let values = tensors.pop().ok_or_else(without_tensor)?;
                to.send(Shared(GradientShare { from, step, is_sum, values }))
            }
            Self::Norm { step, norm } => to.send(Norm { step, norm }),
            Self::Validated { loss } => to.send(Validated { loss }),
            Self::Begin { total_steps } => to.send(Begin { total_steps }),
            Self::TakeSnapshot => to.send(TakeSnapshot),
            Self::TakeState => to.send(TakeState),
            Self::Capture { step, to: place } => to.send(Capture { step, to: place }),
            Self::Restore(state) => {
                let state = Box::new(StageState::of_note(state, &mut tensors.into_iter())?);
                to.send(Restore { state })
            }
        }
    }
}

impl CoordinatorNote {
    /// Returns a report as a note and tensors.
    pub(super) fn of(report: CoordinatorMessage) -> Result<(Self, Vec<Tensor>)> {
        let note = match report {
            CoordinatorMessage::Built(built) => Self::Built(built),
            CoordinatorMessage::Scored { stage, micro_batch, score } => Self::Scored { stage, micro_batch, score },
            CoordinatorMessage::StepDone(done) => Self::StepDone(done),
            CoordinatorMessage::SquaredNorms { stage, step, norms } => Self::SquaredNorms { stage, step, norms },
            CoordinatorMessage::Snapshot { stage, tensors } => {
                let (names, tensors) = tensors.into_iter().unzip();
                return Ok((Self::Snapshot { stage, names }, tensors));
            }
            CoordinatorMessage::State { stage, state } => {
                let (state, tensors) = state.into_note()?;
                return Ok((Self::State { stage, state }, tensors));
            }
            CoordinatorMessage::Captured { stage, step, capture, to: _ } => {
                let StageCapture { weights, state, files } = *capture;
                let (names, mut tensors): (_, Vec<_>) = weights.into_iter().unzip();
                let (state, others) = state.into_note()?;
                tensors.extend(others);
                return Ok((Self::Captured { stage, step, names, state, files }, tensors));
            }
            CoordinatorMessage::Restored { stage } => Self::Restored { stage },
            CoordinatorMessage::ReceivedNonFinite(failure) => Self::ReceivedNonFinite((&failure).into()),
            CoordinatorMessage::Failed(failure) => Self::Failed((&failure).into()),
        };
        Ok((note, Vec::new()))
    }

    /// Makes it a message again and gives it to `to`. It comes from a stage of `replica`.
    pub(super) fn deliver(self, replica: usize, tensors: Vec<Tensor>, to: &Addr<Coordinator>) -> Result<()> {
        let mut tensors = tensors.into_iter();
        let report = match self {
            Self::Credit => return send(to, COORDINATOR, CreditOfReplica(replica)),
            Self::Fenced => return send(to, COORDINATOR, Fenced),
            Self::Built(built) => CoordinatorMessage::Built(built),
            Self::Scored { stage, micro_batch, score } => CoordinatorMessage::Scored { stage, micro_batch, score },
            Self::StepDone(done) => CoordinatorMessage::StepDone(done),
            Self::SquaredNorms { stage, step, norms } => CoordinatorMessage::SquaredNorms { stage, step, norms },
            Self::Snapshot { stage, names } => {
                CoordinatorMessage::Snapshot { stage, tensors: names.into_iter().zip(tensors).collect() }
            }
            Self::State { stage, state } => {
                CoordinatorMessage::State { stage, state: Box::new(StageState::of_note(state, &mut tensors)?) }
            }
            Self::Captured { stage, step, names, state, files } => {
                let weights = names.into_iter().zip(tensors.by_ref()).collect();
                let state = StageState::of_note(state, &mut tensors)?;
                let capture = Box::new(StageCapture { weights, state, files });
                CoordinatorMessage::Captured { stage, step, capture, to: CaptureTo::Coordinator }
            }
            Self::Restored { stage } => CoordinatorMessage::Restored { stage },
            Self::ReceivedNonFinite(failure) => CoordinatorMessage::ReceivedNonFinite(failure.into()),
            Self::Failed(failure) => CoordinatorMessage::Failed(failure.into()),
        };
        send(to, COORDINATOR, Reported { replica, report })
    }
}

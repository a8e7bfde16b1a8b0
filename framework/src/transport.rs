//! The transport of a stage's messages to its neighbours.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::{
    Activation, Failure, Result, Score,
    schedule::{MicroBatchId, StageWork},
    stage::{CaptureTo, Payload, ReadoutVersion, StageCapture, StageState, Updated},
    timeline::Span,
};

/// A stage's message to the coordinator.
#[derive(Debug)]
pub enum CoordinatorMessage {
    /// The stage has been built.
    Built(Built),
    /// One head's score of one micro-batch, in evaluation.
    Scored {
        /// The stage.
        stage: usize,
        /// The micro-batch.
        micro_batch: MicroBatchId,
        /// The score; none where the stage has no head.
        score: Option<Score>,
    },
    /// A training step is done in one stage.
    StepDone(StageStep),
    /// The squared norms of one stage's gradients, in order of its parameters.
    SquaredNorms {
        /// The stage.
        stage: usize,
        /// The step.
        step: u64,
        /// One for each trained parameter.
        norms: Vec<f64>,
    },
    /// A copy of one stage's parameters and buffers.
    Snapshot {
        /// The stage.
        stage: usize,
        /// The tensors by name.
        tensors: Vec<(String, candle_core::Tensor)>,
    },
    /// The state of one stage.
    State {
        /// The stage.
        stage: usize,
        /// Its state.
        state: Box<StageState>,
    },
    /// One stage's weights and state.
    Captured {
        /// The stage.
        stage: usize,
        /// The step after which they were copied; none if nothing was in flight.
        step: Option<u64>,
        /// Its weights and state.
        capture: Box<StageCapture>,
        /// Where they go.
        to: CaptureTo,
    },
    /// The stage continues from the state that it was sent.
    Restored {
        /// The stage.
        stage: usize,
    },
    /// The stage received a non-finite value and reports nothing more: no scores, steps or norms. The sender fails because of the value. If no stage
    /// does, this is the failure of the run.
    ReceivedNonFinite(Failure),
    /// The stage failed and does nothing more.
    Failed(Failure),
}

/// A description of a built stage.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Built {
    /// The stage.
    pub stage: usize,
    /// Its device's name.
    pub device: String,
    /// Elements of the parameters of its main part.
    pub parameters: usize,
    /// Elements of the parameters of its head.
    pub head_parameters: usize,
    /// The names of all its parameters and buffers.
    pub names: Vec<String>,
    /// Whether all its parameters are frozen.
    pub frozen: bool,
    /// Whether gradients are unchecked ([`Differentiable::has_unchecked_gradients`](crate::Differentiable::has_unchecked_gradients)).
    pub unchecked: bool,
}

/// One stage's part of a training step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StageStep {
    /// The stage.
    pub stage: usize,
    /// The step, counted from 0.
    pub step: u64,
    /// What its head scored over the batch; none where it has no head.
    pub score: Option<Score>,
    /// The result of the update.
    pub updated: Updated,
    /// The cosine between the gradients of the main parameters that the stage followed and that it measured, before clipping. None where
    /// nothing was measured, or one of the gradients was zero.
    pub alignment: Option<f64>,
    /// The seconds and the number of its actions in the step, by kind.
    pub work: StageWork,
    /// Its actions in the step with their times, in order, in seconds since the beginning of the recording; empty if nothing is recorded.
    pub spans: Vec<Span>,
}

impl StageStep {
    /// Returns the seconds of the step in which the stage computed.
    pub fn busy_seconds(&self) -> f64 {
        self.work.total_seconds()
    }
}

/// A message from one stage to a neighbour or to another replica of itself: a header of fixed size, and tensors.
#[derive(Debug)]
pub enum StageMessage {
    /// To the next stage: the input of a forward pass, with the targets.
    Activation {
        /// The micro-batch.
        micro_batch: MicroBatchId,
        /// Inputs and targets.
        payload: Payload,
    },
    /// To the previous stage: the gradient of one loss with respect to the receiver's output.
    Gradient {
        /// The micro-batch.
        micro_batch: MicroBatchId,
        /// The stage whose loss it is.
        loss: usize,
        /// The gradient.
        gradient: Activation,
    },
    /// To the previous stage, which sends it on if it must: a version of the matrix that heads share with the last stage.
    Readout(ReadoutVersion),
    /// To the previous stage: one more micro-batch may be sent.
    Credit,
    /// To the same stage of another replica.
    Share {
        /// The replica that it is for.
        to: usize,
        /// What it is sent.
        share: GradientShare,
    },
}

/// What one replica of a stage sends another of the gradients of a step. The elements of all gradients are divided among the replicas: each adds up its part of
/// them.
#[derive(Clone, Debug)]
pub struct GradientShare {
    /// The replica that sends it.
    pub from: usize,
    /// The step.
    pub step: u64,
    /// Whether it is the receiver's part of the sender's gradients, or the sender's part of the sum.
    pub is_sum: bool,
    /// `(elements)`, on the host.
    pub values: candle_core::Tensor,
}

impl GradientShare {
    /// Returns the bytes of its elements.
    pub fn bytes(&self) -> usize {
        self.values.elem_count() * self.values.dtype().size_in_bytes()
    }
}

/// A kind of [`StageMessage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// An activation.
    Activation,
    /// A gradient.
    Gradient,
    /// A version of the shared matrix of heads.
    Readout,
    /// A credit.
    Credit,
    /// A part of gradients, between replicas.
    Share,
}

/// The header of a [`StageMessage`]: everything but its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageHeader {
    /// The kind.
    pub kind: MessageKind,
    /// The micro-batch; none for messages that concern none.
    pub micro_batch: Option<MicroBatchId>,
    /// The stage whose loss a gradient belongs to; none for other messages.
    pub loss: Option<usize>,
    /// The step before which the shared matrix was as in this version; none for other messages.
    pub version: Option<u64>,
    /// Bytes of the tensors that follow.
    pub bytes: usize,
}

impl StageMessage {
    /// Returns its header.
    pub fn header(&self) -> MessageHeader {
        match self {
            Self::Activation { micro_batch, payload } => MessageHeader {
                kind: MessageKind::Activation,
                micro_batch: Some(*micro_batch),
                loss: None,
                version: None,
                bytes: payload.bytes(),
            },
            Self::Gradient { micro_batch, loss, gradient } => MessageHeader {
                kind: MessageKind::Gradient,
                micro_batch: Some(*micro_batch),
                loss: Some(*loss),
                version: None,
                bytes: gradient.bytes(),
            },
            Self::Readout(version) => MessageHeader {
                kind: MessageKind::Readout,
                micro_batch: None,
                loss: None,
                version: Some(version.step),
                bytes: version.bytes(),
            },
            Self::Credit => {
                MessageHeader { kind: MessageKind::Credit, micro_batch: None, loss: None, version: None, bytes: 0 }
            }
            Self::Share { share, .. } => {
                let bytes = share.bytes();
                MessageHeader { kind: MessageKind::Share, micro_batch: None, loss: None, version: None, bytes }
            }
        }
    }
}

/// The sending half of a transport: a stage's connections to its neighbours, its replicas and the coordinator.
///
/// Only the stage's own thread calls it. Each call hands one message over and returns without waiting for the receiver; the messages of one kind to
/// one receiver arrive in order. An activation goes to the next stage, gradients of losses, credits and versions of the shared matrix to the previous one; a
/// credit of the first stage goes to the coordinator, and shares of gradients to other replicas.
///
/// In process the message is moved into the receiver's mailbox, and no tensor is copied. If the device has a [`Link`](crate::device::Link) that delays, the
/// thread of the delay line delivers all but credits when they arrive. A message to a stage on another rank is handed to the
/// [`Communicator`](crate::ranks::Communicator).
pub trait Transport: Send {
    /// Sends a message to the neighbour or replica that it is for.
    ///
    /// # Errors
    /// If there is none such, it has ended, or its mailbox is full. A failure after this has returned goes to the coordinator.
    fn send(&mut self, message: StageMessage) -> Result<()>;

    /// Sends a report to the coordinator.
    ///
    /// # Errors
    /// If the coordinator has ended.
    fn report(&mut self, report: CoordinatorMessage) -> Result<()>;
}

/// The receiving half of a transport: the mailbox of a stage.
///
/// Whoever carries messages calls it, from any thread: in one process the sending stage or the delay line, between processes the receiving thread. It
/// never waits. Messages are handled in the order of the calls.
pub trait StageMailbox: Send + Sync {
    /// Puts a message into the mailbox. `sent` is the time at which it was sent, if that is known on this host's clock; by default it arrives at
    /// once.
    ///
    /// # Errors
    /// If the stage has ended, or its mailbox is full.
    fn deliver(&self, message: StageMessage, sent: Option<Instant>) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::schedule::Purpose;

    #[test]
    fn a_header_tells_everything_but_the_tensors() {
        let micro_batch = MicroBatchId { step: 7, purpose: Purpose::Train, index: 1, count: 2 };
        let tensor = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let payload = Payload { inputs: tensor((2, 3)).into(), targets: tensor((2, 1)), total: 2.0 };
        let header = |kind, micro_batch, loss, bytes| MessageHeader { kind, micro_batch, loss, version: None, bytes };
        let activation = StageMessage::Activation { micro_batch, payload };
        assert_eq!(activation.header(), header(MessageKind::Activation, Some(micro_batch), None, 32));
        let gradient = StageMessage::Gradient { micro_batch, loss: 3, gradient: tensor((2, 3)).into() };
        assert_eq!(gradient.header(), header(MessageKind::Gradient, Some(micro_batch), Some(3), 24));
        let readout = StageMessage::Readout(ReadoutVersion { step: 50, matrix: tensor((2, 3)) });
        let expected = MessageHeader { version: Some(50), ..header(MessageKind::Readout, None, None, 24) };
        assert_eq!(readout.header(), expected);
        assert_eq!(StageMessage::Credit.header(), header(MessageKind::Credit, None, None, 0));
    }
}

//! How a stage's messages reach its neighbours.

use crate::{
    Activation, Failure, Result, Score,
    schedule::{MicroBatchId, StageWork},
    stage::{Payload, Updated},
    timeline::Span,
};

/// A stage's message to the coordinator.
#[derive(Debug)]
pub enum Report {
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
    /// The stage received a non-finite value, and reports nothing after this: no scores, steps or norms. The sender fails because of it; if no
    /// stage does, this is the failure.
    ReceivedNonFinite(Failure),
    /// The stage failed and does nothing from now on.
    Failed(Failure),
}

/// A stage as it was built.
#[derive(Clone, Debug)]
pub struct Built {
    /// The stage.
    pub stage: usize,
    /// Its device's name.
    pub device: String,
    /// Trained elements of its main part.
    pub parameters: usize,
    /// Trained elements of its head.
    pub head_parameters: usize,
    /// Every name it holds.
    pub names: Vec<String>,
}

/// One stage's part of a training step.
#[derive(Clone, Debug)]
pub struct StageStep {
    /// The stage.
    pub stage: usize,
    /// The step, counted from 0.
    pub step: u64,
    /// What its head scored over the batch; none where it has no head.
    pub score: Option<Score>,
    /// What the update did.
    pub updated: Updated,
    /// The cosine between the gradients of the main parameters that the stage followed and that it measured, before clipping. None where
    /// nothing was measured, or one of the gradients was zero.
    pub alignment: Option<f64>,
    /// How long it worked for the step, by kind of action.
    pub work: StageWork,
    /// What it did for the step and when, in order, in seconds since the recording's beginning; empty where nothing is recorded.
    pub spans: Vec<Span>,
}

impl StageStep {
    /// Seconds of the step that the stage computed.
    pub fn busy_seconds(&self) -> f64 {
        self.work.total_seconds()
    }
}

/// A stage's connections to its neighbours and to the coordinator.
///
/// Each call hands one message over and returns without waiting for its receiver; messages of one kind to one receiver arrive in
/// order. In process a message is moved into the receiver's mailbox and no tensor is copied; where the device has a [`Link`](crate::Link)
/// that delays, activations and gradients are moved there when they arrive.
pub trait Transport: Send {
    /// Sends an activation to the next stage.
    fn send_activation(&mut self, micro_batch: MicroBatchId, payload: Payload) -> Result<()>;

    /// Sends the gradient of `loss` to the previous stage.
    fn send_gradient(&mut self, micro_batch: MicroBatchId, loss: usize, gradient: Activation) -> Result<()>;

    /// Tells the previous stage, or the coordinator, that one more micro-batch may be sent.
    fn send_credit(&mut self) -> Result<()>;

    /// Sends a report to the coordinator.
    fn report(&mut self, report: Report) -> Result<()>;
}

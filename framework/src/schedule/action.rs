//! The actions and the events of a stage.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ActionKind;
use crate::plan::Wants;

/// The purpose of a micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// A forward pass, scored by every head.
    Evaluate,
    /// A forward pass, backward passes, and a share of an update.
    Train,
}

/// The identity of one micro-batch in all stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MicroBatchId {
    /// The step that it belongs to; for evaluations the number of updates made before it.
    pub step: u64,
    /// Its purpose.
    pub purpose: Purpose,
    /// Its number within the step or evaluation, counted through all replicas.
    #[serde(alias = "micro")]
    pub index: usize,
    /// How many micro-batches of the step or evaluation its replica has.
    #[serde(alias = "micros")]
    pub count: usize,
}

/// The work remaining for a micro-batch after a backward pass. It decides which saved activations can be freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remaining {
    /// The parameter gradients of the same loss.
    Parameters,
    /// Other losses only.
    Others,
    /// Nothing: the saved activations can be freed.
    Nothing,
}

impl Remaining {
    /// Returns the remaining work, given whether parameter gradients of the same loss and backward passes of other losses remain.
    pub fn after(parameters: bool, others: bool) -> Self {
        match (parameters, others) {
            (true, _) => Self::Parameters,
            (false, true) => Self::Others,
            (false, false) => Self::Nothing,
        }
    }
}

/// One action of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Run the stage forward, and send the result on unless it is the last.
    Forward(MicroBatchId),
    /// Run the head (or just the loss, on the last stage).
    Head {
        /// The micro-batch.
        #[serde(alias = "ticket")]
        micro_batch: MicroBatchId,
        /// Whether the gradient with respect to the stage's output is wanted: the head is needed, not a probe.
        #[serde(alias = "cotangent")]
        output_gradient: bool,
    },
    /// Run one loss backward through the stage.
    #[serde(alias = "pull_back")]
    Backward {
        /// The micro-batch.
        #[serde(alias = "ticket")]
        micro_batch: MicroBatchId,
        /// The stage whose loss it is.
        loss: usize,
        /// Which gradients to compute.
        wants: Wants,
        /// Whether the parameter gradients are only measured: compared with those that the stage follows, and not applied.
        measured: bool,
        /// The work that remains after it.
        then: Remaining,
    },
    /// Run the weighted sum of the losses that the stage adds up ([`GradientPlan::added_up`](crate::GradientPlan::added_up)) backward, for the parameter
    /// gradients.
    BackwardSum {
        /// The micro-batch.
        micro_batch: MicroBatchId,
        /// The work that remains after it: that of single losses, or nothing.
        then: Remaining,
    },
    /// Send the other replicas of the stage what they need of the gradients of this step.
    ShareGradients(u64),
    /// Report the squared norms of the gradients of this step (global clipping).
    ShareNorm(u64),
    /// Update the parameters.
    Update(u64),
}

impl Action {
    /// Returns whether it is part of a training step, not of an evaluation.
    pub fn trains(&self) -> bool {
        match self {
            Self::Forward(micro_batch) | Self::Head { micro_batch, .. } => micro_batch.purpose == Purpose::Train,
            Self::Backward { .. } | Self::BackwardSum { .. } => true,
            Self::ShareGradients(_) | Self::ShareNorm(_) | Self::Update(_) => true,
        }
    }

    /// Returns the step that it belongs to.
    pub fn step(&self) -> u64 {
        match self {
            Self::Forward(micro_batch)
            | Self::Head { micro_batch, .. }
            | Self::Backward { micro_batch, .. }
            | Self::BackwardSum { micro_batch, .. } => micro_batch.step,
            Self::ShareGradients(step) | Self::ShareNorm(step) | Self::Update(step) => *step,
        }
    }

    /// Returns the same action in step `to`.
    #[must_use]
    pub fn of_step(mut self, to: u64) -> Self {
        match &mut self {
            Self::Forward(micro_batch)
            | Self::Head { micro_batch, .. }
            | Self::Backward { micro_batch, .. }
            | Self::BackwardSum { micro_batch, .. } => micro_batch.step = to,
            Self::ShareGradients(step) | Self::ShareNorm(step) | Self::Update(step) => *step = to,
        }
        self
    }

    /// Returns the number of its micro-batch, unless it concerns the whole step.
    pub fn micro_batch_index(&self) -> Option<usize> {
        match self {
            Self::Forward(micro_batch)
            | Self::Head { micro_batch, .. }
            | Self::Backward { micro_batch, .. }
            | Self::BackwardSum { micro_batch, .. } => Some(micro_batch.index),
            Self::ShareGradients(_) | Self::ShareNorm(_) | Self::Update(_) => None,
        }
    }

    /// Returns the stage whose loss it is, if it is a backward pass of one loss.
    pub fn loss(&self) -> Option<usize> {
        match self {
            Self::Backward { loss, .. } => Some(*loss),
            _ => None,
        }
    }

    /// Returns its kind.
    pub fn kind(&self) -> ActionKind {
        match self {
            Self::Forward(_) => ActionKind::Forward,
            Self::Head { .. } => ActionKind::Head,
            Self::Backward { wants, measured, .. } => match (wants.input, wants.parameters, measured) {
                (true, true, false) => ActionKind::BothGradients,
                (true, true, true) => ActionKind::BothMeasured,
                (true, false, _) => ActionKind::InputGradient,
                (false, _, false) => ActionKind::ParameterGradient,
                (false, _, true) => ActionKind::MeasuredGradient,
            },
            Self::BackwardSum { .. } => ActionKind::ParameterGradient,
            Self::ShareGradients(_) => ActionKind::Share,
            Self::ShareNorm(_) => ActionKind::Norm,
            Self::Update(_) => ActionKind::Update,
        }
    }
}

/// Prints `F0` for forward, `H0` head, `I0.2` input gradient of loss 2, `W0.2` parameter gradient, `B0.2` both (`w0.2` and `b0.2` if the parameter
/// gradient is only measured), `W0` parameter gradient of a weighted sum of losses, `S` share gradients, `N` norm, `U` update. The first number is the micro-batch.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind().letter())?;
        if let Some(micro) = self.micro_batch_index() {
            write!(f, "{micro}")?;
        }
        if let Some(loss) = self.loss() {
            write!(f, ".{loss}")?;
        }
        Ok(())
    }
}

/// An event that reaches a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Event {
    /// The previous stage sent an activation.
    Activation(MicroBatchId),
    /// The next stage sent the gradient of a loss with respect to this stage's output.
    Gradient {
        /// The micro-batch.
        micro_batch: MicroBatchId,
        /// The stage whose loss it is.
        loss: usize,
    },
    /// The next stage has freed a micro-batch: one more may be sent.
    Credit,
    /// The sum of all replicas' gradients of this step is there.
    Replicas(u64),
    /// The norm of all stages' gradients of this step is known.
    Norm(u64),
    /// The next stage sent the version of the heads' shared matrix before this step.
    Readout(u64),
}

/// The event that an idle stage waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitingFor {
    /// The next micro-batch, from the previous stage.
    Activation,
    /// A credit of the next stage.
    Credit,
    /// The gradient of a loss, from the next stage.
    Gradient {
        /// The stage whose loss it is.
        loss: usize,
    },
    /// The gradients of the other replicas.
    Replicas,
    /// The norm of all stages' gradients.
    Norm,
    /// A version of the matrix that heads share with the last stage.
    Readout,
}

impl fmt::Display for WaitingFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Activation => f.write_str("an activation"),
            Self::Credit => f.write_str("a credit"),
            Self::Gradient { loss } => write!(f, "the gradient of loss {loss}"),
            Self::Replicas => f.write_str("the gradients of the other replicas"),
            Self::Norm => f.write_str("the norm of all gradients"),
            Self::Readout => f.write_str("the shared readout"),
        }
    }
}

/// A message that no correct neighbour sends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unexpected message: {0}")]
pub(crate) struct Unexpected(String);

impl Unexpected {
    pub(super) fn new(what: String) -> Self {
        Self(what)
    }
}

//! What a stage is given, and what its actions give.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::StepReading;
use crate::{Activation, Score};

/// A micro-batch in transit between two stages.
#[derive(Clone, Debug)]
pub struct Payload {
    /// The input of the next stage.
    pub inputs: Activation,
    /// The targets, for every head's loss.
    pub targets: Tensor,
    /// How many targets count in the whole batch: the divisor of every micro-batch's losses.
    pub total: f64,
}

impl Payload {
    /// Returns the bytes of the elements of inputs and targets.
    pub fn bytes(&self) -> usize {
        self.inputs.bytes() + self.targets.elem_count() * self.targets.dtype().size_in_bytes()
    }
}

/// What an action needs beside what the stage holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct ActionContext<'a> {
    /// The losses that the stage adds up in the action's step, each with its weight ([`GradientPlan::added_up`](crate::GradientPlan::added_up)). Only
    /// backward passes need them.
    pub added_up: &'a [(usize, f64)],
    /// The norm of the gradient over all stages. Only the update needs it, under global clipping.
    pub global_norm: Option<f64>,
}

/// The result of an action.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing.
    None,
    /// The input of the next stage.
    Activation(Payload),
    /// The gradient of a loss with respect to this stage's input, for the previous stage.
    Gradient(Activation),
    /// The score of the head, in evaluation. In training it is among the numbers of the step.
    Score(Score),
    /// The gradients of the step, for the other replicas: `(elements)`, on the host.
    Gradients(Tensor),
    /// The squared norms of the main parameters' gradients, in order of creation.
    SquaredNorms(Vec<f64>),
    /// The parameters have been updated, or an asynchronous device has been given the update. The numbers of the step are being read.
    Updated(StepReading),
}

/// The result of an update.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Updated {
    /// The learning rate.
    pub lr: f64,
    /// The norm of the gradient of the stage's main parameters, before clipping.
    pub gradient_norm: f64,
}

//! Since when messages wait to be computed with.

use std::{collections::HashMap, time::Instant};

use crate::{
    metrics::Direction,
    schedule::{Action, MicroBatchId},
};

/// The activations and gradients that a stage has and has not begun to compute with.
#[derive(Default)]
pub(super) struct Waits {
    forward: HashMap<MicroBatchId, Instant>,
    /// By micro-batch and loss.
    backward: HashMap<(MicroBatchId, usize), Instant>,
}

impl Waits {
    /// An activation is there since then.
    pub(super) fn begin_forward(&mut self, micro_batch: MicroBatchId, since: Instant) {
        self.forward.insert(micro_batch, since);
    }

    /// The gradient of a loss is there since then.
    pub(super) fn begin_backward(&mut self, micro_batch: MicroBatchId, loss: usize, since: Instant) {
        self.backward.insert((micro_batch, loss), since);
    }

    /// What `action` takes that had come from a neighbour, and since when that was there; none where it takes nothing such.
    pub(super) fn end(&mut self, action: Action) -> Option<(Direction, Instant)> {
        match action {
            Action::Forward(micro_batch) => Some((Direction::Activation, self.forward.remove(&micro_batch)?)),
            // The second of two pull-backs of the same loss finds nothing.
            Action::Backward { micro_batch, loss, .. } => {
                Some((Direction::Gradient, self.backward.remove(&(micro_batch, loss))?))
            }
            Action::Head { .. } | Action::ShareNorm(_) | Action::Update(_) => None,
        }
    }
}

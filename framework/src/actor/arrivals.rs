//! How long arrived messages wait before the stage computes with them.

use std::{collections::HashMap, time::Instant};

use crate::{
    metrics::Direction,
    schedule::{Action, MicroBatchId},
};

/// The arrival times of activations and gradients that the stage has not computed with yet.
#[derive(Default)]
pub(super) struct Arrivals {
    forward: HashMap<MicroBatchId, Instant>,
    /// By micro-batch and loss.
    backward: HashMap<(MicroBatchId, usize), Instant>,
}

impl Arrivals {
    /// Notes that an activation arrived at `since`.
    pub(super) fn begin_forward(&mut self, micro_batch: MicroBatchId, since: Instant) {
        self.forward.insert(micro_batch, since);
    }

    /// Notes that the gradient of a loss arrived at `since`.
    pub(super) fn begin_backward(&mut self, micro_batch: MicroBatchId, loss: usize, since: Instant) {
        self.backward.insert((micro_batch, loss), since);
    }

    /// Removes the message that `action` uses and returns its direction and arrival time; none if the action uses no message.
    pub(super) fn end(&mut self, action: Action) -> Option<(Direction, Instant)> {
        match action {
            Action::Forward(micro_batch) => Some((Direction::Activation, self.forward.remove(&micro_batch)?)),
            // The second of two backward passes of one loss finds nothing: the first has removed the entry.
            Action::Backward { micro_batch, loss, .. } => {
                Some((Direction::Gradient, self.backward.remove(&(micro_batch, loss))?))
            }
            Action::Head { .. } | Action::ShareNorm(_) | Action::Update(_) => None,
        }
    }
}

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

    /// Removes the messages that `action` is the first to use. Returns the direction and the arrival time of each. `added_up` are the losses of a sum.
    pub(super) fn end(&mut self, action: Action, added_up: &[(usize, f64)]) -> Vec<(Direction, Instant)> {
        let gradient = |(micro_batch, loss)| Some((Direction::Gradient, self.backward.remove(&(micro_batch, loss))?));
        match action {
            Action::Forward(micro_batch) => {
                self.forward.remove(&micro_batch).map(|since| (Direction::Activation, since)).into_iter().collect()
            }
            Action::Backward { micro_batch, loss, .. } => {
                [(micro_batch, loss)].into_iter().filter_map(gradient).collect()
            }
            Action::BackwardSum { micro_batch, .. } => {
                added_up.iter().map(|&(loss, _)| (micro_batch, loss)).filter_map(gradient).collect()
            }
            Action::Head { .. } | Action::ShareGradients(_) | Action::ShareNorm(_) | Action::Update(_) => Vec::new(),
        }
    }
}

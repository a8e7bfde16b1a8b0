//! Since when messages wait to be computed with.

use std::{collections::HashMap, time::Instant};

use crate::{
    metrics::Direction,
    schedule::{Action, Ticket},
};

/// The activations and gradients that a stage has and has not begun to compute with.
#[derive(Default)]
pub(super) struct Waits {
    forward: HashMap<Ticket, Instant>,
    /// By micro-batch and loss.
    pull_back: HashMap<(Ticket, usize), Instant>,
}

impl Waits {
    /// An activation is there since then.
    pub(super) fn begin_forward(&mut self, ticket: Ticket, since: Instant) {
        self.forward.insert(ticket, since);
    }

    /// The gradient of a loss is there since then.
    pub(super) fn begin_pull_back(&mut self, ticket: Ticket, loss: usize, since: Instant) {
        self.pull_back.insert((ticket, loss), since);
    }

    /// What `action` takes that had come from a neighbour, and since when that was there; none where it takes nothing such.
    pub(super) fn end(&mut self, action: Action) -> Option<(Direction, Instant)> {
        match action {
            Action::Forward(ticket) => Some((Direction::Activation, self.forward.remove(&ticket)?)),
            // The second of two pull-backs of the same loss finds nothing.
            Action::PullBack { ticket, loss, .. } => {
                Some((Direction::Gradient, self.pull_back.remove(&(ticket, loss))?))
            }
            Action::Head { .. } | Action::ShareNorm(_) | Action::Update(_) => None,
        }
    }
}

//! What stages did when: of a run that happened, or of one that was simulated.

use crate::schedule::Action;

/// One action of one stage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// The stage, counted from 0.
    pub stage: usize,
    /// What it did.
    pub action: Action,
    /// When it began, in seconds since the timeline's beginning.
    pub start: f64,
    /// When it was done.
    pub end: f64,
}

/// What every stage did, in order of ends.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline {
    /// The number of stages.
    pub stages: usize,
    /// Every action.
    pub spans: Vec<Span>,
}

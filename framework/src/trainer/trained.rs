//! The totals of a fit.

use std::time::Duration;

use crate::transport::StageStep;

/// The totals of one call of [`Trainer::fit`](super::Trainer::fit).
#[derive(Debug, Default)]
pub(super) struct Trained {
    pub(super) steps: u64,
    pub(super) examples: u64,
    pub(super) time: Duration,
    pub(super) busy: Vec<f64>,
    /// Whether the fit was stopped on request before its end.
    pub(super) stopped: bool,
    /// The reason for which a callback ended the run early.
    pub(super) stop_reason: Option<String>,
    /// The last step's scores, in order of stages.
    pub(super) last: Vec<StageStep>,
}

impl Trained {
    pub(super) fn add(&mut self, stages: &[StageStep], examples: usize) {
        self.steps += 1;
        self.examples += examples as u64;
        self.busy.resize(stages.len(), 0.0);
        for (busy, stage) in self.busy.iter_mut().zip(stages) {
            *busy += stage.busy_seconds();
        }
        self.last = stages.to_vec();
    }
}

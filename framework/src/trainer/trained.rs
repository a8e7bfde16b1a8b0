//! What a run adds up as it goes.

use std::time::Duration;

use crate::transport::StageStep;

/// What has been trained in one call of [`Trainer::fit`](super::Trainer::fit).
#[derive(Debug, Default)]
pub(super) struct Trained {
    pub(super) per_epoch: u64,
    pub(super) steps: u64,
    pub(super) examples: u64,
    pub(super) time: Duration,
    pub(super) busy: Vec<f64>,
    /// Whether the run was asked to end, and did, before its time.
    pub(super) stopped: bool,
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

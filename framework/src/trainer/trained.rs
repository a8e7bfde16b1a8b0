//! The totals of a fit.

use std::time::{Duration, Instant};

use super::state::FitState;
use crate::transport::StageStep;

/// The totals of one call of [`Trainer::fit`](super::Trainer::fit).
#[derive(Debug, Default)]
pub(super) struct Trained {
    pub(super) examples: u64,
    /// The time of training that is over.
    time: Duration,
    /// Since when it trains again, if it does.
    since: Option<Instant>,
    pub(super) busy: Vec<f64>,
    /// Whether the fit was stopped on request before its end.
    pub(super) stopped: bool,
    /// The reason for which a callback ended the run early.
    pub(super) stop_reason: Option<String>,
    /// The last step's scores, in order of stages.
    pub(super) last: Vec<StageStep>,
}

impl Trained {
    /// Returns the totals of a fit that continues one with these.
    pub(super) fn continuing(fit: &FitState) -> Self {
        let time = Duration::try_from_secs_f64(fit.seconds).unwrap_or_default();
        Self { examples: fit.examples, time, busy: fit.busy.clone(), ..Self::default() }
    }

    /// The totals by now of a fit that began at `first_step`.
    pub(super) fn so_far(&self, first_step: u64) -> FitState {
        FitState {
            first_step,
            examples: self.examples,
            seconds: self.seconds(),
            busy: self.busy.clone(),
            last_step: 0,
            stop_reason: None,
        }
    }

    /// Goes back to the totals of an earlier step; the time since then counts.
    pub(super) fn go_back(&mut self, fit: &FitState) {
        (self.examples, self.busy) = (fit.examples, fit.busy.clone());
        self.end();
    }

    /// Begins to count time.
    pub(super) fn begin(&mut self) {
        self.since = Some(Instant::now());
    }

    /// Ends counting time.
    pub(super) fn end(&mut self) {
        self.time += self.since.take().map(|since| since.elapsed()).unwrap_or_default();
    }

    /// Returns the seconds of training by now.
    pub(super) fn seconds(&self) -> f64 {
        (self.time + self.since.map(|since| since.elapsed()).unwrap_or_default()).as_secs_f64()
    }

    pub(super) fn add(&mut self, stages: &[StageStep], examples: usize) {
        self.examples += examples as u64;
        self.busy.resize(stages.len(), 0.0);
        for (busy, stage) in self.busy.iter_mut().zip(stages) {
            *busy += stage.busy_seconds();
        }
        self.last = stages.to_vec();
    }
}

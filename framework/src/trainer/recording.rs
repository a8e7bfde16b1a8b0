//! The recorded actions of the last steps.

use std::collections::VecDeque;

use crate::{
    timeline::{Span, Timeline},
    transport::StageStep,
};

/// The actions of all stages in the last steps.
#[derive(Debug)]
pub(super) struct Recording {
    keep: u64,
    /// One entry a step, in order.
    steps: VecDeque<Vec<Span>>,
}

impl Recording {
    /// A recording that keeps the last `keep` steps.
    pub(super) fn new(keep: u64) -> Self {
        Self { keep, steps: VecDeque::new() }
    }

    /// Adds a step as the stages reported it, and drops the oldest if there are more than are kept.
    pub(super) fn add(&mut self, stages: &[StageStep]) {
        self.steps.push_back(stages.iter().flat_map(|stage| &stage.spans).copied().collect());
        while self.steps.len() as u64 > self.keep {
            self.steps.pop_front();
        }
    }

    /// Returns all recorded actions, in order of their ends, with times counted from the first start.
    pub(super) fn timeline(&self, stages: usize) -> Timeline {
        let mut spans: Vec<Span> = self.steps.iter().flatten().copied().collect();
        let begin = spans.iter().map(|span| span.start).reduce(f64::min).unwrap_or_default();
        for span in &mut spans {
            span.start -= begin;
            span.end -= begin;
        }
        spans.sort_by(|a, b| a.end.total_cmp(&b.end));
        Timeline { stages, spans }
    }
}

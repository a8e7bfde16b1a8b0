//! The loop that keeps a pipeline supplied with batches.

use std::ops::Range;

use super::{Feed, Pipeline, PipelineEvent};
use crate::Result;

/// The number of batches handed over ahead: one more than the pipeline takes, so that the pipeline never waits for the feeding thread.
const AHEAD: usize = 2;

/// Hands batches to a [`Pipeline`] as the pipeline takes them, and returns the pipeline's events.
///
/// A batch is a training step or one piece of an evaluation. `make` makes the batch with a given number; numbers are taken in order.
pub struct Feeder<F> {
    make: F,
    next: u64,
    end: u64,
    /// Batches handed over of which some piece has not yet been sent to the first stage.
    waiting: usize,
    /// Batches handed over that are not yet finished.
    open: usize,
}

impl<F: FnMut(u64) -> Result<Feed>> Feeder<F> {
    /// Returns a feeder of the batches with these numbers.
    pub fn new(numbers: Range<u64>, make: F) -> Self {
        Self { make, next: numbers.start, end: numbers.end, waiting: 0, open: 0 }
    }

    /// Stops handing batches over. Those already handed over are still computed.
    pub fn stop(&mut self) {
        self.end = self.end.min(self.next);
    }

    /// The number of the next batch to hand over.
    pub fn fed_until(&self) -> u64 {
        self.next
    }

    /// Hands over the batches that the pipeline takes, then waits for the pipeline's next event and returns it; none when every batch handed over is
    /// finished and no other follows.
    ///
    /// # Errors
    /// If a batch cannot be made, or the pipeline has failed.
    pub fn next(&mut self, pipeline: &Pipeline) -> Result<Option<PipelineEvent>> {
        loop {
            while self.next < self.end && self.waiting < AHEAD {
                pipeline.feed((self.make)(self.next)?)?;
                self.next += 1;
                self.waiting += 1;
                self.open += 1;
            }
            if self.open == 0 {
                return Ok(None);
            }
            match pipeline.next()? {
                PipelineEvent::Fed { .. } => self.waiting = self.waiting.saturating_sub(1),
                event => {
                    if matches!(event, PipelineEvent::StepDone { .. } | PipelineEvent::Scored { .. }) {
                        self.open = self.open.saturating_sub(1);
                    }
                    return Ok(Some(event));
                }
            }
        }
    }
}

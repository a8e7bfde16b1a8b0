//! The loop that keeps a pipeline supplied with batches.

use std::ops::Range;

use super::{Feed, Pipeline, PipelineEvent};
use crate::Result;

/// Batches that are handed over ahead: one more than the pipeline takes, so that it never waits for the thread that feeds it.
const AHEAD: usize = 2;

/// Hands batches to a [`Pipeline`] as it takes them, and yields the pipeline's events.
///
/// A batch is a training step or one piece of an evaluation. `make` makes the batch of a number; numbers are taken in order.
pub struct Feeder<F> {
    make: F,
    next: u64,
    end: u64,
    /// Batches handed over whose last piece has not been sent to the first stage.
    waiting: usize,
    /// Batches handed over that are not done.
    open: usize,
}

impl<F: FnMut(u64) -> Result<Feed>> Feeder<F> {
    /// A feeder of the batches `numbers`.
    pub fn new(numbers: Range<u64>, make: F) -> Self {
        Self { make, next: numbers.start, end: numbers.end, waiting: 0, open: 0 }
    }

    /// Hands no further batch over. Those that have been handed over are still done.
    pub fn stop(&mut self) {
        self.end = self.end.min(self.next);
    }

    /// The number of the next batch to hand over.
    pub fn fed_until(&self) -> u64 {
        self.next
    }

    /// Hands over what the pipeline takes and returns the pipeline's next event; none when every batch handed over is done and no other
    /// follows. Waits for the event.
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

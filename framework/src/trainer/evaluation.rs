//! The evaluation of a data set in the pipeline.

use std::{cell::Cell, sync::Arc, time::Instant};

use super::{Evaluation, Stopper, Trainer, calls, guarded, loader::Loader};
use crate::{
    Dataset, Error, Result, Score,
    actor::{Feed, Feeder, PipelineEvent},
    schedule::Purpose,
};

pub(super) fn empty() -> Error {
    Error::invalid("validation set", "it has no examples", "give at least one")
}

/// The error for a setting that needs a validation set, in a fit that has none.
pub(super) fn missing(setting: &str) -> Error {
    Error::invalid(setting, "there is no validation set", "give one, such as fit((train, validation))")
}

impl Trainer {
    /// Scores every head; none if `stopper` is asked to end the run before all batches have been fed.
    pub(super) fn run_evaluation(&mut self, data: &Arc<dyn Dataset>, stopper: &Stopper) -> Result<Option<Evaluation>> {
        let (batch_size, step, loss) = (self.settings.batch_size, self.steps, Arc::clone(&self.loss));
        let (calls, patience) = (self.calls.clone(), self.patience());
        let examples = calls.during(calls::DATA, || Ok(data.len()))?;
        let batches = examples.div_ceil(batch_size) as u64;
        if batches == 0 {
            return Err(empty());
        }
        let start = Instant::now();
        let mut sums: Vec<Option<Score>> = vec![None; self.stages().len()];
        // Once something has been fed, an error leaves the stages in the middle of the evaluation.
        let fed = Cell::new(false);
        self.failed = true;
        let whole = guarded(|| {
            let mut loader = Loader::in_order(Arc::clone(data), examples, batch_size, patience)?;
            let mut feeder = Feeder::new(0..batches, |first| {
                let (batch, total) = guarded(|| {
                    let batch = loader.next()?;
                    let total = calls.during(calls::DATA, || loss.count(&batch.targets));
                    Ok((batch, total.map_err(super::loader::failure)?))
                })?;
                fed.set(true);
                let (first_index, count) = (first as usize, batches as usize);
                Ok(Feed {
                    purpose: Purpose::Evaluate,
                    step,
                    micro_batches: vec![batch],
                    elsewhere: Vec::new(),
                    first_index,
                    count,
                    total,
                    capture: None,
                })
            });
            loop {
                if stopper.is_requested() {
                    feeder.stop();
                }
                match feeder.next(&self.pipeline)? {
                    None => return Ok(feeder.fed_until() == batches),
                    Some(PipelineEvent::Scored { scores, .. }) => {
                        for (sum, score) in sums.iter_mut().zip(scores) {
                            *sum = Score::sum(*sum, score);
                        }
                    }
                    Some(other) => {
                        return Err(Error::Internal(format!("{other:?} came in the middle of an evaluation")));
                    }
                }
            }
        });
        self.failed = whole.is_err() && fed.get();
        if !whole? {
            return Ok(None);
        }
        let evaluation = Evaluation::new(&sums, start.elapsed())?;
        if evaluation.last().score.count == 0.0 {
            return Err(Error::invalid("validation set", "the loss counts none of its targets", "give others"));
        }
        Ok(Some(evaluation))
    }
}

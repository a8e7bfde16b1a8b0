//! Scoring a data set through the pipeline.

use std::{sync::Arc, time::Instant};

use super::{Evaluation, Stopper, Trainer, loader::Loader};
use crate::{
    Dataset, Error, Result, Score,
    actor::{Feed, PipelineEvent},
    schedule::Purpose,
};

pub(super) fn empty() -> Error {
    Error::invalid("evaluation", "the data set is empty", "give at least one example")
}

impl Trainer {
    /// Scores every head; none where `stopper` was asked before all batches had been fed.
    pub(super) fn run_evaluation(&mut self, data: &dyn Dataset, stopper: &Stopper) -> Result<Option<Evaluation>> {
        let (batch_size, step, loss) = (self.settings.batch_size, self.steps, Arc::clone(&self.loss));
        let batches = data.len().div_ceil(batch_size);
        if batches == 0 {
            return Err(empty());
        }
        let was_usable = !std::mem::replace(&mut self.failed, true);
        let start = Instant::now();
        let mut sums: Vec<Option<Score>> = vec![None; self.stages().len()];
        let whole = std::thread::scope(|scope| {
            let loader = Loader::in_order(scope, data, batch_size)?;
            let (mut fed, mut waiting, mut scored) = (0, 0, 0);
            while scored < batches {
                let stopping = stopper.is_requested();
                if stopping && fed == scored {
                    return Ok(false);
                }
                while fed < batches && waiting < 2 && !stopping {
                    let batch = loader.next()?;
                    let total = loss.count(&batch.targets)?;
                    let pieces = vec![batch];
                    self.pipeline.feed(Feed {
                        purpose: Purpose::Evaluate,
                        step,
                        pieces,
                        first: fed,
                        of: batches,
                        total,
                    })?;
                    fed += 1;
                    waiting += 1;
                }
                match self.pipeline.next()? {
                    PipelineEvent::Fed { .. } => waiting -= 1,
                    PipelineEvent::Scored { scores, .. } => {
                        scored += 1;
                        for (sum, score) in sums.iter_mut().zip(scores) {
                            *sum = match (*sum, score) {
                                (Some(sum), Some(score)) => Some(sum.and(score)),
                                (sum, score) => sum.or(score),
                            };
                        }
                    }
                    other => return Err(Error::Internal(format!("{other:?} came in the middle of an evaluation"))),
                }
            }
            Ok(true)
        })?;
        self.failed = !was_usable;
        match whole {
            true => Evaluation::new(&sums, start.elapsed()).map(Some),
            false => Ok(None),
        }
    }
}

//! Batches that are made ahead of use, on a thread of their own.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{Receiver, sync_channel},
    thread::Scope,
};

use super::example_order::ExampleOrder;
use crate::{Batch, Dataset, Error, Failure, Origin, Phase, Result, random::Key};

/// The number of batches that are made ahead.
const AHEAD: usize = 2;

/// The failure of a data set.
pub(super) fn failure(cause: Error) -> Failure {
    Failure::new(Origin::Data, Phase::Load, cause)
}

/// Returns a batch of these examples, after checking it.
fn checked(data: &dyn Dataset, numbers: &[usize], augment: Option<Key>) -> Result<Batch> {
    let batch = data.batch(numbers, augment)?;
    batch.validate(numbers)?;
    Ok(batch)
}

/// The receiving end of a loading thread.
pub(super) struct Loader(Receiver<Result<Batch>>);

impl Loader {
    /// Loads the training batches of `steps`, shuffled and augmented.
    pub(super) fn training<'scope>(
        scope: &'scope Scope<'scope, '_>,
        data: &'scope dyn Dataset,
        order: ExampleOrder,
        steps: Range<u64>,
    ) -> Self {
        let key = Key::new(order.seed).named("augment");
        let mut epoch = (u64::MAX, Vec::new());
        Self::spawn(
            scope,
            steps.map(move |step| {
                let at = order.epoch_at(step);
                if epoch.0 != at {
                    epoch = (at, order.epoch(at));
                }
                let numbers = &epoch.1[order.batch_of(step)];
                checked(data, numbers, Some(key.with(at))).map_err(|cause| failure(cause).in_step(step).into())
            }),
        )
    }

    /// Loads all examples in their own order, not augmented.
    pub(super) fn in_order<'scope>(
        scope: &'scope Scope<'scope, '_>,
        data: &'scope dyn Dataset,
        batch_size: usize,
    ) -> Self {
        let len = data.len();
        let starts = (0..len).step_by(batch_size);
        Self::spawn(
            scope,
            starts.map(move |start| {
                let numbers: Vec<usize> = (start..(start + batch_size).min(len)).collect();
                checked(data, &numbers, None).map_err(|cause| failure(cause).into())
            }),
        )
    }

    fn spawn<'scope>(
        scope: &'scope Scope<'scope, '_>,
        mut batches: impl Iterator<Item = Result<Batch>> + Send + 'scope,
    ) -> Self {
        let (give, take) = sync_channel(AHEAD);
        scope.spawn(move || {
            loop {
                let made = catch_unwind(AssertUnwindSafe(|| batches.next()))
                    .unwrap_or_else(|panic| Some(Err(failure(Error::panicked(&*panic)).into())));
                let Some(batch) = made else { break };
                let failed = batch.is_err();
                // If the receiver has been dropped, the run has ended early.
                if give.send(batch).is_err() || failed {
                    break;
                }
            }
        });
        Self(take)
    }

    /// Waits for the next batch and returns it.
    pub(super) fn next(&self) -> Result<Batch> {
        self.0.recv().map_err(|_| Error::Internal("the loading thread has no more batches".to_owned()))?
    }
}

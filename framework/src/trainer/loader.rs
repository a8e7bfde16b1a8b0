//! Batches that are made ahead of use, on a thread of their own.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
};

use super::example_order::ExampleOrder;
use crate::{
    Batch, Dataset, Error, Failure, Origin, Phase, Result,
    random::Key,
    watch::{Activity, Doing, NoMessage, Patience, Worker},
};

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
pub(super) struct Loader {
    /// None when no more are taken.
    batches: Option<Receiver<Result<Batch>>>,
    thread: Worker,
    activity: Arc<Activity>,
    patience: Patience,
    /// Whether the data set is blocked.
    has_stalled: bool,
}

impl Loader {
    /// Loads the training batches of `steps`, shuffled and augmented.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub(super) fn training(
        data: Arc<dyn Dataset>,
        order: ExampleOrder,
        steps: Range<u64>,
        patience: Patience,
    ) -> Result<Self> {
        let key = Key::new(order.seed).named("augment");
        let mut epoch = (u64::MAX, Vec::new());
        let batch = move |step| {
            let at = order.epoch_at(step);
            if epoch.0 != at {
                epoch = (at, order.epoch(at));
            }
            let numbers = &epoch.1[order.batch_of(step)];
            checked(&*data, numbers, Some(key.with(at))).map_err(|cause| failure(cause).in_step(step).into())
        };
        Self::start(steps.map(|step| (Some(step), step)), batch, patience)
    }

    /// Loads all `len` examples in their own order, not augmented.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub(super) fn in_order(data: Arc<dyn Dataset>, len: usize, batch_size: usize, patience: Patience) -> Result<Self> {
        let batch = move |start: usize| {
            let numbers: Vec<usize> = (start..(start + batch_size).min(len)).collect();
            checked(&*data, &numbers, None).map_err(|cause| failure(cause).into())
        };
        Self::start((0..len).step_by(batch_size).map(|start| (None, start)), batch, patience)
    }

    /// Loads the batch of each of these numbers, in the step that is beside it.
    fn start<T: Send + 'static>(
        numbers: impl Iterator<Item = (Option<u64>, T)> + Send + 'static,
        mut batch: impl FnMut(T) -> Result<Batch> + Send + 'static,
        patience: Patience,
    ) -> Result<Self> {
        let (give, batches) = sync_channel(AHEAD);
        let activity = Arc::new(Activity::default());
        let present = Arc::clone(&activity);
        let thread = Worker::start("interlock-data", move || {
            for (step, number) in numbers {
                let doing = Doing::new(Origin::Data, Phase::Load).in_step(step);
                let make = || present.during(doing, || batch(number));
                let made = catch_unwind(AssertUnwindSafe(make))
                    .unwrap_or_else(|panic| Err(failure(Error::panicked(&*panic)).into()));
                let failed = made.is_err();
                // If the receiver has been dropped, the run has ended early.
                if give.send(made).is_err() || failed {
                    break;
                }
            }
        })?;
        Ok(Self { batches: Some(batches), thread, activity, patience, has_stalled: false })
    }

    /// Waits for the next batch and returns it.
    pub(super) fn next(&mut self) -> Result<Batch> {
        let ended = || Error::Internal("the loading thread has no more batches".to_owned());
        let batches = self.batches.as_ref().ok_or_else(ended)?;
        match self.patience.receive(batches, &[Arc::clone(&self.activity)], || false) {
            Ok(batch) => batch,
            Err(NoMessage::Ended) => Err(ended()),
            Err(NoMessage::Stalled(stalled)) => {
                self.has_stalled = true;
                tracing::warn!("{}", stalled.failure);
                Err(stalled.failure.into())
            }
        }
    }
}

impl Drop for Loader {
    /// Waits for the batch that is being made.
    fn drop(&mut self) {
        self.batches = None;
        if !self.has_stalled {
            self.thread.join(self.patience, &[Arc::clone(&self.activity)]);
        }
    }
}

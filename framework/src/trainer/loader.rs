//! Batches that are made ahead of use, on a thread of their own.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
};

use candle_core::Tensor;

use super::example_order::ExampleOrder;
use crate::{
    Batch, DataFrom, Dataset, Error, Failure, Origin, Phase, Result,
    data::{Examples, pieces_of},
    random::Key,
    ranks::share_of,
    watch::{Activity, Doing, NoMessage, Patience, Worker},
};

/// The number of batches that are made ahead.
const AHEAD: usize = 2;

/// The failure of a data set.
pub(super) fn failure(cause: Error) -> Failure {
    Failure::new(Origin::Data, Phase::Load, cause)
}

/// A training batch.
pub(super) struct Loaded {
    /// Its micro-batches, or those of the first replica.
    pub(super) micro_batches: Vec<Batch>,
    /// Those after them, which other ranks read.
    pub(super) elsewhere: Vec<Examples>,
    /// The targets of all.
    pub(super) targets: Tensor,
    /// The number of its examples.
    pub(super) examples: usize,
}

impl Loaded {
    /// Reads the batch of these examples; of several replicas that read their own, the part of the first.
    fn read(
        data: &dyn Dataset,
        order: &ExampleOrder,
        numbers: &[usize],
        augment: Option<Key>,
        from: DataFrom,
    ) -> Result<Self> {
        let (examples, replicas) = (numbers.len(), order.division.replicas);
        let mut pieces: Vec<_> = pieces_of(examples, order.micro_batches(examples)).collect();
        let of_others = match from {
            DataFrom::First => Vec::new(),
            DataFrom::All => pieces.split_off(share_of(0, replicas, pieces.len())),
        };
        let here = pieces.last().map_or(0, |last| last.end);
        let batch = checked(data, &numbers[..here], augment)?;
        let micro_batches = pieces.into_iter().map(|piece| batch.part(piece)).collect::<Result<_>>()?;
        if of_others.is_empty() {
            return Ok(Self { micro_batches, elsewhere: Vec::new(), targets: batch.targets, examples });
        }
        let mut targets = vec![batch.targets];
        let mut named = |piece: Range<usize>| {
            let numbers = &numbers[piece];
            let of_piece = data.targets(numbers, augment)?;
            let examples = Examples::new(numbers, augment, order.examples, &of_piece)?;
            targets.push(of_piece);
            Ok(examples)
        };
        let elsewhere = of_others.into_iter().map(&mut named).collect::<Result<_>>()?;
        Ok(Self { micro_batches, elsewhere, targets: Tensor::cat(&targets, 0)?, examples })
    }
}

/// Returns a batch of these examples, after checking it.
fn checked(data: &dyn Dataset, numbers: &[usize], augment: Option<Key>) -> Result<Batch> {
    let batch = data.batch(numbers, augment)?;
    batch.validate(numbers)?;
    Ok(batch)
}

/// The receiving end of a loading thread.
pub(super) struct Loader<T> {
    /// None when no more are taken.
    batches: Option<Receiver<Result<T>>>,
    thread: Worker,
    activity: Arc<Activity>,
    patience: Patience,
    /// Whether the data set is blocked.
    has_stalled: bool,
}

impl Loader<Loaded> {
    /// Loads the training batches of `steps`, shuffled and augmented.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub(super) fn training(
        data: Arc<dyn Dataset>,
        order: ExampleOrder,
        from: DataFrom,
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
            let read = Loaded::read(&*data, &order, numbers, Some(key.with(at)), from);
            read.map_err(|cause| failure(cause).in_step(step).into())
        };
        Self::start(steps.map(|step| (Some(step), step)), batch, patience)
    }
}

impl Loader<Batch> {
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
}

impl<T: Send + 'static> Loader<T> {
    /// Loads the batch of each of these numbers, in the step that is beside it.
    fn start<N: Send + 'static>(
        numbers: impl Iterator<Item = (Option<u64>, N)> + Send + 'static,
        mut batch: impl FnMut(N) -> Result<T> + Send + 'static,
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
    pub(super) fn next(&mut self) -> Result<T> {
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

impl<T> Drop for Loader<T> {
    /// Waits for the batch that is being made.
    fn drop(&mut self) {
        self.batches = None;
        if !self.has_stalled {
            self.thread.join(self.patience, &[Arc::clone(&self.activity)]);
        }
    }
}

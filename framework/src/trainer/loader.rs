//! Batches that are made ahead of use, on a thread of their own.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{Receiver, sync_channel},
    thread::Scope,
};

use rand::{Rng, seq::SliceRandom};

use crate::{Batch, Dataset, Error, Failure, Origin, Phase, Result, random::Key};

/// The number of batches that are made ahead.
const AHEAD: usize = 2;

/// The order in which a training set is read: shuffled for each epoch by the seed and the epoch's number.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExampleOrder {
    pub(super) examples: usize,
    /// Steps of one pass over the training set.
    pub(super) per_epoch: u64,
    /// The epoch that begins at `first_step`, counted from the trainer's first.
    first_epoch: u64,
    first_step: u64,
    batch_size: usize,
    seed: u64,
}

impl ExampleOrder {
    /// Returns the order of a data set whose first epoch begins at step 0.
    ///
    /// # Errors
    /// If an epoch has no batch.
    pub(super) fn new(examples: usize, batch_size: usize, drop_last: bool, seed: u64) -> Result<Self> {
        let per_epoch = if drop_last { examples / batch_size } else { examples.div_ceil(batch_size) } as u64;
        match (per_epoch, examples) {
            (0, 0) => Err(Error::invalid("training set", "it has no examples", "give at least one")),
            (0, _) => Err(Error::invalid(
                "batch_size",
                format!(
                    "a training set of {examples} examples has no whole batch of {batch_size}, and drop_last leaves out the others"
                ),
                format!("use a batch size of at most {examples}, or set drop_last to false"),
            )),
            _ => Ok(Self { examples, per_epoch, first_epoch: 0, first_step: 0, batch_size, seed }),
        }
    }

    /// Returns the same order with epoch `first_epoch` beginning at `first_step`.
    pub(super) fn beginning(self, first_epoch: u64, first_step: u64) -> Self {
        Self { first_epoch, first_step, ..self }
    }

    /// An epoch and the step at which it begins, from which all others are counted.
    pub(super) fn begins(&self) -> (u64, u64) {
        (self.first_epoch, self.first_step)
    }

    /// Returns the epoch of a step.
    pub(super) fn epoch_at(&self, step: u64) -> u64 {
        self.first_epoch + (step - self.first_step) / self.per_epoch
    }

    /// Returns the number of epochs that have begun before `step`, counted from the trainer's first.
    pub(super) fn epochs_begun(&self, step: u64) -> u64 {
        self.first_epoch + (step - self.first_step).div_ceil(self.per_epoch)
    }

    /// Returns the first step of the epoch after that of `step`.
    pub(super) fn end_of_epoch(&self, step: u64) -> u64 {
        self.first_step + ((step - self.first_step) / self.per_epoch + 1) * self.per_epoch
    }

    /// Returns the examples of an epoch, in order.
    fn epoch(&self, epoch: u64) -> Vec<usize> {
        let mut numbers: Vec<usize> = (0..self.examples).collect();
        let mut stream = Key::new(self.seed).named("shuffle").with(epoch).stream();
        numbers.shuffle(&mut stream as &mut dyn Rng);
        numbers
    }

    /// Returns the range of its epoch's examples that are the batch of `step`.
    fn batch_of(&self, step: u64) -> Range<usize> {
        let start = ((step - self.first_step) % self.per_epoch) as usize * self.batch_size;
        start..(start + self.batch_size).min(self.examples)
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_is_a_permutation_of_its_own_and_the_last_batch_is_short() {
        let order = ExampleOrder::new(10, 4, false, 1).unwrap();
        assert_eq!(order.per_epoch, 3);
        let (first, second) = (order.epoch(0), order.epoch(1));
        assert_ne!(first, second);
        assert_eq!(order.epoch(0), first);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        assert_eq!(order.batch_of(5), 8..10);
        assert_eq!(
            [order.epoch_at(5), order.epochs_begun(5), order.epochs_begun(6), order.end_of_epoch(5)],
            [1, 2, 2, 6]
        );
    }

    #[test]
    fn an_order_that_begins_later_counts_its_steps_from_there() {
        let order = ExampleOrder::new(10, 4, true, 1).unwrap().beginning(4, 11);
        assert_eq!(order.per_epoch, 2);
        assert_eq!(
            [11, 12, 13].map(|step| (order.epoch_at(step), order.batch_of(step))),
            [(4, 0..4), (4, 4..8), (5, 0..4)]
        );
        assert_eq!([order.epochs_begun(11), order.epochs_begun(12), order.end_of_epoch(12)], [4, 5, 13]);
    }

    #[test]
    fn a_training_set_without_a_batch_is_refused_with_a_remedy_that_helps() {
        let refused = |examples, drop_last| ExampleOrder::new(examples, 32, drop_last, 0).unwrap_err().to_string();
        assert_eq!(refused(0, false), "training set: it has no examples; give at least one");
        assert_eq!(refused(0, true), refused(0, false));
        assert!(refused(3, true).ends_with("use a batch size of at most 3, or set drop_last to false"));
    }
}

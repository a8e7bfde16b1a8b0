//! Batches made on a thread of their own, ahead of use.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{Receiver, sync_channel},
    thread::Scope,
};

use rand::{Rng, seq::SliceRandom};

use crate::{Batch, Dataset, Error, Failure, Origin, Phase, Result, random::Key};

/// Batches that are ready before they are asked for.
const AHEAD: usize = 2;

/// In which order a training set is read: shuffled anew for each epoch, a function of seed and step alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    pub(super) examples: usize,
    pub(super) batch_size: usize,
    pub(super) drop_last: bool,
    pub(super) seed: u64,
}

impl Order {
    pub(super) fn steps_per_epoch(&self) -> Result<u64> {
        let steps =
            if self.drop_last { self.examples / self.batch_size } else { self.examples.div_ceil(self.batch_size) };
        if steps == 0 {
            return Err(Error::invalid(
                "batch_size",
                format!("{} examples give no batch of {}", self.examples, self.batch_size),
                "use more data, a smaller batch, or keep the last short batch",
            ));
        }
        Ok(steps as u64)
    }

    /// The examples of an epoch in their order.
    fn epoch(&self, epoch: u64) -> Vec<usize> {
        let mut numbers: Vec<usize> = (0..self.examples).collect();
        let mut stream = Key::new(self.seed).named("shuffle").with(epoch).stream();
        numbers.shuffle(&mut stream as &mut dyn Rng);
        numbers
    }

    fn batch_of(&self, numbers: &[usize], step: u64, per_epoch: u64) -> Range<usize> {
        let start = (step % per_epoch) as usize * self.batch_size;
        start..(start + self.batch_size).min(numbers.len())
    }
}

/// The failure of a data set.
fn failure(cause: Error) -> Failure {
    Failure::new(Origin::Data, Phase::Load, cause)
}

/// The receiving end of a loading thread.
pub(super) struct Loader(Receiver<Result<Batch>>);

impl Loader {
    /// Training batches of `steps`, shuffled and augmented.
    pub(super) fn training<'scope>(
        scope: &'scope Scope<'scope, '_>,
        data: &'scope dyn Dataset,
        order: Order,
        steps: Range<u64>,
    ) -> Result<Self> {
        let per_epoch = order.steps_per_epoch()?;
        let key = Key::new(order.seed).named("augment");
        let mut epoch = (u64::MAX, Vec::new());
        Ok(Self::spawn(
            scope,
            steps.map(move |step| {
                let at = step / per_epoch;
                if epoch.0 != at {
                    epoch = (at, order.epoch(at));
                }
                let numbers = &epoch.1[order.batch_of(&epoch.1, step, per_epoch)];
                data.batch(numbers, Some(key.with(at))).map_err(|cause| failure(cause).in_step(step).into())
            }),
        ))
    }

    /// All examples in their own order, not augmented.
    pub(super) fn in_order<'scope>(
        scope: &'scope Scope<'scope, '_>,
        data: &'scope dyn Dataset,
        batch_size: usize,
    ) -> Result<Self> {
        let len = data.len();
        let starts = (0..len).step_by(batch_size);
        Ok(Self::spawn(
            scope,
            starts.map(move |start| {
                let numbers: Vec<usize> = (start..(start + batch_size).min(len)).collect();
                data.batch(&numbers, None).map_err(|cause| failure(cause).into())
            }),
        ))
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
                // Where nobody takes batches any more the run has ended early.
                if give.send(batch).is_err() || failed {
                    break;
                }
            }
        });
        Self(take)
    }

    /// The next batch; waits for it.
    pub(super) fn next(&self) -> Result<Batch> {
        self.0.recv().map_err(|_| Error::Internal("the loading thread has no more batches".to_owned()))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_is_a_permutation_of_its_own_and_the_last_batch_is_short() {
        let order = Order { examples: 10, batch_size: 4, drop_last: false, seed: 1 };
        assert_eq!(order.steps_per_epoch().unwrap(), 3);
        let (first, second) = (order.epoch(0), order.epoch(1));
        assert_ne!(first, second);
        assert_eq!(order.epoch(0), first);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        assert_eq!(order.batch_of(&first, 5, 3), 8..10);
        assert!(Order { examples: 3, drop_last: true, ..order }.steps_per_epoch().is_err());
    }
}

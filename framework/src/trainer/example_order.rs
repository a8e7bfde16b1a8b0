//! The order in which a training set is read, and its division into batches and micro-batches.

use std::ops::Range;

use rand::{Rng, seq::SliceRandom};

use crate::{Error, Result, random::Key};

/// The division of an epoch's examples into batches, and of these into micro-batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Division {
    pub(super) batch_size: usize,
    /// Of all replicas.
    pub(super) micro_batches: usize,
    /// Each of them has at least one micro-batch.
    pub(super) replicas: usize,
    /// Whether the examples that are left after the last whole batch are left out.
    pub(super) drop_last: bool,
    /// The fewest examples of a micro-batch that the model can be trained with. So few that are left after the last whole batch join it.
    pub(super) least: usize,
}

impl Division {
    /// Returns the fewest examples of a batch.
    pub(super) fn smallest_batch(self) -> usize {
        self.least * self.replicas
    }

    /// Returns how many of an epoch's examples join the last whole batch.
    fn joining(self, examples: usize) -> usize {
        let left = examples % self.batch_size;
        let joins = !self.drop_last && examples >= self.batch_size && left < self.smallest_batch();
        if joins { left } else { 0 }
    }

    /// Returns the number of batches of an epoch.
    fn batches(self, examples: usize) -> usize {
        let left = examples % self.batch_size;
        let is_batch = left > 0 && !self.drop_last && self.joining(examples) == 0;
        examples / self.batch_size + usize::from(is_batch)
    }

    /// Checks that every micro-batch of an epoch has enough examples.
    fn check(self, examples: usize) -> Result<()> {
        let Self { batch_size, micro_batches, least, .. } = self;
        let smallest = batch_size / micro_batches;
        let smallest_batch = self.smallest_batch();
        let needed = match self.replicas {
            1 => format!("in training, the model needs {least} in a micro-batch"),
            replicas => format!("in training, each of {replicas} replicas needs {least} in a micro-batch"),
        };
        if examples < smallest_batch {
            let right = format!("give at least {smallest_batch}");
            return Err(Error::invalid("training set", format!("it has {}; {needed}", counted(examples)), right));
        }
        if examples < batch_size || smallest >= least {
            return Ok(());
        }
        if batch_size < smallest_batch {
            let right = format!("use at least {smallest_batch}");
            return Err(Error::invalid("batch_size", format!("{batch_size}; {needed}"), right));
        }
        let problem = format!("{micro_batches} of a batch of {batch_size} have {} each; {needed}", counted(smallest));
        let (most, of_each) = match self.replicas {
            1 => (batch_size / least, ""),
            replicas => (batch_size / least / replicas, " of each replica"),
        };
        let enough = micro_batches * least;
        let right = format!("use at most {most}{of_each}, or a batch_size of at least {enough}");
        Err(Error::invalid("micro_batches", problem, right))
    }
}

/// Returns a number of examples in words.
fn counted(examples: usize) -> String {
    format!("{examples} example{}", if examples == 1 { "" } else { "s" })
}

/// The order in which a training set is read: shuffled for each epoch by the seed and the epoch's number.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExampleOrder {
    pub(super) examples: usize,
    /// Steps of one pass over the training set.
    pub(super) per_epoch: u64,
    /// The epoch that begins at `first_step`, counted from the trainer's first.
    first_epoch: u64,
    first_step: u64,
    pub(super) division: Division,
    pub(super) seed: u64,
}

impl ExampleOrder {
    /// Returns the order of a data set whose first epoch begins at step 0.
    ///
    /// # Errors
    /// If an epoch has no batch, or one of its micro-batches has fewer examples than the model needs.
    pub(super) fn new(examples: usize, division: Division, seed: u64) -> Result<Self> {
        let per_epoch = division.batches(examples) as u64;
        match (per_epoch, examples) {
            (0, 0) => Err(Error::invalid("training set", "it has no examples", "give at least one")),
            (0, _) => Err(Error::invalid(
                "batch_size",
                format!(
                    "a training set of {examples} examples has no whole batch of {}, and drop_last leaves out the others",
                    division.batch_size
                ),
                format!("use a batch size of at most {examples}, or set drop_last to false"),
            )),
            _ => {
                division.check(examples)?;
                Ok(Self { examples, per_epoch, first_epoch: 0, first_step: 0, division, seed })
            }
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
    pub(super) fn epoch(&self, epoch: u64) -> Vec<usize> {
        let mut numbers: Vec<usize> = (0..self.examples).collect();
        let mut stream = Key::new(self.seed).named("shuffle").with(epoch).stream();
        numbers.shuffle(&mut stream as &mut dyn Rng);
        numbers
    }

    /// Returns the range of its epoch's examples that are the batch of `step`.
    pub(super) fn batch_of(&self, step: u64) -> Range<usize> {
        let Division { batch_size, drop_last, .. } = self.division;
        let at = (step - self.first_step) % self.per_epoch;
        let start = at as usize * batch_size;
        match at + 1 == self.per_epoch && !drop_last {
            true => start..self.examples,
            false => start..start + batch_size,
        }
    }

    /// Returns the number of micro-batches of a batch: fewer than configured if they would have fewer examples than the model needs.
    pub(super) fn micro_batches(&self, examples: usize) -> usize {
        (examples / self.division.least).clamp(self.division.replicas, self.division.micro_batches)
    }

    /// Returns the number of examples that join the last whole batch of an epoch, since they are too few for a batch of their own.
    pub(super) fn joining(&self) -> usize {
        self.division.joining(self.examples)
    }

    /// Returns the number of examples of the largest batch.
    pub(super) fn largest_batch(&self) -> usize {
        self.division.batch_size.min(self.examples) + self.joining()
    }

    /// Returns the number of examples of the smallest micro-batch.
    pub(super) fn smallest_micro_batch(&self) -> usize {
        let smallest = |step: u64| {
            let examples = self.batch_of(step).len();
            examples / self.micro_batches(examples)
        };
        smallest(self.first_step).min(smallest(self.first_step + self.per_epoch - 1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn division(batch_size: usize, drop_last: bool) -> Division {
        Division { batch_size, micro_batches: 1, replicas: 1, drop_last, least: 1 }
    }

    #[test]
    fn every_epoch_is_a_permutation_of_its_own_and_the_last_batch_is_short() {
        let order = ExampleOrder::new(10, division(4, false), 1).unwrap();
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
        let order = ExampleOrder::new(10, division(4, true), 1).unwrap().beginning(4, 11);
        assert_eq!(order.per_epoch, 2);
        assert_eq!(
            [11, 12, 13].map(|step| (order.epoch_at(step), order.batch_of(step))),
            [(4, 0..4), (4, 4..8), (5, 0..4)]
        );
        assert_eq!([order.epochs_begun(11), order.epochs_begun(12), order.end_of_epoch(12)], [4, 5, 13]);
    }

    #[test]
    fn a_training_set_without_a_batch_is_refused_with_a_remedy_that_helps() {
        let refused =
            |examples, drop_last| ExampleOrder::new(examples, division(32, drop_last), 0).unwrap_err().to_string();
        assert_eq!(refused(0, false), "training set: it has no examples; give at least one");
        assert_eq!(refused(0, true), refused(0, false));
        assert!(refused(3, true).ends_with("use a batch size of at most 3, or set drop_last to false"));
    }

    #[test]
    fn a_last_batch_that_is_too_small_joins_the_one_before_it() {
        let order = |examples, drop_last| {
            let division = Division { least: 2, micro_batches: 4, ..division(32, drop_last) };
            ExampleOrder::new(examples, division, 0).unwrap()
        };
        let joined = order(65, false);
        assert_eq!((joined.per_epoch, joined.joining(), joined.largest_batch()), (2, 1, 33));
        assert_eq!([joined.batch_of(0), joined.batch_of(1), joined.batch_of(2)], [0..32, 32..65, 0..32]);
        let dropped = order(65, true);
        assert_eq!((dropped.per_epoch, dropped.joining(), dropped.batch_of(1)), (2, 0, 32..64));
        // A batch of its own, in fewer micro-batches.
        let short = order(67, false);
        assert_eq!((short.per_epoch, short.batch_of(2), short.micro_batches(3)), (3, 64..67, 1));
    }

    #[test]
    fn micro_batches_that_are_too_small_are_refused_with_a_remedy_that_helps() {
        let refused = |examples, batch_size, micro_batches| {
            let division = Division { batch_size, micro_batches, replicas: 1, drop_last: false, least: 2 };
            ExampleOrder::new(examples, division, 0).unwrap_err().to_string()
        };
        let needs = "in training, the model needs 2 in a micro-batch";
        let of_four = format!("micro_batches: 4 of a batch of 4 have 1 example each; {needs}; use at most 2, or");
        assert_eq!(refused(9, 4, 4), of_four + " a batch_size of at least 8");
        assert_eq!(refused(9, 1, 1), format!("batch_size: 1; {needs}; use at least 2"));
        assert_eq!(refused(1, 4, 1), format!("training set: it has 1 example; {needs}; give at least 2"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn an_epoch_has_every_example_once_in_micro_batches_that_are_large_enough(
            examples in 1_usize..80,
            more in 0_usize..15,
            micro_batches in 1_usize..10,
            replicas in 1_usize..4,
            least in 1_usize..4,
            drop_last: bool,
            epoch in 0_u64..3,
        ) {
            let micro_batches = micro_batches * replicas;
            let batch_size = micro_batches + more;
            let division = Division { batch_size, micro_batches, replicas, drop_last, least };
            let Ok(order) = ExampleOrder::new(examples, division, 5) else {
                let has_no_batch = drop_last && examples < batch_size;
                let has_too_small = examples >= batch_size && batch_size / micro_batches < least;
                prop_assert!(has_no_batch || has_too_small || examples < least * replicas);
                return Ok(());
            };
            let numbers = order.epoch(epoch);
            let first = epoch * order.per_epoch;
            let batches: Vec<&[usize]> =
                (first..first + order.per_epoch).map(|step| &numbers[order.batch_of(step)]).collect();
            for batch in &batches {
                let pieces = order.micro_batches(batch.len());
                prop_assert!((replicas..=micro_batches).contains(&pieces) && batch.len() / pieces >= least);
                prop_assert!(batch.len() / pieces >= order.smallest_micro_batch());
                prop_assert!(batch.len() < batch_size + least * replicas && batch.len() <= order.largest_batch());
            }
            let mut read = batches.concat();
            read.sort_unstable();
            read.dedup();
            let left_out = if drop_last { examples % batch_size } else { 0 };
            prop_assert_eq!(read.len(), examples - left_out);
            prop_assert_eq!(batches.concat().len(), read.len());
            let at = [first, first + order.per_epoch - 1].map(|step| (order.epoch_at(step), order.end_of_epoch(step)));
            prop_assert_eq!(at, [(epoch, first + order.per_epoch); 2]);
            prop_assert_eq!(order.epochs_begun(first), epoch);
        }
    }
}

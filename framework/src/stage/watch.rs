//! The watch over a stage's values: that they are finite, and what else of a step is told in numbers.
//!
//! Where the host computes, a value is looked at as it comes. On a device that works behind the host's back a look would wait for all that was
//! given to the device before: there the watch takes a note of each number and leaves it on the device, and all numbers of a step are read
//! together (`reading.rs`).

use candle_core::Tensor;

use crate::{
    Activation, Error, Failure, NonFinite, Origin, Phase, Result, Score, StageDevice,
    loss::Scored,
    schedule::{Action, MicroBatchId, Purpose},
    tensor::{elementwise::is_finite, sums},
};

/// Where in a run a number arose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) step: u64,
    /// None where the whole step is concerned.
    pub(super) micro_batch: Option<MicroBatchId>,
    pub(super) phase: Phase,
}

impl Place {
    /// Of what `action` does.
    pub(super) fn of(action: Action) -> Self {
        let (micro_batch, phase) = match action {
            Action::Forward(micro_batch) => (Some(micro_batch), Phase::Forward),
            Action::Head { micro_batch, .. } => (Some(micro_batch), Phase::Head),
            Action::Backward { micro_batch, .. } => (Some(micro_batch), Phase::Backward),
            Action::ShareNorm(_) | Action::Update(_) => (None, Phase::Update),
        };
        Self { step: action.step(), micro_batch, phase }
    }

    /// Of what came for a micro-batch.
    pub(super) fn transfer(micro_batch: MicroBatchId) -> Self {
        Self { step: micro_batch.step, micro_batch: Some(micro_batch), phase: Phase::Transfer }
    }

    /// The failure of stage `stage` there.
    pub(super) fn failure(self, stage: usize, cause: Error) -> Failure {
        Failure::new(Origin::Stage(stage), self.phase, cause)
            .in_step(self.step)
            .in_micro_batch(self.micro_batch.map(|micro_batch| micro_batch.index))
    }
}

/// What a number says.
#[derive(Debug)]
pub(super) enum What {
    /// A value of this sort is finite if the number is; it is called so.
    Finite(NonFinite, String),
    /// What a neighbour sent is finite if the number is. Where not, the neighbour has a note of it too, and says so.
    Arrived,
    /// The sum of losses over so many targets and, where there is such a notion, how many were predicted right.
    Score(f64),
    /// Squared norms of the main parameters' gradients.
    SquaredNorms,
    /// The products of the gradients followed and measured.
    Products,
}

/// Numbers that are there, or an `f64` tensor of one dimension.
#[derive(Clone, Debug)]
pub(super) enum Numbers {
    Known(Vec<f64>),
    Later(Tensor),
}

#[derive(Debug)]
pub(super) struct Note {
    pub(super) place: Place,
    pub(super) what: What,
    pub(super) numbers: Numbers,
}

/// See the [module](self).
pub(crate) struct Watch {
    asynchronous: bool,
    place: Place,
    /// In order of what the device was given.
    notes: Vec<Note>,
}

impl Watch {
    /// The watch over values on `device`.
    pub(crate) fn over(device: &dyn StageDevice) -> Self {
        Self::new(device.is_asynchronous())
    }

    pub(super) fn new(asynchronous: bool) -> Self {
        Self { asynchronous, place: Place { step: 0, micro_batch: None, phase: Phase::Build }, notes: Vec::new() }
    }

    /// Whether nothing may be read.
    pub(crate) fn is_asynchronous(&self) -> bool {
        self.asynchronous
    }

    /// What comes now arises there.
    pub(super) fn begin(&mut self, place: Place) {
        self.place = place;
    }

    /// Where what comes now arises.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// Sees to it that the tensors of floating-point dtype are finite; `what` names them.
    ///
    /// # Errors
    /// If one is not, and the host can tell.
    pub(crate) fn tensors(
        &mut self,
        activation: &Activation,
        sort: NonFinite,
        what: impl Fn() -> String,
    ) -> Result<()> {
        for tensor in activation.tensors() {
            self.tensor(tensor, sort, || format!("{} holds an infinity or a NaN", what()))?;
        }
        Ok(())
    }

    /// Likewise of one tensor; `words` say what is wrong where it is not finite.
    pub(crate) fn tensor(&mut self, tensor: &Tensor, sort: NonFinite, words: impl FnOnce() -> String) -> Result<()> {
        match tensor.dtype().is_float() {
            false => Ok(()),
            true if self.asynchronous => self.finite(Numbers::Later(sums::zero_if_finite(tensor)?), sort, words),
            true if is_finite(tensor)? => Ok(()),
            true => Err(Error::NotFinite(sort, words())),
        }
    }

    /// Sees to it that a number of a value is finite.
    pub(super) fn finite(&mut self, number: Numbers, sort: NonFinite, words: impl FnOnce() -> String) -> Result<()> {
        match number {
            Numbers::Known(values) if !self.asynchronous => match values.iter().all(|value| value.is_finite()) {
                true => Ok(()),
                false => Err(Error::NotFinite(sort, words())),
            },
            numbers => {
                self.note(What::Finite(sort, words()), numbers);
                Ok(())
            }
        }
    }

    /// Takes a note of what a neighbour sent. Where the host computes the neighbour has looked before it sent.
    pub(super) fn arrived(&mut self, activation: &Activation) -> Result<()> {
        if self.asynchronous {
            for tensor in activation.tensors().iter().filter(|t| t.dtype().is_float()) {
                self.note(What::Arrived, Numbers::Later(sums::zero_if_finite(tensor)?));
            }
        }
        Ok(())
    }

    /// The score over `count` targets, if it is to be known now.
    ///
    /// # Errors
    /// If it is known and its loss is not finite.
    pub(super) fn score(&mut self, stage: usize, scored: Scored, count: f64) -> Result<Option<Score>> {
        match scored {
            Scored::Known(score) if !self.asynchronous => match score.loss.is_finite() {
                true => Ok(Some(score)),
                false => Err(not_finite(stage, score.loss)),
            },
            Scored::Known(score) => {
                let numbers = [score.loss].into_iter().chain(score.correct).collect();
                self.note(What::Score(score.count), Numbers::Known(numbers));
                Ok(None)
            }
            Scored::Later(numbers) => {
                self.note(What::Score(count), Numbers::Later(numbers));
                Ok(None)
            }
        }
    }

    pub(super) fn note(&mut self, what: What, numbers: Numbers) {
        self.notes.push(Note { place: self.place, what, numbers });
    }

    /// The notes of a micro-batch of an evaluation, in order.
    pub(super) fn take_evaluated(&mut self, micro_batch: MicroBatchId) -> Vec<Note> {
        self.take(|place| place.micro_batch == Some(micro_batch))
    }

    /// The notes of the training step in work, in order: what has come for the steps behind it stays.
    pub(super) fn take_step(&mut self) -> Vec<Note> {
        let step = self.place.step;
        let trains = |micro_batch: MicroBatchId| micro_batch.purpose == Purpose::Train;
        self.take(|place| place.micro_batch.is_none_or(trains) && place.step <= step)
    }

    fn take(&mut self, wanted: impl Fn(&Place) -> bool) -> Vec<Note> {
        let (taken, left) = std::mem::take(&mut self.notes).into_iter().partition(|note| wanted(&note.place));
        self.notes = left;
        taken
    }

    /// Forgets all notes.
    pub(crate) fn forget(&mut self) {
        self.notes.clear();
    }
}

/// What training fails with where the loss of a head is not finite.
pub(super) fn not_finite(stage: usize, loss: f64) -> Error {
    Error::NotFinite(NonFinite::Loss, format!("the loss of head {stage} is {loss}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_takes_what_was_noted_up_to_it_and_an_evaluation_what_is_its_own() {
        let mut watch = Watch::new(true);
        let mut note = |step, purpose, micro| {
            watch.begin(Place::transfer(MicroBatchId { step, purpose, index: micro, count: 2 }));
            watch.note(What::Arrived, Numbers::Known(vec![0.0]));
        };
        note(3, Purpose::Train, 0);
        note(4, Purpose::Train, 1); // has come early
        note(3, Purpose::Evaluate, 1);
        note(3, Purpose::Train, 1);
        watch.begin(Place::of(Action::Update(3)));
        watch.note(What::SquaredNorms, Numbers::Known(vec![1.0]));
        let places = |notes: Vec<Note>| -> Vec<_> {
            notes
                .iter()
                .map(|note| (note.place.step, note.place.micro_batch.map(|micro_batch| micro_batch.index)))
                .collect()
        };
        assert_eq!(places(watch.take_step()), [(3, Some(0)), (3, Some(1)), (3, None)]);
        let evaluated = |micro| MicroBatchId { step: 3, purpose: Purpose::Evaluate, index: micro, count: 2 };
        assert_eq!(places(watch.take_evaluated(evaluated(0))), []);
        assert_eq!(places(watch.take_evaluated(evaluated(1))), [(3, Some(1))]);
        watch.begin(Place::of(Action::Update(4)));
        assert_eq!(places(watch.take_step()), [(4, Some(1))]);
    }
}

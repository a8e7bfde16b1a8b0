//! The monitor of a stage: checks that values are finite, and collects the numbers of each step.
//!
//! Every number that a stage computes for the host (losses, norms, products of gradients, checks) becomes a [`Measurement`]: a few [`Numbers`] with
//! the task in which they arose. On a synchronous device the numbers are ready at once, and a bad value is an error at once. On an asynchronous
//! device reading a value would wait for all earlier work, so the numbers stay on the device, and all measurements of a step are read together
//! (`reading.rs`).
//!
//! This file is the only part of a stage's step that depends on whether the device is asynchronous.

use candle_core::Tensor;

use crate::{
    Activation, Error, Failure, NonFinite, Origin, PendingScore, Phase, Result, StageDevice,
    metrics::table::NONFINITE,
    schedule::{Action, MicroBatchId, Purpose},
    tensor::{Numbers, cosine::Products, elementwise::is_finite, squared_norm, sums},
};

/// The piece of work in which a number arose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Task {
    pub(super) step: u64,
    /// None if the task concerns the whole step.
    pub(super) micro_batch: Option<MicroBatchId>,
    pub(super) phase: Phase,
}

impl Task {
    /// The task that `action` describes.
    pub(super) fn of(action: Action) -> Self {
        let (micro_batch, phase) = match action {
            Action::Forward(micro_batch) => (Some(micro_batch), Phase::Forward),
            Action::Head { micro_batch, .. } => (Some(micro_batch), Phase::Head),
            Action::Backward { micro_batch, .. } | Action::BackwardSum { micro_batch, .. } => {
                (Some(micro_batch), Phase::Backward)
            }
            Action::ShareGradients(_) | Action::ShareNorm(_) | Action::Update(_) => (None, Phase::Update),
        };
        Self { step: action.step(), micro_batch, phase }
    }

    /// The transfer of a tensor of a micro-batch.
    pub(super) fn transfer(micro_batch: MicroBatchId) -> Self {
        Self { step: micro_batch.step, micro_batch: Some(micro_batch), phase: Phase::Transfer }
    }

    /// Returns the failure of stage `stage` in this task. Non-finite values are counted here and nowhere else.
    pub(super) fn failure(self, stage: usize, cause: Error) -> Failure {
        if let Error::NotFinite(kind, _) = cause {
            NONFINITE.counter(&[&stage.to_string(), kind.name()]).increment(1);
        }
        Failure::new(Origin::Stage(stage), self.phase, cause)
            .in_step(self.step)
            .in_micro_batch(self.micro_batch.map(|micro_batch| micro_batch.index))
    }
}

/// The meaning of a measurement's numbers.
#[derive(Debug)]
pub(super) enum Meaning {
    /// A value of this kind is finite iff the numbers are; the text says what is wrong otherwise.
    Finite(NonFinite, String),
    /// The tensor that a neighbour sent is finite iff the numbers are. If it is not, the neighbour has a measurement that says so too.
    Received,
    /// The sum of losses over this many targets, then the number predicted right, if the loss counts right predictions.
    Score(f64),
    /// Squared norms of the main parameters' gradients, in order of the parameters.
    SquaredNorms,
    /// The products of the followed and the measured gradients.
    Products,
}

#[derive(Debug)]
pub(super) struct Measurement {
    pub(super) task: Task,
    pub(super) meaning: Meaning,
    pub(super) numbers: Numbers,
}

/// Checks a stage's values and collects its measurements; see the [module](self).
pub(crate) struct Monitor {
    asynchronous: bool,
    task: Task,
    /// In the order in which the device was given the work.
    measurements: Vec<Measurement>,
}

impl Monitor {
    /// Returns the monitor of values on `device`.
    pub(crate) fn on(device: &dyn StageDevice) -> Self {
        Self::new(device.is_asynchronous())
    }

    pub(super) fn new(asynchronous: bool) -> Self {
        Self { asynchronous, task: Task { step: 0, micro_batch: None, phase: Phase::Build }, measurements: Vec::new() }
    }

    /// Whether the device is asynchronous, so that nothing may be read before the end of a step.
    pub(crate) fn is_asynchronous(&self) -> bool {
        self.asynchronous
    }

    /// Begins `task`: what is measured from now on belongs to it.
    pub(super) fn begin(&mut self, task: Task) {
        self.task = task;
    }

    /// The present task.
    pub(super) fn task(&self) -> Task {
        self.task
    }

    /// Checks that the tensors of floating-point dtype are finite; `what` names them.
    ///
    /// # Errors
    /// If one is not, on a synchronous device.
    pub(crate) fn check_activation(
        &mut self,
        activation: &Activation,
        kind: NonFinite,
        what: impl Fn() -> String,
    ) -> Result<()> {
        for tensor in activation.tensors() {
            self.check_tensor(tensor, kind, || format!("{} holds an infinity or a NaN", what()))?;
        }
        Ok(())
    }

    /// Checks one tensor; `text` says what is wrong if it is not finite.
    ///
    /// # Errors
    /// As [`Self::check_activation`].
    pub(crate) fn check_tensor(
        &mut self,
        tensor: &Tensor,
        kind: NonFinite,
        text: impl FnOnce() -> String,
    ) -> Result<()> {
        match tensor.dtype().is_float() {
            false => Ok(()),
            true if self.asynchronous => self.check_numbers(Numbers::Device(sums::zero_if_finite(tensor)?), kind, text),
            true if is_finite(tensor)? => Ok(()),
            true => Err(Error::NotFinite(kind, text())),
        }
    }

    /// Checks numbers that are finite iff a value of this kind is.
    ///
    /// # Errors
    /// As [`Self::check_activation`].
    pub(super) fn check_numbers(
        &mut self,
        numbers: Numbers,
        kind: NonFinite,
        text: impl FnOnce() -> String,
    ) -> Result<()> {
        match numbers {
            Numbers::Host(values) if !self.asynchronous => match values.iter().all(|value| value.is_finite()) {
                true => Ok(()),
                false => Err(Error::NotFinite(kind, text())),
            },
            // On an asynchronous device an earlier value may be non-finite: that one is the failure to report.
            numbers => {
                self.measure(Meaning::Finite(kind, text()), numbers);
                Ok(())
            }
        }
    }

    /// Measures a tensor that a neighbour sent. On a synchronous device nothing is measured: the neighbour has checked the tensor.
    pub(super) fn received(&mut self, activation: &Activation) -> Result<()> {
        if self.asynchronous {
            for tensor in activation.tensors().iter().filter(|t| t.dtype().is_float()) {
                self.measure(Meaning::Received, Numbers::Device(sums::zero_if_finite(tensor)?));
            }
        }
        Ok(())
    }

    /// Measures the score of the head of stage `stage`.
    ///
    /// # Errors
    /// If it does not have one or two numbers, or the loss is not finite on a synchronous device.
    pub(super) fn score(&mut self, stage: usize, scored: PendingScore) -> Result<()> {
        scored.check()?;
        let PendingScore { numbers, count } = scored;
        if let (Numbers::Host(values), false) = (&numbers, self.asynchronous) {
            check_loss(stage, values)?;
        }
        self.measure(Meaning::Score(count), numbers);
        Ok(())
    }

    /// Returns the squared norm of `tensor`; it is finite iff all elements are.
    pub(super) fn squared_norm(&self, tensor: &Tensor) -> Result<Numbers> {
        Ok(match self.asynchronous {
            true => Numbers::Device(sums::squares(tensor)?),
            false => Numbers::Host(vec![squared_norm::squared_norm(tensor)?]),
        })
    }

    /// Adds `gradient` to `sum`, in place if `sum` is `owned` and the host may. Returns the sum and its squared norm.
    pub(super) fn add(&self, sum: Tensor, owned: bool, gradient: &Tensor) -> Result<(Tensor, Numbers)> {
        if owned
            && !self.asynchronous
            && let Some(squares) = squared_norm::add_with_squared_norm(&sum, gradient)?
        {
            return Ok((sum, Numbers::Host(vec![squares])));
        }
        let sum = (&sum + gradient)?;
        let squares = self.squared_norm(&sum)?;
        Ok((sum, squares))
    }

    /// Returns the products of two vectors from which their cosine follows. The vectors come in pieces of the same shapes.
    pub(super) fn products<'a>(&self, pieces: impl Iterator<Item = (&'a Tensor, &'a Tensor)>) -> Result<Numbers> {
        if self.asynchronous {
            let mut sum: Option<Tensor> = None;
            for (a, b) in pieces {
                let products = Products::on_device(a, b)?;
                sum = Some(match sum {
                    Some(sum) => (sum + products)?,
                    None => products,
                });
            }
            return Ok(sum.map_or_else(|| Products::default().into(), Numbers::Device));
        }
        let mut products = Products::default();
        for (a, b) in pieces {
            products.add(a, b)?;
        }
        Ok(products.into())
    }

    pub(super) fn measure(&mut self, meaning: Meaning, numbers: Numbers) {
        self.measurements.push(Measurement { task: self.task, meaning, numbers });
    }

    /// Takes the measurements of a micro-batch of an evaluation, in order.
    pub(super) fn take_evaluated(&mut self, micro_batch: MicroBatchId) -> Vec<Measurement> {
        self.take(|task| task.micro_batch == Some(micro_batch))
    }

    /// Takes the measurements of the training step in work, in order; those of later steps stay.
    pub(super) fn take_step(&mut self) -> Vec<Measurement> {
        let step = self.task.step;
        let trains = |micro_batch: MicroBatchId| micro_batch.purpose == Purpose::Train;
        self.take(|task| task.micro_batch.is_none_or(trains) && task.step <= step)
    }

    fn take(&mut self, wanted: impl Fn(&Task) -> bool) -> Vec<Measurement> {
        let (taken, left) = std::mem::take(&mut self.measurements).into_iter().partition(|m| wanted(&m.task));
        self.measurements = left;
        taken
    }

    /// Discards all measurements.
    pub(crate) fn forget(&mut self) {
        self.measurements.clear();
    }
}

/// Returns the loss of the head of stage `stage`, the first number of a score.
///
/// # Errors
/// If it is not finite.
pub(super) fn check_loss(stage: usize, score: &[f64]) -> Result<f64> {
    let loss = score.first().copied().unwrap_or(f64::NAN);
    match loss.is_finite() {
        true => Ok(loss),
        false => Err(Error::NotFinite(NonFinite::Loss, format!("the loss of head {stage} is {loss}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_of_too_many_numbers_is_refused_before_it_is_read() {
        let score = |numbers: &[f64]| {
            let numbers = Tensor::new(numbers, &candle_core::Device::Cpu).unwrap();
            Monitor::new(true).score(0, PendingScore::on_device(numbers, 1.0))
        };
        score(&[1.0, 0.0]).unwrap();
        assert_eq!(score(&[1.0, 0.0, 2.0]).unwrap_err().to_string(), "loss: a score of 3 numbers; give one or two");
        assert!(score(&[]).is_err());
    }

    #[test]
    fn a_step_takes_what_was_measured_up_to_it_and_an_evaluation_what_is_its_own() {
        let mut monitor = Monitor::new(true);
        let mut measure = |step, purpose, index| {
            monitor.begin(Task::transfer(MicroBatchId { step, purpose, index, count: 2 }));
            monitor.measure(Meaning::Received, Numbers::Host(vec![0.0]));
        };
        measure(3, Purpose::Train, 0);
        measure(4, Purpose::Train, 1); // has come early
        measure(3, Purpose::Evaluate, 1);
        measure(3, Purpose::Train, 1);
        monitor.begin(Task::of(Action::Update(3)));
        monitor.measure(Meaning::SquaredNorms, Numbers::Host(vec![1.0]));
        let tasks = |measurements: Vec<Measurement>| -> Vec<_> {
            measurements
                .iter()
                .map(|m| (m.task.step, m.task.micro_batch.map(|micro_batch| micro_batch.index)))
                .collect()
        };
        assert_eq!(tasks(monitor.take_step()), [(3, Some(0)), (3, Some(1)), (3, None)]);
        let evaluated = |index| MicroBatchId { step: 3, purpose: Purpose::Evaluate, index, count: 2 };
        assert_eq!(tasks(monitor.take_evaluated(evaluated(0))), []);
        assert_eq!(tasks(monitor.take_evaluated(evaluated(1))), [(3, Some(1))]);
        monitor.begin(Task::of(Action::Update(4)));
        assert_eq!(tasks(monitor.take_step()), [(4, Some(1))]);
    }
}

//! The reading of the numbers of a step, or of a micro-batch of an evaluation.
//!
//! On a synchronous device the numbers are ready at once; on an asynchronous one they arrive later, all of a step together.

use std::fmt;

use candle_core::Tensor;

use super::{
    Stage, Updated,
    monitor::{Meaning, Measurement, Task, check_loss},
};
use crate::{
    Error, Failure, Result, Score, StageDevice,
    device::Reading,
    schedule::MicroBatchId,
    tensor::{Numbers, cosine::Products},
};

/// The numbers of a step that an update has begun to read. [`Stage::take`] waits for them.
pub struct StepReading {
    lr: f64,
    /// The score that was read before the update, for the norms or for other replicas.
    score: Option<Score>,
    pending: PendingNumbers,
}

impl fmt::Debug for StepReading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepReading").field("lr", &self.lr).finish_non_exhaustive()
    }
}

impl StepReading {
    /// Returns whether the numbers have arrived. Does not wait.
    ///
    /// # Errors
    /// If the device fails.
    pub fn is_ready(&self) -> Result<bool> {
        self.pending.reading.as_ref().map_or(Ok(true), |reading| reading.is_ready())
    }
}

/// The numbers of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepNumbers {
    /// The score of the stage's head over the batch; none where it has no head.
    pub score: Option<Score>,
    /// The result of the update.
    pub updated: Updated,
    /// The cosine between the gradients of the main parameters that the stage followed and that it measured, before clipping. None where
    /// nothing was measured, or one of the gradients was zero.
    pub alignment: Option<f64>,
}

/// Measurements whose numbers are being read, all at once.
struct PendingNumbers {
    /// The task in which the reading began.
    task: Task,
    measurements: Vec<Measurement>,
    /// The numbers of all measurements that are on the device, in order.
    reading: Option<Box<dyn Reading>>,
}

/// The values of measurements that are all finite.
#[derive(Default)]
struct Measured {
    score: Option<Score>,
    squared_norms: Vec<f64>,
    products: Products,
}

impl PendingNumbers {
    /// Begins to read the numbers of `measurements`.
    fn begin(measurements: Vec<Measurement>, task: Task, device: &dyn StageDevice) -> Result<Self> {
        let on_device = |measurement: &Measurement| match &measurement.numbers {
            Numbers::Device(tensor) => Some(tensor.clone()),
            Numbers::Host(_) => None,
        };
        let tensors: Vec<Tensor> = measurements.iter().filter_map(on_device).collect();
        let reading = if tensors.is_empty() { None } else { Some(device.read(&Tensor::cat(&tensors, 0)?)?) };
        Ok(Self { task, measurements, reading })
    }

    /// Waits for the numbers. Returns the task of the transfer instead if a received tensor was not finite.
    ///
    /// # Errors
    /// The failure of stage `stage` with its first non-finite value, in the task in which that value arose.
    fn take(self, stage: usize) -> Result<Result<Measured, Task>, Failure> {
        let failure = |task: Task, error: Error| task.failure(stage, error);
        let read =
            self.reading.map_or(Ok(Vec::new()), |reading| reading.take()).map_err(|error| failure(self.task, error))?;
        let mut rest = read.as_slice();
        let mut measured = Measured::default();
        for Measurement { task, meaning, numbers } in self.measurements {
            let values = match &numbers {
                Numbers::Host(values) => values,
                Numbers::Device(tensor) => {
                    let Some((values, left)) = rest.split_at_checked(tensor.elem_count()) else {
                        let cause = format!("the device gave {} numbers, fewer than it was asked for", read.len());
                        return Err(failure(task, Error::Internal(cause)));
                    };
                    rest = left;
                    values
                }
            };
            let finite = values.iter().all(|value| value.is_finite());
            match meaning {
                Meaning::Finite(kind, text) if !finite => return Err(failure(task, Error::NotFinite(kind, text))),
                Meaning::Received if !finite => return Ok(Err(task)),
                Meaning::Finite(..) | Meaning::Received => {}
                Meaning::Score(count) => {
                    let loss = check_loss(stage, values).map_err(|error| failure(task, error))?;
                    let score = Score { loss, count, correct: values.get(1).copied() };
                    measured.score = Some(measured.score.map_or(score, |sum| sum + score));
                }
                Meaning::SquaredNorms => measured.squared_norms = values.to_vec(),
                Meaning::Products => measured.products = Products::from_slice(values),
            }
        }
        Ok(Ok(measured))
    }
}

impl Stage {
    /// Begins to read all numbers of the step that ends.
    pub(super) fn begin_reading(&mut self, lr: f64) -> Result<StepReading> {
        let pending = PendingNumbers::begin(self.monitor.take_step(), self.monitor.task(), &*self.device)?;
        Ok(StepReading { lr, score: self.score.take(), pending })
    }

    /// Waits for the numbers of a step. None if a neighbour sent a non-finite value: the neighbour fails because of it, and this stage reports
    /// nothing more ([`Self::received_non_finite`]).
    ///
    /// # Errors
    /// The first non-finite value, with the task in which it arose; or the failure of the device.
    pub fn take(&mut self, reading: StepReading) -> Result<Option<StepNumbers>, Failure> {
        let StepReading { lr, score, pending } = reading;
        let Some(measured) = self.look(pending)? else { return Ok(None) };
        Ok(Some(StepNumbers {
            score: Score::sum(score, measured.score),
            updated: Updated { lr, gradient_norm: measured.squared_norms.iter().sum::<f64>().sqrt() },
            alignment: measured.products.cosine(),
        }))
    }

    fn look(&mut self, pending: PendingNumbers) -> Result<Option<Measured>, Failure> {
        if self.received_non_finite.is_some() {
            return Ok(None);
        }
        match pending.take(self.index)? {
            Ok(measured) => Ok(Some(measured)),
            Err(task) => {
                self.received_non_finite = Some(task.failure(self.index, Error::CorruptedInTransfer));
                Ok(None)
            }
        }
    }

    /// Returns the failure for the first non-finite value that a neighbour sent. Usually the neighbour fails because of that value. If no stage does,
    /// the value was corrupted in transfer, and this is the failure of the run.
    pub fn received_non_finite(&self) -> Option<&Failure> {
        self.received_non_finite.as_ref()
    }

    /// Waits for the numbers of a micro-batch of an evaluation. Returns its score, if it has one.
    pub(super) fn read_evaluation(&mut self, micro_batch: MicroBatchId) -> Result<Option<Score>> {
        let measurements = self.monitor.take_evaluated(micro_batch);
        let pending = PendingNumbers::begin(measurements, self.monitor.task(), &*self.device)?;
        Ok(self.look(pending)?.and_then(|measured| measured.score))
    }

    /// Waits for all numbers of the step so far. Returns the squared norms of the gradients, if they have been measured; none as in [`Self::take`].
    pub(super) fn read_so_far(&mut self) -> Result<Option<Vec<f64>>> {
        let pending = PendingNumbers::begin(self.monitor.take_step(), self.monitor.task(), &*self.device)?;
        let Some(measured) = self.look(pending)? else { return Ok(None) };
        self.score = Score::sum(self.score, measured.score);
        Ok(Some(measured.squared_norms))
    }
}

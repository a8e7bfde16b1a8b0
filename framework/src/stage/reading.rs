//! The numbers of a step on their way from a device that works behind the host's back.

use std::fmt;

use candle_core::Tensor;

use super::{
    Stage, Updated,
    watch::{Note, Numbers, Place, What, not_finite},
};
use crate::{
    Error, Failure, Result, Score, StageDevice, device::Reading, metrics::table::NONFINITE, schedule::MicroBatchId,
    tensor::cosine::Products,
};

/// What an update has begun to read: all numbers of its step that have not been told yet. [`Stage::take`] waits for them.
pub struct StepReading {
    lr: f64,
    /// What was read before.
    score: Option<Score>,
    asked: Asked,
}

impl fmt::Debug for StepReading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepReading").field("lr", &self.lr).finish_non_exhaustive()
    }
}

impl StepReading {
    /// Whether the numbers are there; does not wait.
    pub fn is_ready(&self) -> Result<bool> {
        self.asked.reading.as_ref().map_or(Ok(true), |reading| reading.is_ready())
    }
}

/// What a stage tells of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepNumbers {
    /// What its head scored over the batch; none where it has no head.
    pub score: Option<Score>,
    /// What the update did.
    pub updated: Updated,
    /// As of [`Stage::alignment`].
    pub alignment: Option<f64>,
}

/// Notes whose numbers are being read, all at once.
struct Asked {
    /// Where they were asked for.
    place: Place,
    notes: Vec<(Place, What, Given)>,
    reading: Option<Box<dyn Reading>>,
}

/// Numbers that are there, or how many of those that are read.
enum Given {
    Known(Vec<f64>),
    Read(usize),
}

/// What notes say where every value is finite.
#[derive(Default)]
struct Found {
    score: Option<Score>,
    squared_norms: Vec<f64>,
    products: Products,
}

impl Asked {
    /// Begins to read the numbers of `notes`.
    fn of(notes: Vec<Note>, place: Place, device: &dyn StageDevice) -> Result<Self> {
        let mut tensors = Vec::new();
        let notes = notes
            .into_iter()
            .map(|Note { place, what, numbers }| match numbers {
                Numbers::Known(values) => (place, what, Given::Known(values)),
                Numbers::Later(tensor) => {
                    let count = tensor.elem_count();
                    tensors.push(tensor);
                    (place, what, Given::Read(count))
                }
            })
            .collect();
        let reading = if tensors.is_empty() { None } else { Some(device.read(&Tensor::cat(&tensors, 0)?)?) };
        Ok(Self { place, notes, reading })
    }

    /// Waits for the numbers; or where something came that was not finite.
    ///
    /// # Errors
    /// With the first value of stage `stage` that is not finite, and where it arose.
    fn take(self, stage: usize) -> Result<Result<Found, Place>, Failure> {
        let failure = |place: Place, error: Error| {
            if let Error::NotFinite(sort, _) = error {
                NONFINITE.counter(&[&stage.to_string(), sort.name()]).increment(1);
            }
            place.failure(stage, error)
        };
        let read = self
            .reading
            .map_or(Ok(Vec::new()), |reading| reading.take())
            .map_err(|error| failure(self.place, error))?;
        let mut rest = read.as_slice();
        let mut found = Found::default();
        for (place, what, given) in self.notes {
            let values = match &given {
                Given::Known(values) => values,
                Given::Read(count) => {
                    let Some((values, left)) = rest.split_at_checked(*count) else {
                        let cause = format!("the device gave {} numbers, fewer than it was asked for", read.len());
                        return Err(failure(place, Error::Internal(cause)));
                    };
                    rest = left;
                    values
                }
            };
            let finite = values.iter().all(|value| value.is_finite());
            match what {
                What::Finite(sort, words) if !finite => return Err(failure(place, Error::NotFinite(sort, words))),
                What::Arrived if !finite => return Ok(Err(place)),
                What::Finite(..) | What::Arrived => {}
                What::Score(count) => {
                    let loss = values.first().copied().unwrap_or(f64::NAN);
                    if !loss.is_finite() {
                        return Err(failure(place, not_finite(stage, loss)));
                    }
                    let score = Score { loss, count, correct: values.get(1).copied() };
                    found.score = Some(found.score.map_or(score, |sum| sum.and(score)));
                }
                What::SquaredNorms => found.squared_norms = values.to_vec(),
                What::Products => found.products = Products::from_slice(values),
            }
        }
        Ok(Ok(found))
    }
}

impl Stage {
    /// Begins to read all that there is to tell of the step, which ends.
    pub(super) fn begin_reading(&mut self, lr: f64) -> Result<StepReading> {
        let asked = Asked::of(self.watch.take_step(), self.watch.place(), &*self.device)?;
        Ok(StepReading { lr, score: self.score.take(), asked })
    }

    /// Waits for the numbers of a step. None where they came of a value that a neighbour sent and that is not finite: the neighbour fails of it,
    /// and from then on this stage has nothing to say.
    ///
    /// # Errors
    /// With the first value that is not finite, and where it arose; or if the device fails.
    pub fn take(&mut self, reading: StepReading) -> Result<Option<StepNumbers>, Failure> {
        let StepReading { lr, score, asked } = reading;
        let Some(found) = self.look(asked)? else { return Ok(None) };
        Ok(Some(StepNumbers {
            score: match (score, found.score) {
                (Some(before), Some(score)) => Some(before.and(score)),
                (before, score) => before.or(score),
            },
            updated: Updated { lr, gradient_norm: found.squared_norms.iter().sum::<f64>().sqrt() },
            alignment: found.products.cosine(),
        }))
    }

    fn look(&mut self, asked: Asked) -> Result<Option<Found>, Failure> {
        if self.silence.is_some() {
            return Ok(None);
        }
        match asked.take(self.index)? {
            Ok(found) => Ok(Some(found)),
            Err(place) => {
                self.silence = Some(place.failure(self.index, Error::CorruptedInTransfer));
                Ok(None)
            }
        }
    }

    /// What came that was not finite, since when this stage has nothing to tell. The stage that sent it fails of it; where none does, the way
    /// between them is broken, and this is the failure.
    pub fn silence(&self) -> Option<&Failure> {
        self.silence.as_ref()
    }

    /// Reads, and waits for, what there is to tell of an evaluation's micro-batch: its score, if it has one.
    pub(super) fn read_evaluation(&mut self, micro_batch: MicroBatchId) -> Result<Option<Score>> {
        let asked = Asked::of(self.watch.take_evaluated(micro_batch), self.watch.place(), &*self.device)?;
        Ok(self.look(asked).map_err(Error::Failed)?.and_then(|found| found.score))
    }

    /// Reads, and waits for, all that there is to tell of the step so far: the squared norms of the gradients. None where nothing is.
    pub(super) fn read_norms(&mut self) -> Result<Option<Vec<f64>>> {
        let asked = Asked::of(self.watch.take_step(), self.watch.place(), &*self.device)?;
        let Some(found) = self.look(asked).map_err(Error::Failed)? else { return Ok(None) };
        self.score = found.score;
        Ok(Some(found.squared_norms))
    }
}

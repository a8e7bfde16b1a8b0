//! Losses: loss and accuracy of a head's output, and the gradient of the loss.

mod cross_entropy;
mod exponentials;
mod mean_squared_error;

pub use cross_entropy::CrossEntropy;
pub use mean_squared_error::MeanSquaredError;

use std::ops::Deref;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, StageDevice, tensor::Numbers};

/// What a head scored on some examples. Scores of parts of a batch or a data set add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The loss, summed over the targets that count.
    pub loss: f64,
    /// How many targets count.
    pub count: f64,
    /// How many of them were predicted right; none where the loss has no such notion.
    pub correct: Option<f64>,
}

impl Score {
    /// The mean loss a target; 0 where no target counts.
    pub fn mean_loss(&self) -> f64 {
        if self.count > 0.0 { self.loss / self.count } else { 0.0 }
    }

    /// The fraction predicted right.
    pub fn accuracy(&self) -> Option<f64> {
        self.correct.map(|c| if self.count > 0.0 { c / self.count } else { 0.0 })
    }

    /// `exp` of the mean loss.
    pub fn perplexity(&self) -> f64 {
        self.mean_loss().exp()
    }

    /// This score and `other` together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let correct = match (self.correct, other.correct) {
            (Some(a), Some(b)) => Some(a + b),
            // An empty score says nothing about whether there is such a notion.
            (a, None) if other.count == 0.0 => a,
            (None, b) if self.count == 0.0 => b,
            _ => None,
        };
        Self { loss: self.loss + other.loss, count: self.count + other.count, correct }
    }
}

/// A score on some examples, read or not.
///
/// A loss that reads its value from the device gives a [`Score`], `.into()`; a loss that leaves it on an asynchronous device, so that nothing
/// waits, uses [`Self::on_device`].
#[derive(Clone, Debug)]
pub struct Scored {
    /// The loss, summed over the targets that count and, where the loss has such a notion, how many of them were predicted right.
    pub(crate) numbers: Numbers,
    /// How many targets count.
    pub(crate) count: f64,
}

impl Scored {
    /// A score over `count` targets that lies on the output's device: an `f64` tensor, `(1)` the loss summed over the targets that count, or
    /// `(2)` that and how many of them were predicted right.
    pub fn on_device(numbers: Tensor, count: f64) -> Self {
        Self { numbers: Numbers::Device(numbers), count }
    }

    /// The score; waits for the device where it lies there.
    ///
    /// # Errors
    /// If the device fails, or the numbers are not one or two.
    pub fn read(&self) -> Result<Score> {
        let read;
        let values = match &self.numbers {
            Numbers::Host(values) => values,
            Numbers::Device(tensor) => {
                read = tensor.to_vec1::<f64>()?;
                &read
            }
        };
        match values[..] {
            [loss] => Ok(Score { loss, count: self.count, correct: None }),
            [loss, correct] => Ok(Score { loss, count: self.count, correct: Some(correct) }),
            _ => Err(Error::invalid("loss", format!("a score of {} numbers", values.len()), "give one or two")),
        }
    }
}

impl From<Score> for Scored {
    fn from(Score { loss, count, correct }: Score) -> Self {
        Self { numbers: Numbers::Host([loss].into_iter().chain(correct).collect()), count }
    }
}

/// The targets of a micro-batch, where the data set put them and on the output's device. It derefs to the tensor on the output's device.
#[derive(Clone, Debug)]
pub struct Targets {
    given: Tensor,
    here: Tensor,
    asynchronous: bool,
}

impl Targets {
    /// The targets `given`, brought to `device`.
    ///
    /// # Errors
    /// If they cannot be brought there.
    pub fn on(device: &dyn StageDevice, given: &Tensor) -> Result<Self> {
        Ok(Self { given: given.clone(), here: device.bring(given)?, asynchronous: device.is_asynchronous() })
    }

    /// The targets as the data set gave them, on the host: what a loss checks before it computes.
    pub fn given(&self) -> &Tensor {
        &self.given
    }

    /// Whether their device is asynchronous: a loss that reads a value then waits for everything before it.
    pub fn is_asynchronous(&self) -> bool {
        self.asynchronous
    }
}

impl From<&Tensor> for Targets {
    /// Targets that are where the output is, on a device that the host waits for.
    fn from(targets: &Tensor) -> Self {
        Self { given: targets.clone(), here: targets.clone(), asynchronous: false }
    }
}

impl Deref for Targets {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.here
    }
}

/// A loss of a head's output against targets: a sum over targets, divided by how many of them count in the whole batch.
///
/// The division is the caller's, so that uneven micro-batches keep the mean of the batch.
///
/// ```
/// use candle_core::Tensor;
/// use interlock::{Loss, Result, Score, Scored, Targets};
///
/// /// `Σ |y - t|`
/// struct AbsoluteError;
///
/// impl Loss for AbsoluteError {
///     fn count(&self, targets: &Tensor) -> Result<f64> {
///         Ok(targets.elem_count() as f64)
///     }
///
///     fn score(&self, output: &Tensor, targets: &Targets) -> Result<Scored> {
///         let loss = (output - &**targets)?.abs()?.sum_all()?.to_scalar::<f32>()?;
///         Ok(Score { loss: loss.into(), count: self.count(targets)?, correct: None }.into())
///     }
///
///     fn differentiate(&self, output: &Tensor, targets: &Targets, total: f64) -> Result<(Scored, Tensor)> {
///         let gradient = ((output - &**targets)?.sign()? / total)?;
///         Ok((self.score(output, targets)?, gradient))
///     }
/// }
///
/// let (output, targets) = (Tensor::new(&[1.0_f32, 5.0], &candle_core::Device::Cpu)?, Tensor::new(&[2.0_f32, 2.0], &candle_core::Device::Cpu)?);
/// let (scored, gradient) = AbsoluteError.differentiate(&output, &(&targets).into(), 2.0)?;
/// assert_eq!(scored.read()?.loss, 4.0);
/// assert_eq!(gradient.to_vec1::<f32>()?, [-0.5, 0.5]);
/// # Ok::<(), interlock::Error>(())
/// ```
pub trait Loss: Send + Sync {
    /// How many of `targets`, which are on the host, count (all but the ignored).
    fn count(&self, targets: &Tensor) -> Result<f64>;

    /// The score of `output` against `targets`.
    ///
    /// # Errors
    /// If the targets do not fit the output.
    fn score(&self, output: &Tensor, targets: &Targets) -> Result<Scored>;

    /// The score, and the gradient of `sum of losses / total` with respect to `output`, shaped as `output`.
    ///
    /// # Errors
    /// As [`Self::score`].
    fn differentiate(&self, output: &Tensor, targets: &Targets, total: f64) -> Result<(Scored, Tensor)>;
}

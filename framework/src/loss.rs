//! Losses: loss and accuracy of a head's output, and the gradient of the loss.

mod cross_entropy;
mod exponentials;
mod mean_squared_error;

pub use cross_entropy::CrossEntropy;
pub use mean_squared_error::MeanSquaredError;

use std::ops::{Add, Deref};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, StageDevice, tensor::Numbers};

/// The score of a head on some examples. Scores of parts of a batch or a data set add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The loss, summed over the targets that count.
    pub loss: f64,
    /// How many targets count.
    pub count: f64,
    /// How many of them were predicted right; none if the loss does not count right predictions.
    pub correct: Option<f64>,
}

impl Score {
    /// Returns the mean loss per target; 0 if no target counts.
    pub fn mean_loss(&self) -> f64 {
        if self.count > 0.0 { self.loss / self.count } else { 0.0 }
    }

    /// Returns the fraction of targets predicted right; none if the loss does not count right predictions.
    pub fn accuracy(&self) -> Option<f64> {
        self.correct.map(|c| if self.count > 0.0 { c / self.count } else { 0.0 })
    }

    /// Returns `exp` of the mean loss.
    pub fn perplexity(&self) -> f64 {
        self.mean_loss().exp()
    }
}

impl Score {
    /// Returns the sum of two scores, as far as they are there.
    pub(crate) fn sum(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        match (a, b) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        }
    }
}

impl Add for Score {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let correct = match (self.correct, other.correct) {
            (Some(a), Some(b)) => Some(a + b),
            // An empty score does not say whether the loss counts right predictions.
            (a, None) if other.count == 0.0 => a,
            (None, b) if self.count == 0.0 => b,
            _ => None,
        };
        Self { loss: self.loss + other.loss, count: self.count + other.count, correct }
    }
}

/// A score that the host has read, or that is still on the device.
///
/// A loss that has read its value returns a [`Score`] with `.into()`. On an asynchronous device a loss returns [`Self::on_device`], so that the host
/// does not wait.
#[derive(Clone, Debug)]
pub struct PendingScore {
    /// The loss, summed over the targets that count; then how many were predicted right, if the loss counts them.
    pub(crate) numbers: Numbers,
    /// How many targets count.
    pub(crate) count: f64,
}

impl PendingScore {
    /// Returns a score over `count` targets that is still on the output's device. `numbers` is an `f64` tensor: `(1)` with the loss summed over the
    /// targets that count, or `(2)` with that sum and the number of targets predicted right.
    pub fn on_device(numbers: Tensor, count: f64) -> Self {
        Self { numbers: Numbers::Device(numbers), count }
    }

    /// Returns the score. Waits for the device if the score is still there.
    ///
    /// # Errors
    /// If the device fails, or there are not one or two numbers.
    pub fn read(&self) -> Result<Score> {
        let read;
        let values = match &self.numbers {
            Numbers::Host(values) => values,
            Numbers::Device(tensor) => {
                read = tensor.to_vec1::<f64>()?;
                &read
            }
        };
        self.check()?;
        Ok(Score { loss: values[0], count: self.count, correct: values.get(1).copied() })
    }

    /// Checks how many numbers there are.
    ///
    /// # Errors
    /// If there are not one or two.
    pub(crate) fn check(&self) -> Result<()> {
        match self.numbers.len() {
            1 | 2 => Ok(()),
            other => Err(Error::invalid("loss", format!("a score of {other} numbers"), "give one or two")),
        }
    }
}

impl From<Score> for PendingScore {
    fn from(Score { loss, count, correct }: Score) -> Self {
        Self { numbers: Numbers::Host([loss].into_iter().chain(correct).collect()), count }
    }
}

/// The targets of a micro-batch, on the host and on the output's device. Derefs to the tensor on the output's device.
#[derive(Clone, Debug)]
pub struct Targets {
    given: Tensor,
    here: Tensor,
    asynchronous: bool,
}

impl Targets {
    /// Brings the targets `given` to `device`.
    ///
    /// # Errors
    /// If they cannot be brought there.
    pub fn on(device: &dyn StageDevice, given: &Tensor) -> Result<Self> {
        Ok(Self { given: given.clone(), here: device.bring(given)?, asynchronous: device.is_asynchronous() })
    }

    /// Returns the targets as the data set returned them, on the host. A loss checks these before it computes.
    pub fn given(&self) -> &Tensor {
        &self.given
    }

    /// Returns whether the device is asynchronous. Reading a value there waits for everything before it.
    pub fn is_asynchronous(&self) -> bool {
        self.asynchronous
    }
}

impl From<&Tensor> for Targets {
    /// Targets on the output's device, which is synchronous.
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

/// A loss of a head's output against targets: a sum over the targets, divided by the number of targets that count in the whole batch.
///
/// The caller passes that number as `total`, so that micro-batches of different sizes add up to the mean over the batch.
///
/// ```
/// use candle_core::Tensor;
/// use interlock::{Loss, Result, Score, PendingScore, Targets};
///
/// /// `Σ |y - t|`
/// struct AbsoluteError;
///
/// impl Loss for AbsoluteError {
///     fn count(&self, targets: &Tensor) -> Result<f64> {
///         Ok(targets.elem_count() as f64)
///     }
///
///     fn score(&self, output: &Tensor, targets: &Targets) -> Result<PendingScore> {
///         let loss = (output - &**targets)?.abs()?.sum_all()?.to_scalar::<f32>()?;
///         Ok(Score { loss: loss.into(), count: self.count(targets)?, correct: None }.into())
///     }
///
///     fn differentiate(&self, output: &Tensor, targets: &Targets, total: f64) -> Result<(PendingScore, Tensor)> {
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
    /// Returns how many of `targets`, which are on the host, count (all but the ignored ones).
    fn count(&self, targets: &Tensor) -> Result<f64>;

    /// Returns the score of `output` against `targets`.
    ///
    /// # Errors
    /// If the targets do not fit the output.
    fn score(&self, output: &Tensor, targets: &Targets) -> Result<PendingScore>;

    /// Returns the score, and the gradient of `sum of losses / total` with respect to `output`, of the shape of `output`.
    ///
    /// # Errors
    /// As [`Self::score`].
    fn differentiate(&self, output: &Tensor, targets: &Targets, total: f64) -> Result<(PendingScore, Tensor)>;
}

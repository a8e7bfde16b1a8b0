//! Losses: what a head's output is worth, and its gradient.

mod cross_entropy;
mod exponentials;
mod mean_squared_error;

pub use cross_entropy::CrossEntropy;
pub use mean_squared_error::MeanSquaredError;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::{Result, StageDevice};

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

/// A score on some examples, as soon as it can be told.
#[derive(Clone, Debug)]
pub enum Scored {
    /// It is known.
    Known(Score),
    /// The device has yet to compute it. A tensor on the output's device, `f64`: `(1)`, the loss summed over the targets that count, or `(2)`, and
    /// how many of them were predicted right. How many count is what [`Loss::count`] says.
    Later(Tensor),
}

impl From<Score> for Scored {
    fn from(score: Score) -> Self {
        Self::Known(score)
    }
}

/// A loss of a head's output against targets: a sum over targets, divided by how many of them count in the whole batch.
///
/// The division is the caller's, so that uneven micro-batches keep the mean of the batch.
///
/// On a device that works behind the host's back ([`StageDevice::is_asynchronous`]) a score that is read waits for everything before it. There
/// stages call [`Self::check`], [`Self::count`], and [`Self::score_later`] or [`Self::differentiate_later`], which by default wait. A loss that is
/// to cost no wait gives [`Scored::Later`].
pub trait Loss: Send + Sync {
    /// How many of `targets` count (all but the ignored).
    fn count(&self, targets: &Tensor) -> Result<f64>;

    /// The score of `output` against `targets`.
    fn score(&self, output: &Tensor, targets: &Tensor) -> Result<Score>;

    /// The score, and the gradient of `sum of losses / total` with respect to `output`, shaped as `output`.
    fn differentiate(&self, output: &Tensor, targets: &Tensor, total: f64) -> Result<(Score, Tensor)>;

    /// Refuses targets that do not fit the output, of which only the shape is looked at; the targets are where the data set put them. The other
    /// functions refuse them by themselves, but for those whose score comes later.
    ///
    /// # Errors
    /// If they do not fit.
    fn check(&self, output: &Tensor, targets: &Tensor) -> Result<()> {
        let _ = (output, targets);
        Ok(())
    }

    /// As [`Self::score`], of targets on the output's device that [`Self::check`] has passed; nothing waits for the device.
    fn score_later(&self, output: &Tensor, targets: &Tensor) -> Result<Scored> {
        self.score(output, targets).map(Scored::Known)
    }

    /// As [`Self::differentiate`], likewise.
    fn differentiate_later(&self, output: &Tensor, targets: &Tensor, total: f64) -> Result<(Scored, Tensor)> {
        let (score, gradient) = self.differentiate(output, targets, total)?;
        Ok((score.into(), gradient))
    }
}

/// A loss as stages on `device` call it, by what `device` is.
pub(crate) struct LossOn<'a> {
    pub(crate) loss: &'a dyn Loss,
    pub(crate) device: &'a dyn StageDevice,
}

impl LossOn<'_> {
    /// The score of `output` on the device against `targets` of anywhere, and over how many of them.
    pub(crate) fn score(&self, output: &Tensor, targets: &Tensor) -> Result<(Scored, f64)> {
        let Self { loss, device } = self;
        if !device.is_asynchronous() {
            let score = loss.score(output, &device.bring(targets)?)?;
            return Ok((score.into(), score.count));
        }
        loss.check(output, targets)?;
        Ok((loss.score_later(output, &device.bring(targets)?)?, loss.count(targets)?))
    }

    /// Likewise, with the gradient.
    pub(crate) fn differentiate(&self, output: &Tensor, targets: &Tensor, total: f64) -> Result<(Scored, f64, Tensor)> {
        let Self { loss, device } = self;
        if !device.is_asynchronous() {
            let (score, gradient) = loss.differentiate(output, &device.bring(targets)?, total)?;
            return Ok((score.into(), score.count, gradient));
        }
        loss.check(output, targets)?;
        let (scored, gradient) = loss.differentiate_later(output, &device.bring(targets)?, total)?;
        Ok((scored, loss.count(targets)?, gradient))
    }
}

//! Losses: what a head's output is worth, and its gradient.

mod cross_entropy;
mod exponentials;
mod mean_squared_error;

pub use cross_entropy::CrossEntropy;
pub use mean_squared_error::MeanSquaredError;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::Result;

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

/// A loss of a head's output against targets: a sum over targets, divided by how many of them count in the whole batch.
///
/// The division is the caller's, so that uneven micro-batches keep the mean of the batch.
pub trait Loss: Send + Sync {
    /// How many of `targets` count (all but the ignored).
    fn count(&self, targets: &Tensor) -> Result<f64>;

    /// The score of `output` against `targets`.
    fn score(&self, output: &Tensor, targets: &Tensor) -> Result<Score>;

    /// The score, and the gradient of `sum of losses / total` with respect to `output`, shaped as `output`.
    fn differentiate(&self, output: &Tensor, targets: &Tensor, total: f64) -> Result<(Score, Tensor)>;
}

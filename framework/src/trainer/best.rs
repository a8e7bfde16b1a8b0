//! The best evaluation so far.

use std::sync::{Arc, PoisonError};

use serde::{Deserialize, Serialize};

use super::{Evaluation, Trainer};
use crate::{Error, Result, Weights};

/// The measure by which one evaluation is better than another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Criterion {
    /// The last stage's loss; lower is better.
    #[default]
    Loss,
    /// The last stage's accuracy; higher is better.
    Accuracy,
}

impl Criterion {
    /// Returns its name: `loss` or `accuracy`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Accuracy => "accuracy",
        }
    }

    /// Returns this measure of an evaluation.
    ///
    /// # Errors
    /// If it is the accuracy and the loss has none; the message begins with `setting`, which asks for it.
    pub(super) fn of(self, evaluation: &Evaluation, setting: &str) -> Result<f64> {
        let score = evaluation.last().score;
        match self {
            Self::Loss => Ok(score.mean_loss()),
            Self::Accuracy => score
                .accuracy()
                .ok_or_else(|| Error::invalid(setting, "the loss has no accuracy", "compare by \"loss\" instead")),
        }
    }

    /// Returns whether `value` is better than `best` by more than `delta`.
    pub(super) fn improves(self, value: f64, best: f64, delta: f64) -> bool {
        match self {
            Self::Loss => value < best - delta,
            Self::Accuracy => value > best + delta,
        }
    }
}

/// The best evaluation so far and its weights.
#[derive(Clone, Debug)]
pub struct Best {
    /// The number of updates made.
    pub steps: u64,
    /// The evaluation.
    pub evaluation: Evaluation,
    /// Every parameter and buffer.
    pub weights: Weights,
}

impl Trainer {
    /// Returns the best evaluation and its weights, if [`TrainerBuilder::keep_best`](crate::TrainerBuilder::keep_best) was set and there has been an evaluation.
    pub fn best(&self) -> Option<Arc<Best>> {
        self.best.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_best(&self, best: Arc<Best>) {
        *self.best.lock().unwrap_or_else(PoisonError::into_inner) = Some(best);
    }

    /// Keeps a copy of the weights if `found` is the best evaluation so far, and returns whether it is.
    ///
    /// # Errors
    /// If the criterion is the accuracy and the loss has none.
    pub(super) fn remember(&mut self, found: &Evaluation) -> Result<bool> {
        let Some(criterion) = self.settings.keep_best else { return Ok(false) };
        let value = criterion.of(found, "keep_best")?;
        if let Some(best) = self.best()
            && !criterion.improves(value, criterion.of(&best.evaluation, "keep_best")?, 0.0)
        {
            return Ok(false);
        }
        let weights = self.pipeline.snapshot()?;
        let best = Arc::new(Best { steps: self.steps, evaluation: found.clone(), weights });
        if let Some(store) = &self.store {
            store.write_best(Arc::clone(&best));
        }
        self.set_best(best);
        Ok(true)
    }
}

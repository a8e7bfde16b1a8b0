//! Early stopping: a run ends when its evaluations do not improve any more.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Callback, Control};
use crate::{
    Error, Result, TrainEvent,
    trainer::{Criterion, evaluation},
};

/// Early stopping, as configuration files give it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct EarlyStoppingConfig {
    /// The number of evaluations in a row without improvement after which the run ends.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub patience: u64,
    /// The amount by which an evaluation must be better than the best one to be an improvement.
    #[serde(default)]
    pub min_delta: f64,
    /// The measure of the last stage that is compared: its loss (lower is better) or its accuracy (higher is better).
    #[serde(default)]
    pub metric: Criterion,
}

/// A callback that ends a run when its evaluations do not improve any more. The run needs a validation set.
///
/// ```
/// use interlock::{Criterion, EarlyStopping, EarlyStoppingConfig};
///
/// let config = EarlyStoppingConfig { patience: 3, min_delta: 0.001, metric: Criterion::Accuracy };
/// let early_stopping = EarlyStopping::new(config)?; // for TrainerBuilder::callback
/// # drop(early_stopping);
/// # Ok::<(), interlock::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct EarlyStopping {
    config: EarlyStoppingConfig,
    state: State,
}

/// The state of early stopping.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    best: Option<f64>,
    without_improvement: u64,
}

impl EarlyStopping {
    /// Returns early stopping that has seen no evaluation.
    ///
    /// # Errors
    /// If a setting is out of range; the message names its key.
    pub fn new(config: EarlyStoppingConfig) -> Result<Self> {
        if config.patience == 0 {
            return Err(Error::invalid("early_stopping.patience", "0", "use 1 or more"));
        }
        if !(config.min_delta >= 0.0 && config.min_delta.is_finite()) {
            let value = config.min_delta.to_string();
            return Err(Error::invalid("early_stopping.min_delta", value, "use 0 or a number above"));
        }
        Ok(Self { config, state: State::default() })
    }

    /// Observes an evaluation's value.
    fn observe(&mut self, value: f64) -> Control {
        let Self { config: EarlyStoppingConfig { patience, min_delta, metric }, state } = self;
        match state.best.filter(|&best| !metric.improves(value, best, *min_delta)) {
            None => *state = State { best: Some(value), without_improvement: 0 },
            Some(best) => {
                state.without_improvement += 1;
                if state.without_improvement >= *patience {
                    let name = metric.name();
                    return Control::Stop(format!(
                        "early stopping: the validation {name} has not improved on {best} by more than {min_delta} in {patience} evaluations"
                    ));
                }
            }
        }
        Control::Continue
    }
}

impl Callback for EarlyStopping {
    fn on_event(&mut self, event: &TrainEvent<'_>) -> Result<Control> {
        match event {
            TrainEvent::Started { evaluates: false, .. } => Err(evaluation::missing("early_stopping")),
            // After an early stop the next fit counts from the beginning.
            TrainEvent::Started { .. } if self.state.without_improvement >= self.config.patience => {
                self.state.without_improvement = 0;
                Ok(Control::Continue)
            }
            TrainEvent::Evaluated { evaluation, .. } => {
                Ok(self.observe(self.config.metric.of(evaluation, "early_stopping.metric")?))
            }
            _ => Ok(Control::Continue),
        }
    }

    fn state(&self) -> Result<Value> {
        serde_json::to_value(&self.state).map_err(|e| Error::Internal(format!("early stopping's state: {e}")))
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        self.state = serde_json::from_value(state.clone())
            .map_err(|e| Error::invalid("early_stopping state", e.to_string(), "give the state of early stopping"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(patience: u64, min_delta: f64, metric: Criterion) -> EarlyStopping {
        EarlyStopping::new(EarlyStoppingConfig { patience, min_delta, metric }).unwrap()
    }

    /// After how many of these values it ends the run.
    fn ends_after(mut rule: EarlyStopping, values: &[f64]) -> Option<usize> {
        values.iter().position(|&value| rule.observe(value) != Control::Continue).map(|at| at + 1)
    }

    #[test]
    fn hand_worked_sequences_end_where_they_should() {
        let loss = |patience, min_delta| rule(patience, min_delta, Criterion::Loss);
        assert_eq!(ends_after(loss(1, 0.0), &[3.0, 2.0, 1.0, 0.5]), None);
        assert_eq!(ends_after(loss(1, 0.0), &[3.0, 2.0, 2.0, 1.0]), Some(3));
        // Two in a row; an improvement in between begins anew.
        assert_eq!(ends_after(loss(2, 0.0), &[3.0, 3.5, 2.0, 2.5, 2.5, 1.0]), Some(5));
        // 2.75 and 2.5 are not better than 3 by more than 0.5; 2.25 would be.
        assert_eq!(ends_after(loss(2, 0.5), &[3.0, 2.75, 2.5]), Some(3));
        assert_eq!(ends_after(loss(2, 0.5), &[3.0, 2.75, 2.25, 2.0]), None);
        let accuracy = |patience, min_delta| rule(patience, min_delta, Criterion::Accuracy);
        assert_eq!(ends_after(accuracy(2, 0.0), &[0.25, 0.5, 0.5, 0.75, 0.5, 0.5]), Some(6));
        assert_eq!(ends_after(accuracy(1, 0.25), &[0.25, 0.5]), Some(2));
    }

    #[test]
    fn the_reason_tells_the_metric_the_best_value_and_the_settings() {
        let mut rule = rule(1, 0.25, Criterion::Accuracy);
        assert_eq!(rule.observe(0.5), Control::Continue);
        let Control::Stop(reason) = rule.observe(0.625) else { panic!("it goes on") };
        assert_eq!(
            reason,
            "early stopping: the validation accuracy has not improved on 0.5 by more than 0.25 in 1 evaluations"
        );
    }

    #[test]
    fn what_is_restored_ends_where_the_original_would() {
        let values = [3.0, 3.5, 2.0, 2.5, 2.5];
        for saved_after in 0..4 {
            let mut original = rule(2, 0.0, Criterion::Loss);
            values[..saved_after].iter().for_each(|&value| drop(original.observe(value)));
            let mut restored = rule(2, 0.0, Criterion::Loss);
            restored.restore(&original.state().unwrap()).unwrap();
            assert_eq!(ends_after(restored, &values[saved_after..]), Some(5 - saved_after));
        }
        assert!(rule(1, 0.0, Criterion::Loss).restore(&Value::Bool(true)).unwrap_err().is_refusal());
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let refused = |patience, min_delta, key: &str| {
            let config = EarlyStoppingConfig { patience, min_delta, metric: Criterion::Loss };
            assert!(EarlyStopping::new(config).unwrap_err().to_string().starts_with(key));
        };
        refused(0, 0.0, "early_stopping.patience");
        refused(1, -0.1, "early_stopping.min_delta");
        refused(1, f64::NAN, "early_stopping.min_delta");
    }
}

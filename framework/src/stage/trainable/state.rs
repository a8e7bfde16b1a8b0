//! The state of a stage's main part or of its head: its optimizer's, and its moving averages'.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Trainable;
use crate::{Error, Result, StateDict};

/// The state of a part, without the tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::stage) struct PartState {
    /// The names of the optimizer's tensors.
    pub(in crate::stage) tensors: Vec<String>,
    /// Everything else that the optimizer remembers.
    pub(in crate::stage) values: Value,
    /// The parameters with a moving average. The tensors hold their own values, since the weights of a trainer are the averages.
    pub(in crate::stage) averaged: Vec<String>,
}

/// Tensors of a state by name.
pub(in crate::stage) type Tensors = BTreeMap<String, Tensor>;

/// Removes the tensor called `name`.
fn take(tensors: &mut Tensors, name: &str) -> Result<Tensor> {
    tensors.remove(name).ok_or_else(|| {
        let problem = format!("the tensor {name} is missing");
        Error::invalid("trainer state", problem, "give the tensors that were saved with the state")
    })
}

/// The name of a parameter's own value.
pub(in crate::stage) fn own(name: &str) -> String {
    format!("parameters.{name}")
}

impl Trainable {
    /// Returns the state, and adds its tensors to `tensors`; names of the optimizer's begin with `prefix`.
    pub(in crate::stage) fn state(&self, prefix: &str, tensors: &mut Tensors) -> Result<PartState> {
        let StateDict { tensors: optimizer, values } = self.optimizer.state()?;
        let names = optimizer.keys().cloned().collect();
        tensors.extend(optimizer.into_iter().map(|(name, tensor)| (format!("{prefix}.{name}"), tensor)));
        let mut averaged = Vec::new();
        for (average, entry) in self.average.iter().flat_map(|average| self.entries.iter().map(move |e| (average, e))) {
            if let Some(value) = average.own(&entry.var)? {
                averaged.push(entry.name.clone());
                tensors.insert(own(&entry.name), value);
            }
        }
        Ok(PartState { tensors: names, values, averaged })
    }

    /// Continues from what [`Self::state`] returned, whose tensors it takes from `tensors`. The present values of parameters that had a moving average are
    /// their averages.
    ///
    /// # Errors
    /// If a tensor is missing, or it is the state of another optimizer, of other parameters or of a run with a moving average.
    pub(in crate::stage) fn restore(&mut self, prefix: &str, state: PartState, tensors: &mut Tensors) -> Result<()> {
        let mut optimizer = StateDict { values: state.values, ..StateDict::default() };
        for name in state.tensors {
            let tensor = take(tensors, &format!("{prefix}.{name}"))?;
            optimizer.tensors.insert(name, tensor);
        }
        self.optimizer.restore(optimizer)?;
        for name in state.averaged {
            let value = take(tensors, &own(&name))?;
            let entry = self.entries.iter().find(|entry| entry.name == name);
            let restored = match (&mut self.average, entry) {
                (Some(average), Some(entry)) => average.restore(&entry.var, &value)?,
                _ => false,
            };
            if !restored {
                let problem = format!("{name} has a moving average in this state, but ema is not set");
                return Err(Error::invalid("trainer state", problem, "set ema and optimizer.groups as in that run"));
            }
        }
        Ok(())
    }
}

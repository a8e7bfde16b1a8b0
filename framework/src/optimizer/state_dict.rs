//! The state of a part of a run, in the form in which a checkpoint stores it.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde_json::Value;

use crate::{Error, Result};

/// The state of an optimizer: tensors by name, and the rest as JSON.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use interlock::StateDict;
///
/// let mut state = StateDict::default();
/// assert!(state.is_empty());
/// state.tensors.insert("velocity.weight".to_owned(), Tensor::new(&[0.5_f32], &Device::Cpu)?);
/// assert!(state.expect_empty("optimizer").is_err());
/// # Ok::<(), interlock::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct StateDict {
    /// Tensors by name. Restoring the same values must lead to the same results, bit for bit.
    pub tensors: BTreeMap<String, Tensor>,
    /// Everything else, such as step counts; null if there is nothing else.
    pub values: Value,
}

impl StateDict {
    /// Returns whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty() && self.values.is_null()
    }

    /// Checks that it holds nothing, for a part of a run without a state.
    ///
    /// # Errors
    /// If it holds something; the message begins with `subject`.
    pub fn expect_empty(&self, subject: &str) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        Err(Error::invalid(
            format!("{subject} state"),
            "it holds values, but this kind has no state",
            "give the state of the same kind, or none",
        ))
    }

    /// Removes the tensors called `{prefix}.{name}` and returns them by `name`.
    pub fn take_all(&mut self, prefix: &str) -> BTreeMap<String, Tensor> {
        let mut taken = BTreeMap::new();
        self.tensors.retain(|key, tensor| match key.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')) {
            Some(name) => taken.insert(name.to_owned(), tensor.clone()).is_some(),
            None => true,
        });
        taken
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::optimizer::{ClipFactor, OptimizerConfig, OptimizerKind, ParameterUpdate, built_in};

    /// The bits of two parameters after each of these updates.
    fn run(
        rule: &mut dyn crate::optimizer::Optimizer,
        vars: &[Var; 2],
        asynchronous: bool,
        steps: std::ops::Range<u32>,
    ) -> Vec<Vec<u32>> {
        steps
            .map(|step| {
                let gradient =
                    |k: u32| Tensor::new(&[0.3_f32 + step as f32, -0.7 * k as f32, 0.1], &Device::Cpu).unwrap();
                let gradients = [gradient(1), gradient(2)];
                let parameters: Vec<ParameterUpdate<'_>> = (0..2)
                    .map(|k| ParameterUpdate {
                        name: ["a.weight", "b"][k],
                        var: &vars[k],
                        unclipped: &gradients[k],
                        clip: ClipFactor::Host(0.7),
                        asynchronous,
                        lr_scale: 1.0,
                        weight_decay: 0.01,
                    })
                    .collect();
                rule.update(0.1, &parameters).unwrap();
                vars.iter().flat_map(|var| var.to_vec1::<f32>().unwrap()).map(f32::to_bits).collect()
            })
            .collect()
    }

    fn vars() -> [Var; 2] {
        [1.0_f32, -2.0].map(|v| Var::new(&[v, v / 3.0, v + 1.0], &Device::Cpu).unwrap())
    }

    fn configs() -> [OptimizerConfig; 4] {
        let sgd = |momentum, nesterov| OptimizerConfig { momentum, nesterov, ..OptimizerConfig::default() };
        let adamw = OptimizerConfig { kind: OptimizerKind::Adamw, ..OptimizerConfig::default() };
        [sgd(0.0, false), sgd(0.9, false), sgd(0.9, true), adamw]
    }

    #[test]
    fn the_updates_after_a_restore_are_the_same_bits() {
        for config in configs() {
            for asynchronous in [false, true] {
                let (mut whole, values) = (built_in(&config).unwrap(), vars());
                run(&mut *whole, &values, asynchronous, 0..3);
                let state = whole.state().unwrap();
                assert_eq!(state.is_empty(), config.kind == OptimizerKind::Sgd && config.momentum == 0.0);
                let values_then = values.each_ref().map(|var| Var::from_tensor(&var.copy().unwrap()).unwrap());
                let expected = run(&mut *whole, &values, asynchronous, 3..6);

                let mut fresh = built_in(&config).unwrap();
                // What it has by now is forgotten.
                run(&mut *fresh, &vars(), asynchronous, 5..7);
                fresh.restore(state).unwrap();
                assert_eq!(run(&mut *fresh, &values_then, asynchronous, 3..6), expected, "{config:?} {asynchronous}");
            }
        }
    }

    #[test]
    fn the_state_of_another_optimizer_or_of_other_parameters_is_refused() {
        let [none, momentum, _, adamw] = configs();
        let state_of = |config: &OptimizerConfig| {
            let mut rule = built_in(config).unwrap();
            run(&mut *rule, &vars(), false, 0..1);
            rule.state().unwrap()
        };
        let refused = |config: &OptimizerConfig, state: StateDict, word: &str| {
            let error = built_in(config).unwrap().restore(state).unwrap_err();
            assert!(error.is_refusal() && error.to_string().contains(word), "{error}");
        };
        refused(&momentum, state_of(&adamw), "first.a.weight");
        refused(&adamw, state_of(&momentum), "velocity.a.weight");
        let mut part = state_of(&adamw);
        part.tensors.remove("second.b");
        refused(&adamw, part, "state of b");
        built_in(&none).unwrap().restore(state_of(&none)).unwrap();
        // Neither of these has tensors: the other values tell them apart.
        refused(&adamw, state_of(&none), "no counts of updates");
        refused(&momentum, built_in(&adamw).unwrap().state().unwrap(), "values that stochastic gradient descent");

        let mut other = StateDict::default();
        other.tensors.insert("velocity.b".to_owned(), Tensor::new(&[1.0_f32], &Device::Cpu).unwrap());
        let mut rule = built_in(&momentum).unwrap();
        rule.restore(other).unwrap();
        let (gradient, [_, var]) = (Tensor::new(&[1.0_f32; 3], &Device::Cpu).unwrap(), vars());
        for asynchronous in [false, true] {
            let parameter = ParameterUpdate {
                name: "b",
                var: &var,
                unclipped: &gradient,
                clip: ClipFactor::NONE,
                asynchronous,
                lr_scale: 1.0,
                weight_decay: 0.0,
            };
            let error = rule.update(0.1, &[parameter]).unwrap_err().to_string();
            assert!(error.contains("optimizer state of b: it has 1 values; the parameter has 3"), "{error}");
        }
    }
}

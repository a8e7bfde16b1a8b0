//! Optimizers: how a stage turns gradients into new parameters.

use candle_core::{Tensor, Var};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// One parameter with its gradient, as an optimizer gets it.
pub struct Slot<'a> {
    /// The parameter's full name; the key of its state.
    pub name: &'a str,
    /// The value, to be changed in place.
    pub var: &'a Var,
    /// The gradient (clipped, of the whole batch), shaped as the value.
    pub gradient: &'a Tensor,
    /// What its group multiplies the learning rate with.
    pub lr_scale: f64,
    /// Its group's weight decay.
    pub weight_decay: f64,
}

/// An update rule with its state.
pub trait Optimizer: Send {
    /// Updates every parameter of `slots` in place with learning rate `lr`.
    fn update(&mut self, lr: f64, slots: &[Slot<'_>]) -> Result<()>;
}

/// Which update rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Stochastic gradient descent, with momentum and Nesterov's variant of it.
    Sgd,
    /// Adam with decoupled weight decay.
    Adamw,
}

/// An update rule and its constants, as PyTorch defines them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// The rule.
    pub kind: OptimizerKind,
    /// The learning rate before any schedule.
    pub lr: f64,
    /// SGD: momentum.
    pub momentum: f64,
    /// SGD: Nesterov momentum.
    pub nesterov: bool,
    /// L2 penalty (SGD) or decoupled decay (AdamW).
    pub weight_decay: f64,
    /// AdamW: decay rates of the two moments.
    pub betas: [f64; 2],
    /// AdamW: added to the root of the second moment.
    pub eps: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::Sgd,
            lr: 0.1,
            momentum: 0.9,
            nesterov: false,
            weight_decay: 0.0,
            betas: [0.9, 0.999],
            eps: 1e-8,
        }
    }
}

/// An optimizer from candle operations, for any device.
pub fn plain(config: &OptimizerConfig) -> Result<Box<dyn Optimizer>> {
    Err(Error::invalid("optimizer", format!("{config:?}"), "pending"))
}

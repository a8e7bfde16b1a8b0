//! Optimizers: how a stage turns gradients into new parameters.

mod adamw;
mod config;
mod sgd;

pub use adamw::AdamW;
pub use config::{OptimizerConfig, OptimizerKind, ParameterGroup, ParameterSettings, StageOverride};
pub use sgd::Sgd;

use std::collections::HashMap;

use candle_core::{Tensor, Var};

use crate::Result;

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

/// The optimizer that `config` names.
pub fn plain(config: &OptimizerConfig) -> Result<Box<dyn Optimizer>> {
    Ok(match config.kind {
        OptimizerKind::Sgd => Box::new(Sgd::new(config)),
        OptimizerKind::Adamw => Box::new(AdamW::new(config)),
    })
}

/// State tensors by parameter name, kept as plain values where the parameter is `f32` on the CPU.
type State<S> = HashMap<String, S>;

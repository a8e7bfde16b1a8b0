//! Optimizers: how a stage turns gradients into new parameters.

mod adamw;
mod config;
mod sgd;

pub use adamw::AdamW;
pub use config::{OptimizerConfig, OptimizerKind, ParameterGroup, ParameterSettings, StageOverride};
pub use sgd::Sgd;

use std::collections::HashMap;

use candle_core::{CpuStorage, Storage, Tensor, Var};

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

/// Runs `update` over the values and gradients of an `f32` parameter on the CPU and writes the values back; false where the
/// parameter is not one.
fn update_in_place(slot: &Slot<'_>, update: impl FnOnce(&mut [f32], &[f32])) -> Result<bool> {
    if !slot.var.device().is_cpu() || slot.var.dtype() != candle_core::DType::F32 {
        return Ok(false);
    }
    let gradient = slot.gradient.contiguous()?;
    let mut values = {
        let (storage, layout) = slot.var.storage_and_layout();
        match (&*storage, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => values[start..end].to_vec(),
            _ => return Ok(false),
        }
    };
    {
        let (storage, layout) = gradient.storage_and_layout();
        match (&*storage, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(gradient)), Some((start, end))) => update(&mut values, &gradient[start..end]),
            _ => return Ok(false),
        }
    }
    slot.var.set(&Tensor::from_vec(values, slot.var.shape(), slot.var.device())?)?;
    Ok(true)
}

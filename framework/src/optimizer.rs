//! Optimizers: how a stage turns gradients into new parameters.

mod adamw;
pub mod clip;
mod config;
pub mod lr_schedule;
mod sgd;

pub use adamw::AdamW;
pub use config::{OptimizerConfig, OptimizerKind, ParameterGroup, ParameterSettings, StageOverride};
pub use sgd::Sgd;

use std::collections::HashMap;

use candle_core::{Tensor, Var};

use crate::{Error, NonFinite, Result, tensor::elementwise};

/// One parameter with its gradient, as an optimizer gets it.
pub struct Slot<'a> {
    /// The parameter's full name; the key of its state.
    pub name: &'a str,
    /// The value, to be changed in place.
    pub var: &'a Var,
    /// The gradient of the whole batch before clipping, shaped as the value; [`Self::gradient`] gives what clipping makes of it.
    pub unclipped: &'a Tensor,
    /// What clipping multiplies the gradient with.
    pub clip: ClipFactor,
    /// Whether the device is asynchronous, so that an update must read no value and wait for nothing
    /// ([`AsynchronousDevice`](crate::device::AsynchronousDevice)). The stage then looks for infinities and NaN itself.
    pub asynchronous: bool,
    /// What its group multiplies the learning rate with.
    pub lr_scale: f64,
    /// Its group's weight decay.
    pub weight_decay: f64,
}

/// The factor by which clipping multiplies a gradient.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ClipFactor {
    /// The host has it; 1 leaves the gradient as it is.
    Host(f64),
    /// A tensor `(1)` of floating-point dtype on the device, not read.
    Device(Tensor),
}

impl ClipFactor {
    /// No clipping.
    pub const NONE: Self = Self::Host(1.0);
}

impl Slot<'_> {
    /// The clipped gradient. A rule that writes its own loop spares memory and time by multiplying in it.
    pub fn gradient(&self) -> Result<Tensor> {
        Ok(match &self.clip {
            ClipFactor::Host(1.0) => self.unclipped.clone(),
            ClipFactor::Host(clip) => (self.unclipped * *clip)?,
            ClipFactor::Device(clip) => {
                let clip = clip.to_dtype(self.unclipped.dtype())?.reshape(vec![1; self.unclipped.rank()])?;
                self.unclipped.broadcast_mul(&clip)?
            }
        })
    }

    /// The factor, where the host may change the value in a loop of its own.
    pub(crate) fn known_clip(&self) -> Option<f64> {
        match self.clip {
            ClipFactor::Host(clip) if !self.asynchronous => Some(clip),
            _ => None,
        }
    }

    /// What an update fails with that has left an infinity or a NaN in the value.
    pub fn not_finite(&self) -> Error {
        Error::NotFinite(NonFinite::Parameter, self.not_finite_words())
    }

    pub(crate) fn not_finite_words(&self) -> String {
        format!("{} holds an infinity or a NaN after the update", self.name)
    }

    /// # Errors
    /// If the value holds an infinity or a NaN, and may be read; looked for in a pass of its own.
    pub(crate) fn check(&self) -> Result<()> {
        if self.asynchronous || elementwise::is_finite(self.var)? { Ok(()) } else { Err(self.not_finite()) }
    }
}

/// An update rule with its state.
pub trait Optimizer: Send {
    /// Updates every parameter of `slots` in place with learning rate `lr`.
    fn update(&mut self, lr: f64, slots: &[Slot<'_>]) -> Result<()>;

    /// Whether updates follow gradients. Where not, parameters that received none are no error, and are left out of `slots`.
    fn uses_gradients(&self) -> bool {
        true
    }

    /// Whether [`Self::update`] looks for infinities and NaN in what it writes and fails with [`Slot::not_finite`]. Where it does not, the
    /// stage looks for them afterwards, which reads every parameter once more; as it does in any case where [`Slot::asynchronous`].
    fn checks_values(&self) -> bool {
        false
    }

    /// Bytes of its state; 0 where it has none or does not tell.
    fn state_bytes(&self) -> usize {
        0
    }
}

/// The optimizer that `config` names.
pub fn plain(config: &OptimizerConfig) -> Result<Box<dyn Optimizer>> {
    Ok(match config.kind {
        OptimizerKind::Sgd => Box::new(Sgd::new(config)),
        OptimizerKind::Adamw => Box::new(AdamW::new(config)),
    })
}

/// Bytes of a tensor's elements.
pub(crate) fn bytes(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}

/// State tensors by parameter name, kept as plain values where the parameter is `f32` on the CPU.
type State<S> = HashMap<String, S>;

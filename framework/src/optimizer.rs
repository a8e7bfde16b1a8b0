//! Optimizers: the update of a stage's parameters from their gradients.

mod adamw;
pub(crate) mod clip;
mod config;
mod keys;
pub(crate) mod lr_schedule;
mod sgd;
mod state_dict;

pub use adamw::AdamW;
pub use config::{OptimizerConfig, OptimizerKind, ParameterGroup, ParameterSettings, StageOverride};
pub use sgd::Sgd;
pub use state_dict::StateDict;

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, Var};

use crate::{Error, NonFinite, Result, tensor::elementwise};

/// One parameter with its gradient, as an optimizer gets it.
pub struct ParameterUpdate<'a> {
    /// The parameter's full name; the key of its state.
    pub name: &'a str,
    /// The value, to be changed in place.
    pub var: &'a Var,
    /// The gradient of the whole batch before clipping, of the shape of the value. [`Self::gradient`] returns it clipped.
    pub unclipped: &'a Tensor,
    /// The factor by which clipping multiplies the gradient.
    pub clip: ClipFactor,
    /// Whether the device is asynchronous ([`AsynchronousDevice`](crate::device::AsynchronousDevice)). An update must then read no value and wait for
    /// nothing; the stage checks for infinities and NaN itself.
    pub asynchronous: bool,
    /// The factor by which its group multiplies the learning rate.
    pub lr_scale: f64,
    /// Its group's weight decay.
    pub weight_decay: f64,
}

/// The factor by which clipping multiplies a gradient.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ClipFactor {
    /// Known to the host; 1 leaves the gradient as it is.
    Host(f64),
    /// A tensor `(1)` of floating-point dtype on the device, not read.
    Device(Tensor),
}

impl ClipFactor {
    /// No clipping.
    pub const NONE: Self = Self::Host(1.0);
}

impl ParameterUpdate<'_> {
    /// Returns the clipped gradient. An update rule with its own loop saves memory and time if it multiplies by `clip` in that loop.
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

    /// Returns the factor if the host may change the value in a loop of its own.
    pub(crate) fn known_clip(&self) -> Option<f64> {
        match self.clip {
            ClipFactor::Host(clip) if !self.asynchronous => Some(clip),
            _ => None,
        }
    }

    /// Returns the error for an update that left an infinity or a NaN in the value.
    pub fn not_finite(&self) -> Error {
        Error::NotFinite(NonFinite::Parameter, self.not_finite_words())
    }

    pub(crate) fn not_finite_words(&self) -> String {
        format!("{} holds an infinity or a NaN after the update", self.name)
    }

    /// Checks the value in a pass of its own, if the host may read it.
    ///
    /// # Errors
    /// If the value holds an infinity or a NaN.
    pub(crate) fn check(&self) -> Result<()> {
        if self.asynchronous || elementwise::is_finite(self.var)? { Ok(()) } else { Err(self.not_finite()) }
    }
}

/// An update rule with its state. [`OptimizerFactory`](crate::OptimizerFactory) has an example.
///
/// An optimizer serves the parameters of one part of a stage, on that stage's thread only. An optimizer with a state implements
/// [`state`](Self::state) and [`restore`](Self::restore), so that a run can be continued bit for bit.
pub trait Optimizer: Send {
    /// Updates every parameter of `parameters` in place with learning rate `lr`.
    fn update(&mut self, lr: f64, parameters: &[ParameterUpdate<'_>]) -> Result<()>;

    /// Returns whether updates use gradients. If not, a parameter without a gradient is no error, and is left out of `parameters`. Default: true.
    fn uses_gradients(&self) -> bool {
        true
    }

    /// Returns whether [`Self::update`] checks the values that it writes for infinities and NaN, and fails with [`ParameterUpdate::not_finite`]. Default: false;
    /// the stage then checks them after the update, which reads every parameter once more. If [`ParameterUpdate::asynchronous`], the stage always does.
    fn checks_values(&self) -> bool {
        false
    }

    /// Returns the bytes of its state; 0 if it has none or does not report it.
    fn state_bytes(&self) -> usize {
        0
    }

    /// Returns a copy of its state. Default: there is none.
    ///
    /// # Errors
    /// If a value cannot be read.
    fn state(&self) -> Result<StateDict> {
        Ok(StateDict::default())
    }

    /// Replaces its state by one that [`Self::state`] returned for the same parameters. The next updates are then the same, bit for bit. Its tensors
    /// may lie on another device, such as the CPU after they were read from a file.
    ///
    /// # Errors
    /// If it is not the state of such an optimizer. Default: if it is not empty.
    fn restore(&mut self, state: StateDict) -> Result<()> {
        state.expect_empty("optimizer")
    }
}

/// Makes the optimizer that `config` names.
pub fn built_in(config: &OptimizerConfig) -> Result<Box<dyn Optimizer>> {
    Ok(match config.kind {
        OptimizerKind::Sgd => Box::new(Sgd::new(config)),
        OptimizerKind::Adamw => Box::new(AdamW::new(config)),
    })
}

/// Bytes of a tensor's elements.
pub(crate) fn bytes(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}

/// Optimizer state by parameter name, as plain values if the parameter is `f32` on the CPU.
type ByParameter<S> = HashMap<String, S>;

/// Restored state as plain values, for a parameter that the host updates in place; none for others.
///
/// # Errors
/// If it does not have as many elements as the parameter.
fn restored_values(restored: Option<&Tensor>, parameter: &ParameterUpdate<'_>) -> Result<Option<Vec<f32>>> {
    let in_place =
        parameter.var.device().is_cpu() && parameter.var.dtype() == DType::F32 && parameter.var.is_contiguous();
    match restored.filter(|_| in_place) {
        Some(tensor) => Ok(Some(like_parameter(tensor, parameter)?.flatten_all()?.to_vec1()?)),
        None => Ok(None),
    }
}

/// State with the shape, the dtype and the device of its parameter.
fn like_parameter(state: &Tensor, parameter: &ParameterUpdate<'_>) -> Result<Tensor> {
    if state.elem_count() != parameter.var.elem_count() {
        return Err(Error::invalid(
            format!("optimizer state of {}", parameter.name),
            format!("it has {} values", state.elem_count()),
            format!("the parameter has {}", parameter.var.elem_count()),
        ));
    }
    Ok(state.to_device(parameter.var.device())?.to_dtype(parameter.var.dtype())?.reshape(parameter.var.shape())?)
}

/// State values as a checkpoint stores them: a tensor of one dimension.
fn stored(values: &[f32]) -> Result<Tensor> {
    Ok(Tensor::from_slice(values, values.len(), &Device::Cpu)?)
}

/// Checks that nothing of a restored state is left over.
fn expect_used(rule: &str, state: &StateDict) -> Result<()> {
    match state.tensors.keys().next() {
        None => Ok(()),
        Some(name) => Err(Error::invalid(
            "optimizer state",
            format!("it holds {name}, which {rule} does not have"),
            format!("give the state of {rule}"),
        )),
    }
}

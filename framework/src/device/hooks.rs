//! Hooks of the emulator and the planner.

use candle_core::{Device, Tensor};

use super::Link;
use crate::{Differentiable, Result, optimizer::Optimizer};

/// Hooks for the emulator, the planner, and the devices that come with Interlock. **A backend does not need them**, and they may change.
///
/// By default they change nothing.
pub trait DeviceHooks: Send + Sync {
    /// Returns whether the planner treats stages that share the device as taking turns.
    fn takes_turns(&self) -> bool {
        false
    }

    /// Returns how many of this machine's cores are busy while the device computes.
    fn threads(&self) -> usize {
        1
    }

    /// Returns the link that delays the activations and gradients sent by a stage on this device. Each direction is delayed separately, also between
    /// stages on the same device. Default: no delay.
    fn link(&self) -> Link {
        Link::IMMEDIATE
    }

    /// Wraps or replaces `module`, which computes `part`, when it is built.
    ///
    /// # Errors
    /// If it cannot be wrapped.
    fn prepare(&self, _part: &Part<'_>, module: Box<dyn Differentiable>) -> Result<Box<dyn Differentiable>> {
        Ok(module)
    }

    /// Wraps or replaces `optimizer`, which the run's [`OptimizerFactory`](crate::OptimizerFactory) made for the parameters of `part`.
    ///
    /// # Errors
    /// If it cannot be wrapped.
    fn prepare_optimizer(&self, _part: &Part<'_>, optimizer: Box<dyn Optimizer>) -> Result<Box<dyn Optimizer>> {
        Ok(optimizer)
    }

    /// Adds a remedy to `error`, which arose while the device worked.
    fn explain(&self, error: crate::Error) -> crate::Error {
        error
    }

    /// Returns the bytes in use on the device; none if the device does not report them.
    fn memory_in_use(&self) -> Option<u64> {
        None
    }

    /// Copies `tensor`, which another device has released, to `device`, the candle device of this synchronous device.
    ///
    /// # Errors
    /// If it cannot be copied.
    fn copy_to(&self, tensor: &Tensor, device: &Device) -> Result<Tensor> {
        Ok(tensor.to_device(device)?)
    }
}

/// Hooks that change nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NoHooks;

impl DeviceHooks for NoHooks {}

/// A part of a stage that is built on a device.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The stage, counted from 0.
    pub stage: usize,
    /// The kind of part.
    pub kind: PartKind,
    /// The shape of its output for one example, without the batch dimension; of the first tensor if there are several.
    pub output: &'a [usize],
}

/// A kind of part of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartKind {
    /// The units of the model.
    Main,
    /// The auxiliary head.
    Head,
}

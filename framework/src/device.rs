//! Where a stage computes.
//!
//! A [`Backend`] opens devices by name; a [`StageDevice`] is one opened device, to which one stage or several are pinned.

pub mod link;
mod reading;
pub mod sleep;

pub use link::Link;
pub use reading::{Mark, Reading};

use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::{
    Differentiable, Precision, Result,
    optimizer::{Optimizer, OptimizerConfig},
};

/// A kind of device: opens those whose names begin with its scheme (`cpu`, `cuda`).
pub trait Backend: Send + Sync {
    /// The first part of its devices' names, before any colon.
    fn scheme(&self) -> &'static str;

    /// Opens the device called `name`, such as `cpu`, `cpu:threads=2` or `cuda:0`.
    ///
    /// # Errors
    /// If there is no such device; the message tells what would be right.
    fn open(&self, name: &str) -> Result<Arc<dyn StageDevice>>;

    /// A line for each device that could be opened: its name and what it is.
    fn list(&self) -> Vec<(String, String)>;

    /// Why it has no device, where it has none on this machine.
    fn absence(&self) -> Option<String> {
        None
    }
}

/// One opened device.
pub trait StageDevice: Send + Sync {
    /// Its name, which opens it again.
    fn name(&self) -> &str;

    /// The candle device that its tensors live on.
    fn device(&self) -> &Device;

    /// Runs `work` on the device's own threads and returns when it is done. Panics of `work` pass through.
    fn run(&self, work: &mut (dyn FnMut() + Send)) {
        work();
    }

    /// Whether it works behind the host's back: what it is given to compute is there only later, and looking at a value waits for all that was
    /// given before. A stage on such a device takes a training step's losses, norms and checks from it once, at the step's end.
    fn is_asynchronous(&self) -> bool {
        !self.device().is_cpu()
    }

    /// Whether stages that share the device compute one after another.
    fn takes_turns(&self) -> bool {
        false
    }

    /// The cores of this machine that are busy while it computes.
    fn threads(&self) -> usize {
        1
    }

    /// The same device with a queue of work of its own, for one stage; none where stages share it as it is.
    ///
    /// # Errors
    /// If the device gives no other queue.
    fn for_stage(&self) -> Result<Option<Arc<dyn StageDevice>>> {
        Ok(None)
    }

    /// The precision in which layers compute on it.
    fn precision(&self) -> Precision {
        Precision::F32
    }

    /// Makes `tensor`, which is on this device, ready to leave for another: called by the stage that sends it, before it is sent.
    fn release(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }

    /// `tensor`, which another device has released, on this device; no copy where it is there already. Called by the stage that receives it.
    fn bring(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.to_device(self.device())?)
    }

    /// Begins to read the elements of `values`, a small tensor on this device, in order and as `f64`. A device that works behind the host's
    /// back goes on working meanwhile.
    fn read(&self, values: &Tensor) -> Result<Box<dyn Reading>> {
        reading::read(values)
    }

    /// Marks the place after everything given to the device so far; none where the host waits for the device anyway, so that now is the moment.
    fn mark(&self) -> Result<Option<Box<dyn Mark>>> {
        Ok(None)
    }

    /// Waits until everything given to the device is done.
    fn synchronize(&self) -> Result<()> {
        Ok(self.device().synchronize()?)
    }

    /// Bytes in use on the device, where it can tell.
    fn memory_in_use(&self) -> Option<u64> {
        None
    }

    /// `error`, which arose while the device worked, in words that tell what would be right.
    fn explain(&self, error: crate::Error) -> crate::Error {
        error
    }

    /// An optimizer for the parameters of `part` on this device.
    fn optimizer(&self, _part: &Part<'_>, config: &OptimizerConfig) -> Result<Box<dyn Optimizer>> {
        crate::optimizer::plain(config)
    }

    /// Wraps `module`, which computes `part`, as it is built; the default changes nothing.
    fn prepare(&self, _part: &Part<'_>, module: Box<dyn Differentiable>) -> Result<Box<dyn Differentiable>> {
        Ok(module)
    }

    /// What holds back the activations and gradients that a stage on this device sends, in each direction by itself; nothing unless told
    /// otherwise. Stages on the same device are held apart by it too.
    fn link(&self) -> Link {
        Link::IMMEDIATE
    }
}

/// A piece of a stage that is built on a device.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The stage, counted from 0.
    pub stage: usize,
    /// Which piece of it.
    pub kind: PartKind,
    /// The shape of its output for one example, without the batch dimension; of the first tensor where there are several.
    pub output: &'a [usize],
}

/// Which piece of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartKind {
    /// The units of the model.
    Main,
    /// The auxiliary head.
    Head,
}

/// A mark after everything given to `device` so far; where the host waits for the device, that is now.
pub(crate) fn mark(device: &dyn StageDevice) -> Result<Box<dyn Mark>> {
    Ok(device.mark()?.unwrap_or_else(|| Box::new(std::time::Instant::now())))
}

/// Runs `work` on the device's threads and returns its result.
pub fn run_on<R: Send>(device: &dyn StageDevice, work: impl FnOnce() -> R + Send) -> R {
    let mut work = Some(work);
    let mut result = None;
    device.run(&mut || {
        if let Some(work) = work.take() {
            result = Some(work());
        }
    });
    match result {
        Some(result) => result,
        None => unreachable!("StageDevice::run returned without running its work"),
    }
}

/// candle's own CPU device on the calling thread: enough for tests and small models.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl StageDevice for Plain {
    fn name(&self) -> &str {
        "plain"
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }
}

//! Asynchronous devices, and the calls that serve every device.

use std::{sync::Arc, time::Instant};

use candle_core::Tensor;

use super::{Mark, Reading, StageDevice, reading};
use crate::Result;

/// What an asynchronous device adds to a [`StageDevice`].
///
/// Such a device puts operations into a queue, its *stream*, and computes them later. Reading a value makes the host wait for everything before it in
/// the stream. So a stage reads the losses, norms and checks of a training step together, when the step ends.
pub trait AsynchronousDevice: Send + Sync {
    /// Opens the same device with a new stream, for one stage. Default: none; all stages share one stream.
    ///
    /// # Errors
    /// If the device has no further stream.
    fn stream(&self) -> Result<Option<Arc<dyn StageDevice>>> {
        Ok(None)
    }

    /// Makes `tensor`, which is on this device, readable by another device or stream. The sending stage calls it. Default: does nothing.
    ///
    /// # Errors
    /// If the device fails.
    fn release(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }

    /// Copies `tensor`, which another device or stream has released, to this device; does not copy it if it is already here. The receiving stage
    /// calls it. Later operations of the device wait for the copy; the host does not.
    ///
    /// # Errors
    /// If the tensor cannot be copied here.
    fn bring(&self, tensor: &Tensor) -> Result<Tensor>;

    /// Begins to read the elements of `values`, a small tensor on this device, in order and as `f64`. Does not wait.
    ///
    /// # Errors
    /// If the device fails.
    fn read(&self, values: &Tensor) -> Result<Box<dyn Reading>>;

    /// Marks the end of everything that the device has been given so far.
    ///
    /// # Errors
    /// If the device fails.
    fn mark(&self) -> Result<Box<dyn Mark>>;

    /// Waits until the device has done everything that it has been given.
    ///
    /// # Errors
    /// If the device fails.
    fn synchronize(&self) -> Result<()>;
}

/// The calls that a stage makes on every device. On a synchronous device their results are ready at once.
impl dyn StageDevice + '_ {
    /// Returns whether operations return before they are computed.
    pub fn is_asynchronous(&self) -> bool {
        self.asynchronous().is_some()
    }

    /// Makes `tensor`, which is on this device, readable by another device. The sending stage calls it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn release(&self, tensor: &Tensor) -> Result<Tensor> {
        self.asynchronous().map_or_else(|| Ok(tensor.clone()), |device| device.release(tensor))
    }

    /// Copies `tensor`, which another device has released, to this device; does not copy it if it is already here. The receiving stage calls it.
    ///
    /// # Errors
    /// If the tensor cannot be copied here.
    pub fn bring(&self, tensor: &Tensor) -> Result<Tensor> {
        match self.asynchronous() {
            Some(device) => device.bring(tensor),
            None => self.hooks().copy_to(tensor, self.device()),
        }
    }

    /// Begins to read the elements of `values`, a small tensor on this device, in order and as `f64`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn read(&self, values: &Tensor) -> Result<Box<dyn Reading>> {
        self.asynchronous().map_or_else(|| reading::read(values), |device| device.read(values))
    }

    /// Marks the end of everything that the device has been given so far. On a synchronous device that is the present moment.
    ///
    /// # Errors
    /// If the device fails.
    pub fn mark(&self) -> Result<Box<dyn Mark>> {
        self.asynchronous().map_or_else(|| Ok(Box::new(Instant::now()) as Box<dyn Mark>), AsynchronousDevice::mark)
    }

    /// Waits until the device has done everything that it has been given.
    ///
    /// # Errors
    /// If the device fails.
    pub fn synchronize(&self) -> Result<()> {
        match self.asynchronous() {
            Some(device) => device.synchronize(),
            None => Ok(self.device().synchronize()?),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::device::PlainCpu;

    #[test]
    fn a_synchronous_device_answers_at_once() {
        let device: &dyn StageDevice = &PlainCpu;
        assert!(!device.is_asynchronous());
        let values = Tensor::arange(0_u32, 4, &Device::Cpu).unwrap().reshape((2, 2)).unwrap().t().unwrap();
        let reading = device.read(&values).unwrap();
        assert!(reading.is_ready().unwrap());
        assert_eq!(reading.take().unwrap(), [0.0, 2.0, 1.0, 3.0]);
        let before = Instant::now();
        let mark = device.mark().unwrap().instant().unwrap();
        assert!((before..=Instant::now()).contains(&mark));
        device.synchronize().unwrap();
        let brought = device.bring(&device.release(&values).unwrap()).unwrap();
        assert_eq!((brought.dims(), brought.dtype()), (&[2, 2][..], DType::U32));
    }
}

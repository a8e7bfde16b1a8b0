//! Numbers and times that an asynchronous device delivers later.

use std::time::Instant;

use candle_core::{DType, Tensor};

use crate::Result;

/// Numbers in transfer from a device to the host.
pub trait Reading: Send {
    /// Returns whether the numbers have arrived. Does not wait.
    ///
    /// # Errors
    /// If the device fails.
    fn is_ready(&self) -> Result<bool>;

    /// Waits until the numbers have arrived, and returns them.
    ///
    /// # Errors
    /// If the device fails.
    fn take(self: Box<Self>) -> Result<Vec<f64>>;
}

/// A position in a device's stream.
pub trait Mark: Send {
    /// Waits until the device has finished everything before this position, and returns the time at which it did.
    ///
    /// # Errors
    /// If the device fails.
    fn instant(&self) -> Result<Instant>;
}

/// The mark of a synchronous device: a time that has passed.
impl Mark for Instant {
    fn instant(&self) -> Result<Instant> {
        Ok(*self)
    }
}

/// Numbers that the host already has.
struct Read(Vec<f64>);

impl Reading for Read {
    fn is_ready(&self) -> Result<bool> {
        Ok(true)
    }

    fn take(self: Box<Self>) -> Result<Vec<f64>> {
        Ok(self.0)
    }
}

/// Reads the elements of `values` at once.
pub(super) fn read(values: &Tensor) -> Result<Box<dyn Reading>> {
    Ok(Box::new(Read(values.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)))
}

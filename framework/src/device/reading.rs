//! What a device that works behind the host's back tells later: numbers, and moments.

use std::time::Instant;

use candle_core::{DType, Tensor};

use crate::Result;

/// Numbers on their way from a device to the host.
pub trait Reading: Send {
    /// Whether they are there; does not wait.
    fn is_ready(&self) -> Result<bool>;

    /// The numbers; waits until they are there.
    fn take(self: Box<Self>) -> Result<Vec<f64>>;
}

/// A place in the queue of a device's work.
pub trait Mark: Send {
    /// When the device had done everything before it; waits until it has.
    fn instant(&self) -> Result<Instant>;
}

/// The moment at which the host has waited for the device.
impl Mark for Instant {
    fn instant(&self) -> Result<Instant> {
        Ok(*self)
    }
}

/// Numbers that are there.
struct Read(Vec<f64>);

impl Reading for Read {
    fn is_ready(&self) -> Result<bool> {
        Ok(true)
    }

    fn take(self: Box<Self>) -> Result<Vec<f64>> {
        Ok(self.0)
    }
}

/// The elements of `values`, read at once.
pub(super) fn read(values: &Tensor) -> Result<Box<dyn Reading>> {
    Ok(Box::new(Read(values.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)))
}

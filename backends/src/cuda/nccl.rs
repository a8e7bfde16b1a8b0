//! Activations and gradients between GPUs of several processes, by NCCL.
//!
//! A boundary between two processes has a *way* in each direction: an [`NcclSender`] in one process and an [`NcclReceiver`] in the other, joined
//! under an [`NcclId`] that the processes pass on by other means. Each way has a communicator and a stream of its own, so that an activation and a
//! gradient that cross at the same time do not wait for each other. What is sent must be received in the same order, with the shapes and dtypes
//! that it was sent with; how the receiver learns them is up to the processes' own messages.
//!
//! A way ends by `finish`, at both ends: it waits until what was sent has come. An end that is dropped without waits for a short time only, then
//! cuts off what is under way.
//!
//! The host waits for nothing but the joining and the end. NCCL does not tell when the other process is gone: whoever runs the processes must.

mod end;

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use candle_core::{
    CudaStorage, DType, Shape, Storage, Tensor,
    cuda::{
        CudaDType, CudaStorageSlice,
        cudarc::{
            driver::{CudaSlice, DevicePtr, DevicePtrMut, DeviceRepr, result as driver_result},
            nccl::{
                result::{self, NcclError},
                sys,
            },
        },
    },
};
use interlock::{Activation, Error, Result, device::AsynchronousDevice};

use self::end::{ChannelEnd, RECEIVER, SENDER};
use super::{
    CudaStageDevice,
    transfer::{failed, of_any_dtype, of_any_type},
};

/// The name of one way of a boundary; made by one process, given to the other as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NcclId([u8; 128]);

impl NcclId {
    /// A new one.
    ///
    /// # Errors
    /// If NCCL finds no network interface to listen on.
    pub fn new() -> Result<Self> {
        let id = result::get_uniqueid().map_err(|error| refused("a new id", error))?;
        Ok(Self(id.internal.map(|c| c.to_ne_bytes()[0])))
    }
}

impl fmt::Display for NcclId {
    /// 256 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for NcclId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::invalid("NCCL id", format!("{text:?}"), "give the 256 hexadecimal digits of an id");
        let mut bytes = [0; 128];
        if text.len() != 2 * bytes.len() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

fn refused(what: &str, error: NcclError) -> Error {
    Error::invalid(
        "NCCL",
        format!("{what} failed: {:?}", error.0),
        "see that the other process is alive; NCCL_DEBUG=INFO makes NCCL tell more",
    )
}

/// Sends activations, or gradients, to a stage of another process.
///
/// [`finish`](Self::finish) ends it when all is sent. Dropped without, it waits for that 10 s at most, ignores every error, and cuts off what is then
/// still under way: messages that the receiver has not taken by then are lost, and neither side is told.
pub struct NcclSender {
    end: ChannelEnd,
    device: Arc<CudaStageDevice>,
}

impl NcclSender {
    /// Joins the way called `id`, for tensors of `device`.
    ///
    /// # Errors
    /// If the receiver does not join within `limit`, or NCCL refuses.
    pub fn join(device: Arc<CudaStageDevice>, id: NcclId, limit: Duration) -> Result<Self> {
        Ok(Self { end: ChannelEnd::join(&device, id, SENDER, limit)?, device })
    }

    /// Sends the tensors of `activation`; returns at once, and keeps them until they are sent.
    ///
    /// They are on their way for as long as this sender is there: only [`finish`](Self::finish) makes sure that they leave.
    ///
    /// # Errors
    /// If a tensor is of another device, is empty, or NCCL fails.
    pub fn send(&mut self, activation: &Activation) -> Result<()> {
        self.end.copies.sweep().map_err(failed)?;
        let released = activation.try_map(|tensor| self.device.release(tensor))?;
        for tensor in released.tensors() {
            let (storage, _) = tensor.storage_and_layout();
            let Storage::Cuda(cuda) = &*storage else {
                return Err(Error::invalid(
                    "NCCL",
                    "a tensor that is not on the GPU",
                    "send tensors of the sender's device",
                ));
            };
            of_any_type!(CudaStorageSlice, &cuda.slice, slice => self.send_elements(slice))?;
        }
        self.end.copies.keep(released.tensors().to_vec(), None).map_err(failed)
    }

    /// Waits until all is sent, and ends the way. The receiver is to do the same; two processes finish several ways in the same order.
    ///
    /// # Errors
    /// If it takes longer than `limit`, or NCCL fails. The way has ended then too, and what was still under way is cut off.
    pub fn finish(mut self, limit: Duration) -> Result<()> {
        self.end.finish(limit)
    }

    fn send_elements<T: DeviceRepr>(&self, elements: &CudaSlice<T>) -> Result<()> {
        let stream = self.end.stream();
        let (start, _read) = elements.device_ptr(stream);
        let byte = sys::ncclDataType_t::ncclUint8;
        self.end.group("sending", || {
            // SAFETY: so many bytes are there, and are kept until they are sent.
            unsafe {
                result::send(
                    start as _,
                    elements.num_bytes(),
                    byte,
                    RECEIVER,
                    self.end.communicator(),
                    stream.cu_stream().cast(),
                )
            }
            .map(|_| ())
        })
    }
}

/// Receives activations, or gradients, from a stage of another process.
///
/// [`finish`](Self::finish) ends it when all that was asked for is there. Dropped without, it waits for that 10 s at most, ignores every error, and
/// cuts off what is then still under way. A tensor that has not come by then is NaN, if its elements are floating-point numbers, and else has all
/// bits set: a stage that computes with it fails.
pub struct NcclReceiver {
    end: ChannelEnd,
    device: Arc<CudaStageDevice>,
}

/// Each byte of a tensor until it is received: NaN in every dtype of floating-point numbers, and no valid index in the others.
const NOT_RECEIVED: u8 = 0xFF;

impl NcclReceiver {
    /// Joins the way called `id`, for tensors that come to `device`.
    ///
    /// # Errors
    /// If the sender does not join within `limit`, or NCCL refuses.
    pub fn join(device: Arc<CudaStageDevice>, id: NcclId, limit: Duration) -> Result<Self> {
        Ok(Self { end: ChannelEnd::join(&device, id, RECEIVER, limit)?, device })
    }

    /// The next tensors, of these dtypes and shapes; returns at once, and what computes with them waits until they are there.
    ///
    /// They come for as long as this receiver is there: one whose tensors are still to be read ends by [`finish`](Self::finish).
    ///
    /// # Errors
    /// If a dtype does not travel, or NCCL fails.
    pub fn receive(&mut self, tensors: &[(DType, Shape)]) -> Result<Activation> {
        let received =
            tensors.iter().map(|(dtype, shape)| self.receive_one(*dtype, shape)).collect::<Result<Vec<_>>>()?;
        Ok(Activation::new(received))
    }

    /// Waits until all tensors that were asked for are there, and ends the way. The sender is to do the same; two processes finish several ways in
    /// the same order.
    ///
    /// # Errors
    /// If it takes longer than `limit`, or NCCL fails. The way has ended then too, and tensors that have not come are not to be used.
    pub fn finish(mut self, limit: Duration) -> Result<()> {
        self.end.finish(limit)
    }

    fn receive_one(&self, dtype: DType, shape: &Shape) -> Result<Tensor> {
        let count = shape.elem_count();
        let storage = of_any_dtype!(dtype, Element => self.elements::<Element>(count))?;
        self.device.landing.adopt(storage, shape)
    }

    fn elements<T: DeviceRepr + CudaDType>(&self, count: usize) -> Result<CudaStorage> {
        let stream = self.end.stream();
        let home = self.device.landing.device().cuda_stream();
        let mut elements = self.end.copies.aligned_buffer::<T>(&home, count).map_err(failed)?;
        let bytes = elements.num_bytes();
        {
            let (start, _written) = elements.device_ptr_mut(stream);
            stream.context().bind_to_thread().map_err(failed)?;
            // SAFETY: so many bytes have just been allocated.
            unsafe { driver_result::memset_d8_async(start, NOT_RECEIVED, bytes, stream.cu_stream()) }
                .map_err(failed)?;
            let byte = sys::ncclDataType_t::ncclUint8;
            self.end.group("receiving", || {
                // SAFETY: so many bytes have just been allocated.
                unsafe {
                    result::recv(start as _, bytes, byte, SENDER, self.end.communicator(), stream.cu_stream().cast())
                }
                .map(|_| ())
            })?;
        }
        Ok(T::wrap_cuda_slice(elements, self.device.landing.device().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_were_written() {
        let id = NcclId(std::array::from_fn(|i| (i * 37) as u8));
        assert_eq!(id.to_string().parse::<NcclId>().expect("an id"), id);
        for wrong in ["", "00", &"0".repeat(255), &"g".repeat(256), &"+".repeat(256)] {
            assert!(wrong.parse::<NcclId>().is_err(), "{wrong}");
        }
    }
}

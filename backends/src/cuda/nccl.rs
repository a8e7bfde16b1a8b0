//! Activations and gradients between GPUs of several processes, by NCCL.
//!
//! A boundary between two processes has a *channel* in each direction: an [`NcclSender`] in one process and an [`NcclReceiver`] in the other. Both
//! join with the same [`NcclId`], which the processes exchange by other means. Each channel has a communicator and a stream of its own, so that an
//! activation and a gradient can cross at the same time. Tensors must be received in the order in which they were sent, with the same shapes and
//! dtypes; the processes must tell each other these by other means.
//!
//! A channel ends with `finish` in both processes, which waits until everything has arrived. A sender or receiver that is dropped without `finish`
//! waits for a short time, and then aborts the transfers that are left.
//!
//! The host waits only while it joins and finishes. NCCL does not report that the other process has died: whoever runs the processes must notice.

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
use interlock::{Activation, AsynchronousDevice, Error, Result};

use self::end::{ChannelEnd, RECEIVER, SENDER};
use super::{
    CudaStageDevice,
    transfer::{failed, of_any_dtype, of_any_type},
};

/// The name of a channel. One process makes it and gives it to the other as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NcclId([u8; 128]);

impl NcclId {
    /// Creates a new id.
    ///
    /// # Errors
    /// If NCCL finds no network interface to listen on.
    pub fn new() -> Result<Self> {
        let id = result::get_uniqueid().map_err(|error| refused("a new id", error))?;
        Ok(Self(id.internal.map(|c| c.to_ne_bytes()[0])))
    }
}

impl fmt::Display for NcclId {
    /// Writes 256 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for NcclId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong =
            || Error::invalid("NCCL id", format!("{text:?} is not an id"), "give the 256 hexadecimal digits of an id");
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
        "see that the other process is alive; NCCL_DEBUG=INFO makes NCCL log more",
    )
}

/// Sends activations, or gradients, to a stage of another process.
///
/// [`finish`](Self::finish) ends it when everything is sent. Without `finish`, dropping it waits at most 10 s, ignores errors, and aborts the
/// transfers that are left: messages that the receiver has not taken by then are lost, and neither process gets an error.
pub struct NcclSender {
    end: ChannelEnd,
    device: Arc<CudaStageDevice>,
}

impl NcclSender {
    /// Joins the channel `id`, for tensors of `device`.
    ///
    /// # Errors
    /// If the receiver does not join within `limit`, or NCCL refuses.
    pub fn join(device: Arc<CudaStageDevice>, id: NcclId, limit: Duration) -> Result<Self> {
        Ok(Self { end: ChannelEnd::join(&device, id, SENDER, limit)?, device })
    }

    /// Sends the tensors of `activation`. Returns at once, and keeps them until they are sent. Only [`finish`](Self::finish) waits until they are.
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

    /// Waits until everything is sent, and ends the channel. The receiver must finish too; two processes finish several channels in the same order.
    ///
    /// # Errors
    /// If it takes longer than `limit`, or NCCL fails. The channel has ended then too, and the transfers that were left are aborted.
    pub fn finish(mut self, limit: Duration) -> Result<()> {
        self.end.finish(limit)
    }

    fn send_elements<T: DeviceRepr>(&self, elements: &CudaSlice<T>) -> Result<()> {
        let stream = self.end.stream();
        let (start, _read) = elements.device_ptr(stream);
        let byte = sys::ncclDataType_t::ncclUint8;
        self.end.group("sending", || {
            // SAFETY: the slice has this many bytes, and is kept until they are sent.
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
/// [`finish`](Self::finish) ends it when every tensor has arrived. Without `finish`, dropping it waits at most 10 s, ignores errors, and aborts the
/// transfers that are left. A tensor that has not arrived by then is NaN if its dtype is a floating-point one, and has all bits set otherwise: a
/// stage that computes with it fails.
pub struct NcclReceiver {
    end: ChannelEnd,
    device: Arc<CudaStageDevice>,
}

/// Each byte of a tensor until it is received: NaN in every dtype of floating-point numbers, and no valid index in the others.
const NOT_RECEIVED: u8 = 0xFF;

impl NcclReceiver {
    /// Joins the channel `id`, for tensors that are received on `device`.
    ///
    /// # Errors
    /// If the sender does not join within `limit`, or NCCL refuses.
    pub fn join(device: Arc<CudaStageDevice>, id: NcclId, limit: Duration) -> Result<Self> {
        Ok(Self { end: ChannelEnd::join(&device, id, RECEIVER, limit)?, device })
    }

    /// Receives the next tensors, of these dtypes and shapes. Returns at once; operations of the device that use them wait until they have arrived.
    /// Call [`finish`](Self::finish) before this receiver is dropped, so that they do.
    ///
    /// # Errors
    /// If tensors of a dtype cannot be sent, or NCCL fails.
    pub fn receive(&mut self, tensors: &[(DType, Shape)]) -> Result<Activation> {
        let received =
            tensors.iter().map(|(dtype, shape)| self.receive_one(*dtype, shape)).collect::<Result<Vec<_>>>()?;
        Ok(Activation::new(received))
    }

    /// Waits until every tensor has arrived, and ends the channel. The sender must finish too; two processes finish several channels in the same
    /// order.
    ///
    /// # Errors
    /// If it takes longer than `limit`, or NCCL fails. The channel has ended then too, and tensors that have not arrived must not be used.
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
        let mut elements = self.end.copies.allocate::<T>(&home, count).map_err(failed)?;
        let bytes = elements.num_bytes();
        {
            let (start, _written) = elements.device_ptr_mut(stream);
            stream.context().bind_to_thread().map_err(failed)?;
            // SAFETY: this many bytes have just been allocated.
            unsafe { driver_result::memset_d8_async(start, NOT_RECEIVED, bytes, stream.cu_stream()) }
                .map_err(failed)?;
            let byte = sys::ncclDataType_t::ncclUint8;
            self.end.group("receiving", || {
                // SAFETY: this many bytes have just been allocated.
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

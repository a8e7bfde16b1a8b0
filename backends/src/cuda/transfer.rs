//! Asynchronous copies of tensors from device to device.
//!
//! Tensors are copied to a GPU on a stream of its own, called the device's *landing*, so that copies overlap with the computations of the stage:
//!
//! ```text
//! sender's stream    … computes y ─ written ───────────── computes on ── frees y (once the copy is done)
//!                                      │                                     ▲
//! receiver's landing ────────────── waits ─ copies y to x ─ landed ─ done ───┘
//!                                                             │
//! receiver's stream  … computes ──────────────────────────── waits ─ computes with x
//! ```
//!
//! - *written* is an event that the sender records when it releases `y`. The landing waits for this event, and not for work that the sender queues
//!   after it.
//! - *done* is an event of the landing. `y` is kept until it has passed, and then dropped. If `y` were freed earlier, its memory could become
//!   another tensor's while the copy reads it; if the sender's stream waited for the copy before it freed `y`, the sender would have to wait.
//! - Between GPUs that can read each other's memory the copy goes from peer to peer, else through page-locked memory of the host, as between
//!   CPU and GPU.
//!
//! The host waits only when a tensor is copied to the CPU.

use std::{cell::Cell, mem, ops::Range, slice, sync::Arc};

use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, CustomOp1, InplaceOp1, Layout, Shape, Storage, Tensor, WithDType,
    cuda::{
        CudaDType, CudaStorageSlice,
        cudarc::driver::{
            CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, DeviceSlice, DriverError, result,
        },
    },
};
use interlock::{Error, Result};

use super::{copy_stream::CopyStream, gpu::Gpu, pinned::Lease};

/// Calls an expression with the elements of a `CudaStorageSlice` or a `CpuStorage`, for each supported element type; other types are refused.
macro_rules! of_any_type {
    ($kind:ident, $storage:expr, $elements:ident => $call:expr) => {
        match $storage {
            $kind::U8($elements) => $call,
            $kind::U32($elements) => $call,
            $kind::I16($elements) => $call,
            $kind::I32($elements) => $call,
            $kind::I64($elements) => $call,
            $kind::BF16($elements) => $call,
            $kind::F16($elements) => $call,
            $kind::F32($elements) => $call,
            $kind::F64($elements) => $call,
            _ => Err(Error::invalid(
                "transfer",
                "a tensor of a dtype that cannot be copied between devices",
                "convert it before it is sent",
            )),
        }
    };
}
#[cfg(feature = "nccl")]
pub(super) use of_any_type;

/// Calls an expression with the element type of a dtype, for the same dtypes as `of_any_type!`.
#[cfg(feature = "nccl")]
macro_rules! of_any_dtype {
    ($dtype:expr, $element:ident => $call:expr) => {{
        use half::{bf16, f16};
        of_any_dtype!(@each $dtype, $element, $call,
            U8 u8, U32 u32, I16 i16, I32 i32, I64 i64, BF16 bf16, F16 f16, F32 f32, F64 f64)
    }};
    (@each $dtype:expr, $element:ident, $call:expr, $($name:ident $type:ty),*) => {
        match $dtype {
            $(DType::$name => { type $element = $type; $call })*
            other => Err(Error::invalid(
                "transfer",
                format!("a tensor of {}, which cannot be copied between devices", other.as_str()),
                "convert it before it is sent",
            )),
        }
    };
}
#[cfg(feature = "nccl")]
pub(super) use of_any_dtype;

/// The stream on which tensors are copied to a GPU, and the copies that are not done.
pub(super) struct Landing {
    gpu: Arc<Gpu>,
    /// The stage's own device.
    device: CudaDevice,
    /// A tensor of the device, for operations that need one.
    anchor: Tensor,
    copies: CopyStream,
}

pub(super) fn failed(error: DriverError) -> Error {
    candle_core::Error::wrap(error).into()
}

impl Landing {
    pub(super) fn new(gpu: Arc<Gpu>, device: CudaDevice, anchor: Tensor) -> Result<Self> {
        // A stream of the same context value that the stage's stream has: that value counts its streams, and uses events only if there are several.
        let stream = device.cuda_stream().context().new_stream().map_err(failed)?;
        Ok(Self { gpu, device, anchor, copies: CopyStream::new(stream) })
    }

    /// Returns the stage's own device, with the stream that computes.
    #[cfg(feature = "nccl")]
    pub(super) fn device(&self) -> &CudaDevice {
        &self.device
    }

    /// Returns the stream on which tensors arrive.
    fn stream(&self) -> &Arc<CudaStream> {
        self.copies.stream()
    }

    /// Copies `tensor`, of another device or another stage, to this stage's device.
    pub(super) fn take(&self, tensor: &Tensor) -> Result<Tensor> {
        self.sweep()?;
        let tensor = tensor.detach().contiguous()?;
        let count = tensor.elem_count();
        if count == 0 {
            return Ok(tensor.to_device(self.anchor.device())?);
        }
        let (storage, layout) = tensor.storage_and_layout();
        let range = layout.start_offset()..layout.start_offset() + count;
        let landed = match &*storage {
            Storage::Cpu(source) => of_any_type!(CpuStorage, source, s => self.upload(&s[range]).map_err(failed)),
            Storage::Cuda(source) => {
                let from = Gpu::of(source.device.cuda_stream().context().ordinal()).map_err(failed)?;
                of_any_type!(CudaStorageSlice, &source.slice, s => self.copy(s, range, &from, &tensor).map_err(failed))
            }
            Storage::Metal(_) => {
                Err(Error::invalid("transfer", "a tensor of a Metal device", "bring it to the CPU first"))
            }
        }?;
        self.adopt(landed, tensor.shape())
    }

    fn upload<T: DeviceRepr + CudaDType>(&self, source: &[T]) -> std::result::Result<CudaStorage, DriverError> {
        let mut buffer = self.gpu.pinned.take(size_of_val(source))?;
        // SAFETY: the bytes of a slice of numbers are initialized.
        let bytes = unsafe { slice::from_raw_parts(source.as_ptr().cast::<u8>(), size_of_val(source)) };
        buffer.bytes_mut().copy_from_slice(bytes);
        let mut landed = self.copies.allocate::<T>(&self.device.cuda_stream(), source.len())?;
        self.write(&buffer, &mut landed)?;
        self.copies.keep(Vec::new(), Some(buffer))?;
        Ok(T::wrap_cuda_slice(landed, self.device.clone()))
    }

    /// Copies a buffer of the host to `landed`, on the landing's stream.
    fn write<T: DeviceRepr>(&self, buffer: &Lease, landed: &mut CudaSlice<T>) -> std::result::Result<(), DriverError> {
        let (to, _written) = landed.device_ptr_mut(self.stream());
        self.stream().context().bind_to_thread()?;
        // SAFETY: as many bytes as were allocated; the buffer is kept until the copy is done.
        unsafe { result::memcpy_htod_async(to, buffer.bytes(), self.stream().cu_stream()) }
    }

    fn copy<T: DeviceRepr + CudaDType>(
        &self,
        source: &CudaSlice<T>,
        range: Range<usize>,
        from: &Gpu,
        tensor: &Tensor,
    ) -> std::result::Result<CudaStorage, DriverError> {
        let source = source.slice(range);
        let mut landed = self.copies.allocate::<T>(&self.device.cuda_stream(), source.len())?;
        let mut staged = None;
        if self.gpu.context == from.context {
            self.stream().memcpy_dtod(&source, &mut landed)?;
        } else if self.gpu.reads(from) {
            // Waits until the source is written. The read cannot be recorded in an event of the other context: instead, the source is kept until
            // this copy is done.
            let (start, recorder) = source.device_ptr(self.stream());
            mem::forget(recorder);
            let (to, _written) = landed.device_ptr_mut(self.stream());
            let (here, there) = (self.gpu.context.cu_ctx(), from.context.cu_ctx());
            self.stream().context().bind_to_thread()?;
            // SAFETY: both ranges have as many bytes, and stay until the copy is done.
            unsafe {
                result::memcpy_peer_async(here, to, there, start, source.num_bytes(), self.stream().cu_stream())
            }?;
        } else {
            let mut buffer = from.pinned.take(source.num_bytes())?;
            let left = {
                let (start, _read) = source.device_ptr(&from.departures);
                from.context.bind_to_thread()?;
                // SAFETY: both ranges have as many bytes, and stay until the copy is done.
                unsafe { result::memcpy_dtoh_async(buffer.bytes_mut(), start, from.departures.cu_stream()) }?;
                from.departures.record_event(None)?
            };
            self.stream().wait(&left)?;
            self.write(&buffer, &mut landed)?;
            staged = Some(buffer);
        }
        self.copies.keep(vec![tensor.clone()], staged)?;
        Ok(T::wrap_cuda_slice(landed, self.device.clone()))
    }

    /// Drops the tensors and buffers of copies that are done. Does not wait.
    pub(super) fn sweep(&self) -> Result<()> {
        self.copies.sweep().map_err(failed)
    }

    /// Waits until every copy is done.
    pub(super) fn synchronize(&self) -> Result<()> {
        self.copies.synchronize().map_err(failed)
    }

    /// Makes a tensor of memory on this device.
    pub(super) fn adopt(&self, storage: CudaStorage, shape: &Shape) -> Result<Tensor> {
        let op = Adopt { storage: Cell::new(Some(storage)), shape: shape.clone() };
        Ok(self.anchor.apply_op1_no_bwd(&op)?)
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        // The tensors kept may be dropped once no copy reads them. If this fails, so does everything on the GPU.
        let _ = self.stream().synchronize();
    }
}

/// The operation that makes a tensor of existing memory.
struct Adopt {
    storage: Cell<Option<CudaStorage>>,
    shape: Shape,
}

impl CustomOp1 for Adopt {
    fn name(&self) -> &'static str {
        "adopt"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        candle_core::bail!("memory of a GPU cannot become a tensor of the CPU")
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        match self.storage.take() {
            Some(storage) => Ok((storage, self.shape.clone())),
            None => candle_core::bail!("this memory has already become a tensor"),
        }
    }
}

/// The operation that records in a tensor's own event that the tensor has been written, for readers on other streams. Operations that write a whole
/// new tensor do not record it.
struct Written;

impl InplaceOp1 for Written {
    fn name(&self) -> &'static str {
        "written"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        Ok(())
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> candle_core::Result<()> {
        let stream = storage.device.cuda_stream();
        of_any_type!(CudaStorageSlice, &mut storage.slice, slice => {
            drop(slice.device_ptr_mut(&stream));
            Ok::<(), Error>(())
        })
        .map_err(candle_core::Error::wrap)
    }
}

/// Returns `tensor`, of a GPU, ready to be copied to another device: its storage has its own elements only, and its event says that it is written
/// once all work queued so far by its stage is done.
pub(super) fn release(tensor: &Tensor) -> Result<Tensor> {
    let tensor = tensor.detach();
    let whole = {
        let (storage, layout) = tensor.storage_and_layout();
        let stored = match &*storage {
            Storage::Cuda(cuda) => of_any_type!(CudaStorageSlice, &cuda.slice, s => Ok::<_, Error>(s.len()))?,
            _ => {
                return Err(Error::invalid(
                    "transfer",
                    "a tensor that is not on the GPU",
                    "release it on its own device",
                ));
            }
        };
        layout.is_contiguous() && layout.shape().elem_count() == stored
    };
    let tensor = if whole { tensor } else { tensor.force_contiguous()? };
    if tensor.elem_count() > 0 {
        tensor.inplace_op1(&Written)?;
    }
    Ok(tensor)
}

/// Copies `tensor`, of a GPU, to the CPU. Waits until it is written, but not for work that its stage queues after it.
pub(crate) fn to_host(tensor: &Tensor) -> Result<Tensor> {
    let tensor = tensor.detach().contiguous()?;
    let count = tensor.elem_count();
    let (storage, layout) = tensor.storage_and_layout();
    let range = layout.start_offset()..layout.start_offset() + count;
    match &*storage {
        Storage::Cuda(source) if count > 0 => {
            let from = Gpu::of(source.device.cuda_stream().context().ordinal()).map_err(failed)?;
            of_any_type!(CudaStorageSlice, &source.slice, s => download(s, range, &from, tensor.shape()))
        }
        _ => Ok(tensor.to_device(&candle_core::Device::Cpu)?),
    }
}

fn download<T: DeviceRepr + WithDType>(
    source: &CudaSlice<T>,
    range: Range<usize>,
    from: &Gpu,
    shape: &Shape,
) -> Result<Tensor> {
    let buffer = fetch(source, range, from).map_err(failed)?;
    // SAFETY: page-locked memory is aligned for every type of number, and these bytes are such numbers.
    let numbers = unsafe { slice::from_raw_parts(buffer.bytes().as_ptr().cast::<T>(), shape.elem_count()) };
    Ok(Tensor::from_slice(numbers, shape, &candle_core::Device::Cpu)?)
}

fn fetch<T: DeviceRepr>(
    source: &CudaSlice<T>,
    range: Range<usize>,
    from: &Gpu,
) -> std::result::Result<Lease, DriverError> {
    let source = source.slice(range);
    let mut buffer = from.pinned.take(source.num_bytes())?;
    let (start, read) = source.device_ptr(&from.departures);
    from.context.bind_to_thread()?;
    // SAFETY: both ranges have as many bytes, and this function waits for the copy.
    unsafe { result::memcpy_dtoh_async(buffer.bytes_mut(), start, from.departures.cu_stream()) }?;
    drop(read);
    from.departures.record_event(None)?.synchronize()?;
    Ok(buffer)
}

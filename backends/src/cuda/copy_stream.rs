//! A stream of copies: allocates the destinations, and keeps the tensors and buffers that copies need until they are done.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{
    Tensor,
    cuda::cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DevicePtrMut, DeviceRepr, DriverError, result},
};

use super::pinned::Lease;

/// A stream of copies, and the tensors and buffers that they need.
pub(super) struct CopyStream {
    stream: Arc<CudaStream>,
    /// In the order of the copies, oldest first.
    needed: Mutex<Vec<Needed>>,
}

struct Needed {
    until: CudaEvent,
    _tensors: Vec<Tensor>,
    _buffer: Option<Lease>,
}

impl CopyStream {
    pub(super) fn new(stream: Arc<CudaStream>) -> Self {
        Self { stream, needed: Mutex::default() }
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Allocates `count` uninitialized elements, which are written on this stream, and used and freed on `home`.
    ///
    /// The allocation is ordered in this stream: it does not wait for `home`. It belongs to `home` all the same, because candle's operations make
    /// the stream that owns memory wait for whoever wrote it.
    pub(super) fn allocate<T: DeviceRepr>(
        &self,
        home: &Arc<CudaStream>,
        count: usize,
    ) -> Result<CudaSlice<T>, DriverError> {
        let context = self.stream.context();
        context.bind_to_thread()?;
        let bytes = count * size_of::<T>();
        // SAFETY: the memory has this size and is freed by the slice; nobody reads it before it is written.
        let mut allocated = unsafe {
            let memory = match context.has_async_alloc() {
                true => result::malloc_async(self.stream.cu_stream(), bytes)?,
                false => result::malloc_sync(bytes)?,
            };
            home.upgrade_device_ptr::<T>(memory, count)
        };
        // Records the allocation: every stream that uses the memory waits for it.
        drop(allocated.device_ptr_mut(&self.stream));
        Ok(allocated)
    }

    /// Keeps `tensors` and `buffer` until all copies queued on the stream so far are done.
    pub(super) fn keep(&self, tensors: Vec<Tensor>, buffer: Option<Lease>) -> Result<(), DriverError> {
        let until = self.stream.record_event(None)?;
        let mut needed = self.needed.lock().unwrap_or_else(PoisonError::into_inner);
        needed.push(Needed { until, _tensors: tensors, _buffer: buffer });
        Ok(())
    }

    /// Drops the tensors and buffers of copies that are done. Does not wait.
    pub(super) fn sweep(&self) -> Result<(), DriverError> {
        let mut needed = self.needed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while done < needed.len() && needed[done].until.try_is_complete()? {
            done += 1;
        }
        let finished: Vec<Needed> = needed.drain(..done).collect();
        drop(needed);
        drop(finished);
        Ok(())
    }

    /// Waits until every copy is done.
    pub(super) fn synchronize(&self) -> Result<(), DriverError> {
        self.stream.synchronize()?;
        self.sweep()
    }
}

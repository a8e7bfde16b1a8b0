//! Values and times of a GPU that the host reads later.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use candle_core::{
    DType, Storage, Tensor,
    cuda::cudarc::driver::{CudaEvent, CudaStream, DevicePtr, DriverError, result, sys},
};
use interlock::{Error, Mark, Reading, Result};

use super::{gpu::Gpu, pinned::Lease, transfer::failed};

/// Values on their way to the host.
struct Numbers {
    arrived: CudaEvent,
    buffer: Lease,
}

impl Reading for Numbers {
    fn is_ready(&self) -> Result<bool> {
        self.arrived.try_is_complete().map_err(failed)
    }

    fn take(self: Box<Self>) -> Result<Vec<f64>> {
        self.arrived.synchronize().map_err(failed)?;
        let (numbers, _) = self.buffer.bytes().as_chunks();
        Ok(numbers.iter().map(|&bytes| f64::from_ne_bytes(bytes)).collect())
    }
}

impl Drop for Numbers {
    fn drop(&mut self) {
        // The pool may reuse the buffer only once the copy to it is done.
        let _ = self.arrived.synchronize();
    }
}

/// Begins to copy `values` to the host, on the stream that computes them. Does not wait.
pub(super) fn read(values: &Tensor, gpu: &Gpu) -> Result<Box<dyn Reading>> {
    let values = values.detach().to_dtype(DType::F64)?.flatten_all()?.contiguous()?;
    let (storage, layout) = values.storage_and_layout();
    let Storage::Cuda(cuda) = &*storage else {
        return Err(Error::invalid("reading", "numbers that are not on the GPU", "read them on their own device"));
    };
    let slice = cuda.as_cuda_slice::<f64>()?.slice(layout.start_offset()..layout.start_offset() + values.elem_count());
    let stream = cuda.device.cuda_stream();
    let begin = || -> std::result::Result<Numbers, DriverError> {
        let mut buffer = gpu.pinned.take(values.elem_count() * size_of::<f64>())?;
        let (start, _read) = slice.device_ptr(&stream);
        stream.context().bind_to_thread()?;
        // SAFETY: both ranges have as many bytes; the buffer is kept until the event has passed, and the stream frees the values after this copy.
        unsafe { result::memcpy_dtoh_async(buffer.bytes_mut(), start, stream.cu_stream()) }?;
        Ok(Numbers { arrived: stream.record_event(None)?, buffer })
    };
    Ok(Box::new(begin().map_err(failed)?))
}

/// A time known to both the host and the GPU.
struct Anchor {
    event: Arc<CudaEvent>,
    instant: Instant,
}

/// The clock of a stream: measures when the stream reached a mark.
pub(super) struct Clock {
    stream: Arc<CudaStream>,
    anchor: Arc<Mutex<Arc<Anchor>>>,
}

/// The greatest age of an anchor. The driver gives durations in milliseconds as `f32`; they stay exact because an older anchor is replaced.
const MAX_ANCHOR_AGE: Duration = Duration::from_secs(1);

struct Moment {
    event: Arc<CudaEvent>,
    anchor: Arc<Mutex<Arc<Anchor>>>,
}

fn timed(stream: &CudaStream) -> Result<Arc<CudaEvent>> {
    Ok(Arc::new(stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).map_err(failed)?))
}

impl Clock {
    pub(super) fn new(stream: Arc<CudaStream>) -> Result<Self> {
        let event = timed(&stream)?;
        event.synchronize().map_err(failed)?;
        let anchor = Anchor { event, instant: Instant::now() };
        Ok(Self { stream, anchor: Arc::new(Mutex::new(Arc::new(anchor))) })
    }

    pub(super) fn mark(&self) -> Result<Box<dyn Mark>> {
        Ok(Box::new(Moment { event: timed(&self.stream)?, anchor: Arc::clone(&self.anchor) }))
    }
}

impl Mark for Moment {
    fn instant(&self) -> Result<Instant> {
        let anchor = Arc::clone(&self.anchor.lock().unwrap_or_else(PoisonError::into_inner));
        // Negative if the anchor was replaced by one later than this mark.
        let seconds = f64::from(anchor.event.elapsed_ms(&self.event).map_err(failed)?) / 1e3;
        let distance = Duration::from_secs_f64(seconds.abs());
        let instant = match seconds < 0.0 {
            true => anchor.instant.checked_sub(distance).unwrap_or(anchor.instant),
            false => anchor.instant + distance,
        };
        if seconds > MAX_ANCHOR_AGE.as_secs_f64() {
            let event = Arc::clone(&self.event);
            *self.anchor.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(Anchor { event, instant });
        }
        Ok(instant)
    }
}

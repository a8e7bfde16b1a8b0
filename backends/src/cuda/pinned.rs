//! Page-locked memory of the host, for copies between host and GPU that neither waits for.

use std::{
    ptr::NonNull,
    slice,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::cuda::cudarc::driver::{CudaContext, DriverError, result, sys};

/// Buffers to use again. Page-locking is slow, so no buffer is returned to the system before the pool is dropped.
#[derive(Debug)]
pub(super) struct Pool {
    context: Arc<CudaContext>,
    free: Mutex<Vec<Pinned>>,
}

#[derive(Debug)]
struct Pinned {
    memory: NonNull<u8>,
    capacity: usize,
}

// SAFETY: the memory belongs to this value alone.
unsafe impl Send for Pinned {}

/// A buffer in use. Dropping this returns the buffer to its pool; all copies to and from it must be done by then.
#[derive(Debug)]
pub(super) struct Lease {
    pool: Arc<Pool>,
    /// Some until this is dropped.
    pinned: Option<Pinned>,
    bytes: usize,
}

/// The size of the smallest buffer, in bytes.
const PAGE: usize = 4096;

impl Pool {
    pub(super) fn new(context: Arc<CudaContext>) -> Arc<Self> {
        Arc::new(Self { context, free: Mutex::new(Vec::new()) })
    }

    /// Returns a buffer of `bytes` bytes with any contents.
    ///
    /// # Errors
    /// If the system gives no more page-locked memory.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Result<Lease, DriverError> {
        let capacity = bytes.max(PAGE).next_power_of_two();
        let known = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            free.iter().position(|pinned| pinned.capacity == capacity).map(|at| free.swap_remove(at))
        };
        let pinned = match known {
            Some(pinned) => pinned,
            None => {
                self.context.bind_to_thread()?;
                // SAFETY: this needs only a current context. Portable memory serves copies of every GPU.
                let memory = unsafe { result::malloc_host(capacity, sys::CU_MEMHOSTALLOC_PORTABLE) }?;
                // The driver does not initialize the memory, and a slice of it must be initialized.
                // SAFETY: this many bytes have just been allocated.
                unsafe { memory.cast::<u8>().write_bytes(0, capacity) };
                let out_of_memory = DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY);
                Pinned { memory: NonNull::new(memory.cast()).ok_or(out_of_memory)?, capacity }
            }
        };
        Ok(Lease { pool: Arc::clone(self), pinned: Some(pinned), bytes })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // If the context cannot be bound, the driver has shut down and freed its memory.
        if self.context.bind_to_thread().is_ok() {
            for pinned in self.free.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
                // SAFETY: the memory came from `malloc_host` and is used by nobody: leases keep the pool alive.
                let _ = unsafe { result::free_host(pinned.memory.as_ptr().cast()) };
            }
        }
    }
}

impl Lease {
    fn memory(&self) -> *mut u8 {
        match &self.pinned {
            Some(pinned) => pinned.memory.as_ptr(),
            None => unreachable!("a lease holds its buffer until it is dropped"),
        }
    }

    /// Returns the bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the buffer has at least this many bytes, all initialized, and nobody else uses it.
        unsafe { slice::from_raw_parts(self.memory(), self.bytes) }
    }

    /// Returns the bytes, to write to.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as `bytes`, and borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.memory(), self.bytes) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(pinned) = self.pinned.take() {
            self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(pinned);
        }
    }
}

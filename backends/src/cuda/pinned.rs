//! Page-locked memory of the host, through which copies between host and GPU go without either waiting.

use std::{
    ptr::NonNull,
    slice,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::cuda::cudarc::driver::{CudaContext, DriverError, result, sys};

/// Buffers that are free to be used again. Page-locking is slow, so none is given back before the pool goes.
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

/// A buffer in use. It goes back to its pool when this is dropped, which must be after all copies to and from it are done.
#[derive(Debug)]
pub(super) struct Lease {
    pool: Arc<Pool>,
    /// Always there until this is dropped.
    pinned: Option<Pinned>,
    bytes: usize,
}

/// The least that is page-locked at once.
const PAGE: usize = 4096;

impl Pool {
    pub(super) fn new(context: Arc<CudaContext>) -> Arc<Self> {
        Arc::new(Self { context, free: Mutex::new(Vec::new()) })
    }

    /// A buffer of `bytes` bytes, whatever they hold.
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
                // SAFETY: a current context is all that this needs. Portable: for copies of every GPU.
                let memory = unsafe { result::malloc_host(capacity, sys::CU_MEMHOSTALLOC_PORTABLE) }?;
                // The driver leaves memory unset, which a slice of it must not be.
                // SAFETY: so many bytes have just been given.
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
        // Where the context cannot be bound the driver is gone, and its memory with it.
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

    /// The bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the buffer has at least so many bytes, all set once, and nobody else uses it.
        unsafe { slice::from_raw_parts(self.memory(), self.bytes) }
    }

    /// The bytes, to be written.
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

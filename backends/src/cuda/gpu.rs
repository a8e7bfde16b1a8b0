//! The state that all stages on one GPU share.

use std::{
    collections::HashMap,
    ffi::c_int,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use candle_core::cuda::cudarc::driver::{CudaContext, CudaStream, DriverError, sys};

use super::pinned::Pool;

/// One GPU of this process.
#[derive(Debug)]
pub(super) struct Gpu {
    pub(super) context: Arc<CudaContext>,
    /// The stream on which tensors are copied to the host, and through it to GPUs that cannot read this one's memory.
    pub(super) departures: Arc<CudaStream>,
    pub(super) pinned: Arc<Pool>,
    /// Whether this GPU can read the memory of another, by the other's ordinal.
    peers: Mutex<HashMap<usize, bool>>,
}

/// Every GPU in use, one value for each.
static IN_USE: Mutex<Option<HashMap<usize, Weak<Gpu>>>> = Mutex::new(None);

/// A description of access to a pool's memory, laid out as `CUmemAccessDesc` of the driver.
#[repr(C)]
struct Access {
    /// 1: the memory is accessed by a device.
    kind: c_int,
    device: c_int,
    /// 3: read and write.
    flags: c_int,
}

impl Gpu {
    /// Returns GPU number `ordinal`. All its users share one value.
    pub(super) fn of(ordinal: usize) -> Result<Arc<Self>, DriverError> {
        let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        let in_use = in_use.get_or_insert_default();
        if let Some(gpu) = in_use.get(&ordinal).and_then(Weak::upgrade) {
            return Ok(gpu);
        }
        let context = CudaContext::new(ordinal)?;
        if context.has_async_alloc() {
            keep_freed_memory(&context)?;
        }
        let gpu = Arc::new(Self {
            departures: context.new_stream()?,
            pinned: Pool::new(Arc::clone(&context)),
            peers: Mutex::default(),
            context,
        });
        in_use.insert(ordinal, Arc::downgrade(&gpu));
        Ok(gpu)
    }

    /// Enables this GPU to read the memory of `other`, and returns whether it can. If the driver refuses, copies go through the host.
    pub(super) fn reads(&self, other: &Self) -> bool {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let enabled = || self.context == other.context || self.enable(other).unwrap_or(false);
        *peers.entry(other.context.ordinal()).or_insert_with(enabled)
    }

    fn enable(&self, other: &Self) -> Result<bool, DriverError> {
        let (here, there) = (self.context.cu_device(), other.context.cu_device());
        let mut can = 0;
        // SAFETY: both are devices of the driver, and it writes a number.
        unsafe { sys::cuDeviceCanAccessPeer(&raw mut can, here, there) }.result()?;
        if can == 0 {
            return Ok(false);
        }
        self.context.bind_to_thread()?;
        // SAFETY: the current context is alive, and so is the other.
        match unsafe { sys::cuCtxEnablePeerAccess(other.context.cu_ctx(), 0) }.result() {
            Ok(()) | Err(DriverError(sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED)) => {}
            Err(error) => return Err(error),
        }
        if other.context.has_async_alloc() {
            // Access to the context does not cover the memory of its pool.
            let access = Access { kind: 1, device: here, flags: 3 };
            // SAFETY: the driver's description of an access has this layout.
            unsafe { sys::cuMemPoolSetAccess(pool_of(&other.context)?, (&raw const access).cast(), 1) }.result()?;
        }
        Ok(true)
    }
}

/// Returns the pool that a GPU's stream-ordered memory comes from.
fn pool_of(context: &CudaContext) -> Result<sys::CUmemoryPool, DriverError> {
    let mut pool = std::ptr::null_mut();
    // SAFETY: the device is one of the driver's, and it writes a handle.
    unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device()) }.result()?;
    Ok(pool)
}

/// Keeps freed memory with the process for the next allocation, instead of returning it to the system at every synchronization.
fn keep_freed_memory(context: &CudaContext) -> Result<(), DriverError> {
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: this attribute is a 64-bit number.
    unsafe { sys::cuMemPoolSetAttribute(pool_of(context)?, attribute, (&raw mut threshold).cast()) }.result()
}

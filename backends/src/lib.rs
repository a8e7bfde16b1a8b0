//! Devices and layers for Interlock.
//!
//! [`Backends`] opens devices by name over the backends that this build has. [`layers`] holds the layers that models are made of, with
//! hand-written gradients.

mod allocator;
mod candle_threads;
#[cfg(feature = "cpu")]
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod division;
mod emulated;
mod kernels;
pub mod layers;
#[cfg(feature = "mpi")]
pub mod mpi;
mod registry;

pub use allocator::Allocator;
pub use candle_threads::candle_single_threaded;
#[cfg(feature = "cpu")]
pub use cpu::{CpuBackend, CpuDevice, cpu};
#[cfg(feature = "cuda")]
pub use cuda::{CudaBackend, CudaStageDevice};
#[cfg(feature = "nccl")]
pub use cuda::{NcclId, NcclReceiver, NcclSender};
pub use division::{core_count, share_of_host};
pub use emulated::EmulatedBackend;
pub use kernels::Instructions;
pub use registry::{Backends, device_names};

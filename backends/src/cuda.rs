//! NVIDIA GPUs: a stream for each stage, and copies of tensors for which the host does not wait.
//!
//! The operations are candle's, whose kernels run on the stage's stream; see [`layers`](crate::layers) for how layers use them. This
//! module opens GPUs and explains failures (`driver`), copies tensors between devices (`transfer`), and reads numbers and times later (`late`).

mod copy_stream;
#[cfg(feature = "cudnn")]
pub(crate) mod cudnn;
mod driver;
mod gpu;
mod late;
mod name;
#[cfg(feature = "nccl")]
mod nccl;
mod pinned;
mod transfer;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use interlock::{
    AsynchronousDevice, Backend, Error, Mark, Precision, Reading, Result, StageDevice, tools::device::DeviceHooks,
};

#[cfg(feature = "nccl")]
pub use self::nccl::{NcclId, NcclReceiver, NcclSender};
pub(crate) use self::transfer::to_host;
use self::{driver::Description, gpu::Gpu, late::Clock, name::CudaName, transfer::Landing};

/// The backend of the scheme `cuda`.
///
/// | name | device |
/// |---|---|
/// | `cuda:0` | GPU number 0, as `nvidia-smi` and `CUDA_VISIBLE_DEVICES` count; layers compute in `f32` |
/// | `cuda:0,precision=bf16` | layers compute in `bf16`, with parameters and their gradients in `f32` |
#[derive(Clone, Copy, Debug, Default)]
pub struct CudaBackend;

/// A GPU, or one stage's share of it: a stream of its own.
pub struct CudaStageDevice {
    name: CudaName,
    text: String,
    device: Device,
    gpu: Arc<Gpu>,
    landing: Landing,
    clock: Clock,
}

impl CudaStageDevice {
    /// Opens the device called `name`; see [`CudaBackend`] for the names.
    ///
    /// # Errors
    /// If the name is not one of those, if there is no such GPU, if it has too little free memory, or if it does not work with this build.
    pub fn open(name: &str) -> Result<Self> {
        let parsed: CudaName = name.parse()?;
        let count = driver::count(name)?;
        if parsed.ordinal >= count {
            return Err(driver::wrong_ordinal(name, count));
        }
        Self::open_named(parsed)
    }

    fn open_named(name: CudaName) -> Result<Self> {
        let text = name.to_string();
        let gpu = Gpu::of(name.ordinal).map_err(|error| driver::refused(&text, error))?;
        let open = || -> Result<Self> {
            let device = Device::new_cuda_with_stream(name.ordinal)?;
            let cuda = device.as_cuda_device()?.clone();
            let anchor = self_test(&device, name.precision)?;
            let clock = Clock::new(cuda.cuda_stream())?;
            let landing = Landing::new(Arc::clone(&gpu), cuda, anchor)?;
            Ok(Self { name, text: text.clone(), device, gpu: Arc::clone(&gpu), landing, clock })
        };
        open().map_err(|error| match driver::is_out_of_memory(&error.to_string()) {
            true => driver::out_of_memory(&text, gpu.context.mem_get_info().ok()),
            false => driver::refused(&text, error),
        })
    }

    fn memory(&self) -> Option<(usize, usize)> {
        self.gpu.context.mem_get_info().ok()
    }
}

/// Runs a kernel in this precision and waits for it, so that a GPU that cannot run this build's kernels is refused when it is opened. Returns the
/// result.
fn self_test(device: &Device, precision: Precision) -> Result<Tensor> {
    let dtype = match precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::BF16,
    };
    let two = (Tensor::ones(1, dtype, device)? + 1.0)?;
    let found = two.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    match found == [2.0] {
        true => Ok(two),
        false => Err(Error::DeviceSelfTest {
            device: format!("{:?}", device.location()),
            problem: format!("1 + 1 gave {found:?}"),
        }),
    }
}

impl StageDevice for CudaStageDevice {
    fn name(&self) -> &str {
        &self.text
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn precision(&self) -> Precision {
        self.name.precision
    }

    fn asynchronous(&self) -> Option<&dyn AsynchronousDevice> {
        Some(self)
    }

    fn hooks(&self) -> &dyn DeviceHooks {
        self
    }
}

impl AsynchronousDevice for CudaStageDevice {
    fn stream(&self) -> Result<Option<Arc<dyn StageDevice>>> {
        Ok(Some(Arc::new(Self::open_named(self.name)?)))
    }

    fn release(&self, tensor: &Tensor) -> Result<Tensor> {
        transfer::release(tensor)
    }

    fn bring(&self, tensor: &Tensor) -> Result<Tensor> {
        match tensor.device().same_device(&self.device) {
            true => Ok(tensor.clone()),
            false => self.landing.take(tensor),
        }
    }

    fn read(&self, values: &Tensor) -> Result<Box<dyn Reading>> {
        self.landing.sweep()?;
        late::read(values, &self.gpu)
    }

    fn mark(&self) -> Result<Box<dyn Mark>> {
        self.clock.mark()
    }

    fn synchronize(&self) -> Result<()> {
        self.landing.synchronize()?;
        Ok(self.device.synchronize()?)
    }
}

impl DeviceHooks for CudaStageDevice {
    fn takes_turns(&self) -> bool {
        true
    }

    fn memory_in_use(&self) -> Option<u64> {
        self.memory().map(|(free, total)| (total - free) as u64)
    }

    fn explain(&self, error: Error) -> Error {
        match driver::is_out_of_memory(&error.to_string()) {
            true => driver::out_of_memory(&self.text, self.memory()),
            false => error,
        }
    }
}

impl Backend for CudaBackend {
    fn scheme(&self) -> &'static str {
        "cuda"
    }

    fn open(&self, name: &str) -> Result<Arc<dyn StageDevice>> {
        Ok(Arc::new(CudaStageDevice::open(name)?))
    }

    fn with_precision(&self, name: &str, precision: Precision) -> Result<String> {
        name.parse::<CudaName>()?;
        // There is no other setting.
        Ok(match precision {
            Precision::Bf16 if !name.contains(',') => format!("{name},precision={precision}"),
            _ => name.to_owned(),
        })
    }

    fn list(&self) -> Vec<(String, String)> {
        let row = |ordinal: usize| {
            let Description { name, bytes, capability: (major, minor) } = driver::describe(ordinal).ok()?;
            let driver = driver::version()
                .map_or_else(String::new, |(major, minor)| format!(", driver for CUDA {major}.{minor}"));
            let what = format!("{name}, {}, compute capability {major}.{minor}{driver}", driver::gibibytes(bytes));
            Some((format!("cuda:{ordinal}"), what))
        };
        (0..driver::count("cuda").unwrap_or(0)).filter_map(row).collect()
    }

    fn absence(&self) -> Option<String> {
        driver::count("cuda").err().map(|error| error.to_string())
    }
}

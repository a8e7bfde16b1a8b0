//! The CPU as one device or several, each with threads of its own.
//!
//! Stages that share a device share its threads: the threads work for several stages at once, and each stage takes longer meanwhile. The planner
//! and the simulator treat such stages as if they took turns, since the total work is the same. The bits of a result depend neither on the number
//! of threads nor on who else uses them, since layers divide their work by shapes only. Devices may share cores: they are then slower, with the
//! same results.

mod name;

use std::{ops::RangeInclusive, sync::Arc};

use candle_core::Device;
use core_affinity::CoreId;
use interlock::{
    Backend, Differentiable, Error, PlainCpu, Precision, Result, StageDevice,
    tools::device::{DeviceHooks, Part},
};
use rayon::{ThreadPool, ThreadPoolBuilder};

use self::name::{CpuName, Layers};
use crate::{
    Instructions, candle_threads::candle_single_threaded, division::core_count, layers::form::with_candle_on_cpu,
};

/// The backend of the scheme `cpu`.
///
/// | name | device |
/// |---|---|
/// | `cpu` | as many threads as there are cores |
/// | `cpu:threads=2` | two threads, on any cores |
/// | `cpu:cores=0-3`, `cpu:cores=2` | one thread a core, pinned to it |
/// | `cpu:threads=1,cores=0-1` | threads pinned to these cores in turn |
/// | `cpu:precision=bf16` | layers compute in `bf16`: see [`Precision`] |
/// | `cpu:layers=candle` | layers compute with candle's operations, as on GPUs; slow: for testing these operations without a GPU |
///
/// Open devices from a thread that is not pinned itself: new threads may use only the cores of the thread that starts them.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuBackend;

/// Size of a thread's stack, in bytes. Few of them are used: a thread that waits for others may start further chunks of the same work, one nested
/// in another.
const STACK_BYTES: usize = 16 << 20;

/// Some threads of the CPU, pinned to cores or not.
#[derive(Debug)]
pub struct CpuDevice {
    name: String,
    pool: ThreadPool,
    /// Whether layers compute with candle's operations, as on other devices.
    candle_operations: bool,
    precision: Precision,
}

impl CpuDevice {
    /// Opens the device called `name`; see [`CpuBackend`] for the names.
    ///
    /// # Errors
    /// If the name is not one of those, if a core does not exist or may not be used, if the system gives no more threads, or if
    /// `INTERLOCK_CPU_INSTRUCTIONS` names unknown instructions.
    pub fn open(name: &str) -> Result<Self> {
        Instructions::requested()?;
        Self::open_without_instruction_check(name)
    }

    /// Opens the device without checking `INTERLOCK_CPU_INSTRUCTIONS`.
    fn open_without_instruction_check(name: &str) -> Result<Self> {
        let CpuName { threads, cores, layers, precision } = name.parse()?;
        let cores = cores.map(|cores| find_cores(name, cores)).transpose()?;
        let threads = threads.or(cores.as_ref().map(Vec::len)).unwrap_or_else(core_count);
        // Before this device starts threads. If other threads run already, candle's own operations stay as they are.
        candle_single_threaded();
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .stack_size(STACK_BYTES)
            .thread_name({
                let name = name.to_owned();
                move |i| format!("{name} #{i}")
            })
            .build()
            .map_err(|e| {
                Error::invalid(
                    format!("device {name}"),
                    format!("the system cannot start {threads} threads: {e}"),
                    "use fewer threads",
                )
            })?;
        if let Some(cores) = cores {
            let pinned = pool.broadcast(|thread| core_affinity::set_for_current(cores[thread.index() % cores.len()]));
            if pinned.contains(&false) {
                return Err(Error::invalid(
                    format!("device {name}"),
                    "the system refused to pin its threads",
                    "use cpu:threads=N, which pins nothing",
                ));
            }
        }
        let candle_operations = layers == Some(Layers::CandleOperations);
        Ok(Self { name: name.to_owned(), pool, candle_operations, precision: precision.unwrap_or_default() })
    }

    /// Returns the number of threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }
}

impl StageDevice for CpuDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn run(&self, work: &mut (dyn FnMut() + Send)) {
        self.pool.install(|| if self.candle_operations { with_candle_on_cpu(work) } else { work() });
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn hooks(&self) -> &dyn DeviceHooks {
        self
    }
}

impl DeviceHooks for CpuDevice {
    /// Stages that share the threads slow each other down as if they took turns.
    fn takes_turns(&self) -> bool {
        true
    }

    fn threads(&self) -> usize {
        Self::threads(self)
    }

    /// Refuses unknown instructions, which [`cpu`] cannot.
    fn prepare(&self, _: &Part<'_>, module: Box<dyn Differentiable>) -> Result<Box<dyn Differentiable>> {
        Instructions::requested()?;
        Ok(module)
    }

    /// Waits until a GPU has computed the tensor, but not for the work that was queued after it.
    #[cfg(feature = "cuda")]
    fn copy_to(&self, tensor: &candle_core::Tensor, device: &Device) -> Result<candle_core::Tensor> {
        match tensor.device() {
            Device::Cuda(_) => crate::cuda::to_host(tensor),
            _ => Ok(tensor.to_device(device)?),
        }
    }
}

impl Backend for CpuBackend {
    fn scheme(&self) -> &'static str {
        "cpu"
    }

    fn open(&self, name: &str) -> Result<Arc<dyn StageDevice>> {
        Ok(Arc::new(CpuDevice::open(name)?))
    }

    fn with_precision(&self, name: &str, precision: Precision) -> Result<String> {
        Ok(match (name.parse::<CpuName>()?.precision, precision) {
            (None, Precision::Bf16) => {
                format!("{name}{}precision={precision}", if name.contains(':') { ',' } else { ':' })
            }
            _ => name.to_owned(),
        })
    }

    fn list(&self) -> Vec<(String, String)> {
        let all = ("cpu".to_owned(), format!("all cores, {} threads, {}", core_count(), Instructions::in_use()));
        let one = |core: CoreId| (format!("cpu:cores={}", core.id), format!("core {}, 1 thread", core.id));
        std::iter::once(all).chain(cores().into_iter().map(one)).collect()
    }
}

/// Returns a device of one thread, for `devices([cpu(0), cpu(1)])`.
///
/// The thread is pinned to core number `core`. If this process may not use that core, the thread runs on any core; if the system cannot start a
/// thread, the device computes on the calling one: the same program runs on any machine. [`CpuDevice::open`] returns an error in both cases.
/// An unknown name in `INTERLOCK_CPU_INSTRUCTIONS` is refused when a stage is built on the device.
pub fn cpu(core: usize) -> Arc<dyn StageDevice> {
    let open = CpuDevice::open_without_instruction_check;
    match open(&format!("cpu:cores={core}")).or_else(|_| open("cpu:threads=1")) {
        Ok(device) => Arc::new(device),
        Err(_) => Arc::new(PlainCpu),
    }
}

/// Returns the cores that the calling thread may use, or none if the system does not tell.
fn cores() -> Vec<CoreId> {
    core_affinity::get_core_ids().unwrap_or_default()
}

/// Returns the cores with these numbers.
fn find_cores(name: &str, wanted: RangeInclusive<usize>) -> Result<Vec<CoreId>> {
    let cores = cores();
    let find = |number: usize| {
        cores.iter().copied().find(|core| core.id == number).ok_or_else(|| {
            let known: Vec<String> = cores.iter().map(|core| core.id.to_string()).collect();
            Error::invalid(
                format!("device {name}"),
                format!("core {number} does not exist, or this process may not use it"),
                format!("use cores of {}", known.join(", ")),
            )
        })
    };
    wanted.map(find).collect()
}

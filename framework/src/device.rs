//! Devices, on which stages compute.
//!
//! A [`Backend`] opens devices by name. A [`StageDevice`] is one open device, which one or several stages use.
//!
//! A new backend implements [`Backend`] and [`StageDevice`], and [`AsynchronousDevice`] if its devices are asynchronous. It needs nothing else:
//! [`DeviceHooks`] serves the emulator and the planner.
//!
//! A stage calls [`bring`](StageDevice#method.bring), [`read`](StageDevice#method.read) and [`mark`](StageDevice#method.mark) on every device. On a
//! synchronous device their results are ready at once.

mod asynchronous;
mod hooks;
pub(crate) mod link;
mod plain;
mod reading;
pub(crate) mod sleep;

pub use asynchronous::AsynchronousDevice;
pub(crate) use hooks::NoHooks;
pub use hooks::{DeviceHooks, Part, PartKind};
pub(crate) use link::Link;
pub use plain::PlainCpu;
pub use reading::{Mark, Reading};

use std::sync::Arc;

use candle_core::Device;

use crate::{Error, Precision, Result};

/// A kind of device. It opens the devices whose names begin with its scheme, such as `cpu` or `cuda`.
///
/// ```
/// use std::sync::Arc;
///
/// use interlock::{Backend, Error, Result, StageDevice, candle_core::Device};
///
/// /// Candle's CPU device, on the thread of the stage.
/// struct Inline;
///
/// impl StageDevice for Inline {
///     fn name(&self) -> &str {
///         "inline"
///     }
///
///     fn device(&self) -> &Device {
///         &Device::Cpu
///     }
/// }
///
/// struct InlineBackend;
///
/// impl Backend for InlineBackend {
///     fn scheme(&self) -> &'static str {
///         "inline"
///     }
///
///     fn open(&self, name: &str) -> Result<Arc<dyn StageDevice>> {
///         match name {
///             "inline" => Ok(Arc::new(Inline)),
///             _ => Err(Error::invalid("device", format!("{name:?} is unknown"), "use \"inline\"")),
///         }
///     }
///
///     fn list(&self) -> Vec<(String, String)> {
///         vec![("inline".to_owned(), "the CPU, on the stage's thread".to_owned())]
///     }
/// }
///
/// let device = InlineBackend.open("inline")?; // for TrainerBuilder::devices
/// assert_eq!(device.name(), "inline");
/// assert!(InlineBackend.open("inline:1").is_err());
/// # Ok::<(), interlock::Error>(())
/// ```
pub trait Backend: Send + Sync {
    /// Returns the scheme: the part of its devices' names before the first colon.
    fn scheme(&self) -> &'static str;

    /// Opens the device called `name`, such as `cpu`, `cpu:threads=2` or `cuda:0`.
    ///
    /// # Errors
    /// If there is no such device. The message says which names are valid.
    fn open(&self, name: &str) -> Result<Arc<dyn StageDevice>>;

    /// Returns the name of the device `name` that computes in `precision`; `name` itself if it says in which. Default: there is only `f32`.
    ///
    /// # Errors
    /// If devices of this kind cannot compute in it.
    fn with_precision(&self, name: &str, precision: Precision) -> Result<String> {
        match precision {
            Precision::F32 => Ok(name.to_owned()),
            Precision::Bf16 => Err(Error::invalid(
                format!("device {name}"),
                format!("devices of the kind {} compute in f32 only", self.scheme()),
                "leave precision out",
            )),
        }
    }

    /// Lists the devices that can be opened: the name of each, and a description.
    fn list(&self) -> Vec<(String, String)>;

    /// Returns why this machine has no device of this kind; none if it has one.
    fn absence(&self) -> Option<String> {
        None
    }
}

/// An open device, on which stages compute with candle operations.
///
/// A device is *synchronous* if an operation has computed its result when it returns, as on the CPU. A device that computes later, in its own stream,
/// is *asynchronous*, and implements [`AsynchronousDevice`] too.
pub trait StageDevice: Send + Sync {
    /// Returns the name, which opens the same device again.
    fn name(&self) -> &str;

    /// Returns the candle device that holds its tensors.
    fn device(&self) -> &Device;

    /// Runs `work` once on the device's own threads, and returns when it is done. Panics of `work` pass through to the caller.
    fn run(&self, work: &mut (dyn FnMut() + Send)) {
        work();
    }

    /// Returns the precision in which layers compute on it. Default: `f32`.
    fn precision(&self) -> Precision {
        Precision::F32
    }

    /// Returns the calls that only an asynchronous device has. Default: none, the device is synchronous.
    fn asynchronous(&self) -> Option<&dyn AsynchronousDevice> {
        None
    }

    /// Returns the hooks of the emulator and the planner. Default: hooks that change nothing. A backend does not need them.
    fn hooks(&self) -> &dyn DeviceHooks {
        &NoHooks
    }
}

/// Opens the device on which one stage computes: a new stream of `device` if it is asynchronous and has several streams, else `device` itself.
///
/// # Errors
/// If the device has no further stream.
pub fn for_stage(device: &Arc<dyn StageDevice>) -> Result<Arc<dyn StageDevice>> {
    let stream = device.asynchronous().map_or(Ok(None), AsynchronousDevice::stream)?;
    Ok(stream.unwrap_or_else(|| Arc::clone(device)))
}

/// Runs `work` on the device's threads and returns its result.
///
/// # Panics
/// If `work` panics, or the device's [`StageDevice::run`] does not run it.
pub fn run_on<R: Send>(device: &dyn StageDevice, work: impl FnOnce() -> R + Send) -> R {
    let mut work = Some(work);
    let mut result = None;
    device.run(&mut || {
        if let Some(work) = work.take() {
            result = Some(work());
        }
    });
    match result {
        Some(result) => result,
        None => panic!("device {}: `run` returned without running its work; call it once", device.name()),
    }
}

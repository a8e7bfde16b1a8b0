//! The driver's description of this machine's GPUs, and what its errors mean for a user.

use candle_core::cuda::cudarc::driver::{DriverError, result, sys};
use interlock::{Error, Result};

/// One GPU as the driver describes it.
#[derive(Clone, Debug)]
pub(super) struct Description {
    pub(super) name: String,
    pub(super) bytes: usize,
    pub(super) capability: (i32, i32),
}

/// Returns the number of GPUs that this process may use.
///
/// # Errors
/// If there is none, or the driver does not work; `device` is the name that was asked for.
pub(super) fn count(device: &str) -> Result<usize> {
    let count = result::init().and_then(|()| result::device::get_count()).map_err(|error| refused(device, error))?;
    match usize::try_from(count) {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(no_device(device)),
    }
}

/// Describes GPU number `ordinal`.
pub(super) fn describe(ordinal: usize) -> std::result::Result<Description, DriverError> {
    use sys::CUdevice_attribute as Attribute;
    let number = i32::try_from(ordinal).map_err(|_| DriverError(sys::CUresult::CUDA_ERROR_INVALID_DEVICE))?;
    let device = result::device::get(number)?;
    // SAFETY: the device is one that the driver has just given.
    unsafe {
        Ok(Description {
            name: result::device::get_name(device)?,
            bytes: result::device::total_mem(device)?,
            capability: (
                result::device::get_attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                result::device::get_attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
        })
    }
}

/// Returns the version of CUDA that the driver supports, such as 13.0, or none if the driver does not tell.
pub(super) fn version() -> Option<(i32, i32)> {
    let mut version = 0;
    // SAFETY: the driver writes a number there.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().ok()?;
    Some((version / 1000, version % 1000 / 10))
}

fn no_device(device: &str) -> Error {
    Error::invalid(
        format!("device {device}"),
        "the NVIDIA driver finds no GPU that this process may use",
        "see what nvidia-smi lists and what CUDA_VISIBLE_DEVICES says, start a container with --gpus all, or use cpu",
    )
}

/// Returns the error for a GPU that does not exist.
pub(super) fn wrong_ordinal(device: &str, count: usize) -> Error {
    let remedy = match count {
        1 => "use cuda:0".to_owned(),
        several => format!("use cuda:0 to cuda:{}", several - 1),
    };
    let found = if count == 1 { "there is one GPU".to_owned() } else { format!("there are {count} GPUs") };
    Error::invalid(format!("device {device}"), format!("{found} that this process may use"), remedy)
}

/// Explains a failure to open `device`. Errors are recognized by their names, which remain in the text when they are wrapped.
pub(super) fn refused(device: &str, error: impl std::fmt::Display) -> Error {
    let text = error.to_string();
    let is = |name: &str| text.contains(name);
    let driver_version = match version() {
        Some((major, minor)) => format!("the driver is for CUDA {major}.{minor}"),
        None => "the driver does not tell its version".to_owned(),
    };
    let (problem, remedy) = if is("CUDA_ERROR_NO_DEVICE") {
        return no_device(device);
    } else if is_out_of_memory(&text) {
        return out_of_memory(device, None);
    } else if is("CUDA_ERROR_STUB_LIBRARY") {
        (
            "libcuda.so.1 is the toolkit's stub, which is for linking only".to_owned(),
            "take the folder lib/stubs out of LD_LIBRARY_PATH, so that the driver's own is found",
        )
    } else if is("CUDA_ERROR_UNSUPPORTED_PTX_VERSION") {
        (
            format!("{driver_version}, older than the toolkit that this program was built with"),
            "update the driver, or build with a toolkit that is no newer than it",
        )
    } else if is("CUDA_ERROR_NO_BINARY_FOR_GPU") || is("CUDA_ERROR_INVALID_PTX") {
        (
            "this program was built for another kind of GPU".to_owned(),
            "build with CUDA_COMPUTE_CAP set to the GPU's compute capability, such as 80 for 8.0, or to a lower one",
        )
    } else if is("CUDA_ERROR_NOT_FOUND") {
        (
            "this program was built without the kernels that it needs; those of bf16 are only for compute capability 8.0 and up".to_owned(),
            "build with CUDA_COMPUTE_CAP set to the GPU's compute capability, or leave precision=bf16 out on an older GPU",
        )
    } else if is("CUDA_ERROR_DEVICE_UNAVAILABLE") {
        (
            "another process has the GPU to itself".to_owned(),
            "end that process, or let processes share the GPU: nvidia-smi -c 0",
        )
    } else {
        (format!("it does not work: {text}; {driver_version}"), "see what nvidia-smi reports about it")
    };
    Error::invalid(format!("device {device}"), problem, remedy)
}

/// Returns whether an error says that a GPU is out of memory.
pub(super) fn is_out_of_memory(text: &str) -> bool {
    [
        "CUDA_ERROR_OUT_OF_MEMORY",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CURAND_STATUS_ALLOCATION_FAILED",
    ]
    .iter()
    .any(|name| text.contains(name))
}

/// Returns the error for a GPU that is out of memory; `memory` is its free and its total memory, in bytes.
pub(super) fn out_of_memory(device: &str, memory: Option<(usize, usize)>) -> Error {
    let free = match memory {
        Some((free, total)) => format!(": {} of {} are free", gibibytes(free), gibibytes(total)),
        None => String::new(),
    };
    Error::invalid(
        format!("device {device}"),
        format!("out of memory{free}"),
        "end other processes on the GPU, cut the batch into more micro-batches, keep activations as bf16 or recompute them, \
         or cut the model into more stages",
    )
}

/// Formats a number of bytes as GiB.
pub(super) fn gibibytes(bytes: usize) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

//! Inputs, and comparisons of a device with the CPU.

use candle_core::{DType, Device, Result, Tensor};
use std::process::{Command, Output};

/// Opens device 0 with a stream of its own.
pub(crate) fn cuda() -> Device {
    Device::new_cuda_with_stream(0).unwrap()
}

/// Returns a tensor of `shape` with values between -2 and 2, which every floating-point type represents exactly.
pub(crate) fn values(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    seeded(0, shape, dtype, device)
}

/// Returns a tensor as [`values`] does, with other values for another `seed`.
pub(crate) fn seeded(seed: u32, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let value = |i: usize| 2.0 * ((i as f32 + 1.0) * (0.7 + 0.1 * seed as f32)).sin();
    let data: Vec<f32> = (0..count).map(value).collect();
    let exact = Tensor::from_vec(data, shape, &Device::Cpu)?.to_dtype(DType::BF16)?;
    exact.to_dtype(dtype)?.to_device(device)
}

/// Returns the whole numbers below the count of elements, each once and unordered, as floating-point numbers.
pub(crate) fn distinct(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let data: Vec<f32> = (0..count).map(|i| (i * 7919 % count) as f32).collect();
    Tensor::from_vec(data, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
}

/// Returns whole numbers from 0 to `below - 1`.
pub(crate) fn indices(shape: &[usize], below: u32, dtype: DType, device: &Device) -> Result<Tensor> {
    let count: u32 = shape.iter().product::<usize>() as u32;
    let data: Vec<u32> = (0..count).map(|i| (i * 7 + 3) % below).collect();
    Tensor::from_vec(data, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
}

/// Returns the largest difference allowed between the device and the CPU: relative for values above 1, absolute below.
pub(crate) fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-12,
        DType::F32 => 2e-6,
        DType::BF16 => 2e-2,
        _ => 0.0,
    }
}

/// Asserts that `compute` returns the same shape, type and values on device 0 as on the CPU. In bfloat16 the device is
/// compared with the CPU in `f32`: candle's CPU has fewer operations in bfloat16, and sums them with more error.
pub(crate) fn same(what: &str, dtype: DType, compute: impl Fn(&Device, DType) -> Result<Tensor>) {
    same_within(what, dtype, tolerance(dtype), compute);
}

/// Asserts the same as [`same`], with the largest allowed difference.
pub(crate) fn same_within(
    what: &str,
    dtype: DType,
    tolerance: f64,
    compute: impl Fn(&Device, DType) -> Result<Tensor>,
) {
    let there = compute(&cuda(), dtype).unwrap_or_else(|error| panic!("{what} {dtype:?}: {error}"));
    let exact = if dtype == DType::BF16 { DType::F32 } else { dtype };
    let mut here = compute(&Device::Cpu, exact).unwrap();
    if there.dtype() == DType::BF16 {
        here = here.to_dtype(DType::BF16).unwrap();
    }
    assert!(there.device().is_cuda(), "{what}: not on the device");
    assert_eq!((there.dims(), there.dtype()), (here.dims(), here.dtype()), "{what} {dtype:?}");
    for (i, (a, b)) in flat(&there).into_iter().zip(flat(&here)).enumerate() {
        let allowed = tolerance * b.abs().max(1.0);
        let equal = (a - b).abs() <= allowed || (a.is_nan() && b.is_nan()) || a == b;
        assert!(equal, "{what} {dtype:?}: element {i} is {a} on the device and {b} on the CPU");
    }
}

/// Returns the elements as `f64`.
pub(crate) fn flat(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Returns whether this process was started by [`child`].
pub(crate) fn in_child() -> bool {
    std::env::var_os("CUDA_EMULATOR_CHILD").is_some()
}

/// Runs one test of this program in a process of its own, where [`in_child`] is true.
pub(crate) fn child(test: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env("CUDA_EMULATOR_CHILD", "1");
    command.envs(environment.iter().copied()).output().unwrap()
}

/// Asserts that one test of this program passes in a process of its own. This is for tests that depend on when operations
/// run: another test in the same process may wait for all work of the device.
pub(crate) fn passes(test: &str, environment: &[(&str, &str)]) {
    let output = child(test, environment);
    assert!(output.status.success(), "{}{}", said(&output), String::from_utf8_lossy(&output.stdout));
}

/// Returns the standard error of a child.
pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

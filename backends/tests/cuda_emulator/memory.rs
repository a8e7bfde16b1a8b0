//! Memory of devices: how it is counted, and the errors of full and missing devices.

use crate::common::{cuda, flat, in_child, passes, values};
use candle_core::cuda::cudarc::driver::CudaContext;
use candle_core::{DType, Device, Tensor};

#[test]
fn memory_does_not_grow_with_allocations_that_are_freed() {
    if !in_child() {
        return passes("memory::memory_does_not_grow_with_allocations_that_are_freed", &[]);
    }
    let (device, context) = (cuda(), CudaContext::new(0).unwrap());
    let (before, total) = context.mem_get_info().unwrap();
    assert_eq!((before, total), (1 << 30, 1 << 30));
    let kept = Tensor::zeros(1000, DType::F32, &device).unwrap();
    for _ in 0..1000 {
        values(&[1000], DType::F32, &device).unwrap().affine(2.0, 1.0).unwrap();
    }
    device.synchronize().unwrap();
    assert_eq!(context.mem_get_info().unwrap().0, before - 4096);
    drop(kept);
    device.synchronize().unwrap();
    assert_eq!(context.mem_get_info().unwrap().0, before);
}

#[test]
fn a_device_that_is_out_of_memory_says_so_and_works_on() {
    let test = "memory::a_device_that_is_out_of_memory_says_so_and_works_on";
    if !in_child() {
        return passes(test, &[("EMULATED_CUDA_MEMORY", "1048576")]);
    }
    let device = cuda();
    let half = Tensor::ones(120_000, DType::F32, &device).unwrap();
    let error = Tensor::ones(200_000, DType::F32, &device).unwrap_err().to_string();
    assert!(error.contains("CUDA_ERROR_OUT_OF_MEMORY") && error.contains("out of memory"), "{error}");
    for _ in 0..100 {
        half.affine(2.0, 0.0).unwrap(); // each fits only once the previous one is freed
    }
    assert_eq!(flat(&half.affine(2.0, 0.0).unwrap())[119_999], 2.0);
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    let error = Device::new_cuda_with_stream(99).unwrap_err().to_string();
    assert!(error.contains("CUDA_ERROR_INVALID_DEVICE") && error.contains("invalid device ordinal"), "{error}");
}

#[test]
fn a_machine_without_a_device_is_an_error() {
    if !in_child() {
        return passes("memory::a_machine_without_a_device_is_an_error", &[("EMULATED_CUDA_DEVICES", "0")]);
    }
    let error = Device::new_cuda_with_stream(0).unwrap_err().to_string();
    assert!(error.contains("CUDA_ERROR_NO_DEVICE"), "{error}");
}

#[test]
fn memory_without_pools_is_given_and_freed_at_once() {
    if !in_child() {
        return passes("memory::memory_without_pools_is_given_and_freed_at_once", &[("EMULATED_CUDA_POOLS", "0")]);
    }
    let (device, context) = (cuda(), CudaContext::new(0).unwrap());
    assert!(!context.has_async_alloc());
    let x = values(&[100], DType::F32, &device).unwrap().affine(1.0, 1.0).unwrap();
    assert_eq!(flat(&x).len(), 100);
    let before = context.mem_get_info().unwrap().0;
    drop(x);
    assert_eq!(context.mem_get_info().unwrap().0, before + 512);
}

//! The order of operations: they run as late as possible, after those that they wait for; uses in a wrong order are detected.

use crate::common::{child, cuda, flat, in_child, passes, said, values};
use candle_core::cuda::cudarc::driver::{CudaContext, CudaStream, result, sys};
use candle_core::{DType, Device};
use std::sync::Arc;

/// Returns two streams of a device whose tensors are not tracked by events.
fn untracked(ordinal: usize) -> (Arc<CudaStream>, Arc<CudaStream>) {
    let context = CudaContext::new(ordinal).unwrap();
    // SAFETY: the tests that use this order their streams themselves.
    unsafe { context.disable_event_tracking() };
    (context.new_stream().unwrap(), context.new_stream().unwrap())
}

#[test]
fn tensors_move_between_devices() {
    let (first, second) = (cuda(), Device::new_cuda_with_stream(1).unwrap());
    let x = values(&[33, 17], DType::F32, &first).unwrap().affine(2.0, 1.0).unwrap();
    let there = x.to_device(&second).unwrap().affine(0.5, -0.5).unwrap();
    let back = there.to_device(&first).unwrap();
    let straight = values(&[33, 17], DType::F32, &Device::Cpu).unwrap();
    for (a, b) in flat(&back).into_iter().zip(flat(&straight)) {
        assert!((a - b).abs() < 1e-6, "{a} is not {b}");
    }
}

#[test]
fn a_copy_that_does_not_wait_meets_poison() {
    if !in_child() {
        return passes("streams::a_copy_that_does_not_wait_meets_poison", &[]);
    }
    let (writer, reader) = untracked(0);
    // SAFETY: the memory is written before it is read, except for the early read that this tests.
    let mut source = unsafe { writer.alloc::<f32>(64) }.unwrap();
    writer.synchronize().unwrap();
    writer.memcpy_htod(&[1.0f32; 64], &mut source).unwrap();
    let early = reader.clone_dtoh(&reader.clone_dtod(&source).unwrap()).unwrap();
    assert!(early.iter().all(|value| value.is_nan()), "{early:?}");
    reader.join(&writer).unwrap();
    let late = reader.clone_dtoh(&reader.clone_dtod(&source).unwrap()).unwrap();
    assert_eq!(late, vec![1.0f32; 64]);
}

#[test]
fn memory_that_is_freed_before_it_is_copied_ends_the_process() {
    if in_child() {
        let (owner, reader) = untracked(0);
        let source = owner.clone_htod(&[1.0f32; 64]).unwrap();
        owner.synchronize().unwrap();
        let _copy = reader.clone_dtod(&source).unwrap();
        drop(source);
        owner.synchronize().unwrap();
        reader.synchronize().unwrap();
        return;
    }
    let output = child("streams::memory_that_is_freed_before_it_is_copied_ends_the_process", &[]);
    let text = said(&output);
    assert!(!output.status.success(), "the copy of freed memory passed");
    assert!(text.contains("(copy 256 bytes of allocation 1 of device 0 to allocation 2 of device 0)"), "{text}");
    assert!(text.contains("of freed memory: allocation 1, freed by operation"), "{text}");
}

#[test]
fn memory_that_is_used_before_its_allocation_ran_ends_the_process() {
    if in_child() {
        let (owner, writer) = untracked(0);
        // SAFETY: the memory is not read.
        let mut fresh = unsafe { owner.alloc::<f32>(64) }.unwrap();
        writer.memset_zeros(&mut fresh).unwrap();
        writer.synchronize().unwrap();
        return;
    }
    let output = child("streams::memory_that_is_used_before_its_allocation_ran_ends_the_process", &[]);
    let text = said(&output);
    assert!(!output.status.success(), "the fill of memory that is not there yet passed");
    assert!(text.contains("before its allocation, of another stream, has run"), "{text}");
}

#[test]
fn pinned_memory_is_read_when_the_copy_runs_and_other_memory_at_the_call() {
    if !in_child() {
        return passes("streams::pinned_memory_is_read_when_the_copy_runs_and_other_memory_at_the_call", &[]);
    }
    let (stream, _) = untracked(0);
    // SAFETY: 4 floats are allocated, and used before they are freed.
    let pinned = unsafe {
        let memory = result::malloc_host(16, 0).unwrap().cast::<f32>();
        std::slice::from_raw_parts_mut(memory, 4)
    };
    let mut pageable = [1.0f32; 4];
    pinned.fill(1.0);
    let (a, b) = (stream.alloc_zeros::<f32>(4).unwrap(), stream.alloc_zeros::<f32>(4).unwrap());
    for (host, device) in [(&*pinned, &a), (&pageable[..], &b)] {
        use candle_core::cuda::cudarc::driver::DevicePtr;
        let address = device.device_ptr(&stream).0;
        // SAFETY: source and target hold 4 floats, and both live until the stream is done.
        unsafe { result::memcpy_htod_async(address, host, stream.cu_stream()) }.unwrap();
    }
    pinned.fill(2.0);
    pageable.fill(2.0);
    assert_eq!(stream.clone_dtoh(&a).unwrap(), [2.0; 4]);
    assert_eq!(stream.clone_dtoh(&b).unwrap(), [1.0; 4]);
    // SAFETY: allocated above, and no operation that uses it is left.
    unsafe { result::free_host(pinned.as_mut_ptr().cast()) }.unwrap();
}

#[test]
fn an_event_is_recorded_in_its_own_context_and_waited_for_in_any() {
    if !in_child() {
        return passes("streams::an_event_is_recorded_in_its_own_context_and_waited_for_in_any", &[]);
    }
    let (first, second) = (CudaContext::new(0).unwrap(), CudaContext::new(1).unwrap());
    let (here, there) = (first.new_stream().unwrap(), second.new_stream().unwrap());
    let event = first.new_event(None).unwrap();
    second.bind_to_thread().unwrap();
    // SAFETY: event and stream live.
    let refused = unsafe { sys::cuEventRecord(event.cu_event(), there.cu_stream()) };
    assert_eq!(refused, sys::CUresult::CUDA_ERROR_INVALID_HANDLE);
    event.record(&here).unwrap();
    there.wait(&event).unwrap();
    there.synchronize().unwrap();
    assert!(event.is_complete(), "the wait of the other stream forced the record");
}

#[test]
fn a_question_about_work_is_answered_not_ready_once() {
    if !in_child() {
        return passes("streams::a_question_about_work_is_answered_not_ready_once", &[]);
    }
    let (stream, _) = untracked(0);
    let event = stream.context().new_event(None).unwrap();
    event.record(&stream).unwrap();
    assert!(!event.is_complete());
    assert!(event.is_complete());
}

#[test]
fn peer_access_is_enabled_once() {
    let (first, second) = (CudaContext::new(0).unwrap(), CudaContext::new(1).unwrap());
    first.bind_to_thread().unwrap();
    let mut can = 0;
    // SAFETY: the contexts live, and `can` is written.
    let enabled = unsafe {
        sys::cuDeviceCanAccessPeer(&mut can, 0, 1).result().unwrap();
        [sys::cuCtxEnablePeerAccess(second.cu_ctx(), 0), sys::cuCtxEnablePeerAccess(second.cu_ctx(), 0)]
    };
    assert_eq!(can, 1);
    assert_eq!(enabled[0], sys::CUresult::CUDA_SUCCESS);
    assert_eq!(enabled[1], sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED);
}

#[test]
fn the_trace_shows_a_peer_copy_before_the_free_of_its_source() {
    let test = "streams::the_trace_shows_a_peer_copy_before_the_free_of_its_source";
    if in_child() {
        let (first, second) = (cuda(), Device::new_cuda_with_stream(1).unwrap());
        let x = values(&[8], DType::F32, &first).unwrap();
        let there = x.to_device(&second).unwrap();
        let (Device::Cuda(from), Device::Cuda(to)) = (&first, &second) else { unreachable!() };
        from.cuda_stream().join(&to.cuda_stream()).unwrap();
        drop(x);
        first.synchronize().unwrap();
        assert_eq!(flat(&there).len(), 8);
        return;
    }
    let folder = tempfile();
    let path = folder.join("trace");
    let output = child(test, &[("EMULATED_CUDA_TRACE", path.to_str().unwrap())]);
    assert!(output.status.success(), "{}", said(&output));
    let trace = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let ran = |what: &str| trace.lines().position(|line| line.starts_with("ran") && line.contains(what));
    let copied = ran("peer copy 32 bytes of allocation 1 of device 0 to allocation 2 of device 1");
    let freed = ran("free allocation 1");
    assert!(copied.is_some() && copied < freed, "{trace}");
}

fn tempfile() -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("cuda-emulator-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn eager_order_runs_an_operation_at_once() {
    if in_child() {
        let (stream, _) = untracked(0);
        let event = stream.context().new_event(None).unwrap();
        event.record(&stream).unwrap();
        assert!(event.is_complete());
        return;
    }
    let output = child("streams::eager_order_runs_an_operation_at_once", &[("EMULATED_CUDA_ORDER", "eager")]);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn devices_without_peer_access_refuse_it_and_still_copy() {
    if in_child() {
        let (first, second) = (cuda(), Device::new_cuda_with_stream(1).unwrap());
        let peer = CudaContext::new(1).unwrap();
        CudaContext::new(0).unwrap().bind_to_thread().unwrap();
        let mut can = 1;
        // SAFETY: the contexts live, and `can` is written.
        let refused = unsafe {
            sys::cuDeviceCanAccessPeer(&mut can, 0, 1).result().unwrap();
            sys::cuCtxEnablePeerAccess(peer.cu_ctx(), 0)
        };
        assert_eq!((can, refused), (0, sys::CUresult::CUDA_ERROR_PEER_ACCESS_UNSUPPORTED));
        let x = values(&[5], DType::F32, &first).unwrap();
        assert_eq!(flat(&x.to_device(&second).unwrap()), flat(&x));
        return;
    }
    let output = child("streams::devices_without_peer_access_refuse_it_and_still_copy", &[("EMULATED_CUDA_PEER", "0")]);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn a_host_function_is_called_though_nothing_waits_for_it() {
    let (stream, _) = untracked(0);
    let (called, calls) = std::sync::mpsc::channel::<()>();
    // SAFETY: the function takes the one reference that it is given.
    unsafe {
        result::stream::launch_host_function(stream.cu_stream(), send_call, Box::into_raw(Box::new(called)).cast())
    }
    .unwrap();
    calls.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
}

unsafe extern "C" fn send_call(called: *mut std::ffi::c_void) {
    // SAFETY: the sender that the test made for this call.
    let called = unsafe { Box::from_raw(called.cast::<std::sync::mpsc::Sender<()>>()) };
    called.send(()).unwrap();
}

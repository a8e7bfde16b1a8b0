//! NCCL between threads and between processes.

use crate::common::{child, in_child, said};
use candle_core::cuda::cudarc::driver::{CudaContext, CudaStream};
use candle_core::cuda::cudarc::nccl::safe::{Comm, Id, group_end, group_start};
use candle_core::cuda::cudarc::nccl::{result, sys};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::spawn;

/// The length of a tensor that is larger than the buffer between two ranks.
const COUNT: usize = 300_000;

fn stream(ordinal: usize) -> Arc<CudaStream> {
    CudaContext::new(ordinal).unwrap().new_stream().unwrap()
}

fn numbers(from: usize) -> Vec<f32> {
    (from..from + COUNT).map(|i| i as f32).collect()
}

#[test]
fn a_send_that_nobody_waits_for_reaches_the_rank_that_waits() {
    let id = Id::new().unwrap();
    let (done, finished) = channel();
    let sender = spawn(move || {
        let comm = Comm::from_rank(stream(0), 0, 2, id).unwrap();
        let data = comm.stream().clone_htod(&numbers(1)).unwrap();
        comm.send(&data, 1).unwrap();
        finished.recv().unwrap(); // the device sends while the host does something else
        comm.stream().synchronize().unwrap();
    });
    let comm = Comm::from_rank(stream(1), 1, 2, id).unwrap();
    let mut data = comm.stream().alloc_zeros::<f32>(COUNT).unwrap();
    comm.recv(&mut data, 0).unwrap();
    assert_eq!(comm.stream().clone_dtoh(&data).unwrap(), numbers(1));
    done.send(()).unwrap();
    sender.join().unwrap();
}

#[test]
fn ranks_that_exchange_in_a_group_do_not_wait_for_each_other() {
    let id = Id::new().unwrap();
    let ranks = [0usize, 1].map(|rank| {
        spawn(move || {
            let comm = Comm::from_rank(stream(rank), rank, 2, id).unwrap();
            let own = comm.stream().clone_htod(&numbers(rank)).unwrap();
            let mut other = comm.stream().alloc_zeros::<f32>(COUNT).unwrap();
            group_start().unwrap();
            comm.send(&own, 1 - rank as i32).unwrap();
            comm.recv(&mut other, 1 - rank as i32).unwrap();
            group_end().unwrap();
            assert_eq!(comm.stream().clone_dtoh(&other).unwrap(), numbers(1 - rank));
        })
    });
    for rank in ranks {
        rank.join().unwrap();
    }
}

#[test]
fn processes_exchange_and_a_rank_that_ends_is_a_remote_error() {
    let test = "ranks::processes_exchange_and_a_rank_that_ends_is_a_remote_error";
    if in_child() {
        let text = std::env::var("CUDA_EMULATOR_ID").unwrap();
        let mut internal = [0; 128];
        for (to, from) in internal.iter_mut().zip(text.bytes()) {
            *to = from as _;
        }
        let comm = Comm::from_rank(stream(1), 1, 2, Id::uninit(internal)).unwrap();
        let mut data = comm.stream().alloc_zeros::<f32>(COUNT).unwrap();
        comm.recv(&mut data, 0).unwrap();
        comm.send(&data, 0).unwrap();
        comm.stream().synchronize().unwrap();
        return;
    }
    let id = Id::new().unwrap();
    let text: String = id.internal().iter().take_while(|c| **c != 0).map(|c| *c as u8 as char).collect();
    let other = spawn(move || child(test, &[("CUDA_EMULATOR_ID", &text)]));
    let stream = stream(0);
    let mut comm = std::ptr::null_mut();
    let internal = sys::ncclUniqueId { internal: *id.internal() };
    // SAFETY: the communicator is made before it is used and destroyed last; the memory lives until the stream is done.
    unsafe {
        use candle_core::cuda::cudarc::driver::{DevicePtr, DevicePtrMut};
        result::comm_init_rank(&mut comm, 2, internal, 0).unwrap();
        let data = stream.clone_htod(&numbers(7)).unwrap();
        let mut back = stream.alloc_zeros::<f32>(COUNT).unwrap();
        let (float, raw) = (sys::ncclDataType_t::ncclFloat32, stream.cu_stream().cast());
        result::send(data.device_ptr(&stream).0 as _, COUNT, float, 1, comm, raw).unwrap();
        result::recv(back.device_ptr_mut(&stream).0 as _, COUNT, float, 1, comm, raw).unwrap();
        assert_eq!(stream.clone_dtoh(&back).unwrap(), numbers(7));
        let output = other.join().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let mut error = sys::ncclResult_t::ncclSuccess;
        sys::ncclCommGetAsyncError(comm, &mut error).result().unwrap();
        assert_eq!(error, sys::ncclResult_t::ncclRemoteError);

        // A receive without a matching send ends when the communicator is aborted.
        result::recv(back.device_ptr_mut(&stream).0 as _, COUNT, float, 1, comm, raw).unwrap();
        result::comm_abort(comm).unwrap();
        stream.synchronize().unwrap();
    }
}

//! Transfers from every device to every other: dtypes, shapes, views, and sources that are dropped during the transfer.

use candle_core::{DType, Device, Tensor};
use interlock::StageDevice;

use crate::devices::{beside_others, pairs};

const DTYPES: [DType; 7] = [DType::U8, DType::U32, DType::I64, DType::BF16, DType::F16, DType::F32, DType::F64];

/// Returns small whole numbers, which every dtype represents exactly.
fn whole(dims: &[usize], dtype: DType, device: &Device) -> Tensor {
    let count: usize = dims.iter().product();
    let values: Vec<f32> = (0..count).map(|i| (i % 199) as f32).collect();
    let tensor = Tensor::from_vec(values, dims, &Device::Cpu).and_then(|t| t.to_dtype(dtype));
    tensor.and_then(|t| t.to_device(device)).expect("a tensor on its device")
}

fn values(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.to_device(&Device::Cpu).and_then(|t| t.to_dtype(DType::F64)).and_then(|t| t.flatten_all());
    tensor.and_then(|t| t.to_vec1()).expect("the values of a tensor")
}

fn cross(from: &dyn StageDevice, to: &dyn StageDevice, tensor: &Tensor) -> Tensor {
    let released = from.release(tensor).expect("a tensor that may leave");
    let brought = to.bring(&released).expect("a tensor that has arrived");
    assert!(brought.device().same_device(to.device()) || to.device().is_cpu());
    assert_eq!((brought.dims(), brought.dtype()), (tensor.dims(), tensor.dtype()));
    brought
}

#[test]
fn every_dtype_and_shape_arrives_as_it_left() {
    let _turn = beside_others();
    for [from, to] in pairs() {
        for dtype in DTYPES {
            for dims in [&[][..], &[1], &[7], &[3, 5], &[2, 3, 4, 5], &[130, 1, 129]] {
                let tensor = whole(dims, dtype, from.device());
                let brought = cross(&*from, &*to, &tensor);
                assert_eq!(values(&brought), values(&tensor), "{} to {}: {dtype:?} {dims:?}", from.name(), to.name());
            }
        }
    }
}

#[test]
fn views_arrive_with_their_own_elements() {
    let _turn = beside_others();
    for [from, to] in pairs() {
        let whole = whole(&[6, 5, 4], DType::F32, from.device());
        let views = [
            whole.narrow(0, 2, 3).expect("rows"),
            whole.narrow(1, 1, 2).expect("columns"),
            whole.transpose(0, 2).expect("transposed"),
            whole.narrow(2, 3, 1).and_then(|v| v.transpose(0, 1)).expect("both"),
            whole
                .get(0)
                .and_then(|v| v.get(0))
                .and_then(|v| v.unsqueeze(0))
                .and_then(|v| v.broadcast_as((3, 4)))
                .expect("repeated"),
            whole.permute((2, 0, 1)).and_then(|v| v.narrow(0, 1, 2)).expect("permuted"),
        ];
        for (i, view) in views.iter().enumerate() {
            let brought = cross(&*from, &*to, view);
            assert_eq!(values(&brought), values(view), "{} to {}: view {i}", from.name(), to.name());
        }
    }
}

#[cfg(feature = "cuda")]
#[test]
fn released_tensor_of_a_gpu_stores_only_its_own_elements() {
    let _turn = beside_others();
    for [from, _] in pairs() {
        if from.device().is_cpu() {
            println!("skipped: {} hands over memory, not copies", from.name());
            continue;
        }
        let rows = whole(&[64, 8], DType::F32, from.device()).narrow(0, 60, 4).expect("rows");
        let released = from.release(&rows).expect("a tensor that may leave");
        let (storage, layout) = released.storage_and_layout();
        let stored = match &*storage {
            candle_core::Storage::Cuda(cuda) => cuda.as_cuda_slice::<f32>().expect("numbers").len(),
            _ => panic!("a device of an unknown kind: {}", from.name()),
        };
        assert_eq!((stored, layout.start_offset()), (32, 0));
    }
}

/// The source is dropped, and its memory used again, right after the hand-over. The copy must have the source's values.
#[test]
fn source_may_be_dropped_and_its_memory_used_again_at_once() {
    let _turn = beside_others();
    for [from, to] in pairs() {
        let mut brought = Vec::new();
        for round in 0..20 {
            let tensor = (whole(&[64, 64], DType::F32, from.device()) * 2.0).and_then(|t| t + f64::from(round));
            let tensor = tensor.expect("a computed tensor");
            brought.push(cross(&*from, &*to, &tensor));
            drop(tensor);
            // Gets the memory of the source if the device frees it too early.
            Tensor::zeros((64, 64), DType::F32, from.device()).expect("other memory");
        }
        for (round, tensor) in brought.iter().enumerate() {
            let expected = (0..64 * 64).map(|i| f64::from(i % 199) * 2.0 + round as f64).collect::<Vec<_>>();
            assert_eq!(values(tensor), expected, "{} to {}: round {round}", from.name(), to.name());
        }
    }
}

/// The receiver computes with a tensor and sends it back at once, without waiting for the copy.
#[test]
fn tensors_move_back_and_forth() {
    let _turn = beside_others();
    for [from, to] in pairs() {
        let mut tensor = whole(&[33, 17], DType::F32, from.device());
        for _ in 0..5 {
            tensor = (cross(&*from, &*to, &tensor) + 1.0).expect("one more");
            tensor = (cross(&*to, &*from, &tensor) * 2.0).expect("twice");
        }
        // x ← 2(x + 1), five times.
        let expected = (0..33 * 17).map(|i| f64::from(i % 199) * 32.0 + 62.0).collect::<Vec<_>>();
        assert_eq!(values(&tensor), expected, "{} and {}", from.name(), to.name());
    }
}

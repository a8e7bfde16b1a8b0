//! Two processes, a GPU each: stage 0 here, stage 1 in a process of its own, one interlocked step of width 2 between them by NCCL.
//!
//! Needs `cuda:0` and `cuda:1`.
#![cfg(feature = "nccl")]

use std::{
    process::{Child, Command},
    sync::Arc,
    time::{Duration, Instant},
};

use candle_core::{DType, Device, Shape, Tensor};
use interlock::{
    Activation, Differentiable, Loss, ParameterStore, Pass, Sequential, StageDevice, Wants, loss::CrossEntropy,
};
use interlock_backends::{
    CudaStageDevice, NcclId, NcclReceiver, NcclSender,
    layers::{Gelu, Linear},
};

/// The ids of both ways, for the other process.
const IDS: &str = "INTERLOCK_TEST_NCCL_IDS";
const LIMIT: Duration = Duration::from_secs(60);

fn device(name: &str) -> Arc<CudaStageDevice> {
    Arc::new(CudaStageDevice::open(name).expect("a GPU"))
}

fn x() -> Tensor {
    let values: Vec<f32> = (0..6 * 4).map(|i| (i * 7 % 11) as f32 / 5.0 - 1.0).collect();
    Tensor::from_vec(values, (6, 4), &Device::Cpu).expect("inputs")
}

fn targets() -> Tensor {
    Tensor::new(&[0_u32, 2, 1, 1, 0, 2], &Device::Cpu).expect("targets")
}

fn stage(index: usize, store: &ParameterStore, device: &Device) -> Sequential {
    let root = store.builder(device).pp(index.to_string());
    match index {
        0 => Sequential::default().and(Linear::new(4, 5, true, root).expect("a layer")).and(Gelu),
        _ => Sequential::default().and(Linear::new(5, 3, true, root).expect("a layer")),
    }
}

fn store() -> ParameterStore {
    ParameterStore::new(9, Default::default())
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_device(&Device::Cpu).and_then(|t| t.flatten_all()?.to_vec1()).expect("values")
}

/// Stage 1: its output's loss, pulled back to its input.
fn behind(stage: &Sequential, y: &Activation) -> Activation {
    let (logits, saved) = stage.forward(y, &Pass::train(1, 0, 0)).expect("a forward pass");
    let (_, gradient) =
        CrossEntropy::default().differentiate(logits.single().expect("one tensor"), &targets(), 6.0).expect("a loss");
    stage.pull_back(&saved, &gradient.into(), Wants::INPUT).expect("a pull-back").input.expect("a gradient")
}

/// Not a test by itself: what the other process runs, several steps of the same.
#[test]
fn the_other_process() {
    let Ok(ids) = std::env::var(IDS) else { return };
    let (forward, back) = ids.split_once(',').expect("two ids");
    let device = device("cuda:1");
    let mut activations = NcclReceiver::join(device.clone(), forward.parse().expect("an id"), LIMIT).expect("joined");
    let mut gradients = NcclSender::join(device.clone(), back.parse().expect("an id"), LIMIT).expect("joined");
    let store = store();
    let stage = stage(1, &store, device.device());
    for _ in 0..STEPS {
        let y = activations.receive(&[(DType::F32, Shape::from((6, 5)))]).expect("an activation");
        gradients.send(&behind(&stage, &y)).expect("a gradient");
    }
    // Whole numbers and several tensors, in one message.
    let message = [(DType::U32, Shape::from(7)), (DType::BF16, Shape::from((2, 3))), (DType::I64, Shape::from(()))];
    let message = activations.receive(&message).expect("three tensors");
    gradients.send(&message).expect("sent back");
    device.synchronize().expect("an end");
    // Until the sender of the last message is through.
    let done = activations.receive(&[(DType::F32, Shape::from(1))]).expect("a last word");
    assert_eq!(values(done.single().expect("one tensor")), [1.0]);
}

const STEPS: usize = 5;

fn start(ids: &str) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "the_other_process", "--nocapture"])
        .env(IDS, ids)
        .spawn()
        .expect("another process")
}

#[test]
fn a_step_in_two_processes_gives_the_gradients_of_one() {
    // In one process, on the CPU.
    let store_here = store();
    let cpu = Device::Cpu;
    let (first, second) = (stage(0, &store_here, &cpu), stage(1, &store_here, &cpu));
    let (y, saved) = first.forward(&x().into(), &Pass::train(1, 0, 0)).expect("a forward pass");
    let wanted = first.pull_back(&saved, &behind(&second, &y), Wants::BOTH).expect("a pull-back");

    let [forward, back] = [NcclId::new().expect("an id"), NcclId::new().expect("an id")];
    let mut child = start(&format!("{forward},{back}"));
    let device = device("cuda:0");
    let mut activations = NcclSender::join(device.clone(), forward, LIMIT).expect("joined");
    let mut gradients = NcclReceiver::join(device.clone(), back, LIMIT).expect("joined");
    let store = store();
    let stage = stage(0, &store, device.device());
    for step in 0..STEPS {
        let x = device.bring(&x()).expect("inputs on the GPU");
        let (y, saved) = stage.forward(&x.into(), &Pass::train(1, 0, 0)).expect("a forward pass");
        activations.send(&y).expect("sent");
        // Its memory may be used again at once.
        drop(y);
        Tensor::zeros((6, 5), DType::F32, device.device()).expect("other memory");
        let gradient = gradients.receive(&[(DType::F32, Shape::from((6, 5)))]).expect("a gradient");
        let pulled = stage.pull_back(&saved, &gradient, Wants::BOTH).expect("a pull-back");
        let near = |got: &Tensor, wanted: &Tensor| {
            let (got, wanted) = (values(got), values(wanted));
            let error = got.iter().zip(&wanted).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
            assert!(error < 1e-6, "step {step}: off by {error}: {got:?} and {wanted:?}");
        };
        let input = |pulled: &interlock::Pulled| {
            pulled.input.as_ref().expect("a gradient").single().expect("one tensor").clone()
        };
        near(&input(&pulled), &input(&wanted));
        assert_eq!(pulled.parameters.len(), 2);
        for ((_, got), (_, wanted)) in pulled.parameters.iter().zip(&wanted.parameters) {
            near(got, wanted);
        }
    }
    let here = |t: candle_core::Result<Tensor>| device.bring(&t.expect("a tensor")).expect("on the GPU");
    let sent = Activation::new(vec![
        here(Tensor::new(&[1_u32, 2, 3, 4, 5, 6, 7], &cpu)),
        here(Tensor::new(&[[0.5_f32, 1.0, -2.0], [3.0, 4.0, 1e-3]], &cpu).and_then(|t| t.to_dtype(DType::BF16))),
        here(Tensor::new(-5_i64, &cpu)),
    ]);
    activations.send(&sent).expect("sent");
    let described: Vec<(DType, Shape)> = sent.tensors().iter().map(|t| (t.dtype(), t.shape().clone())).collect();
    let back = gradients.receive(&described).expect("back");
    for (sent, back) in sent.tensors().iter().zip(back.tensors()) {
        let [sent, back] = [sent, back].map(|t| values(&t.to_dtype(DType::F32).expect("a cast")));
        assert_eq!(sent, back);
    }
    activations.send(&here(Tensor::new(&[1.0_f32], &cpu)).into()).expect("a last word");
    device.synchronize().expect("an end");
    assert!(child.wait().expect("the other process").success());
}

#[test]
fn who_joins_alone_gives_up() {
    let start = Instant::now();
    let id = NcclId::new().expect("an id");
    let error = NcclSender::join(device("cuda:0"), id, Duration::from_secs(1)).err().expect("nobody came").to_string();
    assert!(error.contains("the other process did not join within 1 s"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(30));
}

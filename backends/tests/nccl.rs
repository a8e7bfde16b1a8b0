//! Two processes with one GPU each: stage 0 in this process, and stage 1 in another. NCCL carries the steps of width 2 between them.
//!
//! Needs `cuda:0` and `cuda:1`.
#![cfg(feature = "nccl")]

use std::{
    io::Write,
    process::{Child, Command, ExitStatus},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use candle_core::{DType, Device, Shape, Tensor};
use interlock::{
    Activation, AsynchronousDevice, CrossEntropy, Differentiable, Loss, ParameterStore, Pass, Sequential, StageDevice,
    Wants,
};
use interlock_backends::{
    CudaStageDevice, NcclId, NcclReceiver, NcclSender,
    layers::{Gelu, Linear},
};

/// The environment variable that gives the other process the ids of both channels.
const IDS: &str = "INTERLOCK_TEST_NCCL_IDS";
const LIMIT: Duration = Duration::from_secs(60);
/// The time limit of a whole test.
const TEST_LIMIT: Duration = Duration::from_secs(120);

/// Ends this process if the returned value is not dropped within [`TEST_LIMIT`]: a tensor from a process that has died is waited for without end.
fn watchdog(test: &'static str) -> mpsc::Sender<()> {
    let (alive, watched) = mpsc::channel();
    thread::spawn(move || {
        if watched.recv_timeout(TEST_LIMIT) == Err(RecvTimeoutError::Timeout) {
            // Not `eprintln!`, whose output the test harness holds back until the test is over.
            let _ = writeln!(std::io::stderr(), "{test} took longer than {TEST_LIMIT:?}");
            std::process::exit(1);
        }
    });
    alive
}

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
        0 => Sequential::default().add(Linear::new(4, 5, true, root).expect("a layer")).add(Gelu),
        _ => Sequential::default().add(Linear::new(5, 3, true, root).expect("a layer")),
    }
}

fn store() -> ParameterStore {
    ParameterStore::new(9, Default::default())
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_device(&Device::Cpu).and_then(|t| t.flatten_all()?.to_vec1()).expect("values")
}

/// Returns the values of a tensor of any supported dtype.
fn numbers(tensor: &Tensor) -> Vec<f32> {
    let tensor = tensor.to_device(&Device::Cpu).and_then(|t| t.flatten_all()).expect("values on the host");
    match tensor.dtype() {
        DType::I16 => tensor.to_vec1::<i16>().expect("values").into_iter().map(f32::from).collect(),
        DType::I32 => tensor.to_vec1::<i32>().expect("values").into_iter().map(|v| v as f32).collect(),
        _ => values(&tensor.to_dtype(DType::F32).expect("a cast")),
    }
}

/// Runs stage 1 and its loss forward and backward. Returns the input gradient.
fn run_downstream(stage: &Sequential, y: &Activation) -> Activation {
    let (logits, saved) = stage.forward(y, &Pass::train(1, 0, 0)).expect("a forward pass");
    let (_, gradient) = CrossEntropy::default()
        .differentiate(logits.single().expect("one tensor"), &(&targets()).into(), 6.0)
        .expect("a loss");
    stage.backward(&saved, &gradient.into(), Wants::INPUT).expect("a backward pass").input.expect("a gradient")
}

/// The work of the other process, which does nothing in an ordinary test run.
#[test]
fn the_other_process() {
    let Ok(ids) = std::env::var(IDS) else { return };
    let _watchdog = watchdog("the_other_process");
    let (forward, back) = ids.split_once(',').expect("two ids");
    let device = device("cuda:1");
    let mut activations = NcclReceiver::join(device.clone(), forward.parse().expect("an id"), LIMIT).expect("joined");
    let mut gradients = NcclSender::join(device.clone(), back.parse().expect("an id"), LIMIT).expect("joined");
    let store = store();
    let stage = stage(1, &store, device.device());
    for _ in 0..STEPS {
        let y = activations.receive(&[(DType::F32, Shape::from((6, 5)))]).expect("an activation");
        gradients.send(&run_downstream(&stage, &y)).expect("a gradient");
    }
    // Whole numbers and several tensors, in one message.
    let message = [
        (DType::U32, Shape::from(7)),
        (DType::BF16, Shape::from((2, 3))),
        (DType::I64, Shape::from(())),
        (DType::I16, Shape::from(2)),
        (DType::I32, Shape::from(1)),
    ];
    let message = activations.receive(&message).expect("five tensors");
    gradients.send(&message).expect("sent back");
    device.synchronize().expect("an end");
    activations.finish(LIMIT).expect("all received");
    gradients.finish(LIMIT).expect("all sent");
}

const STEPS: usize = 5;

/// Another process, which does not outlive this value.
struct Other(Child);

impl Other {
    fn start(ids: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "the_other_process", "--nocapture"]).env(IDS, ids);
        Self(command.spawn().expect("another process"))
    }

    /// Waits for the process to end, at most [`LIMIT`]. Returns its status.
    fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().expect("a child") {
                return status;
            }
            assert!(start.elapsed() < LIMIT, "the other process did not end within {LIMIT:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn step_in_two_processes_has_the_gradients_of_one_process() {
    let _watchdog = watchdog("step_in_two_processes_has_the_gradients_of_one_process");
    // In one process, on the CPU.
    let store_here = store();
    let cpu = Device::Cpu;
    let (first, second) = (stage(0, &store_here, &cpu), stage(1, &store_here, &cpu));
    let (y, saved) = first.forward(&x().into(), &Pass::train(1, 0, 0)).expect("a forward pass");
    let wanted = first.backward(&saved, &run_downstream(&second, &y), Wants::BOTH).expect("a backward pass");

    let [forward, back] = [NcclId::new().expect("an id"), NcclId::new().expect("an id")];
    let mut other = Other::start(&format!("{forward},{back}"));
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
        let found = stage.backward(&saved, &gradient, Wants::BOTH).expect("a backward pass");
        let near = |got: &Tensor, wanted: &Tensor| {
            let (got, wanted) = (values(got), values(wanted));
            assert_eq!(got.len(), wanted.len(), "step {step}");
            // False if a value is NaN.
            let all = got.iter().zip(&wanted).all(|(g, w)| (g - w).abs() < 1e-6);
            assert!(all, "step {step}: {got:?} and {wanted:?}");
        };
        let input = |found: &interlock::Gradients| {
            found.input.as_ref().expect("a gradient").single().expect("one tensor").clone()
        };
        near(&input(&found), &input(&wanted));
        assert_eq!((found.parameters.len(), wanted.parameters.len()), (2, 2));
        for ((_, got), (_, wanted)) in found.parameters.iter().zip(&wanted.parameters) {
            near(got, wanted);
        }
    }
    let here = |t: candle_core::Result<Tensor>| device.bring(&t.expect("a tensor")).expect("on the GPU");
    let sent = Activation::new(vec![
        here(Tensor::new(&[1_u32, 2, 3, 4, 5, 6, 7], &cpu)),
        here(Tensor::new(&[[0.5_f32, 1.0, -2.0], [3.0, 4.0, 1e-3]], &cpu).and_then(|t| t.to_dtype(DType::BF16))),
        here(Tensor::new(-5_i64, &cpu)),
        here(Tensor::new(&[-300_i16, 7], &cpu)),
        here(Tensor::new(&[-70_000_i32], &cpu)),
    ]);
    activations.send(&sent).expect("sent");
    let described: Vec<(DType, Shape)> = sent.tensors().iter().map(|t| (t.dtype(), t.shape().clone())).collect();
    let back = gradients.receive(&described).expect("back");
    assert_eq!(sent.tensors().len(), back.tensors().len());
    for (sent, back) in sent.tensors().iter().zip(back.tensors()) {
        assert_eq!(numbers(sent), numbers(back));
    }
    device.synchronize().expect("an end");
    activations.finish(LIMIT).expect("all sent");
    gradients.finish(LIMIT).expect("all received");
    assert!(other.wait().success());
}

#[test]
fn receiver_without_a_send_ends_after_the_limit() {
    let _watchdog = watchdog("receiver_without_a_send_ends_after_the_limit");
    let id = NcclId::new().expect("an id");
    // The sender lives until the receiver has given up.
    let (given_up, gives_up) = mpsc::channel::<()>();
    let sender = thread::spawn(move || {
        let device = device("cuda:0");
        let mut sender = NcclSender::join(device.clone(), id, LIMIT).expect("joined");
        let one = device.bring(&Tensor::new(&[1.0_f32], &Device::Cpu).expect("a tensor")).expect("on the GPU");
        sender.send(&one.into()).expect("sent");
        gives_up.recv_timeout(LIMIT)
    });
    let mut receiver = NcclReceiver::join(device("cuda:1"), id, LIMIT).expect("joined");
    let shape = [(DType::F32, Shape::from(1))];
    let first = receiver.receive(&shape).expect("a tensor");
    assert_eq!(values(first.single().expect("one tensor")), [1.0]);
    let second = receiver.receive(&shape).expect("a tensor to come");
    let start = Instant::now();
    let error = receiver.finish(Duration::from_millis(500)).expect_err("nothing comes").to_string();
    assert!(error.contains("not every transfer was done within 0.5 s"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(30));
    // A tensor that was not received is NaN, so that a stage that computes with it fails.
    assert!(values(second.single().expect("one tensor"))[0].is_nan());
    given_up.send(()).expect("a sender");
    assert_eq!(sender.join().expect("a sender"), Ok(()));
}

#[test]
fn joining_alone_fails_after_the_limit() {
    let start = Instant::now();
    let id = NcclId::new().expect("an id");
    let error = NcclSender::join(device("cuda:0"), id, Duration::from_secs(1)).err().expect("nobody came").to_string();
    assert!(error.contains("the other process did not join within 1 s"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(30));
}

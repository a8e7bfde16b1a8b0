//! CPU devices: names, threads, and several of them at the same time.
#![cfg(feature = "cpu")]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::Command,
    sync::Barrier,
    thread,
};

use candle_core::{Device, Tensor};
use interlock::{
    Differentiable, ModelSpec, ParameterStore, Pass, Result, StageDevice, Trainer, Unit, tools::device::run_on,
};
use interlock_backends::{CpuDevice, cpu, layers::Linear};

#[test]
fn two_devices_compute_at_the_same_time() {
    let devices = [cpu(0), cpu(1)];
    let meeting = Barrier::new(2);
    let sums = thread::scope(|scope| {
        let runs = devices.each_ref().map(|device| {
            let meeting = &meeting;
            scope.spawn(move || {
                run_on(device.as_ref(), || {
                    let store = ParameterStore::new(1, Default::default());
                    let layer = Linear::new(64, 64, true, store.builder(device.device())).expect("a layer");
                    let mut x = Tensor::ones((256, 64), candle_core::DType::F32, &Device::Cpu).expect("a tensor");
                    for _ in 0..3 {
                        // Passes only while both devices run their work, so neither waits for the other to finish.
                        meeting.wait();
                        let (y, _) = layer.forward(&x.into(), &Pass::eval()).expect("a pass");
                        x = y.single().expect("one tensor").clone();
                    }
                    x.sum_all().and_then(|sum| sum.to_scalar::<f32>()).expect("a sum")
                })
            })
        });
        runs.map(|run| run.join().expect("a device's work"))
    });
    assert_eq!(sums[0].to_bits(), sums[1].to_bits());
}

/// A model of one linear layer.
struct OneLayer;

impl ModelSpec for OneLayer {
    fn units(&self) -> Result<Vec<Unit>> {
        Ok(vec![Unit::new("layer", [4], |vb| Linear::new(4, 4, true, vb))])
    }
}

#[test]
fn unknown_cpu_instructions_are_refused() {
    const VARIABLE: &str = "INTERLOCK_CPU_INSTRUCTIONS";
    if std::env::var(VARIABLE).is_ok_and(|name| name == "avx-2") {
        let error = CpuDevice::open("cpu:threads=1").expect_err("unknown instructions").to_string();
        assert_eq!(error, format!("{VARIABLE}: unknown instructions \"avx-2\"; write portable, avx2, avx512 or amx"));
        // `cpu` returns a device in any case; stages are not built on it.
        let trainer = Trainer::builder(OneLayer).devices([cpu(0)]).build();
        let refused = trainer.err().expect("unknown instructions");
        assert!(refused.is_refusal() && refused.to_string().contains(&error), "{refused}");
        return;
    }
    let mut child = Command::new(std::env::current_exe().expect("this program"));
    child.args(["--exact", "unknown_cpu_instructions_are_refused"]).env(VARIABLE, "avx-2");
    assert!(child.status().expect("a child process").success());
}

#[test]
fn work_runs_on_the_devices_own_threads() {
    let device = CpuDevice::open("cpu:threads=3").expect("a device");
    assert_eq!((device.threads(), device.name()), (3, "cpu:threads=3"));
    let (name, threads) =
        run_on(&device, || (thread::current().name().map(str::to_owned), rayon::current_num_threads()));
    assert!(name.is_some_and(|name| name.starts_with("cpu:threads=3 #")));
    assert_eq!(threads, 3);
}

#[test]
fn pinned_devices_open_on_existing_cores_only() {
    let cores = core_affinity::get_core_ids().expect("the cores of this machine");
    let core = cores[0].id;
    let device = CpuDevice::open(&format!("cpu:cores={core},threads=2")).expect("two threads on one core");
    assert_eq!(device.threads(), 2);
    let allowed = run_on(&device, core_affinity::get_core_ids).expect("the cores of the thread");
    assert_eq!(allowed.iter().map(|core| core.id).collect::<Vec<_>>(), [core]);
    let error = CpuDevice::open("cpu:cores=4000").expect_err("no such core").to_string();
    assert!(error.starts_with("device cpu:cores=4000: core 4000 does not exist"), "{error}");
    assert_eq!(cpu(4000).name(), "cpu:threads=1");
    assert_eq!(cpu(core).name(), format!("cpu:cores={core}"));
}

#[test]
fn candle_operations_are_limited_to_their_device_even_after_a_panic() {
    let store = ParameterStore::new(1, Default::default());
    // The kernels do not accept bf16.
    let takes_bf16 = || {
        let x = Tensor::ones((1, 2), candle_core::DType::BF16, &Device::Cpu).expect("a tensor");
        let layer = Linear::new(2, 2, true, store.builder(&Device::Cpu)).expect("a layer");
        layer.forward(&x.into(), &Pass::eval()).is_ok()
    };
    let candle = CpuDevice::open("cpu:threads=1,layers=candle").expect("a device");
    let kernels = CpuDevice::open("cpu:threads=1,layers=kernels").expect("a device");
    assert!(run_on(&candle, takes_bf16) && !run_on(&kernels, takes_bf16) && !takes_bf16());
    // Inside of the work of one device, the other one keeps its own form of layers.
    assert_eq!(run_on(&candle, || (run_on(&kernels, takes_bf16), takes_bf16())), (false, true));
    let caught = catch_unwind(AssertUnwindSafe(|| run_on(&candle, || panic!("in the work"))));
    assert!(caught.is_err() && run_on(&candle, takes_bf16) && !takes_bf16());
}

#[test]
fn panic_reaches_the_caller_and_the_device_works_on() {
    let device = cpu(0);
    let caught = catch_unwind(AssertUnwindSafe(|| run_on(device.as_ref(), || panic!("in the work"))));
    assert_eq!(caught.expect_err("the panic").downcast_ref::<&str>(), Some(&"in the work"));
    assert_eq!(run_on(device.as_ref(), || 1), 1);
}

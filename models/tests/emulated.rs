//! Tests of whole models on emulated devices, which leave all parameters as they are.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};
use interlock::{
    ActivationDtype, Batch, ClipConfig, ClipScope, Dataset, Error, Interlock, Key, ModelSpec, Optimizer,
    OptimizerConfig, OptimizerContext, ParameterUpdate, Recompute, Result, TrainEvent, Trainer,
    tools::schedule::ActionKind,
};
use interlock_backends::Backends;
use interlock_models::{ResNet, Transformer};

/// A data set whose inputs are ones of a shape and dtype, and whose targets are all class 1.
#[derive(Clone)]
struct Ones {
    inputs: Vec<usize>,
    dtype: DType,
    targets: Vec<usize>,
}

impl Dataset for Ones {
    fn len(&self) -> usize {
        12
    }

    fn batch(&self, numbers: &[usize], _: Option<Key>) -> Result<Batch> {
        let stacked = |shape: &[usize]| [&[numbers.len()], shape].concat();
        let inputs = Tensor::ones(stacked(&self.inputs), self.dtype, &Device::Cpu)?;
        Ok(Batch { inputs: inputs.into(), targets: Tensor::ones(stacked(&self.targets), DType::U32, &Device::Cpu)? })
    }
}

fn trains(model: impl ModelSpec + 'static, data: &Ones, classes: f64) {
    let name = "emulated:forward-ms=0.2,head-ms=0.1,input-gradient-ms=0.2,parameter-gradient-ms=0.2,transfer-ms=0.1";
    let mut trainer = Trainer::builder(model)
        .stages(4)
        .strategy(Interlock::width(2))
        .probes()
        .devices([Backends::default().open(name).unwrap()])
        .optimizer(OptimizerConfig { weight_decay: 0.1, ..OptimizerConfig::default() })
        .clip(ClipConfig { max_norm: 1.0, scope: ClipScope::Global })
        .recompute(Recompute::Stages(vec![1]))
        .dtype(ActivationDtype::Bf16)
        .batch_size(4)
        .micro_batches(3)
        .steps(5)
        .build()
        .unwrap();
    let before = trainer.snapshot().unwrap();
    let report = trainer.fit((data.clone(), data.clone())).unwrap();
    // Logits of zeros give all classes the same probability.
    assert!((report.final_scores.loss.unwrap() - classes.ln()).abs() < 1e-6, "{report:?}");
    assert!(report.stages.iter().all(|stage| stage.loss.is_some()));
    let after = trainer.snapshot().unwrap();
    assert!(before.len() > 20 && before.names().eq(after.names()));
    for (name, value) in before {
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&value), values(&after[&name]), "{name}");
    }
}

#[test]
fn resnet_trains_without_changes() {
    let data = Ones { inputs: vec![3, 32, 32], dtype: DType::F32, targets: vec![] };
    trains(ResNet::preset("resnet32", [3, 32, 32], 10).unwrap(), &data, 10.0);
}

#[test]
fn transformer_trains_without_changes() {
    let data = Ones { inputs: vec![8], dtype: DType::U32, targets: vec![8] };
    let model =
        Transformer { vocab: 16, context: 8, sequence: 8, width: 12, heads: 2, layers: 3, dropout: 0.1, tied: false };
    trains(model, &data, 16.0);
}

/// An optimizer that must not be called: an emulated device has no gradients.
struct NoGradients;

impl Optimizer for NoGradients {
    fn update(&mut self, _: f64, slots: &[ParameterUpdate<'_>]) -> Result<()> {
        Err(Error::other(format!("{} gradients of an emulated device", slots.len())))
    }
}

#[test]
fn an_update_of_your_own_optimizer_is_emulated_with_the_cost_of_an_update() {
    let data = Ones { inputs: vec![3, 32, 32], dtype: DType::F32, targets: vec![] };
    let made = Arc::new(Mutex::new(0));
    let (count, seconds) = (Arc::clone(&made), Arc::new(Mutex::new(Vec::new())));
    let seen = Arc::clone(&seconds);
    let own = move |_: &OptimizerContext<'_>| {
        *count.lock().unwrap() += 1;
        Ok(NoGradients)
    };
    let mut trainer = Trainer::builder(ResNet::preset("resnet32", [3, 32, 32], 10).unwrap())
        .stages(2)
        .devices([Backends::default().open("emulated:update-ms=5").unwrap()])
        .optimizer(own)
        .batch_size(4)
        .steps(3)
        .callback(move |event: &TrainEvent<'_>| {
            if let TrainEvent::StageStep(step) = event {
                seen.lock().unwrap().push(step.work.seconds(ActionKind::Update));
            }
        })
        .build()
        .unwrap();
    assert_eq!(trainer.fit(data).unwrap().steps, 3);
    let seconds = seconds.lock().unwrap();
    assert!(seconds.len() == 6 && seconds.iter().all(|&update| update >= 0.005), "{seconds:?}");
    // The factory is asked once for each stage, as on any device, so that its errors are found.
    assert_eq!(*made.lock().unwrap(), 2);
}

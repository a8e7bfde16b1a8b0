//! Trainers inside a tokio runtime.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/models.rs"]
mod common;

use common::{Perceptron, Spiral};
use interlock::{Trainer, Weights};
use tokio::runtime::{Builder, Runtime};

/// Builds, trains, scores, predicts and drops a trainer.
fn train() -> Weights {
    let data = Spiral { examples: 20 };
    let model = Perceptron { layers: 3, fault: None };
    let mut trainer = Trainer::builder(model).stages(3).batch_size(8).epochs(2).seed(1).build().unwrap();
    assert_eq!(trainer.fit((data, data)).unwrap().steps, 6);
    assert_eq!(trainer.evaluate(data).unwrap().last().score.count, 20.0);
    let inputs = candle_core::Tensor::zeros((1, 2), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    assert_eq!(trainer.predictor().unwrap().predict(&inputs).unwrap().dims(), [1, 3]);
    trainer.snapshot().unwrap()
}

fn bits(weights: &Weights) -> Vec<(String, Vec<u32>)> {
    let bits = |tensor: &candle_core::Tensor| {
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    };
    weights.iter().map(|(name, tensor)| (name.to_owned(), bits(tensor))).collect()
}

fn check(runtime: &Runtime) {
    let expected = bits(&train());
    let directly = runtime.block_on(async { train() });
    let spawned = runtime.block_on(async { tokio::spawn(async { train() }).await.unwrap() });
    let blocking = runtime.block_on(async { tokio::task::spawn_blocking(train).await.unwrap() });
    for found in [directly, spawned, blocking] {
        assert_eq!(bits(&found), expected);
    }
}

#[test]
fn a_trainer_works_in_a_runtime_of_one_thread() {
    check(&Builder::new_current_thread().build().unwrap());
}

#[test]
fn a_trainer_works_in_a_runtime_of_several_threads() {
    check(&Builder::new_multi_thread().worker_threads(2).build().unwrap());
}

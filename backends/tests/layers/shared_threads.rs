//! Stages that share the threads of one device.

use candle_core::{DType, Device, Tensor};
use interlock::{
    Activation, Autograd, Batch, Dataset, InGraph, Interlock, Key, MeanSquaredError, ModelSpec, Pass, Result,
    StageModule, Trainer, Unit,
};
use interlock_backends::{Backends, layers::LayerNorm};

const WIDTH: usize = 64;
/// Enough rows for several chunks in a layer's backward pass, so that one thread waits for another.
const ROWS: usize = 512;

/// Two layers with their own backward pass inside a module.
struct Norms(InGraph<LayerNorm>, InGraph<LayerNorm>);

impl StageModule for Norms {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<Activation> {
        let hidden = self.0.forward(x.single()?, pass)?.tanh()?;
        Ok(self.1.forward(&hidden, pass)?.into())
    }
}

struct Net;

fn norms(name: String) -> Unit {
    Unit::new(name, [ROWS, WIDTH], |vb| {
        Autograd::build(vb, |vb| {
            let norm = |name| Ok::<_, interlock::Error>(InGraph::new(LayerNorm::new(WIDTH, vb.pp(name))?));
            Ok(Norms(norm("a")?, norm("b")?))
        })
    })
}

impl ModelSpec for Net {
    fn units(&self) -> Result<Vec<Unit>> {
        Ok((0..4).map(|i| norms(format!("norms.{i}"))).collect())
    }

    fn head(&self, _: usize, _: &str) -> Result<Unit> {
        Ok(norms(String::new()))
    }
}

#[derive(Clone, Copy)]
struct Waves;

impl Dataset for Waves {
    fn len(&self) -> usize {
        64
    }

    fn batch(&self, numbers: &[usize], _: Option<Key>) -> Result<Batch> {
        let count = numbers.len() * ROWS * WIDTH;
        let values: Vec<f32> = (0..count).map(|i| ((i + numbers[0]) as f32 * 0.37).sin()).collect();
        let inputs = Tensor::from_vec(values, (numbers.len(), ROWS, WIDTH), &Device::Cpu)?;
        Ok(Batch {
            inputs: inputs.into(),
            targets: Tensor::zeros((numbers.len(), ROWS, WIDTH), DType::F32, &Device::Cpu)?,
        })
    }
}

fn losses(device: &str) -> Vec<u64> {
    let device = Backends::default().open(device).expect("the CPU");
    let builder = Trainer::builder(Net).stages(4).strategy(Interlock::width(2)).devices([device]);
    let builder = builder.loss(MeanSquaredError).batch_size(8).micro_batches(4).steps(12);
    let report = builder.build().and_then(|mut trainer| trainer.fit(Waves)).expect("a run");
    vec![report.final_scores.loss.map_or(0, f64::to_bits)]
}

#[test]
fn stages_that_share_threads_keep_the_gradients_of_layers_inside_modules() {
    assert_eq!(losses("cpu:threads=2"), losses("cpu:threads=1"));
}

//! A model of one's own: a block written as its forward pass, listed as units, trained by three stages on two devices.
//!
//! What one learns:
//! - A block is a [`StageModule`]: candle operations from input to output. candle's graph differentiates it.
//! - A model is a [`ModelSpec`]: an ordered list of units, and the auxiliary head that may follow any of them.
//! - Stages, devices and strategy are settings of the trainer; the model knows nothing of them.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use candle_core::Tensor;
use candle_nn::{Linear, Module, VarBuilder, linear};
use interlock::{
    Activation, Autograd, Interlock, ModelSpec, Pass, Result, StageModule, Trainer, Unit, optimizer::OptimizerConfig,
    trainer::Split,
};
use interlock_backends::{candle_single_threaded, cpu};
use interlock_models::data::config::{DataConfig, FashionMnistMini};

const WIDTH: usize = 64;

/// `x + W₂·relu(W₁·x)`, on `(B, 64)`.
struct Block {
    up: Linear,
    down: Linear,
}

impl Block {
    fn new(vb: VarBuilder<'static>) -> Result<Self> {
        Ok(Self { up: linear(WIDTH, WIDTH, vb.pp("up"))?, down: linear(WIDTH, WIDTH, vb.pp("down"))? })
    }
}

impl StageModule for Block {
    fn forward(&self, x: &Activation, _: &Pass) -> Result<Activation> {
        let x = x.single()?;
        Ok((x + self.down.forward(&self.up.forward(x)?.relu()?)?)?.into())
    }
}

/// A linear layer over everything behind the batch: images `(B, C, H, W)` are flattened first.
struct Flat(Linear);

impl StageModule for Flat {
    fn forward(&self, x: &Activation, _: &Pass) -> Result<Activation> {
        let flat: Tensor = x.single()?.flatten_from(1)?;
        Ok(self.0.forward(&flat)?.into())
    }
}

/// A unit of one linear layer.
fn flat(name: &str, inputs: usize, outputs: usize) -> Unit {
    Unit::new(name, [outputs], move |vb| Autograd::build(vb, |vb| Ok(Flat(linear(inputs, outputs, vb)?))))
        .with_flops(2.0 * (inputs * outputs) as f64)
}

/// A residual perceptron: a stem, three blocks and a classifier.
struct ResidualPerceptron;

impl ModelSpec for ResidualPerceptron {
    fn units(&self) -> Result<Vec<Unit>> {
        let block = |i| Unit::new(format!("blocks.{i}"), [WIDTH], |vb| Autograd::build(vb, Block::new));
        let blocks = (0..3).map(|i| block(i).with_flops(4.0 * (WIDTH * WIDTH) as f64));
        Ok([flat("stem", 28 * 28, WIDTH)].into_iter().chain(blocks).chain([flat("classifier", WIDTH, 10)]).collect())
    }

    fn head(&self, _: usize, _: &str) -> Result<Unit> {
        Ok(flat("", WIDTH, 10)) // its parameters lie below aux.{stage}
    }
}

fn main() -> anyhow::Result<()> {
    candle_single_threaded(); // so that stages do not wait for each other in candle's own operations
    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(2000), ..Default::default() }).open()?;
    let mut trainer = Trainer::builder(ResidualPerceptron)
        .strategy(Interlock::width(2))
        .devices([cpu(0), cpu(1)])
        .stages(3) // without this there are as many stages as devices; a device may hold several
        .optimizer(OptimizerConfig { lr: 0.005, ..Default::default() })
        .epochs(4)
        .build()?;
    println!("units a stage: {:?}\n{}\n", trainer.partition().units_per_stage(), trainer.plan());
    for stage in trainer.stages() {
        println!("stage {} on {}: {} parameters", stage.stage, stage.device, stage.parameters);
    }

    let report = trainer.fit(Split { train: &*data.train, validation: Some(&*data.validation) })?;
    let accuracy = report.final_scores.accuracy.unwrap_or_default();
    println!("after {} steps: loss {:.3}, accuracy {accuracy:.3}", report.steps, report.final_scores.loss);
    assert!(accuracy > 0.65, "a tenth would be chance");
    Ok(())
}

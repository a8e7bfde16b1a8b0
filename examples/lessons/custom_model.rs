//! Your own model: a block written as its forward pass, listed as units, trained by three stages on two devices.
//!
//! - A block is a [`StageModule`]: candle operations from input to output. candle's graph differentiates it.
//! - A model is a [`ModelSpec`]: an ordered list of units, and the auxiliary head that may follow any of them.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use candle_nn::{Linear, Module, VarBuilder, linear};
use interlock::{FromModule, prelude::*};
use interlock_backends::cpu;
use interlock_models::data::config::{DataConfig, FashionMnistMini};

/// `x + W₂·relu(W₁·x)`, on `(B, 64)`.
struct Block(Linear, Linear);

impl Block {
    fn new(vb: VarBuilder<'static>) -> Result<Self> {
        Ok(Self(linear(64, 64, vb.pp("up"))?, linear(64, 64, vb.pp("down"))?))
    }
}

impl StageModule for Block {
    fn forward(&self, x: &Activation, _: &Pass) -> Result<Activation> {
        let x = x.single()?;
        Ok((x + self.1.forward(&self.0.forward(x)?.relu()?)?)?.into())
    }
}

fn layer(name: &str, inputs: usize, outputs: usize) -> Unit {
    let build = move |vb: VarBuilder<'static>| {
        let layer = linear(inputs, outputs, vb)?;
        Ok(FromModule(move |x: &candle_core::Tensor| layer.forward(&x.flatten_from(1)?)))
    };
    Unit::new(name, [outputs], move |vb| Autograd::build(vb, build))
}

struct ResidualNet;

impl ModelSpec for ResidualNet {
    fn units(&self) -> Result<Vec<Unit>> {
        let block = |i| Unit::new(format!("blocks.{i}"), [64], |vb| Autograd::build(vb, Block::new));
        Ok(vec![layer("stem", 784, 64), block(0), block(1), block(2), layer("classifier", 64, 10)])
    }

    fn head(&self, _: usize, _: &str) -> Result<Unit> {
        Ok(layer("", 64, 10)) // its parameters lie below aux.{stage}
    }
}

fn main() -> anyhow::Result<()> {
    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(2000), ..Default::default() }).open()?;
    let builder = Trainer::builder(ResidualNet).strategy(Interlock::width(2)).stages(3).devices([cpu(0), cpu(1)]);
    let mut trainer = builder.optimizer(OptimizerConfig { lr: 0.005, ..Default::default() }).epochs(4).build()?;
    let report = trainer.fit(data.split())?;
    println!("accuracy {:.3}", report.final_scores.accuracy.unwrap_or_default());
    assert!(report.final_scores.accuracy > Some(0.65), "a tenth would be chance");
    Ok(())
}

//! Modules written for candle, unchanged, as stages.
//!
//! - [`FromModule`] makes a unit of anything that implements `candle_nn::Module`: a layer of `candle_nn`, a closure, or a whole network.
//! - Parameters keep the names that the module asked its `VarBuilder` for, below the unit's.
//! - Some fused operations of candle (`LayerNorm`, `RmsNorm`, `softmax_last_dim`) have no backward pass. A unit whose gradients are zero or
//!   incomplete is refused when its stage is built; the lesson `custom_layer` shows what to do.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use candle_core::Tensor;
use candle_nn::{Conv2d, Conv2dConfig, Module, VarBuilder, conv2d, linear};
use interlock::{Autograd, FromModule, ModelSpec, OptimizerConfig, Pairwise, Result, Trainer, Unit};
use interlock_backends::cpu;
use interlock_models::data::config::{DataConfig, FashionMnistMini};

/// Two convolutions of stride 2, as in many candle programs: images `(B, 1, 28, 28)` to `(B, 392)`.
struct Features(Conv2d, Conv2d);

impl Features {
    fn new(vb: VarBuilder) -> candle_core::Result<Self> {
        let config = Conv2dConfig { stride: 2, padding: 1, ..Default::default() };
        Ok(Self(conv2d(1, 4, 3, config, vb.pp("first"))?, conv2d(4, 8, 3, config, vb.pp("second"))?))
    }
}

impl Module for Features {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.1.forward(&self.0.forward(x)?.relu()?)?.relu()?.flatten_from(1)
    }
}

struct Net;

impl ModelSpec for Net {
    fn units(&self) -> Result<Vec<Unit>> {
        let features = Unit::new("features", [392], |vb| Autograd::build(vb, |vb| Ok(FromModule(Features::new(vb)?))));
        let classifier = Unit::new("fc", [10], |vb| Autograd::build(vb, |vb| Ok(FromModule(linear(392, 10, vb)?))));
        Ok(vec![features, classifier])
    }
}

fn main() -> anyhow::Result<()> {
    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(1000), ..Default::default() }).open()?;
    let mut trainer = Trainer::builder(Net)
        .strategy(Pairwise) // of two stages: end-to-end, which needs no auxiliary head
        .devices([cpu(0), cpu(1)])
        .optimizer(OptimizerConfig { lr: 0.02, ..Default::default() })
        .batch_size(20)
        .epochs(4)
        .build()?;
    assert_eq!(trainer.stages()[1].names, ["fc.weight", "fc.bias"]);
    let report = trainer.fit(data.split())?;
    println!("after {} steps: accuracy {:.3}", report.steps, report.final_scores.accuracy.unwrap_or_default());
    assert!(report.final_scores.accuracy > Some(0.6), "a tenth would be chance");
    Ok(())
}

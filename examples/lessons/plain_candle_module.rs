//! Modules written for candle, unchanged, as stages.
//!
//! What one learns:
//! - [`FromModule`] makes a unit of anything that implements `candle_nn::Module`: a layer of `candle_nn`, a closure, or a network
//!   that was written long before it met a pipeline.
//! - The parameters keep the names that the module asked its `VarBuilder` for, below the unit's.
//! - Some fused operations of candle (`LayerNorm`, `RmsNorm`, `softmax_last_dim`) have no backward pass. A unit whose gradients are
//!   zero or incomplete is refused when its stage is built; the lesson `custom_layer` shows the way out.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use candle_core::Tensor;
use candle_nn::{Conv2d, Conv2dConfig, Module, VarBuilder, conv2d, linear, rms_norm};
use interlock::{
    Autograd, ModelSpec, Pairwise, Result, Trainer, Unit, differentiation::autograd::FromModule,
    optimizer::OptimizerConfig, trainer::Split,
};
use interlock_backends::{candle_single_threaded, cpu};
use interlock_models::data::config::{DataConfig, FashionMnistMini};

/// A network as it stands in many candle programs; nothing in it knows of stages.
mod existing {
    use super::*;

    /// Two convolutions of stride 2: images `(B, 1, 28, 28)` to `(B, 8, 7, 7)`.
    pub(super) struct Features {
        first: Conv2d,
        second: Conv2d,
    }

    impl Features {
        pub(super) fn new(vb: VarBuilder) -> candle_core::Result<Self> {
            let config = Conv2dConfig { stride: 2, padding: 1, ..Default::default() };
            Ok(Self {
                first: conv2d(1, 4, 3, config, vb.pp("first"))?,
                second: conv2d(4, 8, 3, config, vb.pp("second"))?,
            })
        }
    }

    impl Module for Features {
        fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
            self.second.forward(&self.first.forward(x)?.relu()?)?.relu()
        }
    }
}

const FEATURES: usize = 8 * 7 * 7;

struct Net {
    with_norm: bool,
}

impl ModelSpec for Net {
    fn units(&self) -> Result<Vec<Unit>> {
        let features = Unit::new("features", [8, 7, 7], |vb| {
            Autograd::build(vb, |vb| Ok(FromModule(existing::Features::new(vb)?)))
        });
        let flatten = Unit::new("flatten", [FEATURES], |vb| {
            Autograd::build(vb, |_| Ok(FromModule(|x: &Tensor| x.flatten_from(1))))
        });
        let norm =
            Unit::new("norm", [FEATURES], |vb| Autograd::build(vb, |vb| Ok(FromModule(rms_norm(FEATURES, 1e-5, vb)?))));
        let classifier =
            Unit::new("fc", [10], |vb| Autograd::build(vb, |vb| Ok(FromModule(linear(FEATURES, 10, vb)?))));
        let norm = self.with_norm.then_some(norm);
        Ok([features, flatten].into_iter().chain(norm).chain([classifier]).collect())
    }
}

fn main() -> anyhow::Result<()> {
    candle_single_threaded(); // so that stages do not wait for each other in candle's own operations
    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(1000), ..Default::default() }).open()?;
    let split = Split { train: &*data.train, validation: Some(&*data.validation) };
    let builder = |with_norm| {
        Trainer::builder(Net { with_norm })
            .strategy(Pairwise) // of two stages: end-to-end, which needs no auxiliary head
            .devices([cpu(0), cpu(1)])
            .optimizer(OptimizerConfig { lr: 0.02, ..Default::default() })
            .batch_size(20)
            .epochs(4)
    };

    let mut trainer = builder(false).units_per_stage([1, 2]).build()?;
    for stage in trainer.stages() {
        println!("stage {} on {}: {}", stage.stage, stage.device, stage.names.join(", "));
    }
    assert_eq!(trainer.stages()[1].names, ["fc.weight", "fc.bias"]);
    let report = trainer.fit(split)?;
    let accuracy = report.final_scores.accuracy.unwrap_or_default();
    println!("after {} steps: loss {:.3}, accuracy {accuracy:.3}", report.steps, report.final_scores.loss);
    assert!(accuracy > 0.6, "a tenth would be chance");

    // The same with a norm of candle_nn, whose fused operation has no backward pass.
    let error = builder(true).units_per_stage([1, 3]).build().err().map(|e| e.to_string());
    println!("\nwith candle_nn::rms_norm: {}", error.as_deref().unwrap_or("no error"));
    assert!(error.is_some_and(|error| error.contains("\"norm\"")));
    Ok(())
}

//! Early exits: predict at any head, with the first stages only.
//!
//! - `trainer.predictor()` predicts with the present weights, without targets; [`TrainerBuilder::predictor`] does so with saved weights.
//! - `predict` gives the last stage's output; `predict_at(k, …)` that of the head of stage `k`, and computes no later stage.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use candle_core::{D, Tensor};
use interlock::{EndToEnd, OptimizerConfig, Trainer, TrainerBuilder};
use interlock_models::{
    Mlp,
    data::config::{DataConfig, FashionMnistMini},
};

/// Four stages with a head each.
fn builder() -> TrainerBuilder {
    Trainer::builder(Mlp { dims: vec![784, 64, 64, 64, 10], flatten: true })
        .strategy(EndToEnd)
        .probes() // no stage follows the heads of stages 0 to 2: they train only themselves
        .stages(4)
        .optimizer(OptimizerConfig { lr: 0.02, ..Default::default() })
        .epochs(4)
}

/// How many of the classes that these outputs name are the targets.
fn right(outputs: &Tensor, targets: &Tensor) -> candle_core::Result<usize> {
    Ok(outputs.argmax(D::Minus1)?.eq(targets)?.to_vec1::<u8>()?.iter().filter(|&&right| right == 1).count())
}

fn main() -> anyhow::Result<()> {
    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(2000), ..Default::default() }).open()?;
    let mut trainer = builder().build()?;
    trainer.fit(data.train)?;

    let images = data.validation.batch(&(0..500).collect::<Vec<_>>(), None)?;
    let mut predictor = trainer.predictor()?;
    for k in predictor.heads() {
        let right = right(&predictor.predict_at(k, &images.inputs)?, &images.targets)?;
        println!("head of stage {k}: {right} of 500 right");
        assert!(right > 250, "50 would be chance");
    }

    // The same from weights, such as those of a file.
    let saved = builder().predictor(trainer.snapshot()?)?.predict(&images.inputs)?;
    assert_eq!(saved.to_vec2::<f32>()?, predictor.predict(&images.inputs)?.to_vec2::<f32>()?);
    Ok(())
}

//! Probe heads: the scores of every head, without a change to the network.
//!
//! - `probes()` trains the heads that no stage follows, too. A probe trains only itself: the rest of the network is the same, bit for bit.
//! - `evaluate` scores every head on a data set.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use candle_core::Tensor;
use interlock::{EndToEnd, OptimizerConfig, Trainer, TrainerBuilder};
use interlock_models::{
    Mlp,
    data::config::{DataConfig, FashionMnistMini},
};

fn builder() -> TrainerBuilder {
    Trainer::builder(Mlp { dims: vec![784, 64, 64, 64, 10], flatten: true })
        .strategy(EndToEnd)
        .stages(4)
        .optimizer(OptimizerConfig { lr: 0.02, ..Default::default() })
        .epochs(4)
}

fn bits(value: &Tensor) -> candle_core::Result<Vec<u32>> {
    Ok(value.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}

fn main() -> anyhow::Result<()> {
    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(2000), ..Default::default() }).open()?;
    let train = |builder: TrainerBuilder| -> anyhow::Result<_> {
        let mut trainer = builder.build()?;
        trainer.fit(data.train.clone())?;
        Ok(trainer)
    };
    let mut trainer = train(builder().probes())?;
    let evaluation = trainer.evaluate(data.validation.clone())?;
    for head in evaluation.heads() {
        let (loss, accuracy) = (head.score.mean_loss(), head.score.accuracy());
        println!("head of stage {}: loss {loss:.3}, accuracy {:.3}", head.stage, accuracy.unwrap_or_default());
        assert!(accuracy > Some(0.5), "a tenth would be chance");
    }
    assert_eq!(evaluation.heads().len(), 4);

    let (with, without) = (trainer.snapshot()?, train(builder())?.snapshot()?);
    for (name, value) in &without {
        assert_eq!(bits(value)?, bits(&with[name])?, "{name}");
    }
    println!("the {} tensors of the network are the same without probes, bit for bit", without.len());
    Ok(())
}

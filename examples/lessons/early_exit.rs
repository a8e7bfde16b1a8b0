//! Early exits: train with probes, score every head, and predict with the first stages only.
//!
//! What one learns:
//! - `probes()` trains the heads that no stage follows, too. A probe trains its own parameters and nothing else, so it may be there
//!   or not: the rest of the network comes out the same, bit for bit.
//! - `evaluate` scores every head, through the same actors.
//! - `predictor().predict_at(k, ..)` computes the head of stage `k`, and no later stage.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use candle_core::{D, Tensor};
use interlock::{
    EndToEnd, Trainer,
    optimizer::OptimizerConfig,
    trainer::{Split, TrainerBuilder},
};
use interlock_backends::cpu;
use interlock_models::{
    Mlp,
    data::config::{DataConfig, FashionMnistMini},
};

fn model() -> Mlp {
    Mlp { dims: vec![784, 64, 64, 64, 10], flatten: true }
}

fn builder() -> TrainerBuilder {
    Trainer::builder(model())
        .strategy(EndToEnd)
        .devices([cpu(0), cpu(1)])
        .stages(4)
        .optimizer(OptimizerConfig { lr: 0.02, ..Default::default() })
        .epochs(4)
}

fn main() -> anyhow::Result<()> {
    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(2000), ..Default::default() }).open()?;
    let train = |builder: TrainerBuilder| -> anyhow::Result<_> {
        let mut trainer = builder.build()?;
        trainer.fit(Split { train: &*data.train, validation: None })?;
        Ok(trainer)
    };

    let mut trainer = train(builder().probes())?;
    let evaluation = trainer.evaluate(&*data.validation)?;
    for head in evaluation.heads() {
        println!("head {}: accuracy {:.3}", head.stage, head.score.accuracy().unwrap_or_default());
        assert!(head.score.accuracy().is_some_and(|accuracy| accuracy > 0.5), "a tenth would be chance");
    }

    // The probes changed nothing: without them every other parameter is the same.
    let (with, without) = (trainer.snapshot()?, train(builder())?.snapshot()?);
    assert!(without.len() < with.len() && without.iter().all(|(name, value)| bits(value) == bits(&with[name])));
    println!("the {} tensors of the main network are the same without probes, bit for bit", without.len());

    // Predict with the first two stages: half of the network.
    let batch = data.validation.batch(&(0..500).collect::<Vec<_>>(), None)?;
    let classes = trainer.predictor()?.predict_at(1, &batch.inputs)?.argmax(D::Minus1)?;
    let right = classes.eq(&batch.targets)?.to_vec1::<u8>()?.iter().filter(|&&right| right == 1).count();
    println!("predicted at exit 1: {right} of 500 right");
    assert!(right > 250);
    Ok(())
}

fn bits(value: &Tensor) -> Vec<u32> {
    let values = value.flatten_all().and_then(|values| values.to_vec1::<f32>()).unwrap_or_default();
    values.into_iter().map(f32::to_bits).collect()
}

//! Weights: saved to files, loaded from them, and given to another model.
//!
//! - [`Weights`] maps names, as PyTorch has them, to tensors. A folder of weights is what other programs read: safetensors with an index.
//! - Names that are missing or unknown are errors, unless the builder allows them.
//! - With a moving average (`ema`), copies and files of the weights hold the averages.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use interlock::{EmaConfig, OptimizerConfig, Trainer, TrainerBuilder, Weights};
use interlock_models::{
    Mlp,
    data::config::{DataConfig, FashionMnistMini},
};

fn builder() -> TrainerBuilder {
    Trainer::builder(Mlp { dims: vec![784, 64, 10], flatten: true })
        .stages(2)
        .optimizer(OptimizerConfig { lr: 0.02, ..Default::default() })
        .ema(EmaConfig { decay: 0.9, from_step: 20 })
        .epochs(3)
}

fn main() -> anyhow::Result<()> {
    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(2000), ..Default::default() }).open()?;
    let mut trainer = builder().build()?;
    let report = trainer.fit(data.split())?;

    let folder = tempfile::tempdir()?;
    trainer.snapshot()?.save(folder.path())?;
    let mut weights = Weights::load(folder.path())?;
    println!("{}", weights.names().collect::<Vec<_>>().join(", "));

    // A trainer that begins with them scores the same.
    let scores = builder().initial_values(weights.clone()).build()?.evaluate(data.validation.clone())?.last().score;
    println!("accuracy {:.3}", scores.accuracy().unwrap_or_default());
    assert_eq!((Some(scores.mean_loss()), scores.accuracy()), (report.final_scores.loss, report.final_scores.accuracy));

    let name = weights.names().next().unwrap_or_default().to_owned();
    weights.remove(&name);
    let error = builder().initial_values(weights.clone()).build().err().map(|error| error.to_string());
    assert!(error.is_some_and(|error| error.contains(&name)));
    builder().initial_values(weights).allow_missing(true).build()?;
    Ok(())
}

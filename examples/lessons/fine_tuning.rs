//! Fine-tuning: a network that was trained on ten classes learns two others, from its own weights.
//!
//! - `skip_initial_values` starts the last layer from the seed, since it has other classes. In a configuration: `init_skip = ["fc.*"]` beside
//!   `init_from`.
//! - Groups of parameters with `frozen` or `lr_scale` keep the other layers, or train them more slowly.
//! - Weights may be another program's too, such as torchvision's ResNet or GPT-2 of `transformers`.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use std::sync::Arc;

use interlock::{Batch, Dataset, Key, OptimizerConfig, ParameterGroup, Result, Trainer, TrainerBuilder};
use interlock_models::{
    ResNet,
    data::config::{DataConfig, FashionMnistMini},
    resnet::{BlockKind, StemKind},
};

/// Fashion-MNIST with two classes: 1 for shoes (sandals, sneakers and boots), 0 for the rest.
struct Shoes(Arc<dyn Dataset>);

impl Dataset for Shoes {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn batch(&self, numbers: &[usize], augment: Option<Key>) -> Result<Batch> {
        let Batch { inputs, targets } = self.0.batch(numbers, augment)?;
        let is_shoe: Vec<u32> =
            targets.to_vec1()?.into_iter().map(|class: u32| matches!(class, 5 | 7 | 9).into()).collect();
        Ok(Batch { inputs, targets: candle_core::Tensor::new(is_shoe, targets.device())? })
    }
}

fn builder(classes: usize) -> TrainerBuilder {
    let network = ResNet {
        block: BlockKind::Basic,
        stem: StemKind::Cifar,
        stem_planes: 8,
        planes: vec![8, 16],
        blocks: vec![1, 1],
        classes,
        channels: 1,
        height: 28,
        width: 28,
    };
    Trainer::builder(network).stages(2).batch_size(16)
}

fn main() -> anyhow::Result<()> {
    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(1000), ..Default::default() }).open()?;
    let mut trainer = builder(10).epochs(1).build()?;
    trainer.fit(data.train.clone())?;
    let weights = trainer.snapshot()?;

    // The last layer of other classes does not fit.
    let error = builder(2).initial_values(weights.clone()).build().err().map(|error| error.to_string());
    assert!(error.is_some_and(|error| error.contains("fc.weight (is [10, 16], must be [2, 16])")));

    // Only the last layer learns, for 30 steps.
    let patterns = ["conv1.*", "bn1.*", "layer*"].map(str::to_owned).to_vec();
    let frozen = ParameterGroup { patterns, lr_scale: None, weight_decay: None, frozen: true };
    let optimizer = OptimizerConfig { lr: 0.05, groups: vec![frozen], ..Default::default() };
    let shoes = |data: &Arc<dyn Dataset>| Shoes(Arc::clone(data));
    let fine_tuned = builder(2).initial_values(weights.clone()).skip_initial_values(["fc.*"]).optimizer(optimizer);
    let mut trainer = fine_tuned.steps(30).build()?;
    let (train, validation) = (shoes(&data.train), shoes(&data.validation));
    let report = trainer.fit((train, validation))?;
    let accuracy = report.final_scores.accuracy.unwrap_or_default();
    println!("shoes or not, after 30 steps of the last layer: accuracy {accuracy:.3}");
    assert!(accuracy > 0.9);

    let tuned = trainer.snapshot()?;
    let values = |name: &str| {
        anyhow::Ok((weights[name].flatten_all()?.to_vec1::<f32>()?, tuned[name].flatten_all()?.to_vec1::<f32>()?))
    };
    let (before, after) = values("layer1.0.conv1.weight")?;
    assert_eq!(before, after);
    Ok(())
}

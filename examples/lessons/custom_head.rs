//! Your own auxiliary heads, by your own descriptions.
//!
//! - A model decides what descriptions of heads (`heads.arch`) mean: here `narrow16` is a perceptron with 16 hidden units.
//! - Heads may be made of any layers; these come from `interlock_backends`, with hand-written gradients.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use interlock::{Error, HeadsConfig, Interlock, ModelSpec, OptimizerConfig, Result, Sequential, Trainer, Unit};
use interlock_backends::layers::{Linear, Relu};
use interlock_models::{
    Mlp,
    data::config::{DataConfig, FashionMnistMini},
};

/// A perceptron whose heads are described as `narrowN`: to `N` hidden units, and from there to the classes.
struct NarrowHeads(Mlp);

impl ModelSpec for NarrowHeads {
    fn units(&self) -> Result<Vec<Unit>> {
        self.0.units()
    }

    fn head(&self, unit: usize, arch: &str) -> Result<Unit> {
        let hidden = arch.strip_prefix("narrow").and_then(|n| n.parse().ok()).filter(|&n: &usize| n > 0);
        let hidden = hidden.ok_or_else(|| {
            Error::invalid("heads.arch", format!("{arch:?} after unit {unit}"), "write narrowN, such as narrow16")
        })?;
        Ok(Unit::new("", [10], move |vb| {
            let first = Linear::new(64, hidden, true, vb.pp("hidden"))?;
            Ok(Sequential::default().add(first).add(Relu).add(Linear::new(hidden, 10, true, vb.pp("out"))?))
        }))
    }
}

fn main() -> anyhow::Result<()> {
    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(2000), ..Default::default() }).open()?;
    let builder = |arch: &str| {
        Trainer::builder(NarrowHeads(Mlp { dims: vec![784, 64, 64, 10], flatten: true }))
            .strategy(Interlock::width(2)) // stage 0 follows the head of stage 1, stages 1 and 2 the last stage
            .stages(3)
            .heads(HeadsConfig { arch: Some(arch.to_owned()), ..Default::default() })
            .optimizer(OptimizerConfig { lr: 0.02, ..Default::default() })
            .epochs(4)
    };
    let refused = builder("wide").build().err().map(|error| error.to_string());
    assert!(refused.is_some_and(|error| error.contains("write narrowN, such as narrow16")));

    let mut trainer = builder("narrow16").build()?;
    assert!(trainer.stages()[1].names.contains(&"aux.1.hidden.weight".to_owned()));
    let report = trainer.fit(data.split())?;
    for stage in &report.stages[1..] {
        println!("head {}: accuracy {:.3}", stage.index, stage.accuracy.unwrap_or_default());
        assert!(stage.accuracy > Some(0.6), "a tenth would be chance");
    }
    Ok(())
}

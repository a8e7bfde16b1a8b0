//! A head of one's own, with a loss of its own.
//!
//! What one learns:
//! - A model decides what its head descriptions (`heads.arch`) mean: here `narrow16` is a perceptron with 16 hidden units.
//! - Heads may be made of any layers; these come from `interlock_backends`, with hand-written gradients.
//! - A [`Loss`] gives a score and its gradient. One head may have another loss than the rest; gradients cross boundaries all the same.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use candle_core::{D, DType, Tensor};
use interlock::{
    Error, Interlock, Loss, ModelSpec, Result, Score, Scored, Sequential, Targets, Trainer, Unit,
    optimizer::OptimizerConfig,
    stage::HeadsConfig,
    trainer::{Split, TrainEvent},
};
use interlock_backends::{
    cpu,
    layers::{Linear, Relu},
};
use interlock_models::{
    Mlp,
    data::config::{DataConfig, FashionMnistMini},
};

const WIDTH: usize = 64;
const CLASSES: usize = 10;

/// A perceptron whose heads are described as `narrowN`: to `N` hidden units, and from there to the classes.
struct NarrowHeads(Mlp);

impl ModelSpec for NarrowHeads {
    fn units(&self) -> Result<Vec<Unit>> {
        self.0.units()
    }

    fn head(&self, unit: usize, arch: &str) -> Result<Unit> {
        let hidden = arch.strip_prefix("narrow").and_then(|n| n.parse().ok()).filter(|&n: &usize| n > 0);
        let hidden = hidden.ok_or_else(|| {
            Error::invalid("heads.arch", format!("{arch:?} behind unit {unit}"), "write narrowN, such as narrow16")
        })?;
        Ok(Unit::new("", [CLASSES], move |vb| {
            let first = Linear::new(WIDTH, hidden, true, vb.pp("hidden"))?;
            Ok(Sequential::default().and(first).and(Relu).and(Linear::new(hidden, CLASSES, true, vb.pp("out"))?))
        })
        .with_flops(2.0 * (hidden * (WIDTH + CLASSES)) as f64))
    }
}

/// `Σ (y - onehot(t))² / 2`: the squared distance to the class, whose gradient `y - onehot(t)` never grows beyond the error.
struct SquaredDistance;

impl SquaredDistance {
    /// `y - onehot(t)`, shaped as `output` `(B, C)`.
    fn error(output: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let classes = Tensor::arange(0, output.dim(D::Minus1)? as u32, output.device())?;
        let one_hot = classes.unsqueeze(0)?.broadcast_eq(&targets.unsqueeze(1)?)?.to_dtype(DType::F32)?;
        Ok((output - one_hot)?)
    }
}

impl Loss for SquaredDistance {
    fn count(&self, targets: &Tensor) -> Result<f64> {
        Ok(targets.elem_count() as f64)
    }

    fn score(&self, output: &Tensor, targets: &Targets) -> Result<Scored> {
        let loss = f64::from((Self::error(output, targets)?.sqr()?.sum_all()?.to_scalar::<f32>()?) / 2.0);
        let right = output.argmax(D::Minus1)?.eq(&**targets)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
        Ok(Score { loss, count: self.count(targets)?, correct: Some(f64::from(right)) }.into())
    }

    fn differentiate(&self, output: &Tensor, targets: &Targets, total: f64) -> Result<(Scored, Tensor)> {
        Ok((self.score(output, targets)?, (Self::error(output, targets)? / total)?))
    }
}

fn main() -> anyhow::Result<()> {
    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(2000), ..Default::default() }).open()?;
    let model = || NarrowHeads(Mlp { dims: vec![784, WIDTH, WIDTH, CLASSES], flatten: true });
    let heads = |arch: &str| HeadsConfig { arch: Some(arch.to_owned()), ..Default::default() };

    let refused = Trainer::builder(model()).stages(3).heads(heads("wide")).build().err().map(|e| e.to_string());
    println!("{}\n", refused.as_deref().unwrap_or_default());
    assert!(refused.is_some_and(|error| error.contains("narrow16")));

    let mut trainer = Trainer::builder(model())
        .strategy(Interlock::width(2)) // stage 0 follows head 1, stages 1 and 2 the last
        .devices([cpu(0), cpu(1)])
        .stages(3)
        .heads(heads("narrow16"))
        .head_loss(1, SquaredDistance)
        .optimizer(OptimizerConfig { lr: 0.02, ..Default::default() })
        .epochs(4)
        .callback(|event: &TrainEvent<'_>| {
            if let TrainEvent::Evaluated { steps, evaluation, .. } = event {
                let scores = evaluation.heads().iter().map(|h| format!("head {} {:.3}", h.stage, h.score.mean_loss()));
                println!("step {steps:>4}: losses {}", scores.collect::<Vec<_>>().join(", "));
            }
        })
        .build()?;
    let names = &trainer.stages()[1].names;
    assert!(names.contains(&"aux.1.hidden.weight".to_owned()), "{names:?}");

    let report = trainer.fit(Split { train: &*data.train, validation: Some(&*data.validation) })?;
    for stage in report.stages.iter().filter(|stage| stage.accuracy.is_some()) {
        println!("head {}: accuracy {:.3}", stage.index, stage.accuracy.unwrap_or_default());
        assert!(stage.accuracy > Some(0.6), "a tenth would be chance");
    }
    Ok(())
}

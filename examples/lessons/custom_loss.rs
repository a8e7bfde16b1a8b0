//! Your own loss, for all heads or for a single one.
//!
//! - A [`Loss`] counts the targets of a batch, and gives a score and the gradient with respect to a head's output.
//! - One head may have another loss than the others; gradients cross boundaries all the same.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use candle_core::{D, DType, Tensor};
use interlock::{Interlock, Loss, OptimizerConfig, PendingScore, Result, Score, Targets, Trainer};
use interlock_models::{
    Mlp,
    data::config::{DataConfig, FashionMnistMini},
};

/// `Σ (y - onehot(t))² / 2`: the squared distance to the class.
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

    fn score(&self, output: &Tensor, targets: &Targets) -> Result<PendingScore> {
        let loss = f64::from((Self::error(output, targets)?.sqr()?.sum_all()?.to_scalar::<f32>()?) / 2.0);
        let right = output.argmax(D::Minus1)?.eq(&**targets)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
        Ok(Score { loss, count: self.count(targets)?, correct: Some(f64::from(right)) }.into())
    }

    fn differentiate(&self, output: &Tensor, targets: &Targets, total: f64) -> Result<(PendingScore, Tensor)> {
        Ok((self.score(output, targets)?, (Self::error(output, targets)? / total)?))
    }
}

fn main() -> anyhow::Result<()> {
    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(2000), ..Default::default() }).open()?;
    let builder = Trainer::builder(Mlp { dims: vec![784, 64, 64, 10], flatten: true }).stages(3);
    let optimizer = OptimizerConfig { lr: 0.02, ..Default::default() };
    // Stage 0 follows the head of stage 1, which has the own loss; stages 1 and 2 follow the last stage's cross-entropy.
    let builder = builder.strategy(Interlock::width(2)).head_loss(1, SquaredDistance).optimizer(optimizer).epochs(4);
    let report = builder.build()?.fit(data.split())?;
    for stage in &report.stages[1..] {
        let (loss, accuracy) = (stage.loss.unwrap_or_default(), stage.accuracy.unwrap_or_default());
        println!("head {}: loss {loss:.3}, accuracy {accuracy:.3}", stage.index);
        assert!(accuracy > 0.6, "a tenth would be chance");
    }
    Ok(())
}

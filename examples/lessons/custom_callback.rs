//! Your own callback: it sees every evaluation and ends the run when the accuracy is good enough.
//!
//! - A [`Callback`] gets every event of a run, on the thread that called `fit`. It may end the run, with a reason that the report names.
//! - A callback with a state implements `state` and `restore`, so that a continued run goes on with it.
//! - A closure over events is a callback that only watches. [`EarlyStopping`](interlock::EarlyStopping) is a ready-made callback.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use interlock::{Callback, Control, OptimizerConfig, Result, TrainEvent, Trainer};
use interlock_models::{
    Mlp,
    data::config::{DataConfig, FashionMnistMini},
};

/// Ends a run at the first evaluation with this accuracy.
struct GoodEnough {
    accuracy: f64,
}

impl Callback for GoodEnough {
    fn on_event(&mut self, event: &TrainEvent<'_>) -> Result<Control> {
        let TrainEvent::Evaluated { steps, evaluation, .. } = event else { return Ok(Control::Continue) };
        let accuracy = evaluation.last().score.accuracy().unwrap_or_default();
        println!("after {steps} steps: accuracy {accuracy:.3}");
        Ok(match accuracy >= self.accuracy {
            true => Control::Stop(format!("an accuracy of {accuracy:.3} is good enough")),
            false => Control::Continue,
        })
    }
}

fn main() -> anyhow::Result<()> {
    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(2000), ..Default::default() }).open()?;
    let mut trainer = Trainer::builder(Mlp { dims: vec![784, 64, 10], flatten: true })
        .stages(2)
        .optimizer(OptimizerConfig { lr: 0.02, ..Default::default() })
        .epochs(100)
        .eval_every(20)
        .callback(GoodEnough { accuracy: 0.7 })
        .build()?;
    let report = trainer.fit(data.split())?;
    println!("ended after {} steps: {}", report.steps, report.stop_reason.as_deref().unwrap_or_default());
    assert!(report.stop_reason.is_some_and(|reason| reason.contains("good enough")));
    assert!(report.final_scores.accuracy >= Some(0.7) && report.steps < 1000);
    Ok(())
}

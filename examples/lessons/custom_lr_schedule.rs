//! Your own learning-rate schedule: a function of the step.
//!
//! - The function returns the factor by which the optimizer's base rate is multiplied. It must be pure: every stage calls it.
//! - Base rates of single stages and parameter groups are multiplied by the same factor.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use std::sync::mpsc::channel;

use interlock::{OptimizerConfig, StageOverride, TrainEvent, Trainer};
use interlock_models::{
    Mlp,
    data::config::{DataConfig, FashionMnistMini},
};

const STEPS: u64 = 60;

/// Rises for 10 steps, then falls in a straight line to 0 at the end.
fn triangle(step: u64) -> f64 {
    let (up, down) = ((step + 1) as f64 / 10.0, (STEPS - step) as f64 / (STEPS - 10) as f64);
    up.min(down).min(1.0)
}

fn main() -> anyhow::Result<()> {
    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(2000), ..Default::default() }).open()?;
    let slower = StageOverride { stage: 1, lr: Some(0.02), ..Default::default() };
    let (rates, seen) = channel();
    let mut trainer = Trainer::builder(Mlp { dims: vec![784, 64, 10], flatten: true })
        .stages(2)
        .optimizer(OptimizerConfig { lr: 0.04, stages: vec![slower], ..Default::default() })
        .lr_schedule(triangle)
        .steps(STEPS)
        .callback(move |event: &TrainEvent<'_>| {
            if let TrainEvent::StepDone { step, stages, .. } = event {
                // Sending fails only when the receiver is dropped, at the end of the lesson.
                let _ = rates.send((*step, stages[0].updated.lr, stages[1].updated.lr));
            }
        })
        .build()?;
    let report = trainer.fit(data.split())?;
    drop(trainer);
    for (step, first, second) in seen {
        if step % 10 == 9 {
            println!("step {step}: learning rates {first:.4} and {second:.4}");
        }
        assert_eq!((first, second), (0.04 * triangle(step), 0.02 * triangle(step)));
    }
    assert!(report.final_scores.accuracy > Some(0.6), "a tenth would be chance");
    Ok(())
}

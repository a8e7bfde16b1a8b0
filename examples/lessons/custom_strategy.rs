//! Your own strategy: which loss trains which stage.
//!
//! - A [`Strategy`] names, for each stage, the stage whose loss trains it: `follows(k) ≥ k`. The rest is computed from it: which gradients
//!   cross which boundary, which stages relay them, which heads are needed.
//! - The gradient plan prints as a table, before anything is trained.
//! - Heads that no stage follows are not built, unless the trainer is built with `probes()`.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use interlock::{GradientPlan, OptimizerConfig, Result, Strategy, Trainer};
use interlock_backends::cpu;
use interlock_models::{
    Mlp,
    data::config::{DataConfig, FashionMnistMini},
};

/// Heads at a few exits only: every stage is trained by the next exit, or by the last stage.
#[derive(Debug)]
struct Exits(Vec<usize>);

impl Strategy for Exits {
    fn plan(&self, stages: usize) -> Result<GradientPlan> {
        let next_exit = |k| self.0.iter().copied().filter(|&exit| exit >= k).min().unwrap_or(stages - 1);
        GradientPlan::new((0..stages).map(next_exit).collect())
    }
}

fn main() -> anyhow::Result<()> {
    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(2000), ..Default::default() }).open()?;
    let mut trainer = Trainer::builder(Mlp { dims: vec![784, 64, 64, 64, 64, 10], flatten: true })
        .strategy(Exits(vec![1]))
        .devices([cpu(0), cpu(1)])
        .units_per_stage([1, 1, 1, 2]) // four stages; a device may hold several
        .optimizer(OptimizerConfig { lr: 0.02, ..Default::default() })
        .epochs(4)
        .build()?;
    println!("{}\n", trainer.plan());
    let plan = trainer.plan();
    assert_eq!((0..4).map(|k| plan.farthest(k)).collect::<Vec<_>>(), [1, 1, 3, 3]);
    assert!(plan.losses_sent_back(2).is_empty(), "no gradient crosses the exit, so neither half waits for the other");

    let report = trainer.fit(data.split())?;
    for stage in &report.stages {
        match stage.accuracy {
            Some(accuracy) => println!("stage {}: accuracy {accuracy:.3}", stage.index),
            None => println!("stage {}: no head", stage.index),
        }
    }
    assert_eq!(report.stages.iter().map(|s| s.accuracy.is_some()).collect::<Vec<_>>(), [false, true, false, true]);
    assert!(report.final_scores.accuracy.is_some_and(|accuracy| accuracy > 0.65), "a tenth would be chance");
    Ok(())
}

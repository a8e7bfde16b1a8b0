//! Your own strategy with weights: each stage follows several losses at once.
//!
//! - `GradientPlan::weighted` takes, for each stage, pairs of a loss and its weight. Losses have the numbers of their stages.
//! - The stage adds up the gradients of these losses and runs one backward pass over the sum.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use interlock::{GradientPlan, OptimizerConfig, Result, Strategy, Trainer};
use interlock_backends::cpu;
use interlock_models::{
    Mlp,
    data::config::{DataConfig, FashionMnistMini},
};

/// Every stage follows its own loss, and the last one with a weight that grows towards the last stage.
#[derive(Debug)]
struct TowardsTheEnd;

impl Strategy for TowardsTheEnd {
    fn plan(&self, stages: usize) -> Result<GradientPlan> {
        let last = stages - 1;
        let follows = |k: usize| match k {
            _ if k == last => vec![(last, 1.0)],
            _ => vec![(k, 0.5), (last, 0.5 * (k + 1) as f64 / stages as f64)],
        };
        GradientPlan::weighted((0..stages).map(follows).collect())
    }
}

fn main() -> anyhow::Result<()> {
    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(2000), ..Default::default() }).open()?;
    let mut trainer = Trainer::builder(Mlp { dims: vec![784, 64, 64, 64, 10], flatten: true })
        .strategy(TowardsTheEnd)
        .devices([cpu(0), cpu(1)])
        .stages(4)
        .optimizer(OptimizerConfig { lr: 0.02, ..Default::default() })
        .epochs(4)
        .build()?;
    println!("{}\n", trainer.plan());
    assert_eq!(trainer.plan().follows(1), [(1, 0.5), (3, 0.25)]);
    let report = trainer.fit(data.split())?;
    println!("accuracy {:.3}", report.final_scores.accuracy.unwrap_or_default());
    assert!(report.final_scores.accuracy.is_some_and(|accuracy| accuracy > 0.65), "a tenth would be chance");
    Ok(())
}

//! One interlock width for each stage.
//!
//! - With width `N`, stage `k` of `K` is trained by the loss of stage `min(k + N - 1, K - 1)`. Widths may differ: here stage 0 follows the loss of
//!   stage 2, and stage 1 its own. Stage 1 relays the gradient of loss 2 to stage 0, and does not train by it.
//! - A stage makes only the backward passes that some stage needs: the plan counts them.
//! - The same seed gives the same initial values under every strategy, so strategies can be compared.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use interlock::{EndToEnd, Interlock, Local, OptimizerConfig, Strategy, Trainer};
use interlock_backends::cpu;
use interlock_models::{
    Mlp,
    data::config::{DataConfig, FashionMnistMini},
};

fn main() -> anyhow::Result<()> {
    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(2000), ..Default::default() }).open()?;

    let mixed = Interlock::widths([3, 1, 2, 1]);
    let plan = mixed.plan(4)?;
    println!("{plan}\n");
    assert_eq!(plan.farthest(1), 1, "stage 1 is trained by its own head");
    assert_eq!(plan.losses_sent_back(1), [2], "and sends the loss of stage 2 back to stage 0");

    let strategies: [(&str, Box<dyn Strategy>); 4] = [
        ("local (1)", Box::new(Local)),
        ("widths 3 1 2 1", Box::new(mixed)),
        ("pairwise (2)", Box::new(Interlock::width(2))),
        ("end-to-end (4)", Box::new(EndToEnd)),
    ];
    println!("{:<16} {:>15} {:>8} {:>10}", "strategy", "backward passes", "loss", "accuracy");
    for (name, strategy) in strategies {
        let mut trainer = Trainer::builder(Mlp { dims: vec![784, 64, 64, 64, 10], flatten: true })
            .strategy_boxed(strategy)
            .devices([cpu(0), cpu(1)])
            .stages(4)
            .optimizer(OptimizerConfig { lr: 0.02, ..Default::default() })
            .epochs(3)
            .build()?;
        let backward_passes = trainer.plan().backward_passes();
        let report = trainer.fit(data.split())?;
        let accuracy = report.final_scores.accuracy.unwrap_or_default();
        println!(
            "{name:<16} {backward_passes:>15} {:>8.3} {accuracy:>10.3}",
            report.final_scores.loss.unwrap_or(f64::NAN)
        );
        assert!(accuracy > 0.6, "a tenth would be chance");
    }
    Ok(())
}

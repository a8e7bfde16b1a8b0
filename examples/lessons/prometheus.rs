//! Metrics for Prometheus: a recorder is all that a program needs.
//!
//! - Stages and trainer tell the `metrics` crate what they do, whoever records it. `interlock::tools::metrics` lists all metrics.
//! - Install the recorder before the trainer is built. `PrometheusBuilder::with_http_listener` serves the same text to a Prometheus server.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use interlock::{OptimizerConfig, Trainer};
use interlock_models::{
    Mlp,
    data::config::{DataConfig, FashionMnistMini},
};
use metrics_exporter_prometheus::PrometheusBuilder;

fn main() -> anyhow::Result<()> {
    let recorder = PrometheusBuilder::new().install_recorder()?;
    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(1000), ..Default::default() }).open()?;
    let mut trainer = Trainer::builder(Mlp { dims: vec![784, 64, 10], flatten: true })
        .stages(2)
        .optimizer(OptimizerConfig { lr: 0.02, ..Default::default() })
        .steps(20)
        .build()?;
    trainer.fit(data.train)?;

    let text = recorder.render();
    let steps: Vec<&str> = text.lines().filter(|line| line.starts_with("interlock_steps_total")).collect();
    println!("{}", steps.join("\n"));
    assert!(!steps.is_empty() && steps.iter().all(|line| line.ends_with(" 20")), "{steps:?}");
    assert!(text.contains("interlock_stage_info"), "what each stage is");
    Ok(())
}

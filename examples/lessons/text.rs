//! A small language model on Shakespeare, cut into three stages, and what it writes.
//!
//! - Text is data like any other: windows of tokens, each with the tokens that come next. Perplexity can be read at every head.
//! - A predictor takes tokens and no targets: the text is written with it.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use candle_core::{D, Device, IndexOp, Tensor};
use interlock::{ClipConfig, ClipScope, Interlock, OptimizerConfig, OptimizerKind, Trainer};
use interlock_models::{Transformer, data::DataKind, data::config::DataConfig, data::config::Shakespeare};

const CONTEXT: usize = 32;

fn main() -> anyhow::Result<()> {
    let config = Shakespeare { context: CONTEXT, limit: Some(4000), validation_fraction: 0.02, ..Default::default() };
    let data = DataConfig::Shakespeare(config).open()?;
    let DataKind::Text { vocab, .. } = data.description.kind else { anyhow::bail!("plays are text") };
    let model = Transformer::preset("gpt-nano", vocab.len(), CONTEXT)?;

    let mut trainer = Trainer::builder(model)
        .strategy(Interlock::width(2))
        .probes()
        .stages(3)
        .optimizer(OptimizerConfig { kind: OptimizerKind::Adamw, lr: 3e-3, ..Default::default() })
        .clip(ClipConfig { max_norm: 1.0, scope: ClipScope::Stage })
        .batch_size(16)
        .steps(250)
        .build()?;
    println!("{}\n", trainer.plan());
    let before = trainer.evaluate(data.validation.clone())?;
    trainer.fit(data.train)?;
    let after = trainer.evaluate(data.validation)?;
    for (before, after) in before.heads().iter().zip(after.heads()) {
        let (before, perplexity) = (before.score.perplexity(), after.score.perplexity());
        println!("head {}: perplexity {before:.1} before, {perplexity:.1} after", after.stage);
        assert!(perplexity < 20.0, "guessing alone gives about {}", vocab.len());
    }

    let mut predictor = trainer.predictor()?;
    let mut tokens = vocab.encode("ROMEO. ")?;
    for _ in 0..60 {
        let window = &tokens[tokens.len().saturating_sub(CONTEXT)..];
        let logits = predictor.predict(Tensor::from_slice(window, (1, window.len()), &Device::Cpu)?)?;
        tokens.push(logits.i((0, window.len() - 1))?.argmax(D::Minus1)?.to_scalar()?); // the likeliest next one
    }
    let text = vocab.decode(&tokens)?;
    println!("\n{text}");
    assert!(text.starts_with("ROMEO. ") && text.chars().count() == 67);
    Ok(())
}

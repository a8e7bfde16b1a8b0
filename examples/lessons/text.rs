//! A small language model on Shakespeare, cut into three stages, and a sample of what it writes.
//!
//! What one learns:
//! - Text is data like any other: windows of tokens, each with the tokens that come next.
//! - Every head predicts the next token, so perplexity can be read at every depth.
//! - A predictor takes tokens and no targets: the text is written with it.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use candle_core::{Device, IndexOp, Tensor};
use candle_nn::ops::softmax;
use interlock::{
    Interlock, Predictor, Result, Trainer,
    optimizer::{
        OptimizerConfig, OptimizerKind,
        clip::{ClipConfig, ClipScope},
    },
    random::Key,
    trainer::Split,
};
use interlock_backends::cpu;
use interlock_models::{
    Transformer,
    data::{
        DataKind, Vocabulary,
        config::{DataConfig, Shakespeare},
    },
};
use rand::RngExt;

const CONTEXT: usize = 32;

fn main() -> anyhow::Result<()> {
    let config = Shakespeare { context: CONTEXT, limit: Some(4000), validation_fraction: 0.02, ..Default::default() };
    let data = DataConfig::Shakespeare(config).open()?;
    let DataKind::Text { vocab, .. } = data.description.kind else { anyhow::bail!("plays are text") };
    let model = Transformer::preset("gpt-nano", vocab.len(), CONTEXT)?;

    let mut trainer = Trainer::builder(model)
        .strategy(Interlock::width(2))
        .probes()
        .devices([cpu(0), cpu(1)])
        .stages(3)
        .optimizer(OptimizerConfig { kind: OptimizerKind::Adamw, lr: 3e-3, ..Default::default() })
        .clip(ClipConfig { max_norm: 1.0, scope: ClipScope::Stage })
        .batch_size(16)
        .steps(250)
        .build()?;
    println!("{}\n", trainer.plan());
    let before = trainer.evaluate(&*data.validation)?;
    trainer.fit(Split { train: &*data.train, validation: None })?;
    let after = trainer.evaluate(&*data.validation)?;
    for (before, after) in before.heads().iter().zip(after.heads()) {
        let (before, perplexity) = (before.score.perplexity(), after.score.perplexity());
        println!("head {}: perplexity {before:.1} before, {perplexity:.1} after", after.stage);
        assert!(perplexity < 20.0, "guessing alone gives about {}", vocab.len());
    }

    let text = write(&mut trainer.predictor()?, &vocab, "ROMEO. ", 160)?;
    println!("\n{text}");
    assert_eq!(text.chars().count(), 160 + "ROMEO. ".len());
    Ok(())
}

/// `prompt` and `count` further tokens, each drawn from what the model expects after the last `CONTEXT`.
fn write(predictor: &mut Predictor, vocab: &Vocabulary, prompt: &str, count: usize) -> Result<String> {
    let mut tokens = vocab.encode(prompt)?;
    let mut stream = Key::new(0).named("sample").stream();
    for _ in 0..count {
        let window = &tokens[tokens.len().saturating_sub(CONTEXT)..];
        let inputs = Tensor::from_slice(window, (1, window.len()), &Device::Cpu)?;
        let logits = predictor.predict(inputs)?;
        let expected = softmax(&logits.i((0, window.len() - 1))?, 0)?.to_vec1::<f32>()?;
        // The first token at which the sum of probabilities passes a random number.
        let (mut sum, at) = (0.0, stream.random::<f32>());
        let next = expected.iter().position(|p| {
            sum += p;
            sum > at
        });
        tokens.push(next.unwrap_or(expected.len() - 1) as u32);
    }
    vocab.decode(&tokens)
}

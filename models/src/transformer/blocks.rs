//! The units of a Transformer.

use candle_nn::{Init, VarBuilder};
use interlock::{Result, Sequential, Unit};
use interlock_backends::layers::{
    CausalSelfAttention, Dropout, FusedLinear, LayerNorm, Linear, Residual, TokenAndPosition,
};

use super::Transformer;
use crate::flops;

/// The standard deviation of initial weights.
const DEVIATION: f64 = 0.02;

/// The distribution of initial weights: N(0, 0.02).
pub(super) const INITIAL_WEIGHT: Init = Init::Randn { mean: 0.0, stdev: DEVIATION };

const ZERO: Init = Init::Const(0.0);

/// Returns the first unit: `wte`, `wpe` and dropout.
pub(super) fn embeddings(model: &Transformer) -> Unit {
    let Transformer { vocab, context, sequence, width, dropout, .. } = *model;
    Unit::new("transformer", [sequence, width], move |vb| {
        let mut layers = Sequential::default().add(TokenAndPosition::new(vocab, context, width, vb.clone())?);
        push_dropout(&mut layers, dropout, &vb, "drop");
        Ok(layers)
    })
    .with_flops(flops::SIMPLE * flops::elements(&[sequence, width]))
}

/// Returns a block: `x + attn(ln_1(x))`, then `x + mlp(ln_2(x))`.
pub(super) fn block(model: &Transformer, name: String) -> Unit {
    let Transformer { sequence, width, heads, layers, dropout, .. } = *model;
    let projection = DEVIATION / (2.0 * layers as f64).sqrt();
    Unit::new(name, [sequence, width], move |vb| {
        let attention = attention(width, heads, dropout, projection, &vb)?;
        let perceptron = perceptron(width, dropout, projection, &vb)?;
        Ok(Sequential::default()
            .add(Residual::new(Box::new(attention), None))
            .add(Residual::new(Box::new(perceptron), None)))
    })
    .with_flops(block_flops(sequence, width, heads))
}

fn attention(
    width: usize,
    heads: usize,
    dropout: f64,
    projection: f64,
    vb: &VarBuilder<'static>,
) -> Result<CausalSelfAttention> {
    let norm = LayerNorm::new(width, vb.pp("ln_1"))?;
    Ok(CausalSelfAttention::new(width, heads, dropout, DEVIATION, projection, vb.pp("attn"))?.of(norm))
}

fn perceptron(width: usize, dropout: f64, projection: f64, vb: &VarBuilder<'static>) -> Result<Sequential> {
    let norm = LayerNorm::new(width, vb.pp("ln_2"))?;
    let widen = Linear::with_init(width, 4 * width, INITIAL_WEIGHT, Some(ZERO), vb.pp("mlp.c_fc"))?;
    let narrow = Init::Randn { mean: 0.0, stdev: projection };
    let narrow = Linear::with_init(4 * width, width, narrow, Some(ZERO), vb.pp("mlp.c_proj"))?;
    let mut layers = Sequential::default().add(FusedLinear::norm(norm, widen)).add(FusedLinear::gelu(narrow));
    push_dropout(&mut layers, dropout, vb, "mlp.dropout");
    Ok(layers)
}

/// Adds dropout, keyed by its full name, if the probability is not 0.
fn push_dropout(layers: &mut Sequential, probability: f64, vb: &VarBuilder<'static>, name: &str) {
    if probability > 0.0 {
        layers.push(Dropout::new(probability, vb.pp(name).prefix()));
    }
}

fn block_flops(sequence: usize, width: usize, heads: usize) -> f64 {
    let elements = flops::elements(&[sequence, width]);
    let projections = flops::linear(sequence, width, 3 * width) + flops::linear(sequence, width, width);
    let perceptron = 2.0 * flops::linear(sequence, width, 4 * width) + flops::GELU * 4.0 * elements;
    projections + flops::attention(sequence, width, heads) + perceptron + 2.0 * (flops::NORM + flops::SIMPLE) * elements
}

/// Returns the last unit: `transformer.ln_f` and the projection to logits, `lm_head` or, if tied, `transformer.wte`.
pub(super) fn output(model: &Transformer) -> Unit {
    let Transformer { vocab, sequence, width, tied, .. } = *model;
    Unit::new("", [sequence, vocab], move |vb| {
        let norm = LayerNorm::new(width, vb.pp("transformer.ln_f"))?;
        let weight = vb.pp(if tied { "transformer.wte" } else { "lm_head" });
        Ok(Sequential::default().add(norm).add(Linear::with_init(width, vocab, INITIAL_WEIGHT, None, weight)?))
    })
    .with_flops(flops::NORM * flops::elements(&[sequence, width]) + flops::linear(sequence, width, vocab))
}

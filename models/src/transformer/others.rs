//! Weights of other programs' GPT-2: Hugging Face's `transformers`, and nanoGPT.

use candle_core::{DType, Tensor};
use interlock::{Adapted, Result, Weights};

use super::Transformer;

/// The token embedding.
pub(crate) const TOKENS: &str = "transformer.wte.weight";
/// The output projection.
pub(crate) const OUTPUT: &str = "lm_head.weight";
/// The first part of all names but the output projection's.
const BODY: &str = "transformer.";
/// Linear layers of a block, which `transformers` stores transposed (its `Conv1D`).
const LINEAR: [&str; 4] = ["attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"];
/// Masks of attention, which some versions store in each block.
const MASKS: [&str; 2] = ["attn.bias", "attn.masked_bias"];

/// Returns the name of a block's tensor within its block: `attn.bias` for `transformer.h.3.attn.bias`.
fn in_block(name: &str) -> Option<&str> {
    let (number, rest) = name.strip_prefix("transformer.h.")?.split_once('.')?;
    number.bytes().all(|b| b.is_ascii_digit()).then_some(rest)
}

/// Returns weights of GPT-2 under the names of `model`, each linear layer as `(outputs, inputs)`, with a matrix of their own for an output projection that
/// is not tied.
pub(super) fn adapt(model: &Transformer, mut weights: Weights) -> Result<Adapted> {
    let mut notes = Vec::new();
    if weights.contains("wte.weight") && !weights.contains(TOKENS) {
        let is_whole = |name: &str| name == OUTPUT || name.starts_with("aux.");
        let rename = |name: &str| if is_whole(name) { name.to_owned() } else { format!("{BODY}{name}") };
        weights = weights.renamed(|name| Some(rename(name)))?;
        notes.push(format!("names without {BODY:?} got it"));
    }
    let is_mask = |name: &str| in_block(name).is_some_and(|name| MASKS.contains(&name));
    weights = weights.renamed(|name| (!is_mask(name)).then(|| name.to_owned()))?;
    if is_transposed(&weights) {
        for (name, tensor) in weights.clone().iter().filter(|(name, _)| is_linear(name)) {
            if tensor.rank() == 2 {
                weights.insert(name, tensor.t()?.contiguous()?);
            }
        }
        notes.push("matrices of Conv1D were transposed".to_owned());
    }
    match (model.tied, weights.get(TOKENS).cloned(), weights.get(OUTPUT)) {
        (false, Some(tokens), None) => {
            weights.insert(OUTPUT, tokens);
            notes.push(format!("{OUTPUT} is tied to {TOKENS} there, and starts as a copy of it"));
        }
        (true, Some(tokens), Some(output)) if are_equal(&tokens, output)? => drop(weights.remove(OUTPUT)),
        _ => {}
    }
    Ok(Adapted { weights, notes })
}

fn is_linear(name: &str) -> bool {
    in_block(name).is_some_and(|name| LINEAR.contains(&name))
}

/// Returns the weights of a Transformer as `transformers` names and stores them.
pub(crate) fn to_conv1d(weights: &Weights) -> Result<Weights> {
    let mut transposed = weights.clone();
    for (name, tensor) in weights.iter().filter(|(name, _)| is_linear(name)) {
        transposed.insert(name, tensor.t()?.contiguous()?);
    }
    Ok(transposed)
}

/// Returns whether linear layers are stored as `(inputs, outputs)`. Those that are no squares tell.
fn is_transposed(weights: &Weights) -> bool {
    let widens = |name: &str, times: usize| {
        let found = weights.iter().filter(|(other, _)| in_block(other) == Some(name));
        found.map(|(_, tensor)| matches!(*tensor.dims(), [inputs, outputs] if outputs == times * inputs)).next()
    };
    widens("attn.c_attn.weight", 3).or_else(|| widens("mlp.c_fc.weight", 4)).unwrap_or(false)
}

fn are_equal(a: &Tensor, b: &Tensor) -> Result<bool> {
    let differ = || a.ne(b)?.max_all()?.to_dtype(DType::U32)?.to_scalar::<u32>();
    Ok(a.dims() == b.dims() && a.dtype() == b.dtype() && differ()? == 0)
}

//! Decoder-only Transformers such as GPT-2.
//!
//! Radford et al.: *Language Models are Unsupervised Multitask Learners*, 2019: learned position embeddings, layer norm before attention and
//! perceptron, tanh-approximated GELU, causal attention.

mod blocks;
pub(crate) mod others;

use interlock::{Adapted, Error, ModelSpec, Result, Unit, Weights};

use crate::{
    checks,
    heads::{self, HeadSettings},
};

/// A Transformer language model: units are the embeddings, each block, and the final norm with the output projection.
///
/// Inputs are tokens `(B, S)` of `u32` with `S ≤ context`, outputs logits `(B, S, vocab)`. Parameters are named as nanoGPT's:
/// `transformer.wte`, `transformer.wpe`, `transformer.h.{i}.{ln_1, attn.c_attn, attn.c_proj, ln_2, mlp.c_fc, mlp.c_proj}`,
/// `transformer.ln_f`, `lm_head`. Initial values are drawn from N(0, 0.02) for weights, and from N(0, 0.02 / √(2·layers)) for those of projections
/// back into the residual stream; they are 0 for biases, and 1 and 0 for norms.
#[derive(Clone, Debug, PartialEq)]
pub struct Transformer {
    /// Number of different tokens.
    pub vocab: usize,
    /// The longest sequence: the number of rows of the position embedding.
    pub context: usize,
    /// The number of tokens of an example, at most `context`. Shapes and costs of units are given for this length.
    pub sequence: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Attention heads; divides `width`.
    pub heads: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Probability of dropping an embedding, an attention weight or a value added to the residual stream.
    pub dropout: f64,
    /// Whether the output projection uses the token embedding's weight, `transformer.wte.weight`. The first and the last unit must
    /// then be on one stage.
    pub tied: bool,
}

/// The shape of a Transformer, under its usual name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// The name, such as `gpt2`.
    pub name: &'static str,
    /// Number of blocks.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Vocabulary and context, if the name implies them.
    pub text: Option<(usize, usize)>,
}

const fn small(name: &'static str, layers: usize, heads: usize, width: usize) -> Preset {
    Preset { name, layers, heads, width, text: None }
}

const fn gpt2(name: &'static str, layers: usize, heads: usize, width: usize) -> Preset {
    Preset { name, layers, heads, width, text: Some((50_257, 1024)) }
}

/// The sizes of GPT-2, and small ones for tests and examples.
pub const PRESETS: [Preset; 7] = [
    small("gpt-nano", 3, 3, 48),
    small("gpt-micro", 4, 4, 128),
    small("gpt-mini", 6, 6, 192),
    gpt2("gpt2", 12, 12, 768),
    gpt2("gpt2-medium", 24, 16, 1024),
    gpt2("gpt2-large", 36, 20, 1280),
    gpt2("gpt2-xl", 48, 25, 1600),
];

/// Returns the preset called `name`.
///
/// # Errors
/// If there is no such preset. The message lists all of them.
pub fn preset(name: &str) -> Result<&'static Preset> {
    checks::preset("model.preset", name, &PRESETS, |p| p.name)
}

impl Transformer {
    /// Returns the preset called `name` for sequences of `context` tokens from a vocabulary of `vocab`, with untied weights and without dropout.
    ///
    /// # Errors
    /// If there is no such preset.
    pub fn preset(name: &str, vocab: usize, context: usize) -> Result<Self> {
        let Preset { layers, heads, width, .. } = *preset(name)?;
        Ok(Self { vocab, context, sequence: context, width, heads, layers, dropout: 0.0, tied: false })
    }

    fn check(&self) -> Result<()> {
        for (key, extent) in [
            ("model.vocab", self.vocab),
            ("model.context", self.context),
            ("model.sequence", self.sequence),
            ("model.width", self.width),
            ("model.heads", self.heads),
        ] {
            checks::extent(key, extent)?;
        }
        checks::depth("model.layers", self.layers)?;
        checks::probability("model.dropout", self.dropout)?;
        if !self.width.is_multiple_of(self.heads) {
            return Err(Error::invalid(
                "model.width",
                format!("{} is not divisible by the {} attention heads", self.width, self.heads),
                format!("use {} or another multiple of heads", self.width.next_multiple_of(self.heads)),
            ));
        }
        if self.sequence > self.context {
            return Err(Error::invalid(
                "model.context",
                format!("examples have {} tokens, but the model has positions for {}", self.sequence, self.context),
                format!("set it to {} or more, or cut the text into shorter examples", self.sequence),
            ));
        }
        Ok(())
    }
}

impl ModelSpec for Transformer {
    fn units(&self) -> Result<Vec<Unit>> {
        self.check()?;
        let mut units = Vec::with_capacity(self.layers + 2);
        units.push(blocks::embeddings(self));
        units.extend((0..self.layers).map(|index| blocks::block(self, format!("transformer.h.{index}"))));
        let last = blocks::output(self);
        units.push(if self.tied { last.tied_to(0) } else { last });
        Ok(units)
    }

    fn head(&self, unit: usize, arch: &str) -> Result<Unit> {
        // Not from the list of all units, since a long model may ask for the head of each.
        let settings = HeadSettings {
            outputs: self.vocab,
            fc_weight: Some(blocks::INITIAL_WEIGHT),
            block: Some(blocks::block(self, String::new())),
        };
        self.check()?;
        let output = [self.sequence, if unit == self.layers + 1 { self.vocab } else { self.width }];
        let output = (unit < self.layers + 2).then_some(&output[..]);
        heads::of_output(output, (unit, self.layers + 2), arch, &settings)
    }

    fn default_head(&self) -> &str {
        "ln_fc"
    }

    /// Takes the weights of GPT-2 in Hugging Face's `transformers`, whose names lack `transformer.` or whose matrices are transposed, and of nanoGPT.
    /// An output projection that is not tied starts as a copy of the token embedding if it is not given.
    fn adapt(&self, weights: Weights) -> Result<Adapted> {
        others::adapt(self, weights)
    }
}
